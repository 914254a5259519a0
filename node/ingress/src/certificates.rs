//! Certificates from Secrets, chosen by the name that a client asks for (SNI, RFC 6066 section 3).

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::Secret;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::routes::{self, Table};

const TLS_TYPE: &str = "kubernetes.io/tls";
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Certificates in one chain.
const CHAIN_MAX: usize = 16;
/// The name in the certificate of hosts that have none of their own.
const DEFAULT_NAME: &str = "ingress.tandem.dev";

/// Why a Secret gives no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unusable {
    #[error("its type is {0:?}, not {TLS_TYPE}")]
    Type(String),
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("its {0} holds no PEM that can be used: {1}")]
    Malformed(&'static str, String),
    #[error("its key is not that of its certificate: {0}")]
    Mismatch(String),
}

/// A certificate and the names that it is for.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    /// DNS names of the certificate itself, for Ingresses that name no host.
    pub(crate) names: Vec<String>,
}

impl Certificate {
    /// Whether the host, which may be a wildcard itself, is among its names.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let covers =
            |name: &str| name == host || name.strip_prefix("*.").is_some_and(|rest| routes::parent(host) == Some(rest));
        self.names.iter().any(|name| covers(name))
    }
}

/// The certificate in a Secret of type `kubernetes.io/tls`.
pub(crate) fn of_secret(secret: &Secret) -> Result<Certificate, Unusable> {
    let kind = secret.type_.as_deref().unwrap_or_default();
    if kind != TLS_TYPE {
        return Err(Unusable::Type(kind.to_owned()));
    }
    let part = |name: &'static str| {
        let data = secret.data.as_ref().and_then(|data| data.get(name));
        data.map(|data| data.0.as_slice()).filter(|data| !data.is_empty()).ok_or(Unusable::Missing(name))
    };
    certificate(part(CHAIN)?, part(KEY)?)
}

fn certificate(chain: &[u8], key: &[u8]) -> Result<Certificate, Unusable> {
    let malformed =
        |part: &'static str| move |error: rustls::pki_types::pem::Error| Unusable::Malformed(part, error.to_string());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).take(CHAIN_MAX).collect::<Result<_, _>>().map_err(malformed(CHAIN))?;
    let Some(leaf) = chain.first() else { return Err(Unusable::Malformed(CHAIN, "no certificate".to_owned())) };
    let names = names(leaf).map_err(|why| Unusable::Malformed(CHAIN, why))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(malformed(KEY))?;
    let provider = rustls::crypto::ring::default_provider();
    let key =
        provider.key_provider.load_private_key(key).map_err(|error| Unusable::Malformed(KEY, error.to_string()))?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|error| Unusable::Mismatch(error.to_string()))?;
    Ok(Certificate { key: Arc::new(key), names })
}

fn names(leaf: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect())
}

/// A certificate that nobody has reason to trust, so that a handshake for an unknown host ends in an order that
/// clients understand.
pub(crate) fn self_signed() -> Result<Arc<CertifiedKey>, Unusable> {
    let failed = |error: rcgen::Error| Unusable::Malformed(CHAIN, error.to_string());
    let made = rcgen::generate_simple_self_signed([DEFAULT_NAME.to_owned()]).map_err(failed)?;
    let made = certificate(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?;
    Ok(made.key)
}

/// Which certificate is shown for which host.
#[derive(Debug)]
pub(crate) struct Certificates {
    hosts: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the first label.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl Certificates {
    pub(crate) fn new(default: Arc<CertifiedKey>) -> Certificates {
        Certificates { hosts: HashMap::new(), wildcards: HashMap::new(), default }
    }

    /// Who was first keeps the name.
    pub(crate) fn add(&mut self, host: &str, key: &Arc<CertifiedKey>) {
        match host.strip_prefix("*.") {
            Some(rest) => self.wildcards.entry(rest.to_owned()).or_insert_with(|| key.clone()),
            None => self.hosts.entry(host.to_owned()).or_insert_with(|| key.clone()),
        };
    }

    pub(crate) fn of(&self, host: &str) -> &Arc<CertifiedKey> {
        let wildcard = || routes::parent(host).and_then(|parent| self.wildcards.get(parent));
        self.hosts.get(host).or_else(wildcard).unwrap_or(&self.default)
    }

    /// Whether both hosts are served under one certificate: a client may then ask for the one on a connection to the
    /// other (RFC 9113, section 9.1.1).
    pub(crate) fn share(&self, one: &str, other: &str) -> bool {
        one == other || Arc::ptr_eq(self.of(one), self.of(other))
    }
}

#[derive(Debug)]
struct ByName(watch::Receiver<Arc<Table>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(routes::normal_host).unwrap_or_default();
        Some(self.0.borrow().certificates.of(&name).clone())
    }
}

/// TLS whose certificates are those of the table at the time of each handshake.
pub(crate) fn acceptor(table: watch::Receiver<Arc<Table>>) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(ByName(table)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(kind: &str, chain: &str, key: &str) -> Secret {
        let data = [(CHAIN, chain), (KEY, key)].into_iter().filter(|(_, text)| !text.is_empty());
        let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
        Secret { type_: Some(kind.to_owned()), data: Some(data), ..Secret::default() }
    }

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_secret_gives_a_certificate_or_says_why_not() {
        let ((chain, key), (_, other)) = (pair("a.test"), pair("b.test"));
        assert_eq!(of_secret(&secret(TLS_TYPE, &chain, &key)).unwrap().names, ["a.test"]);
        let why = |kind: &str, chain: &str, key: &str| of_secret(&secret(kind, chain, key)).unwrap_err().to_string();
        assert_eq!(why("Opaque", &chain, &key), "its type is \"Opaque\", not kubernetes.io/tls");
        assert_eq!(why(TLS_TYPE, &chain, ""), "it has no tls.key");
        assert!(why(TLS_TYPE, "nonsense", &key).starts_with("its tls.crt holds no PEM"));
        assert!(why(TLS_TYPE, &chain, &other).starts_with("its key is not that of its certificate"));
    }

    #[test]
    fn the_closest_name_wins() {
        let [default, exact, wild] = ["d", "e", "w"].map(|name| {
            let (chain, key) = pair(name);
            certificate(chain.as_bytes(), key.as_bytes()).unwrap().key
        });
        let mut all = Certificates::new(default.clone());
        all.add("*.a.test", &wild);
        all.add("x.a.test", &exact);
        all.add("x.a.test", &wild);
        let check = |host: &str, key: &Arc<CertifiedKey>| assert!(Arc::ptr_eq(all.of(host), key), "{host}");
        check("x.a.test", &exact);
        check("y.a.test", &wild);
        check("z.y.a.test", &default);
        check("a.test", &default);
        check("", &default);
        assert!(all.share("y.a.test", "z.a.test") && !all.share("x.a.test", "y.a.test"));
    }
}
