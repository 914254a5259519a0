//! What each server says that it has: asked when somebody wants to know, kept for a while. Who asks meanwhile gets what
//! is known; only where nothing is known yet he waits, and not for long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tandem_api::{Identity, groups};
use tokio::time::{Instant, timeout};

use super::{Route, proxy};
use crate::core::Core;

/// How long an answer counts as current, and how long a server that gave none is left alone.
const KEPT: Duration = Duration::from_secs(30);
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a request for discovery waits for a server that nothing is known of.
const PATIENCE: Duration = Duration::from_secs(2);
const DOCUMENT_MAX_BYTES: usize = 4 << 20;
/// The OpenAPI v2 document has all groups of a server, with their descriptions.
const OPENAPI_MAX_BYTES: usize = 16 << 20;
/// Resources beyond these are left out.
const RESOURCES_MAX: usize = 1000;

/// What a server said last.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// As aggregated discovery writes them.
    pub(super) resources: Arc<Vec<Value>>,
    /// Where its OpenAPI v3 document is, if it has one.
    pub(super) openapi: Option<String>,
    /// Its own part of its OpenAPI v2 document, once that was asked for.
    pub(super) openapi_v2: Option<Arc<Value>>,
    pub(super) is_current: bool,
}

/// One document: when it was asked for, and its tag.
#[derive(Debug, Default)]
struct Asked(Mutex<(Option<Instant>, Option<HeaderValue>)>);

impl Asked {
    fn is_due(&self) -> bool {
        self.0.lock().0.is_none_or(|asked| asked.elapsed() >= KEPT)
    }
}

#[derive(Debug)]
pub(super) struct Slot {
    said: Mutex<Said>,
    resources: Asked,
    openapi_v2: Asked,
    /// One question at a time.
    turn: tokio::sync::Mutex<()>,
    epoch: Arc<AtomicU64>,
}

impl Slot {
    pub(super) fn new(epoch: Arc<AtomicU64>) -> Slot {
        Slot {
            said: Mutex::default(),
            resources: Asked::default(),
            openapi_v2: Asked::default(),
            turn: tokio::sync::Mutex::default(),
            epoch,
        }
    }

    pub(super) fn said(&self) -> Said {
        self.said.lock().clone()
    }

    fn set(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock());
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

/// Why a server is not to be counted on; for the controller that decides so.
pub(crate) async fn probe(core: &Core, name: &str) -> Result<(), String> {
    core.aggregation.follow(core).await.map_err(|why| why.message)?;
    let routes = core.aggregation.routes();
    let route = routes.values().find(|route| route.name == name).ok_or("the APIService names no Service")?;
    refresh_resources(core, route).await
}

/// Makes what is known of the servers current, as far as that goes in the time that a client waits.
pub(super) async fn refresh(core: &Arc<Core>, routes: &[Arc<Route>], with_openapi_v2: bool) {
    let due = routes
        .iter()
        .filter(|route| route.available)
        .filter(|route| route.slot.resources.is_due() || (with_openapi_v2 && route.slot.openapi_v2.is_due()));
    let (mut unknown, mut tasks) = (false, tokio::task::JoinSet::new());
    for route in due {
        let said = route.slot.said();
        unknown |= !said.is_current || (with_openapi_v2 && said.openapi_v2.is_none());
        tasks.spawn(work(core.clone(), route.clone(), with_openapi_v2));
    }
    if unknown {
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("discovery goes on without some API servers");
        }
    }
    // They end by themselves.
    tasks.detach_all();
}

async fn work(core: Arc<Core>, route: Arc<Route>, with_openapi_v2: bool) {
    let slot = &route.slot;
    let _turn = slot.turn.lock().await;
    if slot.resources.is_due()
        && let Err(why) = refresh_resources(&core, &route).await
    {
        tracing::debug!(api = route.name, why, "discovery of an API server failed");
    }
    if with_openapi_v2
        && slot.openapi_v2.is_due()
        && let Err(why) = refresh_openapi_v2(&core, &route).await
    {
        tracing::debug!(api = route.name, why, "the OpenAPI document of an API server cannot be had");
    }
}

async fn refresh_resources(core: &Core, route: &Route) -> Result<(), String> {
    let slot = &route.slot;
    slot.resources.0.lock().0 = Some(Instant::now());
    let found = async {
        let answer = ask(core, route, &route.path(), None, DOCUMENT_MAX_BYTES).await?;
        let resources = resources(route, &answer.body)?;
        // Servers without OpenAPI v3 are complete all the same.
        let index = ask(core, route, "/openapi/v3", None, DOCUMENT_MAX_BYTES).await.ok();
        Ok((resources, index.and_then(|index| openapi_of(route, &index.body))))
    };
    match found.await {
        Ok((resources, openapi)) => {
            let before = slot.said();
            let same = before.is_current && *before.resources == resources && before.openapi == openapi;
            if !same {
                slot.set(|said| {
                    *said = Said { resources: Arc::new(resources), openapi, is_current: true, ..said.clone() };
                });
            }
            Ok(())
        }
        Err(why) => {
            if slot.said().is_current {
                slot.set(|said| said.is_current = false);
            }
            Err(why)
        }
    }
}

async fn refresh_openapi_v2(core: &Core, route: &Route) -> Result<(), String> {
    let slot = &route.slot;
    let tag = {
        let mut asked = slot.openapi_v2.0.lock();
        asked.0 = Some(Instant::now());
        asked.1.clone()
    };
    let answer = ask(core, route, "/openapi/v2", tag, OPENAPI_MAX_BYTES).await?;
    if answer.code == StatusCode::NOT_MODIFIED {
        return Ok(());
    }
    let document: Value = serde_json::from_slice(&answer.body).map_err(|why| format!("not JSON: {why}"))?;
    slot.openapi_v2.0.lock().1 = answer.tag;
    slot.set(|said| said.openapi_v2 = Some(Arc::new(own_part(route, document))));
    Ok(())
}

struct Answer {
    code: StatusCode,
    tag: Option<HeaderValue>,
    body: Bytes,
}

/// What this server asks for itself.
pub(super) fn own_identity() -> Identity {
    Identity::user("system:kube-aggregator", &[groups::MASTERS])
}

async fn ask(core: &Core, route: &Route, path: &str, tag: Option<HeaderValue>, most: usize) -> Result<Answer, String> {
    let url = format!("https://{}:{}{path}", route.host(), route.port);
    let asked = timeout(ANSWER_MAX, fetch(core, route, path, tag, most)).await;
    let failed = |why: String| format!("failing or missing response from {url}: {why}");
    let answer = asked.map_err(|_| failed("context deadline exceeded".to_owned()))?.map_err(failed)?;
    if answer.code.is_success() || answer.code == StatusCode::NOT_MODIFIED {
        Ok(answer)
    } else {
        Err(format!("bad status from {url}: {}", answer.code.as_u16()))
    }
}

async fn fetch(
    core: &Core,
    route: &Route,
    path: &str,
    tag: Option<HeaderValue>,
    most: usize,
) -> Result<Answer, String> {
    let stream = route.open(core).await?;
    let text = |why: hyper::Error| why.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let _ended = Ends(connection.abort_handle());
    let mut request = Request::get(path).body(Body::empty()).map_err(|why| why.to_string())?;
    let headers = request.headers_mut();
    *headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::HOST, HeaderValue::from_str(&route.host()).map_err(|why| why.to_string())?);
    if let Some(tag) = tag {
        headers.insert(header::IF_NONE_MATCH, tag);
    }
    proxy::tell(headers, &own_identity()).map_err(|why| why.message)?;
    let response = sender.send_request(request).await.map_err(text)?;
    let (code, tag) = (response.status(), response.headers().get(header::ETAG).cloned());
    let body = Limited::new(response.into_body(), most).collect().await.map_err(|why| why.to_string())?;
    Ok(Answer { code, tag, body: body.to_bytes() })
}

/// Ends a connection, whatever became of the question.
struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An `APIResourceList` in the words of aggregated discovery.
fn resources(route: &Route, body: &[u8]) -> Result<Vec<Value>, String> {
    let list: Value =
        serde_json::from_slice(body).map_err(|why| format!("the discovery document is not JSON: {why}"))?;
    if list.get("kind").and_then(Value::as_str) != Some("APIResourceList") {
        return Err("the discovery document is not an APIResourceList".to_owned());
    }
    let mut found: Vec<Value> = Vec::new();
    let all = list.get("resources").and_then(Value::as_array).into_iter().flatten();
    for resource in all.take(RESOURCES_MAX) {
        let text = |key: &str| resource.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = text("name");
        let or =
            |key: &str, otherwise: &str| if text(key).is_empty() { otherwise.to_owned() } else { text(key).to_owned() };
        let kind = json!({
            "group": or("group", &route.group), "version": or("version", &route.version), "kind": text("kind"),
        });
        let verbs = resource.get("verbs").filter(|verbs| verbs.is_array()).cloned().unwrap_or_else(|| json!([]));
        let scope =
            if resource.get("namespaced").and_then(Value::as_bool) == Some(true) { "Namespaced" } else { "Cluster" };
        let (parent, sub) = name.split_once('/').map_or((name, None), |(parent, sub)| (parent, Some(sub)));
        if parent.is_empty() {
            continue;
        }
        let at = found.iter().position(|own| own["resource"] == parent).unwrap_or_else(|| {
            found.push(json!({ "resource": parent, "scope": scope, "verbs": [], "singularResource": "" }));
            found.len() - 1
        });
        let Some(own) = found[at].as_object_mut() else { continue };
        match sub {
            Some(sub) => {
                let list = own.entry("subresources").or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.push(json!({ "subresource": sub, "responseKind": kind, "verbs": verbs }));
                }
            }
            None => describe(own, resource, kind, verbs),
        }
    }
    Ok(found)
}

fn describe(own: &mut Map<String, Value>, resource: &Value, kind: Value, verbs: Value) {
    own.insert("responseKind".to_owned(), kind);
    own.insert("verbs".to_owned(), verbs);
    for (key, theirs) in
        [("singularResource", "singularName"), ("shortNames", "shortNames"), ("categories", "categories")]
    {
        if let Some(value) = resource.get(theirs) {
            own.insert(key.to_owned(), value.clone());
        }
    }
}

/// The entry of the server's own group and version; a path elsewhere is none.
fn openapi_of(route: &Route, index: &[u8]) -> Option<String> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let path = format!("apis/{}/{}", route.group, route.version);
    let url = index.get("paths")?.get(&path)?.get("serverRelativeURL")?.as_str()?;
    let own = format!("/openapi/v3/{path}");
    let sound = url.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('?'));
    sound.then(|| url.to_owned())
}

/// The paths of the server's own group and version, and its definitions.
fn own_part(route: &Route, mut document: Value) -> Value {
    let (own, below) = (format!("{}/", route.path()), route.path());
    let mut part = |key: &str| match document.get_mut(key).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (mut paths, definitions) = (part("paths"), part("definitions"));
    paths.retain(|path, _| path.starts_with(&own) || *path == below);
    json!({ "paths": paths, "definitions": definitions })
}

#[cfg(test)]
mod tests {
    use tandem_api::Object;

    use super::*;

    fn route() -> Route {
        let api = json!({ "metadata": { "name": "v1.example.com" }, "spec": {
            "group": "example.com", "version": "v1", "service": { "namespace": "a", "name": "b" },
        } });
        Route::of(&Object::from_value(api).unwrap(), |_| Arc::new(Slot::new(Arc::default()))).unwrap()
    }

    #[test]
    fn plain_discovery_becomes_aggregated() {
        let list = json!({ "kind": "APIResourceList", "groupVersion": "example.com/v1", "resources": [
            { "name": "widgets", "singularName": "widget", "namespaced": true, "kind": "Widget", "verbs": ["get", "list"], "shortNames": ["w"] },
            { "name": "widgets/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"] },
            { "name": "orphans/status", "namespaced": false, "kind": "Orphan", "verbs": ["get"] },
            { "name": 7 },
        ] });
        let found = resources(&route(), list.to_string().as_bytes()).unwrap();
        let own = |kind: &str| json!({ "group": "example.com", "version": "v1", "kind": kind });
        let scale = json!({ "group": "autoscaling", "version": "v1", "kind": "Scale" });
        assert_eq!(
            json!(found),
            json!([
                { "resource": "widgets", "scope": "Namespaced", "verbs": ["get", "list"], "singularResource": "widget",
                  "responseKind": own("Widget"), "shortNames": ["w"],
                  "subresources": [{ "subresource": "scale", "responseKind": scale, "verbs": ["get"] }] },
                { "resource": "orphans", "scope": "Cluster", "verbs": [], "singularResource": "",
                  "subresources": [{ "subresource": "status", "responseKind": own("Orphan"), "verbs": ["get"] }] },
            ])
        );
        assert!(resources(&route(), b"<html>").is_err() && resources(&route(), b"{}").is_err());
    }

    #[test]
    fn a_server_speaks_for_itself_alone() {
        let index = |url: &str| json!({ "paths": { "apis/example.com/v1": { "serverRelativeURL": url } } }).to_string();
        let of = |url: &str| openapi_of(&route(), index(url).as_bytes());
        let own = "/openapi/v3/apis/example.com/v1?hash=1";
        assert_eq!(of(own).as_deref(), Some(own));
        assert_eq!(of("/openapi/v3/apis/example.com/v10"), None);
        assert_eq!(of("https://elsewhere/"), None);
        let document = json!({ "paths": { "/apis/example.com/v1/widgets": {}, "/apis/apps/v1/deployments": {} }, "definitions": { "W": {} } });
        let own = own_part(&route(), document);
        assert_eq!(own, json!({ "paths": { "/apis/example.com/v1/widgets": {} }, "definitions": { "W": {} } }));
    }
}
