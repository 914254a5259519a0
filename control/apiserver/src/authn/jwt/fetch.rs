use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DOCUMENT_MAX_BYTES: usize = 1 << 20;
const HTTPS: u16 = 443;

/// What an issuer's documents are fetched with: the authorities of its own, or those that browsers trust.
pub(super) fn connector(authority: &str) -> Result<TlsConnector, String> {
    let roots = if authority.is_empty() {
        RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
    } else {
        let found = crate::aggregation::roots(authority.as_bytes());
        found.map_err(|why| format!("issuer.certificateAuthority: {why}"))?
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A document over HTTPS. Redirects are not followed.
pub(super) async fn get(connector: &TlsConnector, url: &str) -> Result<Bytes, String> {
    let failed = |why: String| format!("get {url}: {why}");
    fetch(connector, url).await.map_err(failed)
}

async fn fetch(connector: &TlsConnector, url: &str) -> Result<Bytes, String> {
    let uri: Uri = url.parse().map_err(|_| "it is not a URL")?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or("it is not an https URL")?;
    let port = uri.port_u16().unwrap_or(HTTPS);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, port)).await.map_err(|why| why.to_string())?;
    let name = ServerName::try_from(address.to_owned()).map_err(|why| why.to_string())?;
    let stream = connector.connect(name, stream).await.map_err(|why| why.to_string())?;
    let text = |why: hyper::Error| why.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(text)?;
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|why| why.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(text)?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), DOCUMENT_MAX_BYTES).collect().await;
        Ok(body.map_err(|why| why.to_string())?.to_bytes())
    };
    tokio::select! {
        answered = answered => answered,
        ended = connection => Err(ended.map_or_else(text, |()| "the connection ended".to_owned())),
    }
}
