//! The compiled-in rule table: what the parts of the control plane may do, and everybody, whatever roles there are.

use tandem_api::{Identity, groups};

use super::{Attributes, rbac::PolicyRule};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Group(&'static str),
    User(&'static str),
    /// `system:serviceaccount:kube-system:NAME-controller`.
    Controller(&'static str),
}

/// One row: these verbs on these resources. `*` stands for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    subject: Subject,
    pub(crate) verbs: &'static [&'static str],
    pub(crate) groups: &'static [&'static str],
    pub(crate) resources: &'static [&'static str],
    /// Only there; everywhere if `None`.
    pub(crate) namespace: Option<&'static str>,
    /// Paths that are not resources; a trailing `*` matches what follows.
    pub(crate) paths: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const CHANGE: &[&str] = &["get", "list", "watch", "update", "patch"];
const WRITE: &[&str] = &["create", "update", "patch"];
const ALL: &[&str] = &["create", "get", "list", "watch", "update", "patch", "delete", "deletecollection"];
const CREATE: &[&str] = &["create"];

const CORE: &[&str] = &[""];
const EVENTS: &[&str] = &["", "events.k8s.io"];
const ANY: &[&str] = &["*"];
const DEFINITIONS: &[&str] = &["apiextensions.k8s.io"];

const fn rule(
    subject: Subject,
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Rule {
    Rule { subject, verbs, groups, resources, namespace: None, paths: &[] }
}

const fn paths(subject: Subject, verbs: &'static [&'static str], paths: &'static [&'static str]) -> Rule {
    Rule { subject, verbs, groups: &[], resources: &[], namespace: None, paths }
}

const fn within(namespace: &'static str, mut rule: Rule) -> Rule {
    rule.namespace = Some(namespace);
    rule
}

const EVERYONE: Subject = Subject::Group(groups::UNAUTHENTICATED);
const AUTHENTICATED: Subject = Subject::Group(groups::AUTHENTICATED);
const BOOTSTRAPPERS: Subject = Subject::Group(groups::BOOTSTRAPPERS);
const SCHEDULER: Subject = Subject::User("system:kube-scheduler");

const HEALTH: &[&str] = &["/livez", "/livez/*", "/readyz", "/readyz/*", "/healthz", "/healthz/*", "/version"];
const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/openapi",
    "/openapi/*",
    "/version",
    "/.well-known/*",
    "/openid/*",
    "/v2",
    "/v2/*",
];

const RULES: &[Rule] = &[
    paths(EVERYONE, &["get", "head"], HEALTH),
    paths(AUTHENTICATED, &["get", "head"], HEALTH),
    // What may be pushed and pulled is decided behind /v2/.
    paths(AUTHENTICATED, &["get", "head", "post", "put", "patch", "delete"], DISCOVERY),
    rule(AUTHENTICATED, CREATE, &["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
    rule(AUTHENTICATED, CREATE, &["authentication.k8s.io"], &["selfsubjectreviews"]),
    rule(BOOTSTRAPPERS, &["create", "get", "list", "watch"], &["certificates.k8s.io"], &["certificatesigningrequests"]),
    paths(Subject::Group(groups::MEMBER_BOOTSTRAPPERS), &["post"], &["/tandem/v1/members"]),
    // What stands in kube-public is meant for everybody who is known.
    within("kube-public", rule(AUTHENTICATED, READ, CORE, &["configmaps"])),
    // The scheduler.
    rule(
        SCHEDULER,
        READ,
        ANY,
        &[
            "nodes",
            "pods",
            "services",
            "namespaces",
            "persistentvolumes",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "replicasets",
            "statefulsets",
            "poddisruptionbudgets",
            "storageclasses",
            "csinodes",
            "csidrivers",
            "csistoragecapacities",
            "volumeattachments",
            "priorityclasses",
            "runtimeclasses",
            "resourceclaims",
            "resourceslices",
            "deviceclasses",
        ],
    ),
    rule(SCHEDULER, &["delete"], CORE, &["pods"]),
    rule(SCHEDULER, CREATE, CORE, &["pods/binding", "bindings"]),
    rule(SCHEDULER, &["update", "patch"], CORE, &["pods/status"]),
    // The node that a claim waits for.
    rule(SCHEDULER, &["patch"], CORE, &["persistentvolumeclaims"]),
    rule(SCHEDULER, WRITE, EVENTS, &["events"]),
    // Controllers, one block each.
    rule(Subject::Controller("deployment"), CHANGE, &["apps"], &["deployments"]),
    rule(
        Subject::Controller("deployment"),
        &["update", "patch"],
        &["apps"],
        &["deployments/status", "deployments/finalizers"],
    ),
    rule(Subject::Controller("deployment"), ALL, &["apps"], &["replicasets"]),
    rule(Subject::Controller("deployment"), CHANGE, CORE, &["pods"]),
    rule(Subject::Controller("deployment"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("replicaset"), CHANGE, &["apps"], &["replicasets"]),
    rule(
        Subject::Controller("replicaset"),
        &["update", "patch"],
        &["apps"],
        &["replicasets/status", "replicasets/finalizers"],
    ),
    rule(Subject::Controller("replicaset"), ALL, CORE, &["pods"]),
    rule(Subject::Controller("replicaset"), READ, CORE, &["nodes"]),
    rule(Subject::Controller("replicaset"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("replication-controller"), CHANGE, CORE, &["replicationcontrollers"]),
    rule(
        Subject::Controller("replication-controller"),
        &["update", "patch"],
        CORE,
        &["replicationcontrollers/status", "replicationcontrollers/finalizers"],
    ),
    rule(Subject::Controller("replication-controller"), ALL, CORE, &["pods"]),
    rule(Subject::Controller("replication-controller"), READ, CORE, &["nodes"]),
    rule(Subject::Controller("replication-controller"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("job"), CHANGE, &["batch"], &["jobs"]),
    rule(Subject::Controller("job"), &["update", "patch"], &["batch"], &["jobs/status", "jobs/finalizers"]),
    rule(Subject::Controller("job"), ALL, CORE, &["pods"]),
    rule(Subject::Controller("job"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("ttl-after-finished"), &["get", "list", "watch", "delete"], &["batch"], &["jobs"]),
    rule(Subject::Controller("ttl-after-finished"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("cronjob"), CHANGE, &["batch"], &["cronjobs"]),
    rule(Subject::Controller("cronjob"), &["update", "patch"], &["batch"], &["cronjobs/status", "cronjobs/finalizers"]),
    rule(Subject::Controller("cronjob"), ALL, &["batch"], &["jobs"]),
    rule(Subject::Controller("cronjob"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("daemon-set"), CHANGE, &["apps"], &["daemonsets"]),
    rule(
        Subject::Controller("daemon-set"),
        &["update", "patch"],
        &["apps"],
        &["daemonsets/status", "daemonsets/finalizers"],
    ),
    rule(Subject::Controller("daemon-set"), ALL, &["apps"], &["controllerrevisions"]),
    rule(Subject::Controller("daemon-set"), ALL, CORE, &["pods"]),
    rule(Subject::Controller("daemon-set"), READ, CORE, &["nodes"]),
    rule(Subject::Controller("daemon-set"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("statefulset"), CHANGE, &["apps"], &["statefulsets"]),
    rule(
        Subject::Controller("statefulset"),
        &["update", "patch"],
        &["apps"],
        &["statefulsets/status", "statefulsets/finalizers"],
    ),
    rule(Subject::Controller("statefulset"), ALL, &["apps"], &["controllerrevisions"]),
    rule(Subject::Controller("statefulset"), ALL, CORE, &["pods"]),
    rule(
        Subject::Controller("statefulset"),
        &["create", "get", "list", "watch", "update", "patch"],
        CORE,
        &["persistentvolumeclaims"],
    ),
    rule(Subject::Controller("statefulset"), WRITE, EVENTS, &["events"]),
    rule(
        Subject::Controller("persistent-volume-binder"),
        &["create", "get", "list", "watch", "update"],
        CORE,
        &["persistentvolumes"],
    ),
    rule(Subject::Controller("persistent-volume-binder"), CHANGE, CORE, &["persistentvolumeclaims"]),
    rule(
        Subject::Controller("persistent-volume-binder"),
        &["update", "patch"],
        CORE,
        &["persistentvolumeclaims/status"],
    ),
    rule(Subject::Controller("persistent-volume-binder"), WRITE, EVENTS, &["events"]),
    rule(
        Subject::Controller("persistent-volume-reclaim"),
        &["get", "list", "watch", "update", "patch", "delete"],
        CORE,
        &["persistentvolumes"],
    ),
    rule(Subject::Controller("persistent-volume-reclaim"), &["update", "patch"], CORE, &["persistentvolumes/status"]),
    rule(Subject::Controller("persistent-volume-reclaim"), READ, CORE, &["persistentvolumeclaims", "nodes"]),
    rule(Subject::Controller("persistent-volume-reclaim"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("pvc-protection"), CHANGE, CORE, &["persistentvolumeclaims"]),
    rule(Subject::Controller("pvc-protection"), READ, CORE, &["pods"]),
    rule(Subject::Controller("disruption"), READ, &["policy"], &["poddisruptionbudgets"]),
    rule(Subject::Controller("disruption"), &["update", "patch"], &["policy"], &["poddisruptionbudgets/status"]),
    rule(Subject::Controller("disruption"), READ, ANY, &["pods", "replicasets", "deployments", "statefulsets"]),
    rule(Subject::Controller("disruption"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("horizontal-pod-autoscaler"), READ, &["autoscaling"], &["horizontalpodautoscalers"]),
    rule(
        Subject::Controller("horizontal-pod-autoscaler"),
        &["update", "patch"],
        &["autoscaling"],
        &["horizontalpodautoscalers/status"],
    ),
    rule(Subject::Controller("horizontal-pod-autoscaler"), &["get", "update"], ANY, &["*/scale"]),
    rule(Subject::Controller("horizontal-pod-autoscaler"), READ, CORE, &["pods"]),
    rule(Subject::Controller("horizontal-pod-autoscaler"), &["list"], &["metrics.k8s.io"], &["pods"]),
    rule(
        Subject::Controller("horizontal-pod-autoscaler"),
        &["get", "list"],
        &["custom.metrics.k8s.io", "external.metrics.k8s.io"],
        ANY,
    ),
    // The mark by which a node asked to wake a workload is taken off.
    rule(Subject::Controller("horizontal-pod-autoscaler"), &["patch"], &["autoscaling"], &["horizontalpodautoscalers"]),
    rule(Subject::Controller("horizontal-pod-autoscaler"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("endpoint"), READ, CORE, &["services", "pods", "nodes"]),
    rule(Subject::Controller("endpoint"), ALL, CORE, &["endpoints"]),
    rule(Subject::Controller("endpoint"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("endpointslice"), READ, CORE, &["services", "pods", "nodes", "endpoints"]),
    rule(Subject::Controller("endpointslice"), ALL, &["discovery.k8s.io"], &["endpointslices"]),
    rule(Subject::Controller("endpointslice"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("endpointslicemirroring"), READ, CORE, &["services", "endpoints"]),
    rule(Subject::Controller("endpointslicemirroring"), ALL, &["discovery.k8s.io"], &["endpointslices"]),
    // An owner that is waited for: blockOwnerDeletion.
    rule(Subject::Controller("endpointslicemirroring"), &["update"], CORE, &["endpoints/finalizers"]),
    rule(Subject::Controller("endpointslicemirroring"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("service"), READ, CORE, &["services", "nodes"]),
    rule(Subject::Controller("service"), &["update", "patch"], CORE, &["services/status"]),
    rule(Subject::Controller("service"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("namespace"), CHANGE, CORE, &["namespaces"]),
    rule(Subject::Controller("namespace"), &["update", "patch"], CORE, &["namespaces/finalize", "namespaces/status"]),
    rule(Subject::Controller("namespace"), &["get", "list", "watch", "delete", "deletecollection"], ANY, ANY),
    rule(Subject::Controller("resourcequota"), READ, ANY, ANY),
    rule(Subject::Controller("resourcequota"), &["update", "patch"], CORE, &["resourcequotas/status"]),
    rule(Subject::Controller("resourcequota"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("apiservice"), ALL, &["apiregistration.k8s.io"], &["apiservices"]),
    rule(Subject::Controller("apiservice"), &["update", "patch"], &["apiregistration.k8s.io"], &["apiservices/status"]),
    rule(Subject::Controller("customresourcedefinition"), CHANGE, DEFINITIONS, &["customresourcedefinitions"]),
    rule(
        Subject::Controller("customresourcedefinition"),
        &["update", "patch"],
        DEFINITIONS,
        &["customresourcedefinitions/status"],
    ),
    // The objects of kinds that go, whatever they are called.
    rule(Subject::Controller("customresourcedefinition"), &["list", "delete"], ANY, ANY),
    rule(Subject::Controller("customresourcedefinition"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("service-account"), READ, CORE, &["namespaces", "serviceaccounts"]),
    rule(Subject::Controller("service-account"), WRITE, CORE, &["serviceaccounts"]),
    rule(Subject::Controller("service-account"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("root-ca-cert-publisher"), READ, CORE, &["namespaces", "configmaps"]),
    rule(Subject::Controller("root-ca-cert-publisher"), WRITE, CORE, &["configmaps"]),
    rule(Subject::Controller("root-ca-cert-publisher"), WRITE, EVENTS, &["events"]),
    rule(
        Subject::Controller("generic-garbage-collector"),
        &["get", "list", "watch", "update", "patch", "delete"],
        ANY,
        ANY,
    ),
    rule(Subject::Controller("generic-garbage-collector"), WRITE, EVENTS, &["events"]),
    rule(
        Subject::Controller("node-lifecycle"),
        &["get", "list", "watch", "update", "patch", "delete"],
        CORE,
        &["nodes"],
    ),
    rule(Subject::Controller("node-lifecycle"), &["update", "patch"], CORE, &["nodes/status", "pods/status"]),
    rule(Subject::Controller("node-lifecycle"), &["get", "list", "watch", "delete"], CORE, &["pods"]),
    rule(Subject::Controller("node-lifecycle"), READ, &["coordination.k8s.io"], &["leases"]),
    rule(Subject::Controller("node-lifecycle"), READ, &["apps"], &["daemonsets"]),
    rule(Subject::Controller("node-lifecycle"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("node-ipam"), CHANGE, CORE, &["nodes"]),
    rule(Subject::Controller("node-ipam"), &["update", "patch"], CORE, &["nodes/status"]),
    rule(Subject::Controller("node-ipam"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("certificate-signer"), READ, &["certificates.k8s.io"], &["certificatesigningrequests"]),
    rule(
        Subject::Controller("certificate-signer"),
        &["delete"],
        &["certificates.k8s.io"],
        &["certificatesigningrequests"],
    ),
    rule(
        Subject::Controller("certificate-signer"),
        &["update", "patch"],
        &["certificates.k8s.io"],
        &["certificatesigningrequests/status", "certificatesigningrequests/approval"],
    ),
    rule(Subject::Controller("certificate-signer"), &["approve", "sign"], &["certificates.k8s.io"], &["signers"]),
    rule(Subject::Controller("certificate-signer"), CREATE, &["authorization.k8s.io"], &["subjectaccessreviews"]),
    rule(Subject::Controller("certificate-signer"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("pod-garbage-collector"), &["get", "list", "watch", "delete"], CORE, &["pods"]),
    rule(Subject::Controller("pod-garbage-collector"), &["update", "patch"], CORE, &["pods/status"]),
    rule(Subject::Controller("pod-garbage-collector"), READ, CORE, &["nodes"]),
    rule(Subject::Controller("pod-garbage-collector"), WRITE, EVENTS, &["events"]),
    rule(
        Subject::Controller("clusterrole-aggregation"),
        &["get", "list", "watch", "update", "patch", "escalate"],
        &["rbac.authorization.k8s.io"],
        &["clusterroles"],
    ),
    rule(Subject::Controller("ingress"), READ, &["networking.k8s.io"], &["ingresses", "ingressclasses"]),
    rule(Subject::Controller("ingress"), &["update", "patch"], &["networking.k8s.io"], &["ingresses/status"]),
    rule(Subject::Controller("ingress"), READ, CORE, &["nodes"]),
    rule(Subject::Controller("ingress"), WRITE, EVENTS, &["events"]),
    rule(Subject::Controller("event-ttl"), &["get", "list", "delete"], CORE, &["events"]),
    rule(Subject::Controller("member"), WRITE, EVENTS, &["events"]),
    // The image registry keeps what its images are called as objects.
    rule(Subject::Controller("image"), ALL, &["tandem.dev"], &["images"]),
];

impl Subject {
    fn is(self, identity: &Identity) -> bool {
        match self {
            // What everybody may do, those who say who they are may too.
            Subject::Group(group) => identity.in_group(group),
            Subject::User(user) => identity.name == user,
            Subject::Controller(name) => identity
                .name
                .strip_prefix("system:serviceaccount:kube-system:")
                .and_then(|rest| rest.strip_suffix("-controller"))
                .is_some_and(|mine| mine == name),
        }
    }
}

/// The rows that apply to an identity.
pub(crate) fn rules_of(identity: &Identity) -> impl Iterator<Item = &'static Rule> {
    RULES.iter().filter(|rule| rule.subject.is(identity))
}

pub(super) fn allow(identity: &Identity, asked: &Attributes) -> bool {
    rules_of(identity).any(|rule| rule.allows(asked))
}

impl Rule {
    fn allows(&self, asked: &Attributes) -> bool {
        let has = |list: &[&str], wanted: &str| list.iter().any(|mine| *mine == "*" || *mine == wanted);
        if !has(self.verbs, &asked.verb) {
            return false;
        }
        if asked.is_path() {
            return self.paths.iter().any(|path| covers(path, &asked.path));
        }
        let there = self.namespace.is_none_or(|namespace| asked.namespace.as_deref() == Some(namespace));
        there && has(self.groups, &asked.group) && self.has_resource(&asked.resource)
    }

    /// `*/scale` stands for that subresource of every resource.
    fn has_resource(&self, wanted: &str) -> bool {
        let subresource = wanted.split_once('/').map(|(_, subresource)| subresource);
        self.resources.iter().any(|mine| {
            *mine == "*" || *mine == wanted || mine.strip_prefix("*/").is_some_and(|mine| Some(mine) == subresource)
        })
    }
}

impl From<&Rule> for PolicyRule {
    fn from(rule: &Rule) -> PolicyRule {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        PolicyRule {
            verbs: owned(rule.verbs),
            api_groups: owned(rule.groups),
            resources: owned(rule.resources),
            resource_names: Vec::new(),
            paths: owned(rule.paths),
        }
    }
}

/// Whether a path is the pattern's, whose trailing `*` matches what follows.
pub(super) fn covers(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(identity: &Identity, verb: &str, resource: &str, namespace: Option<&str>, expected: bool) {
        let (group, resource) = resource.split_once(':').unwrap();
        let asked = Attributes::resource(verb, group, resource, namespace, None);
        assert_eq!(allow(identity, &asked), expected, "{} {verb} {group} {resource}", identity.name);
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let jane = Identity::user("jane", &[]);
        check(&jane, "get", ":pods", Some("default"), false);
        check(&jane, "list", ":secrets", None, false);
        check(&Identity::anonymous(), "get", ":pods", None, false);
        check(&jane, "create", "authorization.k8s.io:selfsubjectaccessreviews", None, true);
        check(&Identity::service_account("default", "deployment-controller"), "list", "apps:deployments", None, false);
    }

    #[test]
    fn controllers_have_their_rows() {
        let member = Identity::controller("member");
        check(&member, "create", ":events", Some("default"), true);
        check(&member, "list", ":secrets", None, false);
        let deployment = Identity::controller("deployment");
        check(&deployment, "create", "apps:replicasets", Some("a"), true);
        check(&deployment, "update", "apps:deployments/status", Some("a"), true);
        check(&deployment, "get", ":secrets", Some("a"), false);
        check(&Identity::controller("namespace"), "deletecollection", "x.y:anything", Some("a"), true);
        check(&Identity::controller("namespace"), "create", ":pods", Some("a"), false);
        check(&Identity::scheduler(), "create", ":pods/binding", Some("a"), true);
        check(&Identity::scheduler(), "create", ":pods", Some("a"), false);
        let autoscaler = Identity::controller("horizontal-pod-autoscaler");
        check(&autoscaler, "update", "apps:deployments/scale", Some("a"), true);
        check(&autoscaler, "update", "apps:deployments", Some("a"), false);
        check(&autoscaler, "update", "apps:deployments/status", Some("a"), false);
    }

    #[test]
    fn paths() {
        let path = |identity: &Identity, path: &str| {
            allow(identity, &Attributes { verb: "get".to_owned(), path: path.to_owned(), ..Attributes::default() })
        };
        let (nobody, jane) = (Identity::anonymous(), Identity::user("jane", &[]));
        assert!(path(&nobody, "/livez") && path(&nobody, "/readyz/ping") && path(&nobody, "/version"));
        assert!(!path(&nobody, "/api") && !path(&nobody, "/metrics") && !path(&nobody, "/livezz"));
        assert!(path(&jane, "/apis/apps/v1") && path(&jane, "/openapi/v3") && !path(&jane, "/metrics"));
    }
}
