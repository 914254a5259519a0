//! Clients of the API over HTTP/2 with a certificate, one connection each: what loads are made of.
//!
//! They tell apart what other clients hide: whether a request that failed can have reached its member.

use std::{error::Error as _, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// How long a connection may take to be there.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// The administrator's certificate, and the authority that members are known by.
#[derive(Clone)]
pub struct Access {
    tls: TlsConnector,
}

impl Access {
    pub fn of(kubeconfig: &Path) -> Access {
        let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            STANDARD.decode(value.unwrap_or_else(|| panic!("no {name} in {text}"))).expect("base64")
        };
        let mut roots = RootCertStore::empty();
        let authority = field("certificate-authority-data");
        roots.add(CertificateDer::from_pem_slice(&authority).expect("a certificate")).expect("an authority");
        let leaf = field("client-certificate-data");
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&leaf).map(|it| it.expect("a certificate")).collect();
        let key = PrivateKeyDer::from_pem_slice(&field("client-key-data")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has the default versions").with_root_certificates(roots);
        let mut config = builder.with_client_auth_cert(chain, key).expect("the key fits the certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Access { tls: TlsConnector::from(Arc::new(config)) }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request was not sent: another member can be asked.
    Unsent(String),
    /// It may have been carried out.
    Lost(String),
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Whether the server ended the connection in order before it looked at the request, which can be asked elsewhere then
/// (RFC 9113, section 6.8).
fn is_turned_away(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(broken) = found.downcast_ref::<h2::Error>() {
            return broken.is_go_away() && broken.is_remote() && broken.reason() == Some(h2::Reason::NO_ERROR);
        }
        cause = found.source();
    }
    false
}

/// One connection to one member.
pub struct Connection {
    send: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub async fn open(access: &Access, server: SocketAddr) -> Result<Connection, Failure> {
        let unsent = |error: &dyn std::fmt::Display| Failure::Unsent(format!("{server}: {error}"));
        let opening = async {
            let stream = TcpStream::connect(server).await.map_err(|error| unsent(&error))?;
            stream.set_nodelay(true).map_err(|error| unsent(&error))?;
            let name = ServerName::from(server.ip());
            let stream = access.tls.connect(name, stream).await.map_err(|error| unsent(&error))?;
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| unsent(&error))
        };
        let (send, driver) = timeout(CONNECT_MAX, opening).await.map_err(|error| unsent(&error))??;
        let driver = tokio::spawn(async move {
            // What goes wrong is told to whoever waits for an answer.
            let _ended = driver.await;
        });
        Ok(Connection { send, _driver: AbortOnDropHandle::new(driver) })
    }

    /// Asks, and gives back the head of the answer; its body may go on for long.
    pub async fn begin(
        &mut self,
        server: SocketAddr,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, Failure> {
        let told = |error: &hyper::Error| format!("{server}: {error} ({:?})", error.source().map(ToString::to_string));
        self.send.ready().await.map_err(|error| Failure::Unsent(told(&error)))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{server}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "tandem-tests/1")
            .body(Full::new(body))
            .expect("a request");
        self.send.send_request(request).await.map_err(|error| {
            let unsent = error.is_canceled() || is_turned_away(&error);
            if unsent { Failure::Unsent(told(&error)) } else { Failure::Lost(told(&error)) }
        })
    }

    /// Asks, and waits for the whole answer.
    pub async fn ask(
        &mut self,
        server: SocketAddr,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let response = self.begin(server, method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| Failure::Lost(format!("{server}: {error}")))?;
        Ok(Answer { status, body: body.to_bytes() })
    }
}
