//! What is wrong with a CustomResourceDefinition, and what the server itself says in it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tandem_api::{Cause, Object, names};

use super::{columns, path::JsonPath, schema};
use crate::{
    json::{Fields, FieldsExt},
    registry::{is_builtin, is_builtin_kind},
    validate::{IMMUTABLE, Problems, webhooks},
};

/// Groups of Kubernetes itself and of this project, in which a definition needs the project's word.
const PROTECTED: [&str; 3] = ["k8s.io", "kubernetes.io", "tandem.dev"];
const APPROVED: &str = "api-approved.kubernetes.io";
/// How many versions one definition may have.
const VERSIONS_MAX: usize = 100;
const SELECTABLE_MAX: usize = 8;

fn spec(object: &Object) -> Fields {
    object.0.child("spec").cloned().unwrap_or_default()
}

/// Versions whose objects may be in the store stay known.
pub(crate) fn prepare(object: &mut Object, _old: Option<&Object>) {
    let spec = spec(object);
    let stored = spec.each("versions").find(|version| version.flag("storage")).map(|version| version.text("name"));
    let Some(stored) = stored else { return };
    let mut known = object.array_at(&["status", "storedVersions"]).to_vec();
    if !known.iter().any(|one| one == stored) {
        known.push(stored.into());
        object.set(&["status", "storedVersions"], known);
    }
}

pub(crate) fn validate(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    let spec = spec(object);
    let group = spec.text("group");
    let default = Fields::new();
    let names = spec.child("names").unwrap_or(&default);
    let expected = format!("{}.{group}", names.text("plural"));
    if object.name() != expected {
        problems.invalid("metadata.name", object.name(), "must be spec.names.plural+\".\"+spec.group");
    }
    if group.is_empty() {
        problems.required("spec.group", "");
    } else {
        problems.check_subdomain(group, "spec.group");
        if !group.contains('.') {
            problems.invalid("spec.group", group, "should be a domain with at least one dot");
        }
    }
    let protected = PROTECTED.iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    let approved = object.annotations().any(|(key, value)| key == APPROVED && !value.is_empty());
    if protected && !approved {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        problems.required("metadata.annotations[api-approved.kubernetes.io]", why);
    }
    problems.check_enum(&spec, "scope", "spec", &["Cluster", "Namespaced"], true);
    check_names(names, &mut problems);
    check_free(group, names, old, &mut problems);
    check_conversion(&spec, &mut problems);
    check_versions(&spec, &mut problems);
    if spec.flag("preserveUnknownFields") {
        let why = "must be false in order to use defaults in the schema";
        problems.invalid("spec.preserveUnknownFields", true, why);
    }
    if let Some(old) = old {
        check_change(object, &spec, old, &mut problems);
    }
    problems.into_causes()
}

/// What is built in is not defined again: the objects of all versions of a resource are stored in one place.
fn check_free(group: &str, names: &Fields, old: Option<&Object>, problems: &mut Problems) {
    let before = old.map(spec).unwrap_or_default();
    let changed = |key: &str| before.child("names").map(|names| names.text(key)) != Some(names.text(key));
    let taken = |problems: &mut Problems, key: &str, found: bool| {
        if found && changed(key) {
            let text = names.text(key);
            problems.invalid(format!("spec.names.{key}"), text, format!("{text:?} is already in use"));
        }
    };
    taken(problems, "plural", is_builtin(group, names.text("plural")));
    taken(problems, "kind", is_builtin_kind(group, names.text("kind")));
    taken(problems, "listKind", is_builtin_kind(group, names.text("listKind")));
}

fn check_change(object: &Object, spec: &Fields, old: &Object, problems: &mut Problems) {
    let before = self::spec(old);
    let kept = |problems: &mut Problems, new: Option<&Value>, old: Option<&Value>, path: &str| {
        problems.check_immutable(new, old, path, IMMUTABLE);
    };
    if super::rows::condition(old, "Established") {
        kept(problems, spec.get("scope"), before.get("scope"), "spec.scope");
        let kind = |spec: &Fields| spec.child("names").and_then(|names| names.get("kind")).cloned();
        kept(problems, kind(spec).as_ref(), kind(&before).as_ref(), "spec.names.kind");
    }
    kept(problems, spec.get("group"), before.get("group"), "spec.group");
    let plural = |spec: &Fields| spec.child("names").and_then(|names| names.get("plural")).cloned();
    kept(problems, plural(spec).as_ref(), plural(&before).as_ref(), "spec.names.plural");
    for (at, version) in object.array_at(&["status", "storedVersions"]).iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        if !spec.each("versions").any(|one| one.text("name") == version) {
            let why = "missing from spec.versions; must be deleted from status.storedVersions after its objects were migrated";
            let path = format!("status.storedVersions[{at}]");
            problems.invalid(path, version, why);
        }
    }
}

fn check_names(names: &Fields, problems: &mut Problems) {
    for key in ["plural", "singular", "kind", "listKind"] {
        let (text, path) = (names.text(key), format!("spec.names.{key}"));
        if text.is_empty() {
            problems.required(path, "");
            continue;
        }
        let lower = text.to_lowercase();
        names::dns1035_label(&lower).into_iter().for_each(|why| problems.invalid(&path, text, why));
        if lower != text && matches!(key, "plural" | "singular") {
            problems.invalid(&path, text, "must be lower case");
        }
    }
    for key in ["shortNames", "categories"] {
        for (at, text) in names.list(key).iter().filter_map(Value::as_str).enumerate() {
            let path = format!("spec.names.{key}[{at}]");
            names::dns1035_label(text).into_iter().for_each(|why| problems.invalid(&path, text, why));
        }
    }
    if !names.text("kind").is_empty() && names.text("kind") == names.text("listKind") {
        problems.invalid("spec.names.listKind", names.text("listKind"), "kind and listKind may not be the same");
    }
}

fn check_conversion(spec: &Fields, problems: &mut Problems) {
    let default = Fields::new();
    let conversion = spec.child("conversion").unwrap_or(&default);
    let (webhook, path) = (conversion.child("webhook"), "spec.conversion.webhook");
    match (conversion.text("strategy"), webhook) {
        ("" | "None", None) => {}
        ("" | "None", Some(_)) => problems.forbidden(path, "should not be set when strategy is not set to Webhook"),
        ("Webhook", webhook) => {
            let webhook = webhook.unwrap_or(&default);
            let at = format!("{path}.clientConfig");
            match webhook.child("clientConfig") {
                None => problems.required(at, "required when strategy is set to Webhook"),
                Some(client) => {
                    webhooks::check_client(client, &at, problems);
                    check_bundle(client.text("caBundle"), &format!("{at}.caBundle"), problems);
                }
            }
            webhooks::check_review_versions(webhook, "conversionReviewVersions", path, problems);
        }
        (other, _) => problems.unsupported("spec.conversion.strategy", other, &["None", "Webhook"]),
    }
}

fn check_bundle(bundle: &str, path: &str, problems: &mut Problems) {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let decoded = STANDARD.decode(bundle).unwrap_or_default();
    let is_sound = bundle.is_empty() || decoded.windows(BEGIN.len()).any(|window| window == BEGIN);
    if !is_sound {
        let why = "unable to load root certificates: unable to parse bytes as PEM block";
        problems.invalid(path, bundle, why);
    }
}

/// Where a part of a version stands in messages: what all versions say alike, Kubernetes says once.
fn place(spec: &Fields, at: usize, key: &str, hoisted: &str) -> String {
    let mut values = spec.each("versions").map(|version| version.get(key));
    let first = values.next();
    let alike = values.all(|value| Some(value) == first);
    if alike { format!("spec.{hoisted}") } else { format!("spec.versions[{at}].{key}") }
}

fn check_versions(spec: &Fields, problems: &mut Problems) {
    let versions: Vec<&Fields> = spec.each("versions").collect();
    if versions.is_empty() {
        problems.required("spec.versions", "must have at least one version");
    }
    if versions.len() > VERSIONS_MAX {
        problems.too_many("spec.versions", versions.len(), VERSIONS_MAX);
        return;
    }
    let mut seen = Vec::new();
    for (at, version) in versions.iter().enumerate() {
        let name = version.text("name");
        let path = format!("spec.versions[{at}]");
        names::dns1035_label(name).into_iter().for_each(|why| problems.invalid(format!("{path}.name"), name, why));
        if seen.contains(&name) {
            problems.invalid("spec.versions", name, "must contain unique version names");
        }
        seen.push(name);
        check_version(spec, version, at, problems);
    }
    if versions.iter().filter(|version| version.flag("storage")).count() != 1 {
        let names: Vec<Value> = seen.iter().map(|name| Value::from(*name)).collect();
        problems.invalid("spec.versions", names, "must have exactly one version marked as storage version");
    }
}

fn check_version(spec: &Fields, version: &Fields, at: usize, problems: &mut Problems) {
    let path = place(spec, at, "schema", "validation");
    let repeated = at > 0 && path == "spec.validation";
    match version.child("schema").and_then(|schema| schema.child("openAPIV3Schema")) {
        None => problems.required(format!("spec.versions[{at}].schema.openAPIV3Schema"), "schemas are required"),
        Some(_) if repeated => {}
        Some(schema) => {
            schema::check(schema, &format!("{path}.openAPIV3Schema"), spec.each("versions").count(), problems)
        }
    }
    let path = place(spec, at, "additionalPrinterColumns", "additionalPrinterColumns");
    if at == 0 || path != "spec.additionalPrinterColumns" {
        for (number, column) in version.each("additionalPrinterColumns").enumerate() {
            check_column(column, &format!("{path}[{number}]"), problems);
        }
    }
    let path = place(spec, at, "subresources", "subresources");
    if at == 0 || path != "spec.subresources" {
        check_scale(version, &path, problems);
    }
    let fields: Vec<&Fields> = version.each("selectableFields").collect();
    if fields.len() > SELECTABLE_MAX {
        problems.too_many(format!("spec.versions[{at}].selectableFields"), fields.len(), SELECTABLE_MAX);
    }
    for (number, field) in fields.iter().enumerate() {
        let path = format!("spec.versions[{at}].selectableFields[{number}].jsonPath");
        let text = field.text("jsonPath");
        let sound = text.starts_with('.') && JsonPath::parse(text).is_ok_and(|path| path.fields().is_some());
        if text.is_empty() {
            problems.required(path, "");
        } else if !sound || text.starts_with(".metadata") {
            problems.invalid(path, text, "is an invalid path: must be a simple path of fields outside of metadata");
        }
    }
}

fn check_column(column: &Fields, path: &str, problems: &mut Problems) {
    if column.text("name").is_empty() {
        problems.required(format!("{path}.name"), "");
    }
    problems.check_enum(column, "type", path, &columns::TYPES, true);
    let text = column.text("jsonPath");
    if text.is_empty() {
        problems.required(format!("{path}.jsonPath"), "");
    } else if let Err(why) = JsonPath::parse(text) {
        problems.invalid(format!("{path}.jsonPath"), text, why);
    }
}

fn check_scale(version: &Fields, path: &str, problems: &mut Problems) {
    let Some(scale) = version.child("subresources").and_then(|subs| subs.child("scale")) else { return };
    let paths = [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", ".s", false),
    ];
    for (key, start, required) in paths {
        let (text, path) = (scale.text(key), format!("{path}.scale.{key}"));
        let sound = JsonPath::parse(text).is_ok_and(|path| path.fields().is_some());
        if text.is_empty() && required {
            problems.required(path, "");
        } else if !(text.is_empty() || sound && text.starts_with(start)) {
            let start = if key == "labelSelectorPath" { ".spec or .status" } else { start };
            problems.invalid(path, text, format!("should be a json path under {}", start.trim_end_matches('.')));
        }
    }
}
