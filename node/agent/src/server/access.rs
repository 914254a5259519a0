//! Who may ask the node: the API server and administrators, by their certificates.

use std::{io, path::Path, sync::Arc};

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tandem_api::groups;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ServerConfig;

/// The API server's name when it calls a node.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// Who holds the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Caller {
    name: String,
    groups: Vec<String>,
}

impl Caller {
    /// The subject of a certificate that the handshake has verified.
    pub(super) fn of(certificates: Option<&[CertificateDer<'_>]>) -> Caller {
        let Some(certificate) = certificates.and_then(|chain| chain.first()) else { return Caller::default() };
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Caller::default() };
        let subject = certificate.subject();
        let text =
            |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
        Caller {
            name: subject.iter_common_name().find_map(text).unwrap_or_default(),
            groups: subject.iter_organization().filter_map(text).collect(),
        }
    }

    fn may_ask(&self) -> bool {
        self.name == API_SERVER || self.groups.iter().any(|group| group == groups::MASTERS)
    }
}

/// Lets nobody through but those who may ask.
pub(super) async fn check(request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.may_ask() => next.run(request).await,
        Some(caller) if !caller.name.is_empty() => {
            let path = request.uri().path();
            tracing::warn!(caller = caller.name, path, "refused");
            let message = format!("Forbidden (user={}, verb={}, path={path})", caller.name, request.method());
            (StatusCode::FORBIDDEN, message).into_response()
        }
        _ => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path)?;
    rustls_pemfile::certs(&mut pem.as_slice()).collect()
}

fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let pem = std::fs::read(path)?;
    let found = rustls_pemfile::private_key(&mut pem.as_slice())?;
    found.ok_or_else(|| io::Error::other(format!("{} holds no private key", path.display())))
}

pub(super) fn acceptor(config: &ServerConfig) -> io::Result<TlsAcceptor> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.client_authority)? {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(io::Error::other)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.certificate)?, key(&config.key)?)
        .map_err(io::Error::other)?;
    // Upgrades to WebSocket need HTTP/1.1.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_server_and_administrators_may_ask() {
        let caller = |name: &str, group: &str| Caller { name: name.to_owned(), groups: vec![group.to_owned()] };
        assert!(caller(API_SERVER, "").may_ask());
        assert!(caller("root", "system:masters").may_ask());
        assert!(!caller("system:node:n2", "system:nodes").may_ask());
        assert!(!Caller::default().may_ask());
    }
}
