//! Discovery and OpenAPI of this server together with those of others.

use std::{
    cmp::Reverse,
    sync::{Arc, atomic::Ordering},
};

use axum::response::Response;
use http::{HeaderValue, header};
use serde_json::{Value, json};
use tandem_api::ApiError;
use tandem_registry::{openapi, priorities};

use super::{Route, documents, proxy};
use crate::{
    call::Call,
    core::Core,
    discovery::{self, AGGREGATED, Document},
    kinds::Served,
    request::{self, Verb},
};

/// A document, and what it was made of.
pub(super) struct Merged {
    epoch: u64,
    served: Arc<Served>,
    document: Document,
}

/// The documents in which other servers have a part; `None` where there are no such servers, or it is no such document.
pub(crate) async fn serve(core: &Arc<Core>, call: &Call, path: &str) -> Option<Result<Response, ApiError>> {
    if let Err(error) = core.aggregation.follow(core).await {
        return Some(Err(error));
    }
    let routes: Vec<Arc<Route>> = core.aggregation.routes().values().cloned().collect();
    if routes.is_empty() {
        return None;
    }
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let own = documents::own_identity();
    let route =
        |group: &str, version: &str| routes.iter().find(|route| route.group == group && route.version == version);
    let passed_to = match words[..] {
        ["apis", group, version] => Some((route(group, version)?, &call.identity)),
        ["openapi", "v3", "apis", group, version] => Some((route(group, version)?, &own)),
        ["apis", group] if routes.iter().any(|route| route.group == group) => None,
        ["apis"] | ["openapi", "v2" | "v3"] => None,
        _ => return None,
    };
    if !matches!(call.info.verb, Verb::Get | Verb::Head) {
        return Some(Err(request::method_not_allowed()));
    }
    if let Some((route, as_)) = passed_to {
        return Some(proxy::pass(core, call, route, as_).await);
    }
    Some(Ok(document(core, call, &words, &routes).await))
}

async fn document(core: &Arc<Core>, call: &Call, words: &[&str], routes: &[Arc<Route>]) -> Response {
    let served = core.kinds.served();
    let accept = call.header(header::ACCEPT).unwrap_or_default();
    let mut response = match *words {
        ["openapi", "v2"] => {
            documents::refresh(core, routes, true).await;
            let (name, content_type, format) = discovery::v2_form(accept);
            let make = || openapi::v2_with(&served.registry, format, |document| add_openapi_v2(document, routes));
            return discovery::answer(call, &kept(core, &served, name, make), content_type);
        }
        ["openapi", _] => {
            documents::refresh(core, routes, false).await;
            let make = || add_openapi(&openapi::index(&served.registry), routes);
            return discovery::answer(call, &kept(core, &served, "v3", make), "application/json");
        }
        ["apis"] if discovery::accepts_aggregated(accept) => {
            documents::refresh(core, routes, false).await;
            let make = || aggregated(discovery::aggregated(&served.registry, false), routes).to_string().into();
            discovery::answer(call, &kept(core, &served, "aggregated", make), AGGREGATED)
        }
        ["apis"] => {
            let make = || json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups(&served, routes) });
            let document = kept(core, &served, "plain", || make().to_string().into());
            discovery::answer(call, &document, "application/json")
        }
        _ => {
            let name = words.last().copied().unwrap_or_default();
            let found = groups(&served, routes).into_iter().find(|group| group["name"] == name);
            let mut group = found.unwrap_or_default();
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            discovery::answer(call, &Document::new(group.to_string().into()), "application/json")
        }
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// The document as it was made last, unless something has changed since.
fn kept(core: &Core, served: &Arc<Served>, name: &'static str, make: impl FnOnce() -> Vec<u8>) -> Document {
    let epoch = core.aggregation.epoch.load(Ordering::Relaxed);
    let is_same = |merged: &&Merged| merged.epoch == epoch && Arc::ptr_eq(&merged.served, served);
    if let Some(merged) = core.aggregation.merged.lock().get(name).filter(is_same) {
        return merged.document.clone();
    }
    let document = Document::new(make());
    let merged = Merged { epoch, served: served.clone(), document: document.clone() };
    core.aggregation.merged.lock().insert(name, merged);
    document
}

fn name_of(version: &Value) -> &str {
    version.get("version").and_then(Value::as_str).unwrap_or_default()
}

/// Puts a version of another server among those of its group, in the place that its priority gives it.
fn put(versions: &mut Vec<Value>, group: &str, routes: &[Arc<Route>], version: Value) {
    versions.retain(|own| name_of(own) != name_of(&version));
    versions.push(version);
    let priority = |version: &Value| {
        let of = routes.iter().find(|route| route.group == group && route.version == name_of(version));
        of.map_or_else(|| i64::from(priorities(group, name_of(version)).1), |route| route.priority.1)
    };
    versions.sort_by_key(|version| Reverse(priority(version)));
}

/// The groups by their priority: those of the same one in the order in which they are.
fn sort(groups: &mut [Value], routes: &[Arc<Route>], name: impl Fn(&Value) -> String) {
    groups.sort_by_cached_key(|group| {
        let name = name(group);
        let others = routes.iter().filter(|route| route.group == name).map(|route| route.priority.0);
        Reverse(others.max().unwrap_or_else(|| i64::from(priorities(&name, "").0)))
    });
}

/// Changes the versions of the group, which is made if it is not there.
fn in_group(groups: &mut Vec<Value>, is_it: impl Fn(&Value) -> bool, new: Value, change: impl FnOnce(&mut Vec<Value>)) {
    let at = groups.iter().position(is_it).unwrap_or_else(|| {
        groups.push(new);
        groups.len() - 1
    });
    if let Some(versions) = groups[at].get_mut("versions").and_then(Value::as_array_mut) {
        change(versions);
    }
}

fn groups(served: &Served, routes: &[Arc<Route>]) -> Vec<Value> {
    let mut groups = discovery::groups(&served.registry);
    for route in routes {
        let name = route.group.as_str();
        let version = json!({ "groupVersion": format!("{name}/{}", route.version), "version": route.version });
        let new = json!({ "name": name, "versions": [] });
        in_group(&mut groups, |group| group["name"] == name, new, |versions| put(versions, name, routes, version));
    }
    for group in &mut groups {
        let preferred = group["versions"].get(0).cloned();
        group["preferredVersion"] = preferred.into();
    }
    sort(&mut groups, routes, |group| group["name"].as_str().unwrap_or_default().to_owned());
    groups
}

fn aggregated(mut list: Value, routes: &[Arc<Route>]) -> Value {
    let Some(groups) = list.get_mut("items").and_then(Value::as_array_mut) else { return list };
    for route in routes {
        let (name, said) = (route.group.as_str(), route.slot.said());
        let freshness = if said.is_current && route.available { "Current" } else { "Stale" };
        let version = json!({ "version": route.version, "resources": *said.resources, "freshness": freshness });
        let new = json!({ "metadata": { "name": name }, "versions": [] });
        let is_it = |group: &Value| group["metadata"]["name"] == name;
        in_group(groups, is_it, new, |versions| put(versions, name, routes, version));
    }
    sort(groups, routes, |group| group["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    list
}

fn add_openapi(index: &[u8], routes: &[Arc<Route>]) -> Vec<u8> {
    let mut index: Value = serde_json::from_slice(index).unwrap_or_default();
    if let Some(paths) = index.get_mut("paths").and_then(Value::as_object_mut) {
        for route in routes {
            let path = route.path().trim_start_matches('/').to_owned();
            match route.slot.said().openapi {
                Some(url) => paths.insert(path, json!({ "serverRelativeURL": url })),
                None => paths.shift_remove(&path),
            };
        }
    }
    index.to_string().into_bytes()
}

/// Definitions of this server stay: those that others have by the same name are of the same type.
fn add_openapi_v2(document: &mut Value, routes: &[Arc<Route>]) {
    for route in routes {
        let Some(part) = route.slot.said().openapi_v2 else { continue };
        for key in ["paths", "definitions"] {
            let theirs = part.get(key).and_then(Value::as_object).into_iter().flatten();
            let Some(own) = document.get_mut(key).and_then(Value::as_object_mut) else { continue };
            for (name, value) in theirs {
                own.entry(name.as_str()).or_insert_with(|| value.clone());
            }
        }
    }
}
