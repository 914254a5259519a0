use serde_json::{Value, json};
use tandem_api::{ApiError, Object};

use super::{Operation, Request};

/// Labels by which workloads are kept apart; a node may not choose them for itself.
const RESTRICTED_LABELS: [&str; 1] = ["node-restriction.kubernetes.io/"];

/// What a node may write beyond what its name allows: a Node of its own name, and no labels that isolate workloads.
pub(super) fn restrict(request: &Request<'_>, object: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let Some(node) = request.identity.node_name() else { return Ok(()) };
    if request.operation == Operation::Delete || !request.is("", "nodes") {
        return Ok(());
    }
    if object.name() != node {
        return Err(request
            .forbidden(object.name(), format!("node {node:?} is not allowed to modify node {:?}", object.name())));
    }
    let had = |label: &str, value: &str| old.is_some_and(|old| old.labels().any(|mine| mine == (label, value)));
    for (label, value) in object.labels() {
        let restricted = label.split('/').next().unwrap_or_default();
        let restricted = RESTRICTED_LABELS.iter().any(|suffix| format!("{restricted}/").ends_with(suffix));
        if restricted && !had(label, value) {
            let why = format!("is not allowed to set the following labels: {label}");
            return Err(request.forbidden(object.name(), why));
        }
    }
    // Taints keep workloads off a node; taking one away is the administrator's or a controller's part.
    if let Some(old) = old
        && request.subresource.is_empty()
        && object.at(&["spec", "taints"]) != old.at(&["spec", "taints"])
    {
        return Err(request.forbidden(object.name(), format!("node {node:?} is not allowed to modify taints")));
    }
    Ok(())
}

/// A new node takes no pods until its controller has seen it ready.
pub(super) fn taint(node: &mut Object) {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    const EFFECT: &str = "NoSchedule";
    let mut taints = node.array_at(&["spec", "taints"]).to_vec();
    let text = |taint: &Value, key: &str| taint.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !taints.iter().any(|taint| text(taint, "key") == NOT_READY && text(taint, "effect") == EFFECT) {
        taints.push(json!({ "key": NOT_READY, "effect": EFFECT }));
        node.set(&["spec", "taints"], taints);
    }
}
