use serde_json::Value;
use tandem_api::{Cause, Object};

use super::containers::check_resources;
use crate::{
    json::{Fields, FieldsExt},
    kinds::pod::quality,
    validate::{Problems, spec},
};

const RESOURCES: [&str; 2] = ["cpu", "memory"];
/// The annotation of a pod that a node runs from a file of its own.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A change through `/resize`: CPU and memory of the containers that stay may change, as long as the pod's class of
/// service is the same.
pub fn resize(object: &Object, old: &Object) -> Vec<Cause> {
    let mut problems = Problems::default();
    let (new, before) = (spec(object), spec(old));
    if old.annotations().any(|(key, _)| key == MIRROR) {
        problems.forbidden("metadata.annotations", "static pods cannot be resized");
    }
    if !node_resizes(old) {
        problems.forbidden("spec", "Pod running on node without support for resize");
    }
    for list in ["containers", "initContainers"] {
        for (at, (container, was)) in new.each(list).zip(before.each(list)).enumerate() {
            let path = format!("spec.{list}[{at}]");
            check_container(container, was, list == "initContainers", &path, &mut problems);
        }
    }
    let class = quality(&new);
    if class != quality(&before) {
        problems.invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
    }
    if masked(&new) != masked(&before) {
        problems.forbidden("spec", "only cpu and memory resources are mutable");
    }
    problems.into_causes()
}

/// A node that resizes says what its running containers have.
fn node_resizes(pod: &Object) -> bool {
    let runs = |status: &&Value| status.pointer("/state/running").is_some();
    pod.array_at(&["status", "containerStatuses"]).iter().filter(runs).all(|status| status.get("resources").is_some())
}

fn check_container(new: &Fields, old: &Fields, init: bool, path: &str, problems: &mut Problems) {
    let none = Fields::new();
    let of = |container: &Fields| container.child("resources").cloned().unwrap_or_default();
    let (now, was) = (of(new), of(old));
    if init && new.text("restartPolicy") != "Always" {
        if now != was {
            let why = "resources for non-sidecar init containers are immutable";
            problems.forbidden(format!("{path}.resources"), why);
        }
        return;
    }
    check_resources(&now, &format!("{path}.resources"), problems);
    super::containers::check_resize_policy(new, path, problems);
    for kind in ["requests", "limits"] {
        let (now, was) = (now.child(kind).unwrap_or(&none), was.child(kind).unwrap_or(&none));
        if RESOURCES.iter().any(|name| was.contains_key(*name) && !now.contains_key(*name)) {
            problems.forbidden(format!("{path}.resources.{kind}"), &format!("resource {kind} cannot be removed"));
        }
    }
}

/// The spec without what may change.
fn masked(spec: &Fields) -> Fields {
    let mut masked = spec.clone();
    for list in ["containers", "initContainers"] {
        for container in masked.each_mut(list) {
            container.shift_remove("resizePolicy");
            let Some(resources) = container.child_mut("resources") else { continue };
            for kind in ["requests", "limits"] {
                if let Some(amounts) = resources.child_mut(kind) {
                    RESOURCES.iter().for_each(|name| drop(amounts.shift_remove(*name)));
                    if amounts.is_empty() {
                        resources.shift_remove(kind);
                    }
                }
            }
            if resources.is_empty() {
                container.shift_remove("resources");
            }
        }
    }
    masked
}
