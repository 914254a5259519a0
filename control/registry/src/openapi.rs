//! OpenAPI v3 documents, one for each group and version, from the type table and Kubernetes' descriptions.
//!
//! The descriptions are 700 KB of text: they stay compressed until a document is asked for. The caller keeps documents.

mod descriptions;
mod paths;
mod schemas;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};
use tandem_api::KUBERNETES_MINOR;

use crate::{Registry, json::Fields};

/// The paths of `/openapi/v3`, each with the hash of its document: `apis/apps/v1` to
/// `/openapi/v3/apis/apps/v1?hash=..`. The body of `GET /openapi/v3`.
pub fn index(registry: &Registry) -> Vec<u8> {
    let mut paths = Fields::new();
    for group in registry.groups() {
        for version in &group.versions {
            let path = document_path(&group.name, version);
            let hash = hash(registry, &group.name, version);
            paths.insert(path.clone(), json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}") }));
        }
    }
    json!({ "paths": paths }).to_string().into_bytes()
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A name for the content of a document, which is made of nothing but what this crate carries: its version and tables.
/// Equal on all members, so that a client may ask any of them.
pub fn hash(registry: &Registry, group: &str, version: &str) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut hash = OFFSET;
    let mut add = |text: &[u8]| {
        for byte in text {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(descriptions::COMPRESSED);
    for ty in registry.schema().types() {
        add(ty.name.as_bytes());
        ty.fields.iter().for_each(|field| add(field.name.as_bytes()));
    }
    for def in registry.all().iter().filter(|def| def.group == group && def.version == version) {
        add(def.plural.as_bytes());
        def.verbs.iter().for_each(|verb| add(verb.as_bytes()));
    }
    add(group.as_bytes());
    add(version.as_bytes());
    format!("{hash:016X}")
}

/// The document of one group and version as JSON; `None` if it is not served.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Vec<u8>> {
    let rows: Vec<_> = registry.all().into_iter().filter(|def| def.group == group && def.version == version).collect();
    if rows.is_empty() {
        return None;
    }
    let text = descriptions::read();
    let mut schemas = schemas::Schemas::new(registry, descriptions::index(&text));
    let mut paths = Fields::new();
    for def in &rows {
        paths::add(def, &mut schemas, &mut paths);
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": format!("v1.{KUBERNETES_MINOR}.0") },
        "paths": Value::Object(paths),
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": { "BearerToken": {
                "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
            } },
        },
    });
    Some(document.to_string().into_bytes())
}
