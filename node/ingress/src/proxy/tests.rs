//! The proxy between real sockets: clients that write bytes, backends that answer with bytes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use prometheus_client::{encoding::text::encode, registry::Registry};
use rustls::{
    ClientConfig,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::json;
use tandem_client::wake::Wake;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Metrics, certificates,
    listen::{self, Scheme},
    pool,
    proxy::Proxy,
    routes::{self, Backend, Protocol, Reach, Snapshot, Table},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy that leads every host and path to one backend.
struct Serving {
    address: SocketAddr,
    publish: watch::Sender<Arc<Table>>,
    registry: Registry,
    metrics: Metrics,
    woken: Arc<AtomicUsize>,
    _shutdown: DropGuard,
}

fn backend(reach: Reach, woken_by: Option<&str>) -> Arc<Backend> {
    let woken_by = woken_by.map(|name| ("ns".to_owned(), name.to_owned()));
    Arc::new(Backend { name: "ns/web".to_owned(), ingress: ("ns".to_owned(), "i".to_owned()), reach, woken_by })
}

fn table(reach: Reach) -> Table {
    table_of(self::backend(reach, None))
}

fn table_of(to: Arc<Backend>) -> Table {
    let backend = |service: &str| json!({"service": {"name": service, "port": {"number": 80}}});
    let ingress: Ingress = serde_json::from_value(json!({
        "metadata": {"name": "i", "namespace": "ns"},
        "spec": {"ingressClassName": "tandem", "rules": [{"http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": backend("web")},
        ]}}]},
    }))
    .unwrap();
    let class: IngressClass =
        serde_json::from_value(json!({"metadata": {"name": "tandem"}, "spec": {"controller": "tandem.dev/ingress"}}))
            .unwrap();
    let snapshot =
        Snapshot { ingresses: vec![Arc::new(ingress)], classes: vec![Arc::new(class)], ..Snapshot::default() };
    let mut table = routes::build(&snapshot, &certificates::self_signed().unwrap());
    // Tests listen on the loopback, where no Service may lead.
    table.replace_all(&to);
    table
}

async fn proxy(reach: Reach, tls: bool) -> Serving {
    let woken = Arc::new(AtomicUsize::new(0));
    let counted = woken.clone();
    let wake: Wake = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (publish, tables) = watch::channel(Arc::new(table(reach)));
    let shutdown = CancellationToken::new();
    let proxy = Arc::new(Proxy::new(tables.clone(), metrics.clone(), wake, shutdown.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let scheme = if tls { Scheme::Https(certificates::acceptor(tables).unwrap()) } else { Scheme::Http };
    tokio::spawn(listen::serve(listener, scheme, proxy, shutdown.clone()));
    Serving { address, publish, registry, metrics, woken, _shutdown: shutdown.drop_guard() }
}

async fn proxy_to(backends: &[SocketAddr]) -> Serving {
    proxy(Reach::Endpoints(backends.to_vec(), Protocol::Http1), false).await
}

/// A server that reads a request's head, and what follows it as far as it came at once, and answers with these bytes.
async fn scripted(answer: &'static str) -> (SocketAddr, watch::Receiver<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, requests) = watch::channel(Vec::new());
    let seen = Arc::new(seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut text = String::new();
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                    let chunked = text.contains("chunked") && !text.ends_with("0\r\n\r\n");
                    if text.contains("\r\n\r\n") && !chunked {
                        seen.send_modify(|all| all.push(std::mem::take(&mut text)));
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    (address, requests)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=9\r\n\r\nok";

/// Sends bytes and reads until `enough`, or the end.
async fn converse(address: SocketAddr, sent: &str, enough: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    read_until(&mut stream, enough).await
}

async fn read_until(stream: &mut TcpStream, enough: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if text.contains(enough) {
                return;
            }
        }
    };
    assert!(timeout(DEADLINE, reading).await.is_ok(), "no {enough:?} in {text:?}");
    text
}

#[tokio::test]
async fn a_request_is_passed_on_and_its_answer_comes_back() {
    let (backend, seen) = scripted(OK).await;
    let serving = proxy_to(&[backend]).await;
    let text = "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 10.9.9.9\r\n\r\n";
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(text.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && !answer.contains("eep-"), "{answer}");
    }
    let requests = seen.borrow().clone();
    assert_eq!(requests.len(), 2);
    assert!(requests[0].starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].contains("x-forwarded-for: 127.0.0.1\r\n") && !requests[0].contains("10.9.9.9"));
    assert!(requests[0].contains("host: a.test\r\n"), "{}", requests[0]);
    let mut metrics = String::new();
    encode(&mut metrics, &serving.registry).unwrap();
    assert!(metrics.contains("tandem_ingress_requests_total{scheme=\"http\",code=\"200\"} 2"), "{metrics}");
}

/// Whatever a client does to have its bytes read in two ways, a backend gets one request, framed by us, or none.
#[tokio::test]
async fn nothing_is_smuggled() {
    let (backend, seen) = scripted(OK).await;
    let serving = proxy_to(&[backend]).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let refused = [
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: 4, 5\r\n",
        "Content-Length: +4\r\n",
        "Content-Length : 4\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
        "X: a\0b\r\n",
        "Host: b\r\n",
    ];
    for head in refused {
        let sent = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n{smuggled}");
        let answer = converse(serving.address, &sent, "\r\n\r\n").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
    }
    assert!(seen.borrow().is_empty(), "{:?}", seen.borrow());
    let both = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answer = converse(serving.address, &format!("{both}{smuggled}"), "\r\n\r\nok").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    for request in seen.borrow().iter() {
        let lower = request.to_ascii_lowercase();
        assert!(!lower.contains("content-length") && !lower.contains("/smuggled"), "{request}");
    }
}

/// An address that refuses connections for as long as the socket is held, which nobody else can have meanwhile.
fn closed() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

#[tokio::test]
async fn refusals_are_told_shortly() {
    let check = async |serving: &Serving, target: &str, expected: &str| {
        let sent = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = converse(serving.address, &sent, "\n\0").await;
        assert!(answer.ends_with(expected), "{answer}");
    };
    let nobody = proxy_to(&[]).await;
    check(&nobody, "/", "503 the Service of this path has no ready endpoints\n").await;
    check(&nobody, "/a/../b", "400 the path of the request has . or .. in it\n").await;
    let nowhere = proxy(Reach::Nowhere("why"), false).await;
    check(&nowhere, "/", "503 why\n").await;
    nowhere.publish.send_replace(Arc::new(Table::empty(certificates::self_signed().unwrap())));
    check(&nowhere, "/", "404 no Ingress has this host and path\n").await;
    let (closed, _held) = closed();
    check(&proxy_to(&[closed]).await, "/", "502 no endpoint of the backend takes the connection\n").await;
    let (hangs_up, _seen) = scripted("").await;
    let large = format!("/{}", "x".repeat(70_000));
    let answer =
        converse(proxy_to(&[hangs_up]).await.address, &format!("GET {large} HTTP/1.1\r\nHost: a\r\n\r\n"), "\r\n\r\n")
            .await;
    assert!(answer.starts_with("HTTP/1.1 414 ") || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_costs_no_request() {
    let (closed, _held) = closed();
    let (backend, seen) = scripted(OK).await;
    let serving = proxy_to(&[closed, backend]).await;
    for method in ["GET", "POST"] {
        for _ in 0..8 {
            let sent = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            let answer = converse(serving.address, &sent, "\r\n\r\nok").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
    assert_eq!(seen.borrow().len(), 16);
}

/// A server that closes each connection after a request, without having said so: the next GET on it is sent again, a
/// POST never uses such a connection.
#[tokio::test]
async fn a_connection_that_was_being_closed_costs_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
                // The next request is read, and not answered.
                drop(stream.read(&mut buffer).await);
            });
        }
    });
    let serving = proxy_to(&[backend]).await;
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    for method in ["GET", "GET", "POST", "GET", "POST", "GET"] {
        let sent = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(sent.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{method}: {answer}");
        if !answer.ends_with("ok") {
            read_until(&mut stream, "ok").await;
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        drop(tokio::io::copy(&mut reader, &mut writer).await);
    });
    let serving = proxy_to(&[backend]).await;
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    let sent = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(sent.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: echo"), "{head}");
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut stream, word).await, word);
    }
}

/// Searches are GETs with a body to some servers.
#[tokio::test]
async fn a_body_of_unknown_length_is_passed_on_whatever_the_method() {
    let (backend, seen) = scripted(OK).await;
    let serving = proxy_to(&[backend]).await;
    for method in ["GET", "DELETE", "POST"] {
        let sent =
            format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n");
        let answer = converse(serving.address, &sent, "\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    for request in seen.borrow().iter() {
        assert!(request.contains("transfer-encoding: chunked\r\n") && request.contains("\r\nquery\r\n"), "{request}");
    }
    assert_eq!(seen.borrow().len(), 3);
}

/// An HTTP/2 server without TLS that answers each frame of a body with one, and ends with trailers, as gRPC does.
async fn echo_h2(connections: Arc<AtomicUsize>, streams_max: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.headers()["te"], "trailers");
                let frames = futures::stream::unfold(Some(request.into_body()), |body| async {
                    let mut body = body?;
                    match body.frame().await {
                        Some(frame) => Some((frame, Some(body))),
                        None => {
                            let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
                            Some((Ok(http_body::Frame::trailers(trailers.into_iter().collect())), None))
                        }
                    }
                });
                Ok::<_, hyper::Error>(Response::new(StreamBody::new(frames)))
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(streams_max);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

#[tokio::test]
async fn streams_go_both_ways_at_once_over_http2_with_trailers() {
    let connections = Arc::new(AtomicUsize::new(0));
    let backend = echo_h2(connections.clone(), 200).await;
    let serving = proxy(Reach::Endpoints(vec![backend], Protocol::Http2), true).await;
    let stream = tls(serving.address, "a.test", &["h2"]).await;
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let (mut upload, body) = futures::channel::mpsc::channel::<Result<_, hyper::Error>>(1);
        let request = Request::post("https://a.test/x").header("te", "trailers").body(StreamBody::new(body)).unwrap();
        let answer = timeout(DEADLINE, send.send_request(request)).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut body = answer.into_body();
        for word in ["one", "two"] {
            upload.try_send(Ok(http_body::Frame::data(Bytes::from(word)))).unwrap();
            let frame = timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), word);
        }
        drop(upload);
        let trailers = body.collect().await.unwrap().trailers().unwrap().clone();
        assert_eq!(trailers["grpc-status"], "0");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "streams share a connection");
}

/// Streams that last neither keep others waiting, where a server takes few on a connection, nor open connections
/// without end.
#[tokio::test]
async fn streams_that_last_have_as_many_connections_as_they_need_up_to_a_bound() {
    let connections = Arc::new(AtomicUsize::new(0));
    let backend = echo_h2(connections.clone(), 2).await;
    let serving = proxy(Reach::Endpoints(vec![backend], Protocol::Http2), true).await;
    let stream = tls(serving.address, "a.test", &["h2"]).await;
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut lasting = Vec::new();
    let mut ask = async || {
        let (upload, body) = futures::channel::mpsc::channel::<Result<http_body::Frame<Bytes>, hyper::Error>>(1);
        let request = Request::post("https://a.test/x").header("te", "trailers").body(StreamBody::new(body)).unwrap();
        let answer = timeout(DEADLINE, send.send_request(request)).await.unwrap().unwrap();
        (answer.status(), upload, answer)
    };
    let bound = 2 * pool::SHARED_PER_ADDRESS_MAX;
    for count in 1..=bound {
        let answer = ask().await;
        assert_eq!(answer.0, StatusCode::OK);
        lasting.push(answer);
        assert_eq!(connections.load(Ordering::SeqCst), count.div_ceil(2));
    }
    assert_eq!(ask().await.0, StatusCode::SERVICE_UNAVAILABLE);
    lasting.pop();
    let again = timeout(DEADLINE, async { while ask().await.0 != StatusCode::OK {} }).await;
    assert!(again.is_ok(), "there is room again");
    assert_eq!(connections.load(Ordering::SeqCst), pool::SHARED_PER_ADDRESS_MAX);
}

/// Answers that nobody reads leave room for others on the connection to their backend.
#[tokio::test]
async fn answers_that_are_not_read_do_not_stall_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let size = if request.uri().path() == "/large" { 64 << 20 } else { 2 };
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(vec![b'x'; size]))))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    let serving = proxy(Reach::Endpoints(vec![backend], Protocol::Http2), false).await;
    let mut unread = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(serving.address).await.unwrap();
        stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
        unread.push(stream);
    }
    for _ in 0..20 {
        let answer = converse(serving.address, "GET /small HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n\r\nxx").await;
        assert!(answer.ends_with("xx"), "{answer}");
    }
}

/// Trusts everybody; says what it was shown.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn tls(address: SocketAddr, name: &str, protocols: &[&str]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn a_connection_is_for_hosts_of_its_certificate() {
    let (backend, _seen) = scripted(OK).await;
    let reach = || Reach::Endpoints(vec![backend], Protocol::Http1);
    let serving = proxy(reach(), true).await;
    let made = certificates::self_signed().unwrap();
    let mut with_host = table(reach());
    with_host.certificates.add("secret.test", &made);
    serving.publish.send_replace(Arc::new(with_host));
    let ask = async |name: &str, host: &str| {
        let stream = tls(serving.address, name, &["http/1.1"]).await;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header("host", host).body(Empty::<Bytes>::new()).unwrap();
        (send.send_request(request).await.unwrap().status(), shown == made.cert[0])
    };
    assert_eq!(ask("secret.test", "secret.test").await, (StatusCode::OK, true));
    assert_eq!(ask("a.test", "a.test").await, (StatusCode::OK, false));
    assert_eq!(ask("a.test", "b.test").await, (StatusCode::OK, false), "both have the default certificate");
    assert_eq!(ask("a.test", "secret.test").await.0, StatusCode::MISDIRECTED_REQUEST);
}

/// One address has so many connections; more are closed at once, and whose connections end is served again.
#[tokio::test]
async fn a_flood_of_connections_from_one_address_is_refused() {
    let serving = proxy_to(&[]).await;
    let mut silent = Vec::new();
    for _ in 0..listen::connections_per_address_max() {
        silent.push(TcpStream::connect(serving.address).await.unwrap());
    }
    let ask = async || {
        let mut stream = TcpStream::connect(serving.address).await.unwrap();
        // A connection that is closed at once may take the bytes or not.
        drop(stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await);
        read_until(&mut stream, "\r\n\r\n").await
    };
    assert_eq!(ask().await, "");
    let mut metrics = String::new();
    encode(&mut metrics, &serving.registry).unwrap();
    assert!(metrics.contains("tandem_ingress_connections_refused_total{reason=\"address\"} 1"), "{metrics}");
    drop(silent);
    let served = timeout(DEADLINE, async { while !ask().await.starts_with("HTTP/1.1 503 ") {} }).await;
    assert!(served.is_ok(), "places are free again");
}

/// A body is taken from its client only as fast as the backend takes it.
#[tokio::test]
async fn an_upload_waits_for_its_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = listener.local_addr().unwrap();
    let serving = proxy_to(&[backend]).await;
    let (mut reader, mut writer) = TcpStream::connect(serving.address).await.unwrap().into_split();
    let size = 256 << 20;
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
    writer.write_all(head.as_bytes()).await.unwrap();
    let part = vec![b'x'; 1 << 20];
    let mut sent = 0;
    // Nothing more is taken once all buffers are full.
    while let Ok(written) = timeout(Duration::from_secs(1), writer.write(&part)).await {
        sent += written.unwrap();
        assert!(sent < size / 2, "{sent} bytes were taken that nobody has read");
    }
    let sending = tokio::spawn(async move {
        while sent < size {
            sent += writer.write(&part[..part.len().min(size - sent)]).await.unwrap();
        }
        writer
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    let mut taken = head.len() - head.find("\r\n\r\n").unwrap() - 4;
    let mut buffer = vec![0; 1 << 20];
    while taken < size {
        let count = timeout(DEADLINE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "the body ended after {taken} bytes");
        taken += count;
    }
    stream.write_all(OK.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(DEADLINE, reader.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(timeout(DEADLINE, sending).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_request_for_a_workload_at_zero_waits_for_its_pod() {
    let (pod, _) = scripted(OK).await;
    let serving = proxy_to(&[]).await;
    let asleep = Reach::Endpoints(Vec::new(), Protocol::Http1);
    serving.publish.send_replace(Arc::new(table_of(backend(asleep, Some("web")))));
    serving.metrics.set_ingresses(&[("ns".to_owned(), "i".to_owned())]);
    let address = serving.address;
    let asking = tokio::spawn(async move { converse(address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "ok").await });
    let woken = timeout(DEADLINE, async {
        while serving.woken.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    });
    woken.await.unwrap();
    assert!(!asking.is_finished());
    let awake = Reach::Endpoints(vec![pod], Protocol::Http1);
    serving.publish.send_replace(Arc::new(table_of(backend(awake, Some("web")))));
    let answer = timeout(DEADLINE, asking).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let counted: Vec<u64> = serving.metrics.by_ingress().into_values().collect();
    assert_eq!(counted, [1]);
}
