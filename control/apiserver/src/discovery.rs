//! What is served, in all the forms in which clients ask for it. Each form is made when it is first asked for.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::OnceLock,
};

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tandem_api::{ApiError, KUBERNETES_MINOR, Reason};
use tandem_registry::{KindName, Registry, ResourceDef, openapi};

use crate::{call::Call, core::Core, request, respond, usage::requests};

pub(crate) const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// OpenAPI documents are large and seldom asked for: only the last few are kept.
const DOCUMENTS_KEPT: usize = 4;

/// A document with the tag by which clients ask whether it changed.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    body: Bytes,
    tag: String,
}

impl Document {
    pub(crate) fn new(body: Vec<u8>) -> Document {
        let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
        Document { body: body.into(), tag }
    }
}

pub(crate) struct Documents {
    /// `/api`, `/apis/apps/v1` … in the form that every client reads.
    plain: OnceLock<HashMap<String, Document>>,
    /// `/api` and `/apis` with everything below them.
    aggregated: OnceLock<HashMap<&'static str, Document>>,
    openapi_index: OnceLock<Document>,
    openapi: Mutex<VecDeque<(String, Document)>>,
    pub(crate) subresources: Vec<String>,
}

impl Documents {
    pub(crate) fn new(registry: &Registry) -> Documents {
        let defs = registry.all();
        let names: BTreeSet<String> =
            defs.iter().flat_map(|def| def.subresources.iter().map(|sub| sub.name.clone())).collect();
        Documents {
            plain: OnceLock::new(),
            aggregated: OnceLock::new(),
            openapi_index: OnceLock::new(),
            openapi: Mutex::default(),
            subresources: names.into_iter().collect(),
        }
    }

    fn plain(&self, registry: &Registry) -> &HashMap<String, Document> {
        self.plain.get_or_init(|| {
            let documents = plain(registry).into_iter();
            documents.map(|(path, value)| (path, Document::new(value.to_string().into()))).collect()
        })
    }

    fn aggregated(&self, registry: &Registry) -> &HashMap<&'static str, Document> {
        self.aggregated.get_or_init(|| {
            let document = |core| Document::new(aggregated(registry, core).to_string().into());
            [("/api", true), ("/apis", false)].map(|(path, core)| (path, document(core))).into()
        })
    }

    fn document(&self, registry: &Registry, path: &str) -> Option<Document> {
        let (group, version) = match path.split('/').collect::<Vec<_>>()[..] {
            ["api", version] => ("", version),
            ["apis", group, version] => (group, version),
            _ => return None,
        };
        self.kept(path, || openapi::v3(registry, group, version).map(Document::new))
    }

    /// One of the documents asked for last, or a new one.
    fn kept(&self, name: &str, make: impl FnOnce() -> Option<Document>) -> Option<Document> {
        let found = self.openapi.lock().iter().find(|(mine, _)| mine == name).map(|(_, document)| document.clone());
        if found.is_some() {
            return found;
        }
        let document = make()?;
        let mut kept = self.openapi.lock();
        kept.push_front((name.to_owned(), document.clone()));
        kept.truncate(DOCUMENTS_KEPT);
        Some(document)
    }
}

/// Discovery, versions and OpenAPI; `None` where the path is none of these.
pub(crate) fn serve(core: &Core, call: &Call, path: &str) -> Option<Result<Response, ApiError>> {
    if path == "/version" {
        return Some(Ok(respond::json_bytes(StatusCode::OK, version().to_string())));
    }
    let served = core.kinds.served();
    let (registry, documents) = (&served.registry, &served.documents);
    if path == "/openapi/v3" {
        let index = documents.openapi_index.get_or_init(|| Document::new(openapi::index(registry)));
        return Some(Ok(answer(call, index, "application/json")));
    }
    if path == "/openapi/v2" {
        return Some(Ok(open_api_v2(core, call)));
    }
    if let Some(name) = path.strip_prefix("/openapi/v3/") {
        return Some(open_api(core, call, name));
    }
    let accept = call.header(header::ACCEPT).unwrap_or_default();
    if accepts_aggregated(accept)
        && let Some(document) = documents.aggregated(registry).get(path)
    {
        let mut response = answer(call, document, AGGREGATED);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        return Some(Ok(response));
    }
    let document = documents.plain(registry).get(path)?;
    let mut response = answer(call, document, "application/json");
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    Some(Ok(response))
}

fn open_api(core: &Core, call: &Call, name: &str) -> Result<Response, ApiError> {
    let served = core.kinds.served();
    let document = served.documents.document(&served.registry, name).ok_or_else(request::not_found)?;
    let accept = call.header(header::ACCEPT).unwrap_or("*/*");
    if !["json", "*/*", "application/*"].iter().any(|part| accept.contains(part)) {
        return Err(ApiError::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json",
        ));
    }
    let mut response = answer(call, &document, "application/json");
    if call.info.query.has("hash") {
        // The hash names the content: it can be kept for ever.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(response)
}

/// The older document of everything at once; kubectl before 1.29 and Argo CD read it, in its protobuf form.
fn open_api_v2(core: &Core, call: &Call) -> Response {
    let (name, content_type, format) = v2_form(call.header(header::ACCEPT).unwrap_or_default());
    let served = core.kinds.served();
    let document = served.documents.kept(name, || Some(Document::new(openapi::v2(&served.registry, format))));
    document.map_or_else(|| respond::error(&request::not_found()), |document| answer(call, &document, content_type))
}

/// The name, type and format of the document that is asked for.
pub(crate) fn v2_form(accept: &str) -> (&'static str, &'static str, openapi::V2Format) {
    if accept.contains(openapi::V2_PROTOBUF_ACCEPT) || accept.contains(openapi::V2_PROTOBUF) {
        ("v2.pb", openapi::V2_PROTOBUF, openapi::V2Format::Protobuf)
    } else {
        ("v2.json", "application/json", openapi::V2Format::Json)
    }
}

pub(crate) fn answer(call: &Call, document: &Document, content_type: &'static str) -> Response {
    let known =
        call.header(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == document.tag));
    let mut response = if known {
        respond::bytes(StatusCode::NOT_MODIFIED, HeaderValue::from_static(content_type), Bytes::new())
    } else {
        respond::bytes(StatusCode::OK, HeaderValue::from_static(content_type), document.body.clone())
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&document.tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// Clients up to 1.29 ask for v2beta1 alone, and get the plain form.
pub(crate) fn accepts_aggregated(accept: &str) -> bool {
    accept.split(',').any(|clause| {
        let has = |part: &str| clause.split(';').any(|mine| mine.trim() == part);
        has("application/json") && has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": KUBERNETES_MINOR.to_string(),
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+tandem-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    })
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn plain(registry: &Registry) -> Vec<(String, Value)> {
    let groups = registry.groups();
    let everywhere = json!([{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }]);
    let mut documents = vec![(
        "/api".to_owned(),
        json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": everywhere }),
    )];
    for group in &groups {
        let name = &group.name;
        for version in &group.versions {
            let path = if name.is_empty() { format!("/api/{version}") } else { format!("/apis/{name}/{version}") };
            documents.push((path, resources(registry, name, version)));
        }
    }
    let list = self::groups(registry);
    for body in &list {
        let mut alone = json!({ "kind": "APIGroup", "apiVersion": "v1" });
        if let (Some(alone), Some(body)) = (alone.as_object_mut(), body.as_object()) {
            alone.extend(body.clone());
        }
        documents.push((format!("/apis/{}", body["name"].as_str().unwrap_or_default()), alone));
    }
    for (name, versions, resources) in requests::groups() {
        for version in versions {
            let list: Vec<Value> = resources.iter().map(|one| measured(name, one)).collect();
            let group_version = group_version(name, version);
            documents.push((
                format!("/apis/{group_version}"),
                json!({
                    "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list,
                }),
            ));
        }
    }
    documents.push(("/apis".to_owned(), json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list })));
    documents
}

/// The groups but the core one, as `/apis` lists them.
pub(crate) fn groups(registry: &Registry) -> Vec<Value> {
    let one = |name: &str, versions: &[&str]| {
        let version = |version: &&str| json!({ "groupVersion": group_version(name, version), "version": version });
        let versions: Vec<Value> = versions.iter().map(version).collect();
        json!({ "name": name, "versions": versions, "preferredVersion": versions.first() })
    };
    let groups = registry.groups();
    let rows = groups.iter().filter(|group| !group.name.is_empty()).map(|group| {
        let versions: Vec<&str> = group.versions.iter().map(String::as_str).collect();
        one(&group.name, &versions)
    });
    rows.chain(requests::groups().map(|(name, versions, _)| one(name, versions))).collect()
}

/// A metric that is served without a row: of a resource, or alone.
fn measured(group: &str, (of, metric): &(Option<String>, &str)) -> Value {
    let name = of.as_ref().map_or_else(|| (*metric).to_owned(), |of| format!("{of}/{metric}"));
    let verb = if of.is_some() { "get" } else { "list" };
    json!({
        "name": name, "singularName": "", "namespaced": true, "kind": requests::list_kind(group), "verbs": [verb],
    })
}

fn rows<'a>(registry: &Registry, group: &'a str, version: &'a str) -> Vec<std::sync::Arc<ResourceDef>> {
    registry.all().into_iter().filter(|def| def.group == group && def.version == version).collect()
}

fn resources(registry: &Registry, group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for def in rows(registry, group, version) {
        let mut resource = json!({
            "name": def.plural, "singularName": def.singular, "namespaced": def.is_namespaced(),
            "kind": def.kind, "verbs": def.verbs,
        });
        if !def.short_names.is_empty() {
            resource["shortNames"] = json!(def.short_names);
        }
        if !def.categories.is_empty() {
            resource["categories"] = json!(def.categories);
        }
        list.push(resource);
        for sub in &def.subresources {
            let mut resource = json!({
                "name": format!("{}/{}", def.plural, sub.name), "singularName": "", "namespaced": def.is_namespaced(),
                "kind": sub.kind.kind, "verbs": sub.verbs,
            });
            if sub.kind.group != def.group || sub.kind.version != def.version {
                resource["group"] = sub.kind.group.as_str().into();
                resource["version"] = sub.kind.version.as_str().into();
            }
            list.push(resource);
        }
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version), "resources": list,
    })
}

fn kind(kind: &KindName) -> Value {
    json!({ "group": kind.group, "version": kind.version, "kind": kind.kind })
}

pub(crate) fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups = registry.groups();
    let groups = groups.iter().filter(|group| group.name.is_empty() == core);
    let mut items: Vec<Value> = groups
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let rows = rows(registry, &group.name, version);
                    let resources: Vec<Value> = rows.iter().map(|def| discovered(def)).collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = if group.name.is_empty() { json!({}) } else { json!({ "name": group.name }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    if !core {
        items.extend(requests::groups().map(|(name, versions, resources)| {
            let version = |version: &&str| {
                let resources: Vec<Value> =
                    resources.iter().map(|one| measured_discovered((name, *version), one)).collect();
                json!({ "version": version, "resources": resources, "freshness": "Current" })
            };
            json!({ "metadata": { "name": name }, "versions": versions.iter().map(version).collect::<Vec<_>>() })
        }));
    }
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn measured_discovered((group, version): (&str, &str), (of, metric): &(Option<String>, &str)) -> Value {
    let kind = json!({ "group": group, "version": version, "kind": requests::list_kind(group) });
    match of {
        // The parent is nothing that this group serves: it has no kind.
        Some(of) => json!({
            "resource": of, "scope": "Namespaced", "singularResource": "", "verbs": [],
            "subresources": [{ "subresource": metric, "responseKind": kind, "verbs": ["get"] }],
        }),
        None => json!({
            "resource": metric, "responseKind": kind, "scope": "Namespaced", "singularResource": "", "verbs": ["list"],
        }),
    }
}

fn discovered(def: &ResourceDef) -> Value {
    let own = KindName { group: def.group.clone(), version: def.version.clone(), kind: def.kind.clone() };
    let mut resource = json!({
        "resource": def.plural, "responseKind": kind(&own),
        "scope": if def.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular, "verbs": def.verbs,
    });
    if !def.short_names.is_empty() {
        resource["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        resource["categories"] = json!(def.categories);
    }
    let subs: Vec<Value> = def
        .subresources
        .iter()
        .map(|sub| json!({ "subresource": sub.name, "responseKind": kind(&sub.kind), "verbs": sub.verbs }))
        .collect();
    if !subs.is_empty() {
        resource["subresources"] = subs.into();
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_that_know_v2_get_it() {
        assert!(accepts_aggregated(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        ));
        assert!(!accepts_aggregated(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        ));
        assert!(!accepts_aggregated("application/json"));
    }

    #[test]
    fn every_group_version_has_a_list() {
        let registry = Registry::builtin();
        let documents = Documents::new(&registry);
        for group in registry.groups() {
            for version in group.versions {
                let path = if group.name.is_empty() {
                    "/api/v1".to_owned()
                } else {
                    format!("/apis/{}/{version}", group.name)
                };
                assert!(documents.plain(&registry).contains_key(&path), "{path}");
            }
        }
        assert_eq!(version()["minor"], "36");
    }
}
