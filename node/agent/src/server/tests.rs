use std::path::PathBuf;

use futures::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tandem_runtime::{Act, Program};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

mod forwarding;

use super::*;
use crate::testing::{
    node::{TestAgent, TestNode, is_ready, restarts},
    pod,
};

/// A cluster authority with a server certificate for `n1` and client certificates.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), issuer.pem()).unwrap();
        Authority { folder, issuer }
    }

    fn issue(&self, name: &str, group: &str) -> (PathBuf, PathBuf) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.distinguished_name.push(DnType::OrganizationName, group);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.folder.path().join(format!("{name}.{kind}"));
        std::fs::write(path("crt"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        (path("crt"), path("key"))
    }

    fn identity(&self, name: &str, group: &str) -> Vec<u8> {
        let (certificate, key) = self.issue(name, group);
        [std::fs::read(certificate).unwrap(), std::fs::read(key).unwrap()].concat()
    }

    fn client(&self, identity: Option<&[u8]>) -> reqwest::Client {
        let root = reqwest::Certificate::from_pem(self.issuer.pem().as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder().tls_certs_only([root]).no_proxy();
        if let Some(identity) = identity {
            builder = builder.identity(reqwest::Identity::from_pem(identity).unwrap());
        }
        builder.resolve("n1", "127.0.0.1:0".parse().unwrap()).build().unwrap()
    }
}

struct Served {
    authority: Authority,
    node: TestNode,
    agent: TestAgent,
    port: u16,
    shutdown: CancellationToken,
}

impl Served {
    async fn start() -> Served {
        let node = TestNode::new().await;
        let authority = Authority::new();
        let (certificate, key) = authority.issue("n1", "system:nodes");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = ServerConfig {
            listen: listener.local_addr().unwrap(),
            certificate,
            key,
            client_authority: authority.folder.path().join("ca.crt"),
        };
        let agent = node.start();
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, config, agent.context.clone(), agent.pods.clone(), shutdown.clone()));
        Served { authority, node, agent, port, shutdown }
    }

    fn url(&self, path: &str) -> String {
        format!("https://n1:{}{path}", self.port)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let identity = self.authority.identity("kube-apiserver-kubelet-client", "system:masters");
        let response = self.authority.client(Some(&identity)).get(self.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.agent.end().await;
    }
}

#[tokio::test]
async fn nobody_but_the_api_server_may_ask() {
    let served = Served::start().await;
    assert_eq!(served.get("/healthz").await, (200, "ok".to_owned()));
    let other = served.authority.identity("system:node:n2", "system:nodes");
    for path in ["/healthz", "/pods", "/exec/a/b/c", "/metrics", "/stats/summary", "/metrics/resource"] {
        let response = served.authority.client(Some(&other)).get(served.url(path)).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 403, "{path}");
    }
    let nobody = served.authority.client(None).get(served.url("/healthz")).send().await;
    assert!(nobody.is_err(), "a client without a certificate was served");
    let stranger = Authority::new().identity("kube-apiserver-kubelet-client", "system:masters");
    assert!(served.authority.client(Some(&stranger)).get(served.url("/healthz")).send().await.is_err());
    served.end().await;
}

#[tokio::test]
async fn logs_of_now_and_of_before() {
    let served = Served::start().await;
    let print = |line: &str| Act::Print(line.to_owned());
    served.node.offer("a", Program(vec![print("one"), print("two"), Act::Wait]));
    served.node.api.put_pod(pod(&["a"]));
    served.node.until_pod("a ready pod", is_ready).await;
    assert_eq!(served.get("/containerLogs/default/web/a").await, (200, "one\ntwo\n".to_owned()));
    assert_eq!(served.get("/containerLogs/default/web/a?tailLines=1").await, (200, "two\n".to_owned()));
    let (code, message) = served.get("/containerLogs/default/web/a?previous=true").await;
    assert_eq!((code, message.as_str()), (400, "previous terminated container \"a\" in pod \"web\" not found"));
    assert_eq!(served.get("/containerLogs/default/web/x").await.0, 404);
    assert_eq!(served.get("/containerLogs/default/nope/a").await.0, 404);
    served.node.offer("a", Program(vec![print("three"), Act::Wait]));
    let id = served.node.sandboxes()[0].containers[0].id.clone();
    served.node.containers.exit(&id, 1);
    served.node.until_pod("a restart", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    assert_eq!(served.get("/containerLogs/default/web/a").await, (200, "three\n".to_owned()));
    assert_eq!(served.get("/containerLogs/default/web/a?previous=true").await, (200, "one\ntwo\n".to_owned()));
    served.end().await;
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// A connection of the API server's.
async fn dial(served: &Served) -> Tls {
    let identity = served.authority.identity("kube-apiserver-kubelet-client", "system:masters");
    let mut pem = identity.as_slice();
    let certificates = rustls_pemfile::certs(&mut pem).collect::<Result<Vec<_>, _>>().unwrap();
    let key = rustls_pemfile::private_key(&mut identity.as_slice()).unwrap().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(served.authority.issuer.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)
        .unwrap();
    let stream = TcpStream::connect(("127.0.0.1", served.port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    connector.connect("n1".try_into().unwrap(), stream).await.unwrap()
}

async fn websocket(served: &Served, path: &str, protocol: &str) -> WebSocketStream<Tls> {
    let mut request = format!("wss://n1{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    tokio_tungstenite::client_async(request, dial(served).await).await.unwrap().0
}

async fn exec(served: &Served, protocol: &str, command: &str, stdin: Option<&[u8]>) -> (String, String) {
    let path = format!("/exec/default/web/a?{command}&input=1&output=1&error=1");
    let mut socket = websocket(served, &path, protocol).await;
    if let Some(stdin) = stdin {
        socket.send(Message::Binary([&[0], stdin].concat().into())).await.unwrap();
        socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    }
    let (mut stdout, mut error) = (Vec::new(), Vec::new());
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            match bytes[0] {
                1 => stdout.extend_from_slice(&bytes[1..]),
                3 => error.extend_from_slice(&bytes[1..]),
                _ => {}
            }
        }
    }
    (String::from_utf8(stdout).unwrap(), String::from_utf8(error).unwrap())
}

#[tokio::test]
async fn exec_speaks_both_protocols() {
    let served = Served::start().await;
    served.node.offer("a", Program::waits());
    served.node.api.put_pod(pod(&["a"]));
    served.node.until_pod("a ready pod", is_ready).await;
    let (stdout, error) = exec(&served, "v5.channel.k8s.io", "command=cat", Some(b"ping")).await;
    assert_eq!(stdout, "ping");
    assert!(error.contains("Success"), "{error}");
    let (stdout, _) = exec(&served, "v4.channel.k8s.io", "command=echo&command=hi", None).await;
    assert_eq!(stdout, "hi\n");
    let (_, error) = exec(&served, "v5.channel.k8s.io, v4.channel.k8s.io", "command=exit&command=3", None).await;
    assert!(error.contains("NonZeroExitCode") && error.contains("\"3\""), "{error}");
    assert_eq!(served.get("/exec/default/web/a?command=x&output=1").await.0, 400);
    served.end().await;
}

#[tokio::test]
async fn attached_clients_hear_and_speak() {
    let served = Served::start().await;
    served.node.offer("a", Program(vec![Act::Copy]));
    served.node.api.put_pod(crate::testing::with_spec(pod(&["a"]), |spec| {
        (spec.containers[0].stdin, spec.containers[0].stdin_once) = (Some(true), Some(true));
        spec.restart_policy = Some("Never".to_owned());
    }));
    served.node.until_pod("a ready pod", is_ready).await;
    for refused in ["/attach/default/web/a", "/attach/default/web/a?output=1", "/attach/default/web/uid-1/a?output=1"] {
        assert_eq!(served.get(refused).await.0, 400, "{refused}");
    }
    assert_eq!(served.get("/attach/default/web/b?output=1").await.0, 404);
    let mut socket = websocket(&served, "/attach/default/web/a?input=1&output=1&error=1", "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0ping".to_vec().into())).await.unwrap();
    let mut heard = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) if bytes[..] == *b"\x01ping" => {
                // The end of its only input is the end of the container.
                socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
            }
            Message::Binary(bytes) => heard.push(String::from_utf8_lossy(&bytes).into_owned()),
            _ => {}
        }
    }
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].starts_with('\u{3}') && heard[0].contains("Success"), "{heard:?}");
    let ended = |pod: &Pod| crate::pod::phase(pod) == "Succeeded";
    served.node.until_pod("an end", ended).await;
    assert_eq!(served.get("/attach/default/web/a?output=1").await.0, 404);
    served.end().await;
}

#[tokio::test]
async fn pods_metrics_and_statistics_are_shown() {
    let served = Served::start().await;
    served.node.offer("a", Program::waits());
    served.node.api.put_pod(pod(&["a"]));
    served.node.until_pod("a ready pod", is_ready).await;
    assert!(served.get("/pods").await.1.contains("\"name\":\"web\""));
    assert!(served.get("/metrics").await.1.contains("kubelet_running_pods"));
    let (_, summary) = served.get("/stats/summary").await;
    assert!(summary.contains(r#""podRef":{"name":"web","namespace":"default","uid":"uid-1"}"#), "{summary}");
    assert!(summary.contains(r#""workingSetBytes":1048576"#), "{summary}");
    // The fake's containers use a tenth of a core; the machine's own use is not ours to know.
    let figures: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let cores = figures["pods"][0]["cpu"]["usageNanoCores"].as_u64().unwrap();
    assert!((90_000_000..110_000_000).contains(&cores), "{summary}");
    assert!(figures["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0, "{summary}");
    let (code, resource) = served.get("/metrics/resource").await;
    assert_eq!(code, 200);
    let used = "container_cpu_usage_seconds_total{container=\"a\",namespace=\"default\",pod=\"web\"} ";
    assert!(resource.lines().any(|line| line.starts_with(used)), "{resource}");
    assert!(resource.contains("node_memory_working_set_bytes "), "{resource}");
    served.end().await;
}
