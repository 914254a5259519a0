//! The whole router over the memory store, in process.

mod admission;
mod aggregation;
mod apply;
mod audit;
mod connect;
mod conversion;
mod custom;
mod discovery;
mod identity;
mod ingresses;
mod layers;
mod lists;
mod objects;
mod patches;
mod policies;
mod protobuf;
mod quotas;
mod rbac;
mod requests;
mod socket;
mod storage;
mod subresources;
mod usage;
mod watches;
mod webhooks;

use std::sync::Arc;

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tandem_api::{FixedClock, Identity, SeededEntropy, Settings};
use tandem_pki::Pki;
use tandem_registry::Registry;
use tandem_store::MemoryStore;
use tower::ServiceExt as _;

use crate::{ApiServer, Config, EndpointDialer, ImageKinds, NodeDialer, Outward};

pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) router: Router,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<FixedClock>,
    pub(crate) pki: Arc<Pki>,
    _directory: tempfile::TempDir,
}

#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) quorum: Option<tokio::sync::watch::Receiver<bool>>,
    pub(crate) nodes: Option<Arc<dyn NodeDialer>>,
    pub(crate) images: Option<Arc<dyn ImageKinds>>,
    pub(crate) endpoints: Option<Arc<dyn EndpointDialer>>,
    pub(crate) audit: Option<crate::AuditLog>,
}

pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `CODE MESSAGE` of a Status.
    pub(crate) fn status(&self) -> String {
        let body = self.json();
        format!(
            "{} {}: {}",
            self.code,
            body["reason"].as_str().unwrap_or_default(),
            body["message"].as_str().unwrap_or_default()
        )
    }
}

/// A request line with what goes along.
pub(crate) struct Ask {
    request: http::request::Builder,
    body: Vec<u8>,
    identity: Option<Identity>,
}

pub(crate) fn ask(method: &str, uri: &str) -> Ask {
    let request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(uri);
    Ask { request, body: Vec::new(), identity: Some(Identity::administrator()) }
}

impl Ask {
    pub(crate) fn json(self, body: &Value) -> Ask {
        self.body("application/json", body.to_string())
    }

    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Ask {
        self.request = self.request.header(header::CONTENT_TYPE, content_type);
        self.body = body.into();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Ask {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn by(mut self, identity: Identity) -> Ask {
        self.identity = Some(identity);
        self
    }

    pub(crate) fn unknown(mut self) -> Ask {
        self.identity = None;
        self
    }

    pub(crate) fn build(self) -> Request<Body> {
        let mut request = self.request.body(Body::from(self.body)).unwrap();
        if let Some(identity) = self.identity {
            request.extensions_mut().insert(identity);
        }
        request
    }
}

impl Server {
    pub(crate) async fn start() -> Server {
        Server::with(Parts::default()).await
    }

    pub(crate) async fn with(parts: Parts) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Arc::new(FixedClock::new(now));
        let pki = Arc::new(Pki::open(directory.path(), now).unwrap());
        let store = Arc::new(MemoryStore::new());
        let api = ApiServer::new(Config {
            storage: store.clone(),
            leadership: tokio::sync::watch::channel(tandem_store::Leadership { leader: true, term: 1 }).1,
            registry: Arc::new(Registry::builtin()),
            settings: Settings::default(),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(7)),
            service_account_key: Some(pki.service_accounts.clone()),
            nodes: parts.nodes,
            endpoints: parts.endpoints.unwrap_or_else(|| Arc::new(Outward)),
            pki: Some(pki.clone()),
            images: parts.images,
            audit: parts.audit,
            ready: Vec::new(),
            quorum: parts.quorum,
            metric_resolution: crate::METRIC_RESOLUTION,
            metrics: Arc::default(),
        });
        api.bootstrap().await.unwrap();
        let router = api.router();
        Server { api, router, store, clock, pki, _directory: directory }
    }

    pub(crate) async fn send(&self, ask: Ask) -> Answer {
        let response = self.open(ask).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) async fn open(&self, ask: Ask) -> axum::response::Response {
        self.router.clone().oneshot(ask.build()).await.unwrap()
    }

    pub(crate) async fn get(&self, uri: &str) -> Answer {
        self.send(ask("GET", uri)).await
    }

    pub(crate) async fn post(&self, uri: &str, body: &Value) -> Answer {
        self.send(ask("POST", uri).json(body)).await
    }

    pub(crate) async fn put(&self, uri: &str, body: &Value) -> Answer {
        self.send(ask("PUT", uri).json(body)).await
    }

    pub(crate) async fn patch(&self, uri: &str, kind: &str, body: &Value) -> Answer {
        self.send(ask("PATCH", uri).body(kind, body.to_string())).await
    }

    pub(crate) async fn delete(&self, uri: &str) -> Answer {
        self.send(ask("DELETE", uri)).await
    }

    /// Creates something that must work.
    pub(crate) async fn create(&self, uri: &str, body: &Value) -> Value {
        let answer = self.post(uri, body).await;
        assert_eq!(answer.code, StatusCode::CREATED.as_u16(), "{}", answer.text());
        answer.json()
    }

    /// The ServiceAccount that every pod needs, as its controller would make it.
    pub(crate) async fn default_account(&self) {
        self.create(&in_default("serviceaccounts"), &json!({ "metadata": { "name": "default" } })).await;
    }
}

pub(crate) fn in_default(resource: &str) -> String {
    format!("/api/v1/namespaces/default/{resource}")
}

pub(crate) const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

pub(crate) fn config_map(name: &str) -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": name }, "data": { "a": "1" } })
}

pub(crate) fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "nginx:1.25" }] } })
}

pub(crate) fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "nginx:1.25" }] },
            },
        },
    })
}
