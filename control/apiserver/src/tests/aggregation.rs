use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    extract::{Request as AxumRequest, State},
    response::IntoResponse as _,
};
use futures::StreamExt as _;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tandem_api::Clock as _;
use tandem_pki::{CertificateRequest, Usage};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tls;

const NAME: &str = "v1.example.com";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Endpoints are ports of this machine.
struct Loopback;

#[async_trait]
impl EndpointDialer for Loopback {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", address.port())).await
    }
}

/// What the other server is like.
#[derive(Default)]
struct Manner {
    asked: AtomicUsize,
    rubbish: AtomicBool,
    silent: AtomicBool,
}

async fn answer(State(manner): State<Arc<Manner>>, request: AxumRequest) -> axum::response::Response {
    manner.asked.fetch_add(1, Ordering::SeqCst);
    if manner.silent.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    if manner.rubbish.load(Ordering::SeqCst) {
        return crate::respond::text(StatusCode::OK, "<html>");
    }
    let json = |value: Value| crate::respond::json_bytes(StatusCode::OK, value.to_string());
    let path = request.uri().path();
    let openapi = "/openapi/v3/apis/example.com/v1?hash=1";
    match path {
        "/apis/example.com/v1" => json(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "example.com/v1",
            "resources": [{ "name": "widgets", "singularName": "widget", "namespaced": true, "kind": "Widget", "verbs": ["get", "list", "watch", "delete"] }],
        })),
        "/openapi/v3" => json(json!({ "paths": { "apis/example.com/v1": { "serverRelativeURL": openapi } } })),
        "/openapi/v3/apis/example.com/v1" => json(json!({ "openapi": "3.0.0", "info": { "title": "other" } })),
        "/openapi/v2" => json(
            json!({ "paths": { "/apis/example.com/v1/widgets": {} }, "definitions": { "example.Widget": { "type": "object" } } }),
        ),
        "/apis/example.com/v1/namespaces/default/widgets/away" => axum::response::Response::builder()
            .status(StatusCode::FOUND)
            .header(header::LOCATION, "https://elsewhere/")
            .body(Body::empty())
            .unwrap(),
        WIDGETS if request.uri().query() == Some("watch=1") => {
            let first = futures::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"{\"type\":\"ADDED\"}\n"))]);
            axum::response::Response::new(Body::from_stream(first.chain(futures::stream::pending())))
        }
        WIDGETS => {
            let client = request.extensions().get::<Identity>().map(|identity| identity.name.clone());
            let all = request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            json(json!({ "client": client, "headers": all.collect::<Vec<_>>() }))
        }
        _ => (StatusCode::NOT_FOUND, "no such thing").into_response(),
    }
}

struct Other {
    server: Server,
    manner: Arc<Manner>,
    shutdown: CancellationToken,
}

impl Drop for Other {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A server, and another one behind the Service `api`, which knows the first by its front-proxy certificate.
async fn other() -> Other {
    let server = Server::with(Parts { endpoints: Some(Arc::new(Loopback)), ..Parts::default() }).await;
    let request = CertificateRequest {
        common_name: "api",
        organizations: &[],
        dns_names: &["api.default.svc".to_owned()],
        addresses: &[],
        usage: Usage::Server,
    };
    let leaf = server.pki.members.issue(&request, server.clock.now()).unwrap();
    let certificates = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(certificates, key)));
    let config = tls::server_config(resolver, server.pki.front_proxy.certificate()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (manner, shutdown) = (Arc::<Manner>::default(), CancellationToken::new());
    let router = Router::new().fallback(answer).with_state(manner.clone());
    tokio::spawn(crate::serve(listener, config, router, shutdown.clone()));

    let service = json!({ "metadata": { "name": "api" }, "spec": { "ports": [{ "port": 443 }] } });
    server.create(&in_default("services"), &service).await;
    let slice = json!({
        "metadata": { "name": "api-1", "labels": { "kubernetes.io/service-name": "api" } },
        "addressType": "IPv4", "endpoints": [{ "addresses": ["10.1.1.1"], "conditions": { "ready": true } }],
        "ports": [{ "name": "", "port": port }],
    });
    server.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;
    Other { server, manner, shutdown }
}

impl Other {
    async fn register(&self, group: &str, version: &str) {
        let bundle =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, self.server.pki.members.certificate());
        let api = json!({
            "metadata": { "name": format!("{version}.{group}") },
            "spec": {
                "group": group, "version": version, "groupPriorityMinimum": 2000, "versionPriority": 200,
                "service": { "namespace": "default", "name": "api" }, "caBundle": bundle,
            },
        });
        self.server.create("/apis/apiregistration.k8s.io/v1/apiservices", &api).await;
    }

    async fn set_available(&self, name: &str, status: &str) {
        let condition = json!({ "type": "Available", "status": status });
        let body = json!({ "status": { "conditions": [condition] } });
        let uri = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}/status");
        let patched = self.server.patch(&uri, "application/merge-patch+json", &body).await;
        assert_eq!(patched.code, 200, "{}", patched.text());
    }

    async fn discovered(&self) -> Value {
        let answer = self.server.send(ask("GET", "/apis").header("accept", AGGREGATED)).await.json();
        let groups = answer["items"].as_array().unwrap();
        assert!(groups.iter().any(|group| group["metadata"]["name"] == "apps"), "others are there in any case");
        groups.iter().find(|group| group["metadata"]["name"] == "example.com").cloned().unwrap_or_default()
    }
}

async fn ready() -> Other {
    let other = other().await;
    other.register("example.com", "v1").await;
    other.set_available(NAME, "True").await;
    other
}

#[tokio::test]
async fn requests_are_passed_on_with_who_asks() {
    let other = ready().await;
    let mut jane = Identity::user("jane", &["system:masters", "devs"]);
    jane.uid = "7".to_owned();
    jane.extra.insert("example.com/Team".to_owned(), vec!["a".to_owned()]);
    let forged =
        ask("GET", WIDGETS).by(jane).header("X-Remote-User", "root").header("x_remote_group", "system:masters");
    let answer = other.server.send(forged.header("authorization", "Bearer secret").header("x-kept", "1")).await.json();
    assert_eq!(answer["client"], "front-proxy-client");
    let headers: Vec<&str> = answer["headers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for expected in [
        "x-remote-user: jane",
        "x-remote-uid: 7",
        "x-remote-group: system:masters",
        "x-remote-group: devs",
        "x-remote-extra-example.com%2fteam: a",
        "x-kept: 1",
        "host: api.default.svc",
    ] {
        assert!(headers.contains(&expected), "{expected} in {headers:?}");
    }
    let leaked =
        headers.iter().any(|line| line.contains("root") || line.contains("secret") || line.contains("x_remote"));
    assert!(!leaked, "{headers:?}");
    assert_eq!(other.server.get("/apis/example.com/v1/unknown").await.text(), "no such thing");
    let away = other.server.get(&format!("{WIDGETS}/away")).await;
    assert!(away.status().starts_with("503 ServiceUnavailable: the backend attempted to redirect"), "{}", away.text());
}

#[tokio::test]
async fn who_may_not_ask_is_not_passed_on() {
    let other = ready().await;
    let before = other.manner.asked.load(Ordering::SeqCst);
    let jane = Identity::user("jane", &["system:authenticated"]);
    assert_eq!(other.server.send(ask("GET", WIDGETS).by(jane.clone())).await.code, 403);
    assert_eq!(other.server.send(ask("DELETE", "/apis/example.com/v1").by(jane)).await.code, 405);
    assert_eq!(other.manner.asked.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn watches_arrive_as_they_come() {
    let other = ready().await;
    let response = other.server.open(ask("GET", &format!("{WIDGETS}?watch=1"))).await;
    let mut body = response.into_body().into_data_stream();
    let first = timeout(Duration::from_secs(10), body.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first, "{\"type\":\"ADDED\"}\n");
}

#[tokio::test]
async fn discovery_and_openapi_are_merged() {
    let other = ready().await;
    let group = other.discovered().await;
    assert_eq!(group["versions"][0]["freshness"], "Current");
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "widgets");
    let server = &other.server;
    let plain = server.get("/apis").await.json();
    let names: Vec<&str> =
        plain["groups"].as_array().unwrap().iter().filter_map(|group| group["name"].as_str()).collect();
    let at = |name: &str| names.iter().position(|own| *own == name).unwrap();
    assert!(at("apps") < at("example.com") && at("example.com") < at("tandem.dev"), "{names:?}");
    let alone = server.get("/apis/example.com").await.json();
    assert_eq!(
        (&alone["kind"], &alone["preferredVersion"]["groupVersion"]),
        (&json!("APIGroup"), &json!("example.com/v1"))
    );
    assert_eq!(server.get("/apis/example.com/v1").await.json()["resources"][0]["name"], "widgets");
    let index = server.get("/openapi/v3").await.json();
    let paths = &index["paths"];
    assert_eq!(paths["apis/example.com/v1"]["serverRelativeURL"], "/openapi/v3/apis/example.com/v1?hash=1");
    assert!(paths["apis/apps/v1"].is_object());
    assert_eq!(server.get("/openapi/v3/apis/example.com/v1?hash=1").await.json()["info"]["title"], "other");
    let all = server.get("/openapi/v2").await;
    let (tag, all) = (all.header(header::ETAG).to_owned(), all.json());
    assert!(
        all["definitions"]["example.Widget"].is_object() && all["paths"]["/apis/example.com/v1/widgets"].is_object()
    );
    let again = server.send(ask("GET", "/openapi/v2").header("if-none-match", &tag)).await;
    assert_eq!(again.code, 304);
    server.delete(&format!("/apis/apiregistration.k8s.io/v1/apiservices/{NAME}")).await;
    assert_eq!(other.discovered().await, Value::Null);
    assert_eq!(server.get(WIDGETS).await.code, 404);
}

#[tokio::test]
async fn a_server_that_is_down_or_talks_rubbish_hides_nothing_else() {
    let other = other().await;
    other.register("example.com", "v1").await;
    assert_eq!(other.server.get(WIDGETS).await.status(), "503 ServiceUnavailable: service unavailable");
    assert_eq!(other.discovered().await["versions"][0]["freshness"], "Stale");
    assert_eq!(other.manner.asked.load(Ordering::SeqCst), 0, "nobody asks it before it is available");
    assert_eq!(other.server.api.probe(NAME).await, Ok(()));
    other.set_available(NAME, "True").await;
    assert_eq!(other.discovered().await["versions"][0]["freshness"], "Current");
    other.manner.rubbish.store(true, Ordering::SeqCst);
    let why = other.server.api.probe(NAME).await.unwrap_err();
    assert!(why.contains("not JSON"), "{why}");
    let stale = other.discovered().await;
    assert_eq!(stale["versions"][0]["freshness"], "Stale");
    assert_eq!(stale["versions"][0]["resources"][0]["resource"], "widgets", "what it had is shown still");
    other.shutdown.cancel();
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/api-1";
    other.server.delete(slice).await;
    let why = other.server.api.probe(NAME).await.unwrap_err();
    assert!(why.contains("no endpoints available for service \"api\""), "{why}");
}

#[tokio::test]
async fn a_server_that_hangs_holds_up_discovery_only_for_a_moment() {
    let other = other().await;
    other.manner.silent.store(true, Ordering::SeqCst);
    other.register("example.com", "v1").await;
    other.set_available(NAME, "True").await;
    let begun = Instant::now();
    assert_eq!(other.discovered().await["versions"][0]["freshness"], "Stale");
    let first = begun.elapsed();
    assert!(first < Duration::from_secs(4), "{first:?}");
    let begun = Instant::now();
    other.discovered().await;
    let second = begun.elapsed();
    assert!(second < Duration::from_secs(1), "it is left alone for a while: {second:?}");
}

#[tokio::test]
async fn built_in_groups_stay_but_measurements_may_come_from_elsewhere() {
    let other = other().await;
    let api = json!({ "metadata": { "name": "v1.apps" }, "spec": {
        "group": "apps", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "service": { "namespace": "default", "name": "api" }, "insecureSkipTLSVerify": true,
    } });
    let refused = other.server.post("/apis/apiregistration.k8s.io/v1/apiservices", &api).await;
    assert_eq!(refused.code, 422, "{}", refused.text());
    let uri = "/apis/metrics.k8s.io/v1beta1/nodes";
    assert_eq!(other.server.get(uri).await.json()["kind"], "NodeMetricsList");
    other.register("metrics.k8s.io", "v1beta1").await;
    other.set_available("v1beta1.metrics.k8s.io", "True").await;
    assert_eq!(other.server.get(uri).await.text(), "no such thing");
    other.server.delete("/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io").await;
    assert_eq!(other.server.get(uri).await.json()["kind"], "NodeMetricsList");
}

#[tokio::test]
async fn services_are_reached_over_tls_by_every_method() {
    let other = other().await;
    let root = in_default("services/https:api:443/proxy");
    let away = other.server.get(&format!("{root}?a=1")).await;
    assert_eq!((away.code, away.header(header::LOCATION)), (301, format!("{root}/?a=1").as_str()));
    for method in ["GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"] {
        let answer = other.server.send(ask(method, &format!("{root}/openapi/v3"))).await;
        assert!(answer.json()["paths"].is_object(), "{method}");
    }
    assert_eq!(other.server.send(ask("HEAD", &format!("{root}/openapi/v3"))).await.code, 200);
}

#[tokio::test]
async fn other_servers_are_told_whom_to_trust() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let data = server.get(uri).await.json()["data"].clone();
    assert_eq!(data["client-ca-file"], server.pki.cluster.certificate());
    assert_eq!(data["requestheader-client-ca-file"], server.pki.front_proxy.certificate());
    assert_eq!(data["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let role =
        "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/extension-apiserver-authentication-reader";
    assert_eq!(server.get(role).await.code, 200);
}
