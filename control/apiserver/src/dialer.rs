use std::{io, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{NodeDialer, tls::Error};

/// A connection to a node's server.
pub trait NodeIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> NodeIo for T {}
pub type NodeStream = Box<dyn NodeIo>;

/// Dials nodes over mutual TLS: a node's certificate carries its name, so its address may change.
pub struct TlsDialer {
    connector: TlsConnector,
}

impl TlsDialer {
    /// `ca` signs the nodes' certificates; `certificate` and `key` are those of `kube-apiserver-kubelet-client`.
    pub fn new(ca: &str, certificate: &str, key: &str) -> Result<TlsDialer, Error> {
        let malformed = |why: rustls::pki_types::pem::Error| Error::ClientCa(why.to_string());
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(root.map_err(malformed)?).map_err(|why| Error::ClientCa(why.to_string()))?;
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(malformed)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.map_err(malformed)?, key)?;
        // Upgrades are HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsDialer { connector: TlsConnector::from(Arc::new(config)) })
    }
}

#[async_trait]
impl NodeDialer for TlsDialer {
    async fn dial(&self, node: &str, address: SocketAddr) -> io::Result<NodeStream> {
        let name = ServerName::try_from(node.to_owned()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }
}
