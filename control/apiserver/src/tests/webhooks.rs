//! Admission webhooks, asked over HTTPS.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tandem_api::{Clock as _, SystemClock};
use tandem_pki::{CertificateRequest, Usage};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const MERGE: &str = "application/merge-patch+json";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// What a webhook does with a request: a code and a body, or nothing at all.
pub(super) enum Reply {
    Answer(u16, Value),
    Silence,
}

/// An HTTPS server in this process, which remembers what it was asked.
#[derive(Clone)]
pub(super) struct Hooks {
    address: SocketAddr,
    bundle: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<AtomicUsize>,
}

impl Hooks {
    /// `reply` gets the path and the review.
    pub(super) async fn start(reply: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static) -> Hooks {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemClock.now();
        let pki = Pki::open(directory.path(), now).unwrap();
        let asked = CertificateRequest {
            common_name: "hook",
            organizations: &[],
            dns_names: &["hook.default.svc".to_owned()],
            addresses: &[IpAddr::from([127, 0, 0, 1])],
            usage: Usage::Server,
        };
        let leaf = pki.cluster.issue(&asked, now).unwrap();
        let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let bundle = STANDARD.encode(pki.cluster.certificate());
        let hooks = Hooks { address, bundle, seen: Arc::default(), connections: Arc::default() };
        let (acceptor, reply, serving) = (TlsAcceptor::from(Arc::new(tls)), Arc::new(reply), hooks.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, reply, serving) = (acceptor.clone(), reply.clone(), serving.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    serving.connections.fetch_add(1, Ordering::SeqCst);
                    let answer = service_fn(|request: Request<hyper::body::Incoming>| {
                        let (reply, serving) = (reply.clone(), serving.clone());
                        async move { serving.answer(request, &*reply).await }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        hooks
    }

    async fn answer(
        &self,
        request: Request<hyper::body::Incoming>,
        reply: &(impl Fn(&str, &Value) -> Reply + ?Sized),
    ) -> Result<http::Response<String>, std::convert::Infallible> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let review: Value = serde_json::from_slice(&body).unwrap();
        self.seen.lock().push((path.clone(), review["request"].clone()));
        match reply(&path, &review) {
            Reply::Answer(code, body) => Ok(http::Response::builder().status(code).body(body.to_string()).unwrap()),
            Reply::Silence => std::future::pending().await,
        }
    }

    pub(super) fn client(&self, path: &str) -> Value {
        json!({ "url": format!("https://{}{path}", self.address), "caBundle": self.bundle })
    }

    /// A webhook for ConfigMaps at `/PATH`, with what is laid over it.
    fn hook(&self, path: &str, over: &Value) -> Value {
        let mut hook = json!({
            "name": format!("{path}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": self.client(&format!("/{path}")), "timeoutSeconds": 5,
            "rules": [rule("*", "", "v1", "configmaps")],
        });
        for (key, value) in over.as_object().unwrap() {
            hook[key] = value.clone();
        }
        hook
    }

    /// What was asked since the last time.
    pub(super) fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.seen.lock())
    }

    fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|(path, _)| path).collect()
    }
}

fn rule(operation: &str, group: &str, version: &str, resource: &str) -> Value {
    json!({ "operations": [operation], "apiGroups": [group], "apiVersions": [version], "resources": [resource] })
}

async fn configure(server: &Server, uri: &str, name: &str, hooks: &[Value]) {
    server.create(uri, &json!({ "metadata": { "name": name }, "webhooks": hooks })).await;
}

fn response(review: &Value, mut response: Value) -> Reply {
    response["uid"] = review["request"]["uid"].clone();
    Reply::Answer(200, json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response }))
}

fn patch(review: &Value, patch: &Value) -> Reply {
    let patch = STANDARD.encode(patch.to_string());
    response(review, json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
}

fn allow(review: &Value) -> Reply {
    response(review, json!({ "allowed": true }))
}

fn deny(review: &Value) -> Reply {
    let status = json!({ "message": "not here", "reason": "Because", "code": 418 });
    response(review, json!({ "allowed": false, "status": status, "warnings": ["careful"] }))
}

#[tokio::test]
async fn a_mutating_webhook_changes_what_is_stored() {
    let hooks = Hooks::start(|_, review| {
        patch(
            review,
            &json!([
                { "op": "add", "path": "/data/b", "value": "2" }, { "op": "add", "path": "/none", "value": 1 },
                { "op": "replace", "path": "/metadata/uid", "value": "stolen" },
                { "op": "add", "path": "/metadata/namespace", "value": "kube-system" },
            ]),
        )
    })
    .await;
    let server = Server::start().await;
    configure(&server, MUTATING, "m", &[hooks.hook("mutate", &json!({}))]).await;
    let made = server.create(&in_default("configmaps?fieldManager=me"), &config_map("one")).await;
    assert_eq!(made["data"], json!({ "a": "1", "b": "2" }));
    assert_eq!((&made["metadata"]["namespace"], made.get("none")), (&json!("default"), None));
    assert_ne!(made["metadata"]["uid"], "stolen");
    let (_, mut asked) = hooks.asked().pop().unwrap();
    assert_eq!(asked["object"]["data"], json!({ "a": "1" }));
    assert_eq!(asked["uid"].as_str().unwrap().len(), 36);
    for key in ["object", "uid"] {
        asked.as_object_mut().unwrap().remove(key);
    }
    let identity = Identity::administrator();
    assert_eq!(
        asked,
        json!({
            "kind": { "group": "", "version": "v1", "kind": "ConfigMap" },
            "resource": { "group": "", "version": "v1", "resource": "configmaps" },
            "requestKind": { "group": "", "version": "v1", "kind": "ConfigMap" },
            "requestResource": { "group": "", "version": "v1", "resource": "configmaps" },
            "name": "one", "namespace": "default", "operation": "CREATE",
            "userInfo": { "username": identity.name, "groups": identity.groups },
            "oldObject": null, "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "me" },
        })
    );
    let change = json!({ "data": { "b": null, "c": "3" } });
    let changed = server.patch(&in_default("configmaps/one"), MERGE, &change).await.json();
    assert_eq!(changed["data"], json!({ "a": "1", "b": "2", "c": "3" }));
    let (_, asked) = hooks.asked().pop().unwrap();
    assert_eq!((&asked["operation"], &asked["oldObject"]["data"]["b"]), (&json!("UPDATE"), &json!("2")));
    assert_eq!(hooks.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn defaults_follow_a_mutation_and_names_stay() {
    let hooks = Hooks::start(|path, review| match path {
        "/name" => patch(review, &json!([{ "op": "replace", "path": "/metadata/name", "value": "other" }])),
        "/wrong" => patch(review, &json!([{ "op": "add", "path": "/data", "value": 7 }])),
        _ => {
            let container = json!([{ "name": "added", "image": "nginx" }]);
            patch(review, &json!([{ "op": "add", "path": "/spec/initContainers", "value": container }]))
        }
    })
    .await;
    let server = Server::start().await;
    server.default_account().await;
    let pods = json!({ "rules": [rule("CREATE", "", "v1", "pods")] });
    configure(&server, MUTATING, "m", &[hooks.hook("pods", &pods), hooks.hook("name", &json!({}))]).await;
    let made = server.create(&in_default("pods"), &pod("one")).await;
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(added["terminationMessagePolicy"], "File");
    assert_eq!(added["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    let refused = server.post(&in_default("configmaps"), &config_map("one")).await;
    assert_eq!(
        refused.status(),
        "500 InternalError: Internal error occurred: admission webhook \"name.example.com\" attempted to change metadata.name from \"one\" to \"other\""
    );
    server.delete(&format!("{MUTATING}/m")).await;
    configure(&server, MUTATING, "w", &[hooks.hook("wrong", &json!({}))]).await;
    let refused = server.post(&in_default("configmaps"), &config_map("one")).await;
    assert_eq!(refused.code, 500, "{}", refused.text());
}

#[tokio::test]
async fn a_validating_webhook_refuses() {
    let hooks = Hooks::start(|_, review| {
        let request = &review["request"];
        let label = if request["object"].is_null() { &request["oldObject"] } else { &request["object"] };
        if label["metadata"]["labels"]["no"].is_null() { allow(review) } else { deny(review) }
    })
    .await;
    let server = Server::start().await;
    let mut bad = config_map("bad");
    bad["metadata"]["labels"] = json!({ "no": "yes" });
    server.create(&in_default("configmaps"), &bad).await;
    server.create(&in_default("configmaps"), &config_map("good")).await;
    configure(&server, VALIDATING, "v", &[hooks.hook("check", &json!({}))]).await;
    let told = "418 Because: admission webhook \"check.example.com\" denied the request: not here";
    bad["metadata"]["name"] = "new".into();
    let refused = server.post(&in_default("configmaps"), &bad).await;
    assert_eq!((refused.status().as_str(), refused.header(header::WARNING)), (told, "299 - \"careful\""));
    assert_eq!(hooks.asked().len(), 1);
    let refused =
        server.patch(&in_default("configmaps/good"), MERGE, &json!({ "metadata": { "labels": { "no": "1" } } })).await;
    assert_eq!(refused.status(), told);
    let refused = server.delete(&in_default("configmaps/bad?gracePeriodSeconds=3")).await;
    assert_eq!(refused.status(), told);
    let (_, asked) = hooks.asked().pop().unwrap();
    assert_eq!(
        (&asked["operation"], &asked["object"], &asked["name"]),
        (&json!("DELETE"), &Value::Null, &json!("bad"))
    );
    assert_eq!(
        asked["options"],
        json!({ "kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 3 })
    );
    let refused = server.delete(&in_default("configmaps")).await;
    assert_eq!(refused.status(), told);
    assert_eq!(server.get(&in_default("configmaps/bad")).await.code, 200);
    // What is not valid is not asked about.
    hooks.asked();
    let wrong = json!({ "metadata": { "name": "WRONG" } });
    assert_eq!(server.post(&in_default("configmaps"), &wrong).await.code, 422);
    assert_eq!(hooks.asked().len(), 0);
    server.delete(&format!("{VALIDATING}/v")).await;
    assert_eq!(server.delete(&in_default("configmaps/bad")).await.code, 200);
}

#[tokio::test]
async fn what_becomes_of_failures_is_said_by_the_policy() {
    let hooks = Hooks::start(|path, review| match path {
        "/error" => Reply::Answer(500, json!("broken")),
        "/moved" => Reply::Answer(301, Value::Null),
        "/strange" => Reply::Answer(200, json!({ "kind": "Other" })),
        "/silent" => Reply::Silence,
        _ => allow(review),
    })
    .await;
    let server = Server::start().await;
    let refusals = |path: &'static str| {
        match path {
        "error" => "failed to call webhook: an error on the server (\"\\\"broken\\\"\") has prevented the request from succeeding".to_owned(),
        "moved" => "failed to call webhook: the server answered 301 Moved Permanently, and only success is an answer".to_owned(),
        "strange" => "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got , Kind=Other".to_owned(),
        _ => format!("failed to call webhook: Post \"https://{}/silent?timeout=1s\": context deadline exceeded", hooks.address),
    }
    };
    for (uri, path) in [(VALIDATING, "error"), (VALIDATING, "moved"), (MUTATING, "strange"), (MUTATING, "silent")] {
        for policy in ["Fail", "Ignore"] {
            let over = json!({ "failurePolicy": policy, "timeoutSeconds": if path == "silent" { 1 } else { 5 } });
            configure(&server, uri, path, &[hooks.hook(path, &over)]).await;
            let answer = server.post(&in_default("configmaps"), &config_map(path)).await;
            if policy == "Ignore" {
                assert_eq!(answer.code, 201, "{}", answer.text());
            } else {
                let expected = format!(
                    "500 InternalError: Internal error occurred: failed calling webhook \"{path}.example.com\": {}",
                    refusals(path)
                );
                assert_eq!(answer.status(), expected);
            }
            server.delete(&format!("{uri}/{path}")).await;
        }
    }
    let other = Hooks::start(|_, review| allow(review)).await;
    let service = |port: u16| json!({ "service": { "namespace": "default", "name": "hook", "path": "/x", "port": port }, "caBundle": hooks.bundle });
    let untrusted = json!({ "url": format!("https://{}/", other.address), "caBundle": hooks.bundle });
    let check = async |client: Value, expected: String| {
        configure(&server, VALIDATING, "v", &[hooks.hook("v", &json!({ "clientConfig": client }))]).await;
        let answer = server.post(&in_default("configmaps"), &config_map("other")).await;
        assert_eq!(
            answer.json()["message"],
            format!(
                "Internal error occurred: failed calling webhook \"v.example.com\": failed to call webhook: {expected}"
            )
        );
        server.delete(&format!("{VALIDATING}/v")).await;
    };
    check(untrusted, format!("Post \"https://{}/?timeout=5s\": tls: failed to verify certificate: x509: certificate signed by unknown authority", other.address)).await;
    let post = "Post \"https://hook.default.svc:8443/x?timeout=5s\"";
    check(service(8443), format!("{post}: service \"hook\" not found")).await;
    server
        .create(
            &in_default("services"),
            &json!({ "metadata": { "name": "hook" }, "spec": { "ports": [{ "port": 8443 }] } }),
        )
        .await;
    check(service(8443), format!("{post}: no endpoints available for service \"hook\"")).await;
    check(
        service(1),
        "Post \"https://hook.default.svc:1/x?timeout=5s\": no service port 1 found for service \"hook\"".to_owned(),
    )
    .await;
    check(
        json!({ "url": "https://127.0.0.1:1/", "caBundle": STANDARD.encode("x") }),
        "unable to load root certificates: unable to parse bytes as PEM block".to_owned(),
    )
    .await;
}

/// The way through a Service needs an address of this machine that is not its own alone; machines without one are spared.
#[tokio::test]
async fn a_service_leads_to_the_webhook() {
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let routed = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
    let Some(own) = routed.ok().map(|address| address.ip()).filter(|own| !own.is_loopback()) else { return };
    let hooks = Hooks::start(|_, review| deny(review)).await;
    let server = Server::start().await;
    server
        .create(
            &in_default("services"),
            &json!({ "metadata": { "name": "hook" }, "spec": { "ports": [{ "port": 443 }] } }),
        )
        .await;
    let slice = json!({
        "metadata": { "name": "hook-1", "labels": { "kubernetes.io/service-name": "hook" } }, "addressType": "IPv4",
        "endpoints": [{ "addresses": [own.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "", "port": hooks.address.port(), "protocol": "TCP" }],
    });
    server.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;
    let client =
        json!({ "service": { "namespace": "default", "name": "hook", "path": "/x" }, "caBundle": hooks.bundle });
    configure(&server, VALIDATING, "v", &[hooks.hook("v", &json!({ "clientConfig": client }))]).await;
    let refused = server.post(&in_default("configmaps"), &config_map("one")).await;
    assert_eq!(refused.code, 418, "{}", refused.text());
    assert_eq!(hooks.paths(), ["/x"]);
}

#[tokio::test]
async fn only_those_are_asked_whom_it_concerns() {
    let hooks = Hooks::start(|_, review| allow(review)).await;
    let server = Server::start().await;
    let marked = json!({ "matchLabels": { "mark": "yes" } });
    let condition = |text: &str| json!({ "matchConditions": [{ "name": "c", "expression": text }] });
    let all = [
        hooks.hook("object", &json!({ "objectSelector": marked })),
        hooks.hook("namespace", &json!({ "namespaceSelector": marked })),
        hooks.hook("condition", &condition("object.metadata.name != 'skip-me'")),
        hooks.hook(
            "other",
            &json!({ "rules": [rule("DELETE", "", "v1", "configmaps"), rule("CREATE", "apps", "*", "*")] }),
        ),
    ];
    configure(&server, VALIDATING, "v", &all).await;
    let mut object = config_map("skip-me");
    server.create(&in_default("configmaps"), &object).await;
    assert_eq!(hooks.paths(), Vec::<String>::new());
    let label = json!({ "metadata": { "labels": { "mark": "yes" } } });
    server.patch("/api/v1/namespaces/default", MERGE, &label).await;
    object["metadata"] = json!({ "name": "one", "labels": { "mark": "yes" } });
    server.create(&in_default("configmaps"), &object).await;
    let mut paths = hooks.paths();
    paths.sort();
    assert_eq!(paths, ["/condition", "/namespace", "/object"]);
    // The label goes: the object as it was still has it.
    let bare = json!({ "metadata": { "labels": null } });
    server.patch(&in_default("configmaps/one"), MERGE, &bare).await;
    assert!(hooks.paths().contains(&"/object".to_owned()));
    let broken = [hooks.hook("broken", &condition("object.none.x == 1"))];
    configure(&server, VALIDATING, "w", &broken).await;
    let refused = server.post(&in_default("configmaps"), &config_map("three")).await;
    assert_eq!(
        refused.status(),
        "403 Forbidden: configmaps \"three\" is forbidden: match condition \"c\": no such key: none"
    );
}

#[tokio::test]
async fn webhooks_have_no_say_about_webhooks() {
    let hooks = Hooks::start(|_, review| deny(review)).await;
    let server = Server::start().await;
    let everything = json!({ "rules": [rule("*", "*", "*", "*/*")] });
    configure(&server, VALIDATING, "v", &[hooks.hook("all", &everything)]).await;
    configure(&server, MUTATING, "m", &[hooks.hook("all", &everything)]).await;
    assert_eq!(server.post(&in_default("configmaps"), &config_map("one")).await.code, 418);
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    assert_eq!(server.patch(&format!("{MUTATING}/m"), MERGE, &label).await.code, 200);
    // A member that starts needs nobody's leave.
    server.api.bootstrap().await.unwrap();
    assert_eq!(server.delete(&format!("{MUTATING}/m")).await.code, 200);
    assert_eq!(server.delete(&format!("{VALIDATING}/v")).await.code, 200);
    assert_eq!(server.post(&in_default("configmaps"), &config_map("one")).await.code, 201);
}

#[tokio::test]
async fn dry_runs_are_told_and_refused_where_they_would_do_something() {
    let hooks = Hooks::start(|_, review| allow(review)).await;
    let server = Server::start().await;
    configure(&server, VALIDATING, "v", &[hooks.hook("v", &json!({ "sideEffects": "NoneOnDryRun" }))]).await;
    assert_eq!(server.post(&in_default("configmaps?dryRun=All"), &config_map("one")).await.code, 201);
    let (_, asked) = hooks.asked().pop().unwrap();
    assert_eq!((&asked["dryRun"], &asked["options"]["dryRun"]), (&json!(true), &json!(["All"])));
    let some = json!({ "metadata": { "name": "s" }, "webhooks": [hooks.hook("s", &json!({ "sideEffects": "Some" }))] });
    let refused = server.post(VALIDATING, &some).await;
    assert!(refused.status().contains("webhooks[0].sideEffects: Unsupported value: \"Some\""), "{}", refused.status());
}

#[tokio::test]
async fn who_asks_for_it_sees_what_others_changed_later() {
    let hooks = Hooks::start(|path, review| {
        let data = &review["request"]["object"]["data"];
        let add = |key: &str| patch(review, &json!([{ "op": "add", "path": format!("/data/{key}"), "value": "x" }]));
        match path {
            "/first" if data["second"].is_null() => add("first"),
            "/first" => add("again"),
            "/second" => add("second"),
            _ => allow(review),
        }
    })
    .await;
    let server = Server::start().await;
    let again = json!({ "reinvocationPolicy": "IfNeeded" });
    configure(&server, MUTATING, "b", &[hooks.hook("second", &json!({})), hooks.hook("third", &again)]).await;
    configure(&server, MUTATING, "a", &[hooks.hook("first", &again)]).await;
    let made = server.create(&in_default("configmaps"), &config_map("one")).await;
    assert_eq!(made["data"], json!({ "a": "1", "first": "x", "second": "x", "again": "x" }));
    assert_eq!(hooks.paths(), ["/first", "/second", "/third", "/first", "/third"]);
}

#[tokio::test]
async fn what_is_sent_to_subresources_is_asked_about_as_what_it_is() {
    let hooks = Hooks::start(|path, review| {
        let request = &review["request"];
        let denied = request["subResource"] == "attach" && request["object"]["container"] == "c";
        match path {
            "/mutate" if request["subResource"] == "scale" => {
                patch(review, &json!([{ "op": "replace", "path": "/spec/replicas", "value": 5 }]))
            }
            _ if denied => deny(review),
            _ => allow(review),
        }
    })
    .await;
    let server = super::connect::server().await;
    let rules = json!({ "rules": [rule("*", "*", "*", "*/*")], "objectSelector": {} });
    server.create(DEPLOYMENTS, &deployment("web")).await;
    server.create(&in_default("pods"), &pod("free")).await;
    configure(&server, VALIDATING, "v", &[hooks.hook("check", &rules)]).await;
    let check = async |method: &str, uri: &str, body: &Value, code: u16, expected: [&str; 4]| {
        let answer = server.send(ask(method, uri).json(body)).await;
        assert_eq!(answer.code, code, "{uri}: {}", answer.text());
        let asked = hooks.asked();
        let (_, request) = asked.first().unwrap();
        let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
        let kind = request["kind"]["kind"].as_str().unwrap().to_owned();
        let sub = format!("{}/{}", request["resource"]["resource"].as_str().unwrap(), text("subResource"));
        assert_eq!([text("operation"), sub, kind, text("name")], expected.map(str::to_owned), "{uri}");
        assert_eq!(asked.len(), 1, "{uri}: {asked:?}");
    };
    let attach = in_default("pods/a/attach?stdin=true&stdout=true&container=c");
    check("POST", &attach, &json!({}), 418, ["CONNECT", "pods/attach", "PodAttachOptions", "a"]).await;
    let exec = in_default("pods/a/exec?command=sh&stdout=true");
    check("GET", &exec, &json!({}), 400, ["CONNECT", "pods/exec", "PodExecOptions", "a"]).await;
    let proxy = "/api/v1/nodes/n1/proxy/stats/summary";
    check("GET", proxy, &json!({}), 200, ["CONNECT", "nodes/proxy", "NodeProxyOptions", "n1"]).await;
    let scale = format!("{DEPLOYMENTS}/web/scale");
    let body = json!({ "metadata": { "name": "web" }, "spec": { "replicas": 3 } });
    check("PUT", &scale, &body, 200, ["UPDATE", "deployments/scale", "Scale", "web"]).await;
    let bind = json!({ "metadata": { "name": "free" }, "target": { "kind": "Node", "name": "n1" } });
    check("POST", &in_default("pods/free/binding"), &bind, 201, ["CREATE", "pods/binding", "Binding", "free"]).await;
    let evict = json!({ "metadata": { "name": "free" } });
    check("POST", &in_default("pods/free/eviction"), &evict, 201, ["CREATE", "pods/eviction", "Eviction", "free"])
        .await;
    let token = in_default("serviceaccounts/default/token");
    check("POST", &token, &json!({ "spec": {} }), 201, ["CREATE", "serviceaccounts/token", "TokenRequest", "default"])
        .await;
    let status = in_default("pods/a/status");
    let merge = json!({ "status": { "podIP": "10.1.1.1" } });
    let answer = server.patch(&status, MERGE, &merge).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    let (_, request) = hooks.asked().pop().unwrap();
    assert_eq!((&request["subResource"], &request["kind"]["kind"]), (&json!("status"), &json!("Pod")));
    configure(&server, MUTATING, "m", &[hooks.hook("mutate", &rules)]).await;
    let scaled = server.patch(&scale, MERGE, &json!({ "spec": { "replicas": 4 } })).await.json();
    assert_eq!(scaled["spec"]["replicas"], 5);
}
