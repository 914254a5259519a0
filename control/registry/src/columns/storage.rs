//! Cells of volumes, claims and the CSI family.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{
    age, part,
    text::{UNSET, join, or, strings},
};
use crate::json::{Fields, FieldsExt};

fn access_modes(fields: &Fields) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let modes = strings(fields, "accessModes");
    let shown = short.iter().filter(|(long, _)| modes.iter().any(|mode| mode == long)).map(|(_, short)| *short);
    shown.collect::<Vec<_>>().join(",")
}

fn phase(object: &Object, status: &Fields) -> String {
    if object.deletion_timestamp().is_some() { "Terminating".to_owned() } else { status.text("phase").to_owned() }
}

fn capacity(fields: &Fields) -> String {
    fields.child("capacity").map(|capacity| capacity.text("storage").to_owned()).unwrap_or_default()
}

/// The class, which was an annotation before it became a field.
fn class(object: &Object, spec: &Fields) -> String {
    let old = object.annotations().find(|(key, _)| *key == "volume.beta.kubernetes.io/storage-class");
    old.map_or_else(|| spec.text("storageClassName").to_owned(), |(_, class)| class.to_owned())
}

pub(crate) fn volume(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let claim = spec.child("claimRef").map(|claim| format!("{}/{}", claim.text("namespace"), claim.text("name")));
    vec![
        object.name().into(),
        capacity(&spec).into(),
        access_modes(&spec).into(),
        spec.text("persistentVolumeReclaimPolicy").into(),
        phase(object, &status).into(),
        claim.unwrap_or_default().into(),
        class(object, &spec).into(),
        or(spec.text("volumeAttributesClassName"), UNSET).into(),
        status.text("reason").into(),
        age(object, now).into(),
        or(spec.text("volumeMode"), UNSET).into(),
    ]
}

pub(crate) fn claim(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let bound = !spec.text("volumeName").is_empty();
    vec![
        object.name().into(),
        phase(object, &status).into(),
        spec.text("volumeName").into(),
        if bound { capacity(&status) } else { String::new() }.into(),
        if bound { access_modes(&status) } else { String::new() }.into(),
        class(object, &spec).into(),
        or(spec.text("volumeAttributesClassName"), UNSET).into(),
        age(object, now).into(),
        or(spec.text("volumeMode"), UNSET).into(),
    ]
}

fn is_default(object: &Object, annotations: &[&str]) -> bool {
    object.annotations().any(|(key, value)| annotations.contains(&key) && value == "true")
}

pub(crate) fn class_name(object: &Object, annotations: &[&str]) -> String {
    let mark = if is_default(object, annotations) { " (default)" } else { "" };
    format!("{}{mark}", object.name())
}

pub(crate) fn storage_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let marks = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    let fields = &object.0;
    vec![
        class_name(object, &marks).into(),
        fields.text("provisioner").into(),
        or(fields.text("reclaimPolicy"), "Delete").into(),
        or(fields.text("volumeBindingMode"), "Immediate").into(),
        fields.flag("allowVolumeExpansion").into(),
        age(object, now).into(),
    ]
}

pub(crate) fn attributes_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let name = class_name(object, &["volumeattributesclass.kubernetes.io/is-default-class"]);
    vec![name.into(), object.0.text("driverName").into(), age(object, now).into()]
}

pub(crate) fn driver(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let tokens: Vec<String> = spec.each("tokenRequests").map(|token| token.text("audience").to_owned()).collect();
    let attach = spec.get("attachRequired").and_then(Value::as_bool).unwrap_or(true);
    vec![
        object.name().into(),
        attach.into(),
        spec.flag("podInfoOnMount").into(),
        spec.flag("storageCapacity").into(),
        join(&tokens, UNSET).into(),
        spec.flag("requiresRepublish").into(),
        join(&strings(&spec, "volumeLifecycleModes"), "<none>").into(),
        age(object, now).into(),
    ]
}

pub(crate) fn csi_node(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), part(object, "spec").list("drivers").len().into(), age(object, now).into()]
}

pub(crate) fn csi_capacity(object: &Object, _now: Timestamp) -> Vec<Value> {
    let capacity = object.str_at(&["capacity"]).unwrap_or(UNSET);
    vec![object.name().into(), object.0.text("storageClassName").into(), capacity.into()]
}

pub(crate) fn attachment(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let volume = spec.child("source").map(|source| source.text("persistentVolumeName")).unwrap_or_default();
    vec![
        object.name().into(),
        spec.text("attacher").into(),
        volume.into(),
        spec.text("nodeName").into(),
        status.flag("attached").into(),
        age(object, now).into(),
    ]
}
