//! What a node may do: its own Node, lease and pods, and what those pods refer to.

use serde_json::Value;
use tandem_api::{ApiError, INGRESS_CLASS_ANNOTATION, INGRESS_CONTROLLER, Key, Object, volumes};
use tandem_store::Consistency;

use super::{Attributes, Decision};
use crate::core::Core;

const NODE_LEASES: &str = "kube-node-lease";

/// What every node may read: what it takes to run pods and their network.
const READABLE: &[(&str, &str)] = &[
    ("", "nodes"),
    ("", "pods"),
    ("", "services"),
    ("", "endpoints"),
    ("", "namespaces"),
    ("discovery.k8s.io", "endpointslices"),
    ("node.k8s.io", "runtimeclasses"),
    ("networking.k8s.io", "networkpolicies"),
    ("networking.k8s.io", "ingresses"),
    ("networking.k8s.io", "ingressclasses"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];

/// What every node may create: word about itself, and questions about those who call it.
const CREATABLE: &[(&str, &str)] = &[
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("certificates.k8s.io", "certificatesigningrequests"),
];

/// Where a node's request leads: some answers need the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Allowed,
    /// If the pod of that name runs on the node.
    OwnPod,
    /// If a pod on the node, or for Secrets an Ingress that all nodes serve, refers to the object of that name.
    Referenced,
    /// If its folder is on the node, or the claim that has it is one of a pod on the node.
    Volume,
    /// If its folder is on the node.
    OwnVolume,
    /// If it is an autoscaler that lets its workload go to zero: any node may have a request for it.
    Woken,
    Denied,
}

pub(super) async fn decide(core: &Core, node: &str, asked: &Attributes) -> Result<Decision, ApiError> {
    let allowed = match rule(node, asked) {
        Rule::Allowed => true,
        Rule::Denied => false,
        Rule::OwnPod => own_pod(core, node, asked).await?,
        Rule::Referenced => referenced(core, node, asked).await? || served(core, asked).await?,
        Rule::Volume | Rule::OwnVolume => volume(core, node, asked).await?,
        Rule::Woken => woken(core, asked).await?,
    };
    if allowed {
        return Ok(Decision::Allowed);
    }
    let why = match rule(node, asked) {
        Rule::OwnPod | Rule::Referenced | Rule::Volume | Rule::OwnVolume => {
            format!("no relationship found between node '{node}' and this object")
        }
        Rule::Woken => "nodes may only wake workloads whose autoscaler has minReplicas: 0".to_owned(),
        Rule::Allowed | Rule::Denied => String::new(),
    };
    Ok(Decision::Denied(why))
}

fn rule(node: &str, asked: &Attributes) -> Rule {
    if asked.is_path() {
        return Rule::Denied;
    }
    let what = (asked.group.as_str(), asked.resource.as_str());
    let own = asked.name.as_deref() == Some(node);
    let when = |condition: bool| if condition { Rule::Allowed } else { Rule::Denied };
    match (asked.verb.as_str(), what) {
        ("get" | "list" | "watch", what) if READABLE.contains(&what) => Rule::Allowed,
        ("create", what) if CREATABLE.contains(&what) => Rule::Allowed,
        ("update" | "patch", ("" | "events.k8s.io", "events")) => Rule::Allowed,
        ("get" | "list" | "watch", ("certificates.k8s.io", "certificatesigningrequests")) => Rule::Allowed,
        // That the Node has the node's own name is seen when its body is read: admission/node.rs.
        ("create", ("", "nodes")) => Rule::Allowed,
        ("update" | "patch", ("", "nodes" | "nodes/status")) => when(own),
        ("create", ("coordination.k8s.io", "leases")) => when(asked.namespace.as_deref() == Some(NODE_LEASES)),
        ("get" | "update" | "patch" | "delete", ("coordination.k8s.io", "leases")) => {
            when(own && asked.namespace.as_deref() == Some(NODE_LEASES))
        }
        ("create" | "delete" | "get" | "update" | "patch", ("storage.k8s.io", "csinodes")) => when(own),
        ("delete" | "update" | "patch", ("", "pods" | "pods/status")) if asked.name.is_some() => {
            let status_or_deletion = asked.verb == "delete" || asked.resource == "pods/status";
            if status_or_deletion { Rule::OwnPod } else { Rule::Denied }
        }
        ("create", ("", "pods/eviction")) => Rule::OwnPod,
        ("get" | "list" | "watch", ("", "configmaps" | "secrets")) if asked.name.is_some() => Rule::Referenced,
        ("get", ("", "persistentvolumeclaims")) if asked.name.is_some() => Rule::Referenced,
        ("get", ("", "persistentvolumes")) if asked.name.is_some() => Rule::Volume,
        ("list" | "watch", ("", "persistentvolumes")) => {
            when(asked.labels.as_deref() == Some(&format!("{}={node}", volumes::NODE_LABEL)))
        }
        // That only the finalizer of its folder goes is seen when the body is read: admission/node.rs.
        ("patch", ("", "persistentvolumes")) if asked.name.is_some() => Rule::OwnVolume,
        // That nothing but the mark of the wake changes is seen when the body is read: admission/node.rs.
        ("patch", ("autoscaling", "horizontalpodautoscalers")) if asked.name.is_some() => Rule::Woken,
        ("get", ("", "serviceaccounts")) | ("create", ("", "serviceaccounts/token")) => Rule::Referenced,
        _ => Rule::Denied,
    }
}

async fn own_pod(core: &Core, node: &str, asked: &Attributes) -> Result<bool, ApiError> {
    let Some(name) = &asked.name else { return Ok(false) };
    let pods = core.row("", "v1", "pods")?;
    let found = core.objects.get(&pods, asked.namespace.as_deref(), name, Consistency::Any).await?;
    // A pod that is gone is told as 404 by the verb.
    Ok(found.is_none_or(|pod| pod.str_at(&["spec", "nodeName"]) == Some(node)))
}

/// Whether the volume's folder is on the node; to read it, a pod there with its claim is enough.
async fn volume(core: &Core, node: &str, asked: &Attributes) -> Result<bool, ApiError> {
    let Some(name) = &asked.name else { return Ok(false) };
    let row = core.row("", "v1", "persistentvolumes")?;
    // A volume that is gone is told as 404 by the verb.
    let Some(volume) = core.objects.get(&row, None, name, Consistency::Any).await? else { return Ok(true) };
    if is_home(&volume, node) {
        return Ok(true);
    }
    if rule(node, asked) == Rule::OwnVolume {
        return Ok(false);
    }
    let claim = |key: &str| volume.str_at(&["spec", "claimRef", key]).map(str::to_owned);
    let (namespace, name) = (claim("namespace"), claim("name"));
    let claim = Attributes::resource("get", "", "persistentvolumeclaims", namespace.as_deref(), name.as_deref());
    referenced(core, node, &claim).await
}

async fn woken(core: &Core, asked: &Attributes) -> Result<bool, ApiError> {
    let Some(name) = &asked.name else { return Ok(false) };
    let row = core.row("autoscaling", "v2", "horizontalpodautoscalers")?;
    let found = core.objects.get(&row, asked.namespace.as_deref(), name, Consistency::Any).await?;
    // One that is gone is told as 404 by the verb.
    Ok(found.is_none_or(|autoscaler| autoscaler.i64_at(&["spec", "minReplicas"]) == Some(0)))
}

fn is_home(volume: &Object, node: &str) -> bool {
    volume.str_at(&["spec", "csi", "driver"]) == Some(volumes::PROVISIONER)
        && volume.labels().any(|(key, value)| key == volumes::NODE_LABEL && value == node)
}

/// Whether a pod on the node, in the object's namespace, names the object.
async fn referenced(core: &Core, node: &str, asked: &Attributes) -> Result<bool, ApiError> {
    let (Some(namespace), Some(name)) = (asked.namespace.as_deref(), asked.name.as_deref()) else { return Ok(false) };
    let pods = core.row("", "v1", "pods")?;
    let prefix = Key::prefix("", "pods", Some(namespace));
    for at in [Consistency::Any, Consistency::Linearizable] {
        let page = core.objects.page(&prefix, at, None, 0).await?;
        for stored in &page.items {
            // Most pods name neither; finding that out without reading their JSON keeps this cheap with many pods.
            if !mentions(&stored.value, node) || !mentions(&stored.value, name) {
                continue;
            }
            let pod = core.objects.read(&pods, stored)?;
            if pod.str_at(&["spec", "nodeName"]) == Some(node) && refers(&pod, &asked.resource, name) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether an Ingress of the class that nodes serve names the Secret for TLS, and it is for that: who may write
/// Ingresses opens no other Secret to nodes. One that is not there yet may be waited for.
async fn served(core: &Core, asked: &Attributes) -> Result<bool, ApiError> {
    let (Some(namespace), Some(name)) = (asked.namespace.as_deref(), asked.name.as_deref()) else { return Ok(false) };
    if asked.resource != "secrets" {
        return Ok(false);
    }
    let ingresses = core.row("networking.k8s.io", "v1", "ingresses")?;
    let classes = core.row("networking.k8s.io", "v1", "ingressclasses")?;
    let secrets = core.row("", "v1", "secrets")?;
    let secret = core.objects.get(&secrets, Some(namespace), name, Consistency::Any).await?;
    if secret.is_some_and(|secret| secret.str_at(&["type"]) != Some("kubernetes.io/tls")) {
        return Ok(false);
    }
    let prefix = Key::prefix("networking.k8s.io", "ingresses", Some(namespace));
    for at in [Consistency::Any, Consistency::Linearizable] {
        let page = core.objects.page(&prefix, at, None, 0).await?;
        for stored in page.items.iter().filter(|stored| mentions(&stored.value, name)) {
            let ingress = core.objects.read(&ingresses, stored)?;
            let Some(class) = class_of(&ingress).filter(|_| has_certificate(&ingress, name)) else { continue };
            let class = core.objects.get(&classes, None, class, at).await?;
            if class.is_some_and(|class| class.str_at(&["spec", "controller"]) == Some(INGRESS_CONTROLLER)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn class_of(ingress: &Object) -> Option<&str> {
    let annotated = || ingress.str_at(&["metadata", "annotations", INGRESS_CLASS_ANNOTATION]);
    ingress.str_at(&["spec", "ingressClassName"]).or_else(annotated)
}

fn has_certificate(ingress: &Object, secret: &str) -> bool {
    let tls = ingress.at(&["spec", "tls"]).and_then(Value::as_array);
    tls.into_iter().flatten().any(|tls| tls.get("secretName").and_then(Value::as_str) == Some(secret))
}

fn mentions(value: &[u8], word: &str) -> bool {
    !word.is_empty() && value.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Whether a pod's spec names the ConfigMap, Secret, claim or ServiceAccount.
fn refers(pod: &Object, resource: &str, name: &str) -> bool {
    let keys: &[&str] = match resource {
        "configmaps" => &["configMap", "configMapRef", "configMapKeyRef"],
        "secrets" => &["secret", "secretRef", "secretKeyRef", "imagePullSecrets", "nodePublishSecretRef"],
        "persistentvolumeclaims" => &["persistentVolumeClaim"],
        _ => return pod.str_at(&["spec", "serviceAccountName"]).unwrap_or("default") == name,
    };
    pod.at(&["spec"]).is_some_and(|spec| names(spec, keys, name))
}

fn names(value: &Value, keys: &[&str], name: &str) -> bool {
    match value {
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| (keys.contains(&key.as_str()) && is_called(value, name)) || names(value, keys, name)),
        Value::Array(list) => list.iter().any(|value| names(value, keys, name)),
        _ => false,
    }
}

/// References carry the name as `name` or, in volumes, as `secretName` or `claimName`; some stand in lists.
fn is_called(reference: &Value, name: &str) -> bool {
    if let Value::Array(list) = reference {
        return list.iter().any(|reference| is_called(reference, name));
    }
    ["name", "secretName", "claimName"].iter().any(|key| reference.get(key).and_then(Value::as_str) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(verb: &str, group: &str, resource: &str, namespace: &str, name: &str, expected: Rule) {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (namespace, name) = (some(namespace), some(name));
        let asked = Attributes::resource(verb, group, resource, namespace.as_deref(), name.as_deref());
        assert_eq!(rule("n1", &asked), expected, "{verb} {resource} {name:?}");
    }

    #[test]
    fn a_node_has_its_own_things() {
        check("patch", "", "nodes/status", "", "n1", Rule::Allowed);
        check("patch", "", "nodes/status", "", "n2", Rule::Denied);
        check("delete", "", "nodes", "", "n1", Rule::Denied);
        check("update", "coordination.k8s.io", "leases", "kube-node-lease", "n1", Rule::Allowed);
        check("update", "coordination.k8s.io", "leases", "kube-node-lease", "n2", Rule::Denied);
        check("create", "coordination.k8s.io", "leases", "default", "", Rule::Denied);
        check("patch", "", "pods/status", "a", "p", Rule::OwnPod);
        check("patch", "", "pods", "a", "p", Rule::Denied);
        check("create", "", "pods", "a", "", Rule::Denied);
        check("list", "", "secrets", "a", "", Rule::Denied);
        check("get", "", "secrets", "a", "s", Rule::Referenced);
        check("create", "", "serviceaccounts/token", "a", "default", Rule::Referenced);
        check("watch", "discovery.k8s.io", "endpointslices", "", "", Rule::Allowed);
        check("create", "", "events", "a", "", Rule::Allowed);
        check("create", "apps", "deployments", "a", "", Rule::Denied);
        check("get", "", "persistentvolumeclaims", "a", "c", Rule::Referenced);
        check("list", "", "persistentvolumeclaims", "a", "", Rule::Denied);
        check("get", "", "persistentvolumes", "", "v", Rule::Volume);
        check("patch", "", "persistentvolumes", "", "v", Rule::OwnVolume);
        check("delete", "", "persistentvolumes", "", "v", Rule::Denied);
        check("patch", "autoscaling", "horizontalpodautoscalers", "a", "h", Rule::Woken);
        check("patch", "autoscaling", "horizontalpodautoscalers/status", "a", "h", Rule::Denied);
        check("update", "autoscaling", "horizontalpodautoscalers", "a", "h", Rule::Denied);
        check("list", "autoscaling", "horizontalpodautoscalers", "a", "", Rule::Denied);
        check("patch", "apps", "deployments/scale", "a", "d", Rule::Denied);
    }

    #[test]
    fn a_node_watches_the_volumes_with_its_folders() {
        let asked = |labels: Option<&str>| Attributes {
            labels: labels.map(str::to_owned),
            ..Attributes::resource("watch", "", "persistentvolumes", None, None)
        };
        assert_eq!(rule("n1", &asked(Some("tandem.dev/node=n1"))), Rule::Allowed);
        for other in [None, Some("tandem.dev/node=n2"), Some("tandem.dev/node"), Some("tandem.dev/node!=n1")] {
            assert_eq!(rule("n1", &asked(other)), Rule::Denied, "{other:?}");
        }
    }

    #[test]
    fn pods_refer_to_what_they_mount() {
        let pod = serde_json::json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "files"}},
                {"name": "p", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "ca"}}]}},
            ],
            "containers": [{"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
        }});
        let pod = Object::from_value(pod).unwrap();
        for secret in ["pull", "files", "env"] {
            assert!(refers(&pod, "secrets", secret), "{secret}");
        }
        assert!(!refers(&pod, "secrets", "ca") && !refers(&pod, "secrets", "a"));
        assert!(refers(&pod, "configmaps", "ca"));
        assert!(refers(&pod, "persistentvolumeclaims", "data") && !refers(&pod, "persistentvolumeclaims", "files"));
        assert!(refers(&pod, "serviceaccounts/token", "default"));
        assert!(!refers(&pod, "serviceaccounts/token", "other"));
    }
}
