//! The roles and bindings that every cluster begins with, by the names that Kubernetes gives them.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings>

use serde_json::{Value, json};

use super::rbac::GROUP;

const READ: &[&str] = &["get", "list", "watch"];
const CHANGE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const EVERY: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// Verbs on resources of one group.
type Grant = (&'static [&'static str], &'static str, &'static [&'static str]);

const VIEW: &[Grant] = &[
    (
        READ,
        "",
        &[
            "bindings",
            "configmaps",
            "endpoints",
            "events",
            "limitranges",
            "namespaces",
            "namespaces/status",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "pods/log",
            "pods/status",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "replicationcontrollers/status",
            "resourcequotas",
            "resourcequotas/status",
            "serviceaccounts",
            "services",
            "services/status",
        ],
    ),
    (READ, "discovery.k8s.io", &["endpointslices"]),
    (
        READ,
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ],
    ),
    (READ, "autoscaling", &["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
    (READ, "batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
    (READ, "policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
    (READ, "networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"]),
];

/// As the add-on that Kubernetes measures with brings it along.
const USAGE: &[Grant] = &[
    (READ, "metrics.k8s.io", &["nodes", "pods"]),
    (READ, "custom.metrics.k8s.io", &["*"]),
    (READ, "external.metrics.k8s.io", &["*"]),
];

const EDIT: &[Grant] = &[
    (READ, "", &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"]),
    (&["impersonate"], "", &["serviceaccounts"]),
    (CHANGE, "", &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"]),
    (&["create"], "", &["pods/eviction", "serviceaccounts/token"]),
    (
        CHANGE,
        "",
        &[
            "configmaps",
            "events",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "secrets",
            "serviceaccounts",
            "services",
            "services/proxy",
        ],
    ),
    (
        CHANGE,
        "apps",
        &[
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
    ),
    (CHANGE, "autoscaling", &["horizontalpodautoscalers"]),
    (CHANGE, "batch", &["cronjobs", "jobs"]),
    (CHANGE, "policy", &["poddisruptionbudgets"]),
    (CHANGE, "networking.k8s.io", &["ingresses", "networkpolicies"]),
    (EVERY, "coordination.k8s.io", &["leases"]),
];

const ADMIN: &[Grant] = &[
    (&["create"], "authorization.k8s.io", &["localsubjectaccessreviews"]),
    (EVERY, GROUP, &["rolebindings", "roles"]),
];

const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
const INFO: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
const MONITORING: &[&str] =
    &["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"];

fn resources(grants: &[Grant]) -> Vec<Value> {
    let rule =
        |(verbs, group, resources): &Grant| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
    grants.iter().map(rule).collect()
}

fn paths(paths: &[&str]) -> Vec<Value> {
    vec![json!({ "nonResourceURLs": paths, "verbs": ["get"] })]
}

fn role(name: &str, extra: &[String], rules: Vec<Value>) -> Value {
    let mut labels = json!({ "kubernetes.io/bootstrapping": "rbac-defaults" });
    for label in extra {
        labels[label] = "true".into();
    }
    json!({
        "kind": "ClusterRole", "apiVersion": format!("{GROUP}/v1"),
        "metadata": { "name": name, "labels": labels }, "rules": rules,
    })
}

/// A role that is the sum of all roles with a label. The rules are those that it begins with.
fn aggregate(name: &str, extra: &[String], rules: Vec<Value>) -> Value {
    let label = format!("{AGGREGATE}{name}");
    let mut role = role(name, extra, rules);
    role["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { label: "true" } }] });
    role
}

fn binding(name: &str, role: &str, groups: &[&str]) -> Value {
    let subject = |group: &&str| json!({ "kind": "Group", "apiGroup": GROUP, "name": group });
    json!({
        "kind": "ClusterRoleBinding", "apiVersion": format!("{GROUP}/v1"),
        "metadata": { "name": name, "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" } },
        "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": role },
        "subjects": groups.iter().map(subject).collect::<Vec<_>>(),
    })
}

pub(crate) fn roles() -> Vec<Value> {
    let to = |role: &str| format!("{AGGREGATE}{role}");
    let sum = |parts: &[&[Grant]]| parts.iter().flat_map(|grants| resources(grants)).collect::<Vec<_>>();
    let access = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    vec![
        role(
            "cluster-admin",
            &[],
            vec![
                json!({ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }),
                json!({ "nonResourceURLs": ["*"], "verbs": ["*"] }),
            ],
        ),
        role("system:aggregated-metrics-reader", &[to("view"), to("edit"), to("admin")], resources(USAGE)),
        role("system:aggregate-to-view", &[to("view")], resources(VIEW)),
        role("system:aggregate-to-edit", &[to("edit")], resources(EDIT)),
        role("system:aggregate-to-admin", &[to("admin")], resources(ADMIN)),
        aggregate("view", &[to("edit")], sum(&[VIEW, USAGE])),
        aggregate("edit", &[to("admin")], sum(&[EDIT, VIEW, USAGE])),
        aggregate("admin", &[], sum(&[ADMIN, EDIT, VIEW, USAGE])),
        role("system:discovery", &[], paths(DISCOVERY)),
        role("system:public-info-viewer", &[], paths(INFO)),
        role("system:monitoring", &[], paths(MONITORING)),
        role(
            "system:basic-user",
            &[],
            vec![
                json!({ "apiGroups": ["authorization.k8s.io"], "resources": access, "verbs": ["create"] }),
                json!({ "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"] }),
            ],
        ),
        role(
            "system:auth-delegator",
            &[],
            vec![
                json!({ "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] }),
                json!({ "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"] }),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            &[],
            paths(&[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ]),
        ),
    ]
}

pub(crate) fn bindings() -> Vec<Value> {
    use tandem_api::groups::{AUTHENTICATED, MASTERS, SERVICE_ACCOUNTS};
    vec![
        binding("cluster-admin", "cluster-admin", &[MASTERS]),
        binding("system:discovery", "system:discovery", &[AUTHENTICATED]),
        binding("system:basic-user", "system:basic-user", &[AUTHENTICATED]),
        binding("system:public-info-viewer", "system:public-info-viewer", &[AUTHENTICATED]),
        binding("system:monitoring", "system:monitoring", &["system:monitoring"]),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &[SERVICE_ACCOUNTS],
        ),
    ]
}
