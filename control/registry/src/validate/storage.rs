//! PersistentVolume, PersistentVolumeClaim, StorageClass.

use serde_json::Value;
use tandem_api::{Cause, Object};

use super::{Problems, spec};
use crate::{
    json::{Fields, FieldsExt},
    quantity::Quantity,
};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// The fields of a volume's spec that say nothing about where its data is.
const NOT_A_SOURCE: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

fn check_modes(spec: &Fields, problems: &mut Problems) {
    let modes: Vec<&str> = spec.list("accessModes").iter().filter_map(Value::as_str).collect();
    if modes.is_empty() {
        problems.required("spec.accessModes", "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(mode)) {
        problems.unsupported("spec.accessModes", mode, &MODES);
    }
    if modes.contains(&"ReadWriteOncePod") && modes.len() > 1 {
        let why = "may not use ReadWriteOncePod with other access modes";
        problems.forbidden("spec.accessModes", why);
    }
    problems.check_enum(spec, "volumeMode", "spec", &["Block", "Filesystem"], false);
}

/// The size that must be there and be more than nothing.
fn check_size(sizes: Option<&Fields>, path: &str, problems: &mut Problems) {
    match sizes.map(|sizes| sizes.text("storage")).unwrap_or_default() {
        "" => problems.required(path, ""),
        text => {
            let size = Quantity::parse(text).ok();
            if size.is_some_and(|size| size.is_zero() || size.is_negative()) {
                problems.invalid(path, text, "must be greater than zero");
            }
        }
    }
}

pub(crate) fn volume(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    check_modes(&spec, &mut problems);
    if spec.child("capacity").is_none_or(Fields::is_empty) {
        problems.required("spec.capacity", "");
    } else {
        check_size(spec.child("capacity"), "spec.capacity[storage]", &mut problems);
    }
    // Recycle is deprecated, and not built.
    let policies = ["Delete", "Retain"];
    problems.check_enum(&spec, "persistentVolumeReclaimPolicy", "spec", &policies, false);
    let sources: Vec<&String> = spec.keys().filter(|key| !NOT_A_SOURCE.contains(&key.as_str())).collect();
    match sources.as_slice() {
        [] => problems.required("spec", "must specify a volume type"),
        [_, others @ ..] => {
            for source in others {
                problems.forbidden(format!("spec.{source}"), "may not specify more than 1 volume type");
            }
        }
    }
    check_source(&spec, &mut problems);
    if spec.contains_key("local") && !spec.contains_key("nodeAffinity") {
        problems.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    if let Some(old) = old {
        let before = super::spec(old);
        let changed = sources.iter().any(|source| spec.get(*source) != before.get(*source));
        if changed {
            problems
                .forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation");
        }
        if before.contains_key("nodeAffinity") {
            let (after, before) = (spec.get("nodeAffinity"), before.get("nodeAffinity"));
            problems.check_immutable(after, before, "spec.nodeAffinity", super::IMMUTABLE);
        }
        problems.check_immutable(spec.get("volumeMode"), before.get("volumeMode"), "spec.volumeMode", super::IMMUTABLE);
    }
    problems.into_causes()
}

fn check_source(spec: &Fields, problems: &mut Problems) {
    for kind in ["hostPath", "local"] {
        let Some(source) = spec.child(kind) else { continue };
        let (path, field) = (source.text("path"), format!("spec.{kind}.path"));
        if path.is_empty() {
            problems.required(field, "");
        } else if path.split('/').any(|part| part == "..") {
            problems.invalid(field, path, "must not contain '..'");
        }
    }
    if let Some(source) = spec.child("csi") {
        for key in ["driver", "volumeHandle"].into_iter().filter(|key| source.text(key).is_empty()) {
            problems.required(format!("spec.csi.{key}"), "");
        }
    }
}

pub(crate) fn claim(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    check_modes(&spec, &mut problems);
    if let Some(selector) = spec.child("selector") {
        problems.check_selector(selector, "spec.selector");
    }
    let requests = spec.child("resources").and_then(|resources| resources.child("requests"));
    check_size(requests, "spec.resources[storage]", &mut problems);
    if let Some(old) = old {
        check_claim_update(&spec, old, &mut problems);
    }
    problems.into_causes()
}

fn check_claim_update(spec: &Fields, old: &Object, problems: &mut Problems) {
    let (mut after, mut before) = (spec.clone(), super::spec(old));
    let size = |spec: &Fields| {
        let requests = spec.child("resources").and_then(|resources| resources.child("requests"));
        requests.and_then(|requests| Quantity::parse(requests.text("storage")).ok())
    };
    let (new_size, old_size) = (size(&after), size(&before));
    let bound = !before.text("volumeName").is_empty();
    for spec in [&mut after, &mut before] {
        spec.shift_remove("volumeAttributesClassName");
        if bound {
            spec.shift_remove("resources");
        }
    }
    // Binding a claim and giving it its class are the changes that it waits for.
    for key in ["volumeName", "storageClassName"] {
        if before.text(key).is_empty() {
            before.shift_remove(key);
            after.shift_remove(key);
        }
    }
    if after != before {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        problems.forbidden("spec", why);
    }
    if new_size < old_size && bound {
        let why = "field can not be less than status.capacity";
        problems.forbidden("spec.resources.requests.storage", why);
    }
}

pub(crate) fn class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (class, mut problems) = (&object.0, Problems::default());
    match class.text("provisioner") {
        "" => problems.required("provisioner", ""),
        name => {
            let found = super::labels::qualified_name(&name.to_lowercase());
            found.into_iter().for_each(|why| problems.invalid("provisioner", name, why));
        }
    }
    problems.check_enum(class, "reclaimPolicy", "", &["Delete", "Retain"], false);
    problems.check_enum(class, "volumeBindingMode", "", &["Immediate", "WaitForFirstConsumer"], true);
    if let Some(old) = old {
        if class.get("parameters") != old.0.get("parameters") {
            problems.forbidden("parameters", "updates to parameters are forbidden.");
        }
        for key in ["provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if class.get(key) != old.0.get(key) {
                problems.forbidden(key, &format!("updates to {key} are forbidden."));
            }
        }
    }
    problems.into_causes()
}
