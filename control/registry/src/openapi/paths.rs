use serde_json::{Value, json};

use super::schemas::Schemas;
use crate::{ResourceDef, Subresource, json::Fields};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The paths of one resource and its subresources.
pub(super) fn add(def: &ResourceDef, schemas: &mut Schemas<'_>, paths: &mut Fields) {
    let root = if def.group.is_empty() {
        format!("/api/{}", def.version)
    } else {
        format!("/apis/{}/{}", def.group, def.version)
    };
    let collection = if def.is_namespaced() {
        format!("{root}/namespaces/{{namespace}}/{}", def.plural)
    } else {
        format!("{root}/{}", def.plural)
    };
    if def.is_namespaced() && def.allows("list") {
        let list = operation(def, None, "list", schemas);
        paths.insert(format!("{root}/{}", def.plural), path(&[("get", list)], false, false));
    }
    let verbs = [("get", "list"), ("post", "create"), ("delete", "deletecollection")];
    insert(paths, collection.clone(), def, None, &verbs, schemas);
    let verbs = [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")];
    insert(paths, format!("{collection}/{{name}}"), def, None, &verbs, schemas);
    for sub in &def.subresources {
        let verbs = [("get", "get"), ("put", "update"), ("patch", "patch"), ("post", "create"), ("delete", "delete")];
        insert(paths, format!("{collection}/{{name}}/{}", sub.name), def, Some(sub), &verbs, schemas);
    }
}

fn insert(
    paths: &mut Fields,
    at: String,
    def: &ResourceDef,
    sub: Option<&Subresource>,
    verbs: &[(&'static str, &'static str)],
    schemas: &mut Schemas<'_>,
) {
    let allowed = |verb: &str| sub.map_or_else(|| def.allows(verb), |sub| sub.verbs.iter().any(|mine| mine == verb));
    let operations: Vec<(&str, Value)> = verbs
        .iter()
        .filter(|(_, verb)| allowed(verb))
        .map(|(method, verb)| (*method, operation(def, sub, verb, schemas)))
        .collect();
    if !operations.is_empty() {
        let (named, namespaced) = (at.contains("{name}"), at.contains("{namespace}"));
        paths.insert(at, path(&operations, named, namespaced));
    }
}

fn path(operations: &[(&str, Value)], named: bool, namespaced: bool) -> Value {
    let in_path = |name: &str, text: &str| {
        json!({ "name": name, "in": "path", "required": true, "description": text,
            "schema": { "type": "string", "uniqueItems": true } })
    };
    let mut parameters = Vec::new();
    if named {
        parameters.push(in_path("name", "name of the object"));
    }
    if namespaced {
        parameters.push(in_path("namespace", "object name and auth scope, such as for teams and projects"));
    }
    parameters.push(query("pretty", "string", "If 'true', then the output is pretty printed."));
    let mut path: Fields =
        operations.iter().map(|(method, operation)| ((*method).to_owned(), operation.clone())).collect();
    path.insert("parameters".to_owned(), parameters.into());
    Value::Object(path)
}

fn query(name: &str, kind: &str, text: &str) -> Value {
    json!({ "name": name, "in": "query", "description": text, "schema": { "type": kind, "uniqueItems": true } })
}

const LIST: &[(&str, &str, &str)] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Asks a watch for events of type \"BOOKMARK\", which carry a resourceVersion only.",
    ),
    ("continue", "string", "Where a list that was cut off by a limit goes on."),
    ("fieldSelector", "string", "Restricts the list by the fields of its objects. Defaults to everything."),
    ("labelSelector", "string", "Restricts the list by the labels of its objects. Defaults to everything."),
    ("limit", "integer", "The most objects that one answer may hold."),
    ("resourceVersion", "string", "How fresh the answer must be."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to list calls."),
    ("sendInitialEvents", "boolean", "Begins a watch with events for all that is there."),
    ("timeoutSeconds", "integer", "How long the call may take at most."),
    ("watch", "boolean", "Watches for changes and answers with a stream of them."),
];
const WRITE: &[(&str, &str, &str)] = &[
    ("dryRun", "string", "With 'All', nothing is stored."),
    ("fieldManager", "string", "The name of who makes the change."),
    ("fieldValidation", "string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict."),
];
const FORCE: (&str, &str, &str) = ("force", "boolean", "Takes over fields that belong to others in an apply.");
const DELETE: &[(&str, &str, &str)] = &[
    ("dryRun", "string", "With 'All', nothing is deleted."),
    ("gracePeriodSeconds", "integer", "How many seconds the object has to end."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Deletes the object even if it cannot be read from storage.",
    ),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of the object's dependents: Orphan, Background or Foreground."),
];

fn parameters(verb: &str) -> Vec<Value> {
    let list: Vec<&(&str, &str, &str)> = match verb {
        "list" => LIST.iter().collect(),
        "deletecollection" => LIST.iter().filter(|(name, ..)| *name != "watch").chain(DELETE).collect(),
        "create" | "update" => WRITE.iter().collect(),
        "patch" => WRITE.iter().chain([&FORCE]).collect(),
        "delete" => DELETE.iter().collect(),
        _ => Vec::new(),
    };
    list.into_iter().map(|(name, kind, text)| query(name, kind, text)).collect()
}

fn content(types: &[&str], schema: &Value) -> Value {
    Value::Object(types.iter().map(|media| ((*media).to_owned(), json!({ "schema": schema }))).collect())
}

fn operation(def: &ResourceDef, sub: Option<&Subresource>, verb: &str, schemas: &mut Schemas<'_>) -> Value {
    let (group, version, kind) = match sub {
        Some(sub) => (sub.kind.group.as_str(), sub.kind.version.as_str(), sub.kind.kind.as_str()),
        None => (def.group.as_str(), def.version.as_str(), def.kind.as_str()),
    };
    let is_connection = kind.ends_with("Options");
    let object = if is_connection { json!({ "type": "string" }) } else { schemas.kind(group, version, kind) };
    let answer = match verb {
        "list" => schemas.list(def),
        "delete" | "deletecollection" if !is_connection => schemas.meta("Status"),
        _ => object.clone(),
    };
    let body = match verb {
        _ if is_connection => None,
        "create" | "update" => Some(content(&["*/*"], &object)),
        "patch" if def.custom.is_some() => Some(content(&PATCHES[..3], &schemas.patch())),
        "patch" => Some(content(&PATCHES, &schemas.patch())),
        "delete" | "deletecollection" => Some(content(&["*/*"], &schemas.meta("DeleteOptions"))),
        _ => None,
    };
    let action = match (verb, is_connection) {
        (_, true) => "connect",
        ("create", _) => "post",
        ("update", _) => "put",
        ("deletecollection", _) => "deletecollection",
        (verb, _) => verb,
    };
    let ok = json!({ "description": "OK", "content": content(&[JSON, PROTOBUF, YAML], &answer) });
    let mut responses = json!({ "200": ok, "401": { "description": "Unauthorized" } });
    if matches!(verb, "create" | "update" | "patch") && !is_connection {
        responses["201"] = json!({ "description": "Created", "content": content(&[JSON, PROTOBUF, YAML], &answer) });
    }
    let mut operation = json!({
        "operationId": identifier(def, sub, verb),
        "tags": [tag(def)],
        "description": describe(def, sub, verb),
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": { "group": group, "version": version, "kind": kind },
    });
    let parameters = parameters(verb);
    if !parameters.is_empty() && !is_connection {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = body {
        let mut request = json!({ "content": body });
        if verb != "delete" && verb != "deletecollection" {
            request["required"] = true.into();
        }
        operation["requestBody"] = request;
    }
    operation
}

fn group_name(def: &ResourceDef) -> &str {
    if def.group.is_empty() { "core" } else { def.group.split('.').next().unwrap_or_default() }
}

fn tag(def: &ResourceDef) -> String {
    format!("{}_{}", group_name(def), def.version)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Such as `createAppsV1NamespacedDeployment` or `patchCoreV1NodeStatus`.
fn identifier(def: &ResourceDef, sub: Option<&Subresource>, verb: &str) -> String {
    let verb = match verb {
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "deleteCollection",
        verb => verb,
    };
    let scope = if def.is_namespaced() { "Namespaced" } else { "" };
    let sub = sub.map(|sub| capital(&sub.name)).unwrap_or_default();
    format!("{verb}{}{}{scope}{}{sub}", capital(group_name(def)), capital(&def.version), def.kind)
}

fn describe(def: &ResourceDef, sub: Option<&Subresource>, verb: &str) -> String {
    let of = sub.map(|sub| format!("{} of the specified ", sub.name)).unwrap_or_default();
    let kind = &def.kind;
    match verb {
        "list" => format!("list or watch objects of kind {kind}"),
        "create" => format!("create {of}{kind}"),
        "get" => format!("read {of}{kind}"),
        "update" => format!("replace {of}{kind}"),
        "patch" => format!("partially update {of}{kind}"),
        "deletecollection" => format!("delete collection of {kind}"),
        _ => format!("{verb} {of}{kind}"),
    }
}
