use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{ResolvesServerCert, WebPkiClientVerifier},
};
use tandem_api::Identity;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Protocols offered in the handshake. `tandem-raft` is reserved for the members of the control plane.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS settings that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client CA cannot be read: {0}")]
    ClientCa(String),
    #[error("TLS cannot be set up: {0}")]
    Config(#[from] rustls::Error),
}

/// The server's side of TLS: certificates from `certificates` (asked at each handshake, so they can be renewed in the
/// running process), client certificates of the authorities in `client_ca` optional but verified.
pub fn server_config(certificates: Arc<dyn ResolvesServerCert>, client_ca: &str) -> Result<ServerConfig, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        let certificate = certificate.map_err(|why| Error::ClientCa(why.to_string()))?;
        roots.add(certificate).map_err(|why| Error::ClientCa(why.to_string()))?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|why| Error::ClientCa(why.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates);
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// Who a verified client certificate speaks for: its common name, its organizations as groups.
/// `None` where it names nobody.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|group| group.as_str().ok()).collect();
    Some(Identity::user(name, &groups))
}
