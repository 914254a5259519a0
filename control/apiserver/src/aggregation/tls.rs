//! How this server shows other API servers that it is who passes a request on, and how it knows them.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
    client::{
        ResolvesClientCert, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use tandem_api::Clock;
use tandem_pki::{CertificateRequest, Pki, Usage};
use tokio_rustls::TlsConnector;

/// The only name that other servers are told to take headers from.
pub(crate) const CLIENT_NAME: &str = "front-proxy-client";
/// A new certificate is made after this time, long before the old one ends.
const RENEWED_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The certificate with which requests are passed on.
pub(crate) struct FrontProxy {
    pki: Arc<Pki>,
    clock: Arc<dyn Clock>,
    current: Mutex<Option<(Timestamp, Arc<CertifiedKey>)>>,
}

impl fmt::Debug for FrontProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FrontProxy { .. }")
    }
}

impl FrontProxy {
    pub(crate) fn new(pki: Arc<Pki>, clock: Arc<dyn Clock>) -> FrontProxy {
        FrontProxy { pki, clock, current: Mutex::default() }
    }

    fn certificate(&self) -> Result<Arc<CertifiedKey>, String> {
        let now = self.clock.now();
        let mut current = self.current.lock();
        if let Some((made, certificate)) = &*current
            && now.duration_since(*made) < RENEWED_AFTER
        {
            return Ok(certificate.clone());
        }
        let request = CertificateRequest {
            common_name: CLIENT_NAME,
            organizations: &[],
            dns_names: &[],
            addresses: &[],
            usage: Usage::Client,
        };
        let leaf = self.pki.front_proxy.issue(&request, now).map_err(|why| why.to_string())?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|why| why.to_string())?;
        let key = ring::sign::any_supported_type(&key).map_err(|why| why.to_string())?;
        let certificate = Arc::new(CertifiedKey::new(chain.map_err(|why| why.to_string())?, key));
        *current = Some((now, certificate.clone()));
        Ok(certificate)
    }
}

impl ResolvesClientCert for FrontProxy {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let made = self.certificate();
        made.inspect_err(|error| tracing::error!(error, "the front-proxy certificate cannot be made")).ok()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes every certificate, for those who asked for it.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificates of a PEM bundle.
pub(crate) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|why| why.to_string())?).map_err(|why| why.to_string())?;
    }
    if roots.is_empty() { Err("it has no certificates".to_owned()) } else { Ok(roots) }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    builder.with_safe_default_protocol_versions().map_err(|why| why.to_string())
}

fn anyone(builder: ConfigBuilder<ClientConfig, WantsVerifier>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(Arc::new(ring::default_provider()))))
}

/// Upgrades are HTTP/1.1.
fn connects(mut config: ClientConfig) -> TlsConnector {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Connections on which nobody's certificate is asked for.
pub(crate) fn unverified() -> Result<TlsConnector, String> {
    Ok(connects(anyone(builder()?).with_no_client_auth()))
}

/// What connections to one server are made with. `bundle` is base64 of PEM.
pub(super) fn connector(front: Arc<FrontProxy>, bundle: &str, insecure: bool) -> Result<TlsConnector, String> {
    let builder = if insecure {
        anyone(builder()?)
    } else {
        if bundle.is_empty() {
            return Err("spec.caBundle is empty, and spec.insecureSkipTLSVerify is not set".to_owned());
        }
        let pem = STANDARD.decode(bundle).map_err(|why| format!("spec.caBundle: {why}"))?;
        builder()?.with_root_certificates(roots(&pem).map_err(|why| format!("spec.caBundle: {why}"))?)
    };
    Ok(connects(builder.with_client_cert_resolver(front)))
}
