//! A registry with one image, over TLS, that only talks to who presents the right certificate.

use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use tandem_containerd::archive::Image;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

/// The repository of the image; under Docker's host name it is reached through the mirror.
pub(crate) const REPOSITORY: &str = "tools/busybox";

pub(crate) struct TestRegistry {
    image: Image,
    tls: Arc<ServerConfig>,
}

impl TestRegistry {
    /// Leaves `ca.crt`, `client.crt` and `client.key` in the folder.
    pub(crate) fn new(folder: &Path, image: Image) -> TestRegistry {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.distinguished_name.push(DnType::CommonName, "test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let issue = |names: Vec<String>, usage| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names).unwrap();
            params.extended_key_usages = vec![usage];
            params.distinguished_name = DistinguishedName::new();
            (params.signed_by(&key, &authority).unwrap(), key)
        };
        let (server, server_key) = issue(vec!["127.0.0.1".to_owned()], ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = issue(vec!["node".to_owned()], ExtendedKeyUsagePurpose::ClientAuth);
        std::fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
        std::fs::write(folder.join("client.crt"), client.pem()).unwrap();
        std::fs::write(folder.join("client.key"), client_key.serialize_pem()).unwrap();

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let tls = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        TestRegistry { image, tls: Arc::new(tls) }
    }

    pub(crate) async fn serve(self: Arc<TestRegistry>, address: SocketAddr) {
        let listener = TcpListener::bind(address).await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, registry) = (acceptor.clone(), Arc::clone(&self));
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let answer = service_fn(move |request| {
                    let registry = Arc::clone(&registry);
                    async move { Ok::<_, Infallible>(registry.answer(&request)) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                drop(connection.await);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if path == "/v2/" {
            return Response::new(Full::default());
        }
        let known = path.strip_prefix("/v2/").and_then(|rest| rest.strip_prefix(REPOSITORY));
        let Image { manifest, config, layer } = &self.image;
        let found = match known.and_then(|rest| rest.strip_prefix('/')).and_then(|rest| rest.split_once('/')) {
            Some(("manifests", name)) if name == "1" || name == manifest.digest => Some(manifest),
            Some(("blobs", digest)) => [config, layer].into_iter().find(|blob| blob.digest == digest),
            _ => None,
        };
        let Some(blob) = found else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"the registry has no such image"}]}"#;
            let mut answer = Response::new(Full::from(body));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        };
        let body = if request.method() == Method::HEAD { Bytes::new() } else { Bytes::from(blob.data.clone()) };
        Response::builder()
            .header(header::CONTENT_TYPE, blob.media_type)
            .header(header::CONTENT_LENGTH, blob.data.len())
            .header("Docker-Content-Digest", &blob.digest)
            .body(Full::from(body))
            .unwrap()
    }
}
