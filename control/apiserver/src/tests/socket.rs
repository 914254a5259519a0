use std::{net::SocketAddr, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tandem_api::{Clock as _, Identity};
use tandem_pki::{CertificateRequest, Leaf, Usage};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tls;

struct Listening {
    server: Server,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

fn leaf(server: &Server, name: &str, organizations: &[&str], usage: Usage) -> Leaf {
    let request = CertificateRequest {
        common_name: name,
        organizations,
        dns_names: &["localhost".to_owned()],
        addresses: &[],
        usage,
    };
    server.pki.cluster.issue(&request, server.clock.now()).unwrap()
}

fn chain(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificates = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect();
    (certificates, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
}

async fn listen() -> Listening {
    listen_with(Server::start().await).await
}

async fn listen_with(server: Server) -> Listening {
    let (certificates, key) = chain(&leaf(&server, "apiserver", &[], Usage::Server));
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(certificates, key)));
    let config = tls::server_config(resolver, server.pki.cluster.certificate()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(crate::serve(listener, config, server.router.clone(), shutdown.clone()));
    Listening { server, address, shutdown, task }
}

async fn dial(listening: &Listening, client: Option<&Leaf>, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(listening.server.pki.cluster.certificate().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match client {
        Some(leaf) => {
            let (certificates, key) = chain(leaf);
            builder.with_client_auth_cert(certificates, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(listening.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

async fn whoami(listening: &Listening, client: Option<&Leaf>, http2: bool) -> (u16, String) {
    let stream = TokioIo::new(dial(listening, client, if http2 { b"h2" } else { b"http/1.1" }).await);
    let review = json!({ "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1" }).to_string();
    let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let request =
        |uri: String| Request::post(uri).header(header::HOST, "localhost").body(Body::from(review.clone())).unwrap();
    let response = if http2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request(format!("https://localhost{uri}"))).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request(uri.to_owned())).await.unwrap()
    };
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    (code, body["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn client_certificates_are_identities() {
    let listening = listen().await;
    let admin = leaf(&listening.server, "jane", &["system:masters"], Usage::Client);
    assert_eq!(whoami(&listening, Some(&admin), true).await, (201, "jane".to_owned()));
    assert_eq!(whoami(&listening, Some(&admin), false).await, (201, "jane".to_owned()));
    assert_eq!(whoami(&listening, None, true).await.0, 403);
}

#[tokio::test]
async fn shutdown_takes_less_than_a_second_with_watches_open() {
    let listening = listen().await;
    let admin = leaf(&listening.server, "jane", &["system:masters"], Usage::Client);
    let stream = TokioIo::new(dial(&listening, Some(&admin), b"http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::get("/api/v1/pods?watch=true").header(header::HOST, "localhost").body(Body::empty()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
    listening.shutdown.cancel();
    timeout(Duration::from_secs(1), listening.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn silent_and_dawdling_connections_are_dropped() {
    let listening = listen().await;
    let mut silent = dial(&listening, None, b"http/1.1").await;
    let mut half = dial(&listening, None, b"http/1.1").await;
    tokio::io::AsyncWriteExt::write_all(&mut half, b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let mut raw = TcpStream::connect(listening.address).await.unwrap();
    let ended = async {
        let mut buffer = Vec::new();
        let _ = silent.read_to_end(&mut buffer).await;
        let _ = half.read_to_end(&mut buffer).await;
        let _ = raw.read_to_end(&mut buffer).await;
    };
    timeout(Duration::from_secs(14), ended).await.expect("connections are held");
}

#[tokio::test]
async fn no_header_sets_an_identity() {
    let listening = listen().await;
    let answer = listening
        .server
        .send(
            ask("GET", "/api/v1/pods")
                .unknown()
                .header("x-remote-user", "root")
                .header("x-remote-group", "system:masters"),
        )
        .await;
    assert_eq!(answer.code, 403);
    assert_eq!(Identity::anonymous().name, "system:anonymous");
}

/// Bytes that are neither HTTP nor a known protocol, both ways through server, API and node.
#[tokio::test]
async fn upgraded_streams_pass_through_to_the_node() {
    use tokio::io::AsyncWriteExt as _;
    let listening = listen_with(super::connect::server().await).await;
    let admin = leaf(&listening.server, "jane", &["system:masters"], Usage::Client);
    let mut stream = dial(&listening, Some(&admin), b"http/1.1").await;
    let request = "GET /api/v1/namespaces/default/pods/a/attach?stdout=true&stdin=true HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(5), stream.read_u8()).await.unwrap().unwrap();
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-protocol: v5.channel.k8s.io"), "{head}");
    stream.write_all(b"\x00ping").await.unwrap();
    let mut echoed = [0; 5];
    timeout(Duration::from_secs(5), stream.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(&echoed, b"\x00ping");
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"bye");
}
