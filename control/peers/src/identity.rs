//! Who a member is to the others: a certificate whose name holds its id and its cluster.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use tandem_pki::{Leaf, MemberName};

use crate::Error;

/// The protocol by which the API server's port tells members from clients.
pub const ALPN: &[u8] = b"tandem-raft";

/// This member, as it proves itself to others.
#[derive(Debug)]
pub struct Identity {
    name: MemberName,
    certificate: Arc<Current>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// The certificate to show at the next handshake; replaced before it ends.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Identity {
    /// `authority` is the PEM certificate of the CA of members, which signs nothing else.
    pub fn new(name: MemberName, leaf: &Leaf, authority: &str) -> Result<Identity, Error> {
        let failed = |why: &dyn std::fmt::Display| Error::Identity(why.to_string());
        let provider = Arc::new(ring::default_provider());
        let certificate = Arc::new(Current(RwLock::new(certified(leaf, &provider)?)));
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(authority.map_err(|why| failed(&why))?).map_err(|why| failed(&why))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|why| failed(&why))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|why| failed(&why))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certificate.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|why| failed(&why))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(certificate.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Identity { name, certificate, client: Arc::new(client), server: Arc::new(server) })
    }

    /// Shows another certificate of the same member from now on.
    pub fn renew(&self, leaf: &Leaf) -> Result<(), Error> {
        *self.certificate.0.write() = certified(leaf, &ring::default_provider())?;
        Ok(())
    }

    pub fn name(&self) -> &MemberName {
        &self.name
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// The name that another member's certificate must hold.
    pub(crate) fn name_of(&self, member: u64) -> Result<ServerName<'static>, Error> {
        let name = MemberName { id: member, cluster: self.name.cluster.clone() };
        ServerName::try_from(name.dns_name()).map_err(|why| Error::Identity(why.to_string()))
    }

    /// The member that a verified certificate speaks for, if it is one of this cluster.
    pub(crate) fn member(&self, certificates: Option<&[CertificateDer<'_>]>) -> Result<u64, Error> {
        let shown = certificates.and_then(<[_]>::first);
        let shown = shown.ok_or_else(|| Error::Identity("it shows no certificate".to_owned()))?;
        let name = MemberName::of(shown).map_err(|why| Error::Identity(why.to_string()))?;
        if name.cluster != self.name.cluster {
            return Err(Error::Identity("its certificate is of another cluster".to_owned()));
        }
        Ok(name.id)
    }
}

fn certified(leaf: &Leaf, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let failed = |why: &dyn std::fmt::Display| Error::Identity(why.to_string());
    let chain = vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).map_err(|why| failed(&why))?];
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|why| failed(&why))?;
    CertifiedKey::from_der(chain, key, provider).map(Arc::new).map_err(|why| failed(&why))
}
