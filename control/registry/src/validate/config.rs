//! ConfigMap, Secret, Namespace, Node, Event.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tandem_api::{Cause, Object};

use super::{IMMUTABLE, Problems, labels, spec};
use crate::json::{Fields, FieldsExt};

/// What a ConfigMap or Secret may hold.
const MAX_DATA: usize = 1024 * 1024;
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const FROZEN: &str = "field is immutable when `immutable` is set";
const REDACTED: &str = "<secret contents redacted>";

fn check_key(key: &str, path: &str, problems: &mut Problems) {
    if key.len() > 253 {
        problems.invalid(path, key, "must be no more than 253 bytes");
    }
    let sound = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if key.is_empty() || !sound {
        problems.invalid(path, key, KEY);
    } else if key == "." {
        problems.invalid(path, key, "must not be '.'");
    } else if key.starts_with("..") {
        let why = if key == ".." { "must not be '..'" } else { "must not start with '..'" };
        problems.invalid(path, key, why);
    }
}

/// The bytes behind base64 text.
fn decoded_len(text: &str) -> usize {
    base64::decoded_len_estimate(text.len())
}

fn check_frozen(object: &Object, old: Option<&Object>, keys: &[&str], problems: &mut Problems) {
    let Some(old) = old.filter(|old| old.0.flag("immutable")) else { return };
    if !object.0.flag("immutable") {
        problems.forbidden("immutable", FROZEN);
    }
    for key in keys {
        if object.0.get(*key) != old.0.get(*key) {
            problems.forbidden(*key, FROZEN);
        }
    }
}

pub(crate) fn config_map(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (map, mut problems) = (&object.0, Problems::default());
    let mut size = 0;
    for (key, value) in map.pairs("data") {
        let path = format!("data[{key}]");
        check_key(key, &path, &mut problems);
        if map.child("binaryData").is_some_and(|binary| binary.contains_key(key)) {
            problems.invalid(path, key, "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in map.pairs("binaryData") {
        check_key(key, &format!("binaryData[{key}]"), &mut problems);
        size += decoded_len(value);
    }
    if size > MAX_DATA {
        problems.too_long("", MAX_DATA);
    }
    check_frozen(object, old, &["data", "binaryData"], &mut problems);
    problems.into_causes()
}

pub(crate) fn secret(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (secret, mut problems) = (&object.0, Problems::default());
    let mut size = 0;
    for (key, value) in secret.pairs("data") {
        check_key(key, &format!("data[{key}]"), &mut problems);
        size += decoded_len(value);
    }
    if size > MAX_DATA {
        problems.too_long("data", MAX_DATA);
    }
    check_secret_type(object, &mut problems);
    if let Some(old) = old {
        let path = ["type"];
        problems.check_immutable(object.at(&path), old.at(&path), "type", IMMUTABLE);
    }
    check_frozen(object, old, &["data"], &mut problems);
    problems.into_causes()
}

fn check_secret_type(object: &Object, problems: &mut Problems) {
    let none = Fields::new();
    let data = object.0.child("data").unwrap_or(&none);
    let mut need = |keys: &[&str]| {
        for key in keys.iter().filter(|key| !data.contains_key(**key)) {
            problems.required(format!("data[{key}]"), "");
        }
    };
    match object.0.text("type") {
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            need(&["username", "password"]);
        }
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if !object.annotations().any(|(name, value)| name == key && !value.is_empty()) {
                problems.required(format!("metadata.annotations[{key}]"), "");
            }
        }
        "kubernetes.io/dockerconfigjson" => check_json(data, ".dockerconfigjson", problems),
        "kubernetes.io/dockercfg" => check_json(data, ".dockercfg", problems),
        _ => {}
    }
}

fn check_json(data: &Fields, key: &str, problems: &mut Problems) {
    let path = format!("data[{key}]");
    let Some(text) = data.get(key).and_then(Value::as_str) else {
        problems.required(path, "");
        return;
    };
    let json = STANDARD.decode(text).unwrap_or_default();
    if let Err(why) = serde_json::from_slice::<Fields>(&json) {
        // The parser's words carry no content of the file.
        problems.invalid(path, REDACTED, why);
    }
}

pub(crate) fn namespace(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    for (at, finalizer) in spec(object).list("finalizers").iter().filter_map(Value::as_str).enumerate() {
        let path = format!("spec.finalizers[{at}]");
        labels::qualified_name(finalizer).into_iter().for_each(|why| problems.invalid(path.clone(), finalizer, why));
        if !finalizer.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            problems.invalid(path, finalizer, why);
        }
    }
    problems.into_causes()
}

pub(crate) fn node(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    let mut seen = Vec::new();
    for (at, taint) in spec.each("taints").enumerate() {
        let path = format!("spec.taints[{at}]");
        let (key, value, effect) = (taint.text("key"), taint.text("value"), taint.text("effect"));
        labels::qualified_name(key).into_iter().for_each(|why| problems.invalid(format!("{path}.key"), key, why));
        labels::label_value(value).into_iter().for_each(|why| problems.invalid(format!("{path}.value"), value, why));
        problems.check_enum(taint, "effect", &path, &["NoSchedule", "PreferNoSchedule", "NoExecute"], true);
        if seen.contains(&(key, effect)) {
            problems.duplicate(path, json!(taint));
        }
        seen.push((key, effect));
    }
    if let Some(old) = old {
        let before = super::spec(old);
        let (new_cidr, old_cidr) = (spec.text("podCIDR"), before.text("podCIDR"));
        if !old_cidr.is_empty() && new_cidr != old_cidr {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            problems.forbidden("spec.podCIDRs", why);
        }
        let (new_id, old_id) = (spec.text("providerID"), before.text("providerID"));
        if !old_id.is_empty() && new_id != old_id {
            problems.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
        }
    }
    problems.into_causes()
}

pub(crate) fn event(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    let about = object.str_at(&["involvedObject", "namespace"]).unwrap_or_default();
    let namespace = object.namespace().unwrap_or_default();
    // Events about cluster-scoped objects live in `default`.
    let expected = if about.is_empty() { "default" } else { about };
    if namespace != expected && !(about.is_empty() && namespace == "kube-system") {
        problems.invalid("involvedObject.namespace", about, "does not match event.namespace");
    }
    problems.into_causes()
}
