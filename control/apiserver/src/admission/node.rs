use std::collections::BTreeSet;

use serde_json::{Value, json};
use tandem_api::{ApiError, Object, WAKE_ANNOTATION, volumes};

use super::{Operation, Request};

/// Labels by which workloads are kept apart; a node may not choose them for itself.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// The domains whose labels mean something to Kubernetes, and so are not a node's to choose.
const RESERVED: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// Those of them by which a kubelet says what its machine is.
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// A time with its fractions is half as long.
const MARK_MAX_BYTES: usize = 64;

/// What a node may write beyond what its name allows: of its Node no labels or taints that steer workloads, of its pods
/// no labels.
///
/// <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>
pub(super) fn restrict(request: &Request<'_>, object: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let Some(node) = request.identity.node_name() else { return Ok(()) };
    if request.operation == Operation::Delete {
        return Ok(());
    }
    if request.is("", "nodes") {
        return own_node(request, node, object, old);
    }
    match old {
        Some(old) if request.is("autoscaling", "horizontalpodautoscalers") => marked(request, node, object, old),
        // A patch of one that is not there yet would create it.
        None if request.is("autoscaling", "horizontalpodautoscalers") => {
            Err(request.forbidden(object.name(), format!("node {node:?} can not create autoscalers")))
        }
        Some(old) if request.is("", "persistentvolumes") => folder_removed(request, node, object, old),
        None if request.is("", "persistentvolumes") => {
            Err(request.forbidden(object.name(), format!("node {node:?} can not create volumes")))
        }
        Some(old) if request.is("", "pods") && request.subresource == "status" => own_pod(request, node, object, old),
        _ => Ok(()),
    }
}

fn own_node(request: &Request<'_>, node: &str, object: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    if object.name() != node {
        return Err(request
            .forbidden(object.name(), format!("node {node:?} is not allowed to modify node {:?}", object.name())));
    }
    // Taints keep workloads off a node; taking one away is the administrator's or a controller's part.
    if let Some(old) = old
        && request.subresource.is_empty()
        && object.at(&["spec", "taints"]) != old.at(&["spec", "taints"])
    {
        return Err(request.forbidden(object.name(), format!("node {node:?} is not allowed to modify taints")));
    }
    let changed = changed_labels(object, old);
    let forbidden: Vec<&str> = changed.into_iter().filter(|label| !is_own_label(label)).collect();
    if forbidden.is_empty() {
        return Ok(());
    }
    let list = forbidden.join(", ");
    let why = match old {
        None => format!("node {node:?} is not allowed to set the following labels: {list}"),
        Some(_) => format!("is not allowed to modify labels: {list}"),
    };
    Err(request.forbidden(object.name(), why))
}

fn own_pod(request: &Request<'_>, node: &str, pod: &Object, old: &Object) -> Result<(), ApiError> {
    if old.str_at(&["spec", "nodeName"]) != Some(node) {
        let why = format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself");
        return Err(request.forbidden(pod.name(), why));
    }
    if !changed_labels(pod, Some(old)).is_empty() {
        return Err(request.forbidden(pod.name(), format!("node {node:?} cannot update labels through pod status")));
    }
    Ok(())
}

/// Of a volume a node says only that its folder is removed.
fn folder_removed(request: &Request<'_>, node: &str, volume: &Object, old: &Object) -> Result<(), ApiError> {
    let rest = |volume: &Object| {
        let mut rest = volume.clone();
        for key in ["finalizers", "managedFields", "resourceVersion"] {
            rest.remove(&["metadata", key]);
        }
        rest
    };
    let mut wanted = old.finalizers();
    wanted.retain(|finalizer| *finalizer != volumes::FOLDER_FINALIZER);
    let said = old.deletion_timestamp().is_some() && request.subresource.is_empty() && volume.finalizers() == wanted;
    if said && rest(volume) == rest(old) {
        return Ok(());
    }
    let why = format!("node {node:?} can only remove the finalizer {} of a deleted volume", volumes::FOLDER_FINALIZER);
    Err(request.forbidden(volume.name(), why))
}

/// Of an autoscaler a node says only that somebody waits for its workload, and when that was.
fn marked(request: &Request<'_>, node: &str, autoscaler: &Object, old: &Object) -> Result<(), ApiError> {
    let rest = |autoscaler: &Object| {
        let mut rest = autoscaler.clone();
        rest.remove(&["metadata", "annotations", WAKE_ANNOTATION]);
        if rest.annotations().next().is_none() {
            rest.remove(&["metadata", "annotations"]);
        }
        for key in ["managedFields", "resourceVersion"] {
            rest.remove(&["metadata", key]);
        }
        rest
    };
    let mark = autoscaler.str_at(&["metadata", "annotations", WAKE_ANNOTATION]);
    let is_time = mark.is_some_and(|mark| mark.len() <= MARK_MAX_BYTES && mark.parse::<jiff::Timestamp>().is_ok());
    if request.subresource.is_empty() && is_time && rest(autoscaler) == rest(old) {
        return Ok(());
    }
    let why = format!("node {node:?} can only set the annotation {WAKE_ANNOTATION} of an autoscaler, to a time");
    Err(request.forbidden(autoscaler.name(), why))
}

/// The names of the labels that were added, changed or taken away.
fn changed_labels<'a>(new: &'a Object, old: Option<&'a Object>) -> BTreeSet<&'a str> {
    let (new, old): (BTreeSet<_>, BTreeSet<_>) =
        (new.labels().collect(), old.iter().flat_map(|old| old.labels()).collect());
    new.symmetric_difference(&old).map(|(label, _)| *label).collect()
}

fn is_own_label(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return true };
    let within = |parent: &&str| domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if within(&RESTRICTED) {
        return false;
    }
    !RESERVED.iter().any(within) || OWN_LABELS.contains(&label) || OWN_DOMAINS.iter().any(within)
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
