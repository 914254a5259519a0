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
        return Err(request.forbidden(object.name(), format!("node {node:?} is not allowed to modify node {:?}", object.name())));
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
