//! What may change in a pod that is there: hardly anything.

use serde_json::{Value, json};
use tandem_api::{Cause, Object};

use super::{MAX_SECONDS, containers};
use crate::{
    json::{Fields, FieldsExt},
    validate::{Problems, spec},
};

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn check(new: &Fields, old: &Fields, problems: &mut Problems) {
    let mut count_differs = false;
    for list in ["containers", "initContainers"] {
        if new.list(list).len() != old.list(list).len() {
            problems.forbidden(format!("spec.{list}"), "pod updates may not add or remove containers");
            count_differs = true;
        }
    }
    if count_differs {
        return;
    }
    check_images(new, problems);
    check_deadline(new, old, problems);
    check_tolerations(new, old, problems);
    check_gates(new, old, problems);
    check_rest(new, old, problems);
}

fn check_images(new: &Fields, problems: &mut Problems) {
    for list in ["initContainers", "containers"] {
        for (at, container) in new.each(list).enumerate() {
            let (image, path) = (container.text("image"), format!("spec.{list}[{at}].image"));
            if image.is_empty() {
                problems.required(path, "");
            } else if image.trim() != image {
                problems.invalid(path, image, "must not have leading or trailing whitespace");
            }
        }
    }
}

fn check_deadline(new: &Fields, old: &Fields, problems: &mut Problems) {
    let (after, before) = (new.int("activeDeadlineSeconds"), old.int("activeDeadlineSeconds"));
    let path = "spec.activeDeadlineSeconds";
    match (after, before) {
        (Some(after), _) if !(0..=MAX_SECONDS).contains(&after) => {
            problems.invalid(path, after, format!("must be between 0 and {MAX_SECONDS}, inclusive"));
        }
        (Some(after), Some(before)) if after > before => {
            problems.invalid(path, after, format!("must be less than or equal to previous value {before}"));
        }
        (None, Some(_)) => problems.invalid(path, Value::Null, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

/// Old tolerations stay; only their seconds may change.
fn check_tolerations(new: &Fields, old: &Fields, problems: &mut Problems) {
    let bare = |toleration: &Fields| {
        let mut bare = toleration.clone();
        bare.shift_remove("tolerationSeconds");
        bare
    };
    let kept = old.each("tolerations").all(|old| new.each("tolerations").any(|new| bare(new) == bare(old)));
    if !kept {
        problems.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn check_gates(new: &Fields, old: &Fields, problems: &mut Problems) {
    for (at, gate) in new.each("schedulingGates").enumerate() {
        if !old.each("schedulingGates").any(|known| known.text("name") == gate.text("name")) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.text("name"));
            problems.forbidden(format!("spec.schedulingGates[{at}]"), &why);
        }
    }
}

fn check_rest(new: &Fields, old: &Fields, problems: &mut Problems) {
    let mut masked = new.clone();
    let mut free = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if !old.list("schedulingGates").is_empty() {
        // A pod that waits at a gate may still be told where to go.
        free.extend(["nodeSelector", "affinity"]);
    }
    let grace = |spec: &Fields| spec.int("terminationGracePeriodSeconds").unwrap_or_default();
    if grace(old) < 0 && grace(new) == 1 {
        free.push("terminationGracePeriodSeconds");
    }
    for key in free {
        restore(&mut masked, old, key);
    }
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = old.each(list).map(|container| json!(container.text("image"))).collect();
        for (container, image) in masked.each_mut(list).zip(images) {
            container.insert("image".to_owned(), image);
        }
    }
    if masked != *old {
        problems.forbidden("spec", &format!("{MUTABLE}\n{}", difference(&masked, old)));
    }
}

fn restore(new: &mut Fields, old: &Fields, key: &str) {
    match old.get(key) {
        Some(value) => new.insert(key.to_owned(), value.clone()),
        None => new.shift_remove(key),
    };
}

/// The fields that differ, as a diff.
fn difference(new: &Fields, old: &Fields) -> String {
    let mut keys: Vec<&String> = new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).collect();
    keys.sort();
    keys.dedup();
    let mut lines = Vec::new();
    for key in keys {
        lines.extend(old.get(key).map(|value| format!("- {key}: {value}")));
        lines.extend(new.get(key).map(|value| format!("+ {key}: {value}")));
    }
    lines.join("\n")
}

/// A change through `/ephemeralcontainers`: containers may be added, nothing else may change.
pub fn ephemeral_containers(object: &Object, old: &Object) -> Vec<Cause> {
    let mut problems = Problems::default();
    let (new, before) = (spec(object), spec(old));
    let path = "spec.ephemeralContainers";
    let volumes = new.each("volumes").map(|volume| volume.text("name").to_owned()).collect();
    let own = || ["containers", "initContainers"].into_iter().flat_map(|list| new.each(list));
    for (at, container) in new.each("ephemeralContainers").enumerate() {
        let path = format!("{path}[{at}]");
        containers::check(container, &volumes, &path, &mut problems);
        let name = container.text("name");
        let same = new.each("ephemeralContainers").take(at).chain(own());
        if !name.is_empty() && same.into_iter().any(|other| other.text("name") == name) {
            problems.duplicate(format!("{path}.name"), name);
        }
        let target = container.text("targetContainerName");
        if !target.is_empty() && !own().any(|other| other.text("name") == target) {
            problems.not_found(format!("{path}.targetContainerName"), target);
        }
        check_ephemeral(container, &path, &mut problems);
    }
    for container in before.each("ephemeralContainers") {
        let name = container.text("name");
        match new.each("ephemeralContainers").find(|other| other.text("name") == name) {
            None => problems.forbidden(path, &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(other) if other != container => {
                problems.forbidden(path, &format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
            Some(_) => {}
        }
    }
    problems.into_causes()
}

/// What an ephemeral container may say; all else would need what it does not get.
const EPHEMERAL: [&str; 17] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

fn check_ephemeral(container: &Fields, path: &str, problems: &mut Problems) {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    for (key, value) in container {
        if !EPHEMERAL.contains(&key.as_str()) && !is_empty(value) {
            problems.forbidden(format!("{path}.{key}"), "cannot be set for an Ephemeral Container");
        }
    }
    for (at, mount) in container.each("volumeMounts").enumerate() {
        for key in ["subPath", "subPathExpr"] {
            if !mount.text(key).is_empty() {
                let path = format!("{path}.volumeMounts[{at}].{key}");
                problems.forbidden(path, "cannot be set for an Ephemeral Container");
            }
        }
    }
}
