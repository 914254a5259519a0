use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use serde_json::Value;
use tandem_api::Object;

use super::{ConversionWebhook, CustomType, Scale, columns, path::JsonPath};
use crate::{
    Hooks, ResourceDef, StorageName, Subresource,
    def::{KindName, Scope},
    json::{Fields, FieldsExt},
    registry::is_builtin,
    validate::webhooks::REVIEW_VERSIONS,
};

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const READ_WRITE: [&str; 3] = ["get", "patch", "update"];

/// Whether a condition of a definition holds.
pub(crate) fn condition(object: &Object, name: &str) -> bool {
    object
        .array_at(&["status", "conditions"])
        .iter()
        .filter_map(Value::as_object)
        .any(|condition| condition.text("type") == name && condition.text("status") == "True")
}

/// The rows of a definition, one for each version that is served; none before it is established. While it is being
/// deleted all versions are served, so that its objects can be reached.
pub fn rows(definition: &Object) -> Vec<ResourceDef> {
    let none = Fields::new();
    let spec = definition.0.child("spec").unwrap_or(&none);
    if !condition(definition, "Established") {
        return Vec::new();
    }
    let accepted = definition.0.child("status").and_then(|status| status.child("acceptedNames"));
    let names = accepted.or_else(|| spec.child("names")).unwrap_or(&none);
    // Its objects would be those of the built-in resource.
    if is_builtin(spec.text("group"), names.text("plural")) {
        return Vec::new();
    }
    let stored = spec.each("versions").find(|version| version.flag("storage")).map(|version| version.text("name"));
    let Some(stored) = stored else { return Vec::new() };
    let is_ending = definition.deletion_timestamp().is_some();
    let conversion = conversion(spec).map(Arc::new);
    spec.each("versions")
        .filter(|version| is_ending || version.flag("served"))
        .map(|version| row(spec, names, version, stored, is_ending, conversion.clone()))
        .collect()
}

fn conversion(spec: &Fields) -> Option<ConversionWebhook> {
    let conversion = spec.child("conversion").filter(|conversion| conversion.text("strategy") == "Webhook")?;
    let webhook = conversion.child("webhook")?;
    let versions = webhook.list("conversionReviewVersions").iter().filter_map(Value::as_str);
    let known = |version: &str| REVIEW_VERSIONS.into_iter().find(|known| *known == version);
    let review_version = versions.into_iter().find_map(known).unwrap_or(REVIEW_VERSIONS[0]);
    Some(ConversionWebhook { client: webhook.child("clientConfig").cloned().unwrap_or_default(), review_version })
}

fn texts(fields: &Fields, key: &str) -> Vec<String> {
    fields.list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn row(
    spec: &Fields,
    names: &Fields,
    version: &Fields,
    stored: &str,
    is_ending: bool,
    conversion: Option<Arc<ConversionWebhook>>,
) -> ResourceDef {
    let (group, plural, kind) = (spec.text("group"), names.text("plural"), names.text("kind"));
    let name = version.text("name");
    let (columns, cells) = columns::columns(version);
    let or = |text: &str, other: String| if text.is_empty() { other } else { text.to_owned() };
    let custom = CustomType {
        kind: kind.to_owned(),
        version: name.to_owned(),
        source: version
            .child("schema")
            .and_then(|schema| schema.child("openAPIV3Schema"))
            .and_then(|schema| serde_json::to_vec(schema).ok())
            .unwrap_or_default()
            .into(),
        node: OnceLock::new(),
        columns: cells,
        selectable: selectable(version),
        scale: scale(version),
        is_stored: name == stored,
        conversion,
        deprecation: version
            .flag("deprecated")
            .then(|| or(version.text("deprecationWarning"), format!("{group}/{name} {kind} is deprecated"))),
        is_ending,
    };
    ResourceDef {
        group: group.to_owned(),
        version: name.to_owned(),
        kind: kind.to_owned(),
        list_kind: or(names.text("listKind"), format!("{kind}List")),
        plural: plural.to_owned(),
        singular: or(names.text("singular"), kind.to_lowercase()),
        short_names: texts(names, "shortNames"),
        categories: texts(names, "categories"),
        scope: if spec.text("scope") == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
        verbs: VERBS.map(str::to_owned).to_vec(),
        subresources: subresources(group, name, kind, version),
        storage_version: stored.to_owned(),
        storage: StorageName {
            group: group.to_owned(),
            version: stored.to_owned(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
        },
        // Built-in types have no colon in their names.
        type_name: format!("custom:{group}.{name}.{kind}"),
        columns: Cow::Owned(columns),
        hooks: Hooks::NONE,
        conversion: None,
        custom: Some(custom.into()),
    }
}

fn subresources(group: &str, version: &str, kind: &str, row: &Fields) -> Vec<Subresource> {
    let Some(given) = row.child("subresources") else { return Vec::new() };
    let sub = |name: &str, (group, version, kind): (&str, &str, &str)| Subresource {
        name: name.to_owned(),
        kind: KindName { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() },
        verbs: READ_WRITE.map(str::to_owned).to_vec(),
    };
    let mut subresources = Vec::new();
    if given.child("status").is_some() {
        subresources.push(sub("status", (group, version, kind)));
    }
    if given.child("scale").is_some() {
        subresources.push(sub("scale", ("autoscaling", "v1", "Scale")));
    }
    subresources
}

fn fields(path: &str) -> Option<Vec<String>> {
    let path = JsonPath::parse(path).ok()?;
    let fields: Vec<String> = path.fields()?.into_iter().map(str::to_owned).collect();
    (!fields.is_empty()).then_some(fields)
}

fn scale(version: &Fields) -> Option<Scale> {
    let given = version.child("subresources")?.child("scale")?;
    Some(Scale {
        spec_replicas: fields(given.text("specReplicasPath"))?,
        status_replicas: fields(given.text("statusReplicasPath"))?,
        label_selector: fields(given.text("labelSelectorPath")),
    })
}

/// The fields that lists can be asked by, under the names that clients use.
fn selectable(version: &Fields) -> Vec<(String, JsonPath)> {
    let paths = version.each("selectableFields").map(|field| field.text("jsonPath"));
    paths.filter_map(|path| Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path).ok()?))).collect()
}
