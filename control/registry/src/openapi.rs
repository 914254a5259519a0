//! OpenAPI documents from the type table and Kubernetes' descriptions: v3, one for each group and version, and v2, one
//! for all.
//!
//! The descriptions are 700 KB of text: they stay compressed until a document is asked for. The caller keeps documents.

mod descriptions;
mod paths;
mod schemas;
mod v2;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Value, json};
use tandem_api::KUBERNETES_MINOR;

use crate::{Registry, ResourceDef, json::Fields};

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
/// Equal on all members, so that a client may ask any of them. Group `*` stands for the v2 document.
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
    let all = group == "*";
    for def in registry.all().iter().filter(|def| all || (def.group == group && def.version == version)) {
        add(def.plural.as_bytes());
        def.verbs.iter().for_each(|verb| add(verb.as_bytes()));
        def.custom.iter().for_each(|custom| add(custom.source()));
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
    let (paths, schemas) = parts(registry, &rows);
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": served() },
        "paths": Value::Object(paths),
        "components": {
            "schemas": schemas,
            "securitySchemes": { "BearerToken": {
                "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
            } },
        },
    });
    Some(document.to_string().into_bytes())
}

fn served() -> String {
    format!("v1.{KUBERNETES_MINOR}.0")
}

/// The paths and the component schemas of some rows.
fn parts(registry: &Registry, rows: &[Arc<ResourceDef>]) -> (Fields, Value) {
    let text = descriptions::read();
    let mut schemas = schemas::Schemas::new(registry, descriptions::index(&text));
    let mut paths = Fields::new();
    for def in rows {
        paths::add(def, &mut schemas, &mut paths);
    }
    (paths, schemas.finish())
}

/// How a v2 document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V2Format {
    Json,
    Protobuf,
}

/// What clients put into `Accept` for the protobuf form.
pub const V2_PROTOBUF_ACCEPT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What the answer's `Content-Type` must be: the `@` of the older name is refused by Go's own parser.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The v2 document of all groups.
pub fn v2(registry: &Registry, format: V2Format) -> Vec<u8> {
    v2_with(registry, format, |_| ())
}

/// The same with what is added to it.
pub fn v2_with(registry: &Registry, format: V2Format, add: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (paths, schemas) = parts(registry, &registry.all());
    let mut document = v2::document(&paths, &schemas, &served());
    add(&mut document);
    match format {
        V2Format::Json => document.to_string().into_bytes(),
        V2Format::Protobuf => v2::protobuf(&document),
    }
}
