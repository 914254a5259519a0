use serde_json::{Value, json};
use tandem_api::{NO_CONTAINERS_TAINT, Object, TRACE_ANNOTATION, WASM_RUNTIME_CLASS};

use super::Request;
use crate::core::Core;

/// How long a pod stays on a node that is not ready or not reachable, unless it says otherwise.
const EVICTION_SECONDS: i64 = 300;
const FAILING: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The default tolerations of Kubernetes, for those taints that the pod says nothing about.
pub(super) fn tolerations(pod: &mut Object) {
    for key in FAILING {
        let tolerates = |toleration: &Value| {
            let text = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
            let this = text("key") == key || text("key").is_empty();
            this && matches!(text("effect"), "NoExecute" | "")
        };
        if !pod.array_at(&["spec", "tolerations"]).iter().any(tolerates) {
            let seconds = EVICTION_SECONDS;
            push(pod, json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds }));
        }
    }
}

fn push(pod: &mut Object, toleration: Value) {
    let mut tolerations = pod.array_at(&["spec", "tolerations"]).to_vec();
    tolerations.push(toleration);
    pod.set(&["spec", "tolerations"], tolerations);
}

/// The request's trace, for the pod's Events and the node's logs.
pub(super) fn trace(request: &Request<'_>, pod: &mut Object) {
    if pod.annotations().all(|(key, _)| key != TRACE_ANNOTATION) {
        pod.set(&["metadata", "annotations", TRACE_ANNOTATION], request.trace);
    }
}

/// A pod whose images are all known to be components takes the light path, and nodes without containers will do.
pub(super) async fn wasm_class(core: &Core, pod: &mut Object) {
    let named = pod.str_at(&["spec", "runtimeClassName"]).is_some_and(|name| !name.is_empty());
    let Some(kinds) = core.images.as_ref().filter(|_| !named) else { return };
    let mut images: Vec<String> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| pod.array_at(&["spec", list]))
        .map(|container| container.get("image").and_then(Value::as_str).unwrap_or_default().to_owned())
        .collect();
    images.sort();
    images.dedup();
    if images.is_empty() {
        return;
    }
    for image in &images {
        if !kinds.is_component(image).await {
            return;
        }
    }
    pod.set(&["spec", "runtimeClassName"], WASM_RUNTIME_CLASS);
}

/// Lets a pod of components onto nodes that run nothing else.
pub(super) fn tolerate_no_containers(pod: &mut Object) {
    let present = pod
        .array_at(&["spec", "tolerations"])
        .iter()
        .any(|toleration| toleration.get("key").and_then(Value::as_str) == Some(NO_CONTAINERS_TAINT));
    if !present {
        push(pod, json!({ "key": NO_CONTAINERS_TAINT, "operator": "Exists", "effect": "NoSchedule" }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &Value, expected: &[(&str, i64)]) {
        let mut pod = Object::from_value(json!({ "spec": { "tolerations": given } })).unwrap();
        tolerations(&mut pod);
        let found: Vec<(&str, i64)> = pod
            .array_at(&["spec", "tolerations"])
            .iter()
            .filter_map(|one| Some((one["key"].as_str()?, one["tolerationSeconds"].as_i64()?)))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn failing_nodes_are_left_after_five_minutes_by_default() {
        check(&json!([]), &[(FAILING[0], 300), (FAILING[1], 300)]);
        let own = json!([{ "key": FAILING[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 }]);
        check(&own, &[(FAILING[0], 5), (FAILING[1], 300)]);
        check(&json!([{ "operator": "Exists" }]), &[]);
    }
}
