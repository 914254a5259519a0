//! Whom a webhook's certificate is believed.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

/// TLS that believes the certificates of a bundle in PEM, or, without one, the public authorities.
pub(super) fn client(bundle: &[u8]) -> Result<ClientConfig, String> {
    let unusable = |why: &dyn std::fmt::Display| format!("unable to load root certificates: {why}");
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    let mut own = Vec::new();
    if bundle.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    } else {
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = certificate.map_err(|why| unusable(&why))?;
            roots.add(certificate.clone()).map_err(|why| unusable(&why))?;
            own.push(certificate);
        }
        if own.is_empty() {
            return Err(unusable(&"unable to parse bytes as PEM block"));
        }
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|why| unusable(&why))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trust { inner, own }))
        .with_no_client_auth();
    Ok(config)
}

/// As usual; besides, a webhook may show a certificate of the bundle itself, as those that sign themselves do, also where
/// it says that it is an authority's.
#[derive(Debug)]
struct Trust {
    inner: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(shown, chain, name, ocsp, now);
        let is_other = matches!(verified, Err(Error::InvalidCertificate(CertificateError::Other(_))));
        if !is_other || !self.own.iter().any(|own| own == shown) {
            return verified;
        }
        if !is_valid(shown, now) {
            return Err(CertificateError::Expired.into());
        }
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn is_valid(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let at = i64::try_from(now.as_secs()).ok().and_then(|at| x509_parser::time::ASN1Time::from_timestamp(at).ok());
    matches!((parsed, at), (Ok((_, parsed)), Some(at)) if parsed.validity().is_valid_at(at))
}

/// A handshake that failed, as Go's clients tell it.
pub(super) fn told(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
        }
        Some(Error::InvalidCertificate(why)) => format!("tls: failed to verify certificate: x509: {why}"),
        Some(other) => format!("tls: {other}"),
        None => error.to_string(),
    }
}
