//! The small kinds of the core group: ConfigMap, Secret, Namespace, Node, ServiceAccount, LimitRange and others.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tandem_api::Object;

use crate::{
    Hooks, NameRule, columns,
    json::{Fields, FieldsExt},
    validate,
};

pub(super) const CONFIG_MAP: Hooks =
    Hooks { validate: validate::config::config_map, cells: columns::core::config_map, ..Hooks::NONE };
pub(super) const SECRET: Hooks = Hooks {
    default: default_secret,
    validate: validate::config::secret,
    fields: |secret| vec![("type", secret.str_at(&["type"]).unwrap_or_default().to_owned())],
    cells: columns::core::secret,
    ..Hooks::NONE
};
pub(super) const NAMESPACE: Hooks = Hooks {
    default: default_namespace,
    prepare: prepare_namespace,
    validate: validate::config::namespace,
    name: NameRule::Dns1123Label,
    fields: |namespace| vec![("status.phase", namespace.str_at(&["status", "phase"]).unwrap_or_default().to_owned())],
    cells: columns::core::namespace,
    ..Hooks::NONE
};
pub(super) const NODE: Hooks = Hooks {
    default: default_node,
    validate: validate::config::node,
    fields: node_fields,
    cells: columns::core::node,
    keeps_status: true,
    ..Hooks::NONE
};
pub(super) const SERVICE_ACCOUNT: Hooks = Hooks { cells: columns::core::service_account, ..Hooks::NONE };
pub(super) const LIMIT_RANGE: Hooks =
    Hooks { default: default_limit_range, validate: validate::limits::limit_range, ..Hooks::NONE };
pub(super) const RESOURCE_QUOTA: Hooks =
    Hooks { validate: validate::limits::resource_quota, cells: columns::core::resource_quota, ..Hooks::NONE };
pub(super) const COMPONENT_STATUS: Hooks = Hooks { cells: columns::core::component_status, ..Hooks::NONE };

fn default_secret(object: &mut Object) {
    let plain: Vec<(String, String)> =
        object.0.pairs("stringData").map(|(key, text)| (key.to_owned(), STANDARD.encode(text))).collect();
    // Write-only: it is never stored or answered.
    object.remove(&["stringData"]);
    for (key, encoded) in plain {
        object.set(&["data", &key], encoded);
    }
    object.0.or_text("type", "Opaque");
}

fn default_namespace(object: &mut Object) {
    if !object.name().is_empty() {
        let name = object.name().to_owned();
        object.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
    }
    if let Some(status) = object.0.child_or_new("status") {
        status.or_text("phase", "Active");
    }
}

/// Finalizers of the spec change through `/finalize` only.
fn prepare_namespace(object: &mut Object, old: Option<&Object>) {
    match old {
        None => {
            object.set(&["status"], json!({ "phase": "Active" }));
            let finalizers = object.0.child_or_new("spec").map(|spec| spec.list("finalizers").to_vec());
            let mut finalizers = finalizers.unwrap_or_default();
            if !finalizers.contains(&json!("kubernetes")) {
                finalizers.push(json!("kubernetes"));
            }
            object.set(&["spec", "finalizers"], finalizers);
        }
        Some(old) => match old.at(&["spec", "finalizers"]) {
            Some(kept) => object.set(&["spec", "finalizers"], kept.clone()),
            None => {
                object.remove(&["spec", "finalizers"]);
            }
        },
    }
}

fn default_node(object: &mut Object) {
    if let Some(status) = object.0.child_mut("status")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        status.or_set("allocatable", capacity);
    }
}

fn node_fields(node: &Object) -> Vec<(&'static str, String)> {
    let unschedulable = node.at(&["spec", "unschedulable"]).and_then(Value::as_bool).unwrap_or_default();
    vec![("spec.unschedulable", unschedulable.to_string())]
}

/// For containers, the default limit follows from the maximum, and the default request from the limit or the minimum.
fn default_limit_range(object: &mut Object) {
    let Some(spec) = object.0.child_mut("spec") else { return };
    for item in spec.each_mut("limits").filter(|item| item.text("type") == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let amounts: Fields = item.child(from).cloned().unwrap_or_default();
            if amounts.is_empty() {
                continue;
            }
            let Some(into) = item.child_or_new(to) else { continue };
            for (resource, amount) in amounts {
                into.or_set(&resource, amount);
            }
        }
    }
}
