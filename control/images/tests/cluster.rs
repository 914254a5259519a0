//! The registry as a cluster serves it: behind the API server's layers, over TLS, its index in the store.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tandem_api::{Clock, Identity, SeededEntropy, Settings, SystemClock};
use tandem_apiserver::{ApiServer, serve, tls::server_config};
use tandem_client::{Kubeconfig, in_process, kubeconfig};
use tandem_images::{Config, Credentials, Endpoint, Limits, ObjectIndex, PushError, Registry, inspect, push};
use tandem_pki::{CertificateRequest, Leaf, Pki, Usage};
use tandem_store::MemoryStore;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use common::{layout, try_skopeo as skopeo};

struct Cluster {
    folder: tempfile::TempDir,
    pki: Pki,
    server: String,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

fn leaf(pki: &Pki, name: &str, organizations: &[&str], usage: Usage) -> Leaf {
    let addresses = ["127.0.0.1".parse().unwrap()];
    let request = CertificateRequest { common_name: name, organizations, dns_names: &[], addresses: &addresses, usage };
    pki.cluster.issue(&request, SystemClock.now()).unwrap()
}

async fn start() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(&folder.path().join("pki"), SystemClock.now()).unwrap();
    let api = ApiServer::new(tandem_apiserver::Config {
        storage: Arc::new(MemoryStore::new()),
        leadership: tokio::sync::watch::channel(tandem_store::Leadership::default()).1,
        registry: Arc::new(tandem_registry::Registry::builtin()),
        settings: Settings::default(),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SeededEntropy::new(1)),
        service_account_key: Some(pki.service_accounts.clone()),
        nodes: None,
        images: None,
        endpoints: Arc::new(tandem_apiserver::Outward),
        pki: None,
        audit: None,
        metric_resolution: tandem_apiserver::METRIC_RESOLUTION,
        ready: Vec::new(),
        quorum: None,
        metrics: Arc::default(),
    });
    api.bootstrap().await.expect("bootstrap");
    let index = ObjectIndex::new(in_process(api.router(), Identity::controller("image")));
    let config = Config {
        folder: folder.path().join("images"),
        index: Arc::new(index),
        clock: Arc::new(SystemClock),
        verifier: None,
        others: None,
        limits: Limits::default(),
    };
    let registry = Arc::new(Registry::open(config).unwrap());
    let own = leaf(&pki, "apiserver", &[], Usage::Server);
    let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let certificates = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    let tls = server_config(certificates, pki.cluster.certificate()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, tls, api.layers(registry.router()), stop.clone()));
    Cluster { folder, pki, server, stop, task }
}

impl Cluster {
    fn endpoint(&self, name: &str, groups: &[&str]) -> Endpoint {
        let leaf = leaf(&self.pki, name, groups, Usage::Client);
        let path = self.folder.path().join("kubeconfig");
        let text = kubeconfig(&Kubeconfig {
            name: "test",
            server: &format!("https://{}", self.server),
            authority: self.pki.cluster.certificate(),
            certificate: &leaf.certificate,
            key: &leaf.key,
        });
        std::fs::write(&path, text).unwrap();
        Endpoint::from_kubeconfig(&path).unwrap()
    }

    /// A folder of certificates as skopeo takes it.
    fn certificates(&self, name: &str, groups: &[&str]) -> String {
        let leaf = leaf(&self.pki, name, groups, Usage::Client);
        let folder = self.folder.path().join(name.replace(':', "-"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("ca.crt"), self.pki.cluster.certificate()).unwrap();
        std::fs::write(folder.join("client.cert"), &leaf.certificate).unwrap();
        std::fs::write(folder.join("client.key"), &leaf.key).unwrap();
        folder.display().to_string()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn module() -> Bytes {
    wat::parse_str("(module (func (export \"_start\")))").unwrap().into()
}

#[tokio::test]
async fn components_by_kubeconfig() {
    let cluster = start().await;
    let admin = cluster.endpoint("admin", &["system:masters"]);
    let pushed = push(&admin, module(), "registry.tandem/samples/tick:1").await.expect("pushed");
    let node = cluster.endpoint("system:node:n1", &["system:nodes"]);
    assert_eq!(inspect(&node, &pushed.image).await.unwrap(), pushed.inspection);
    let said = |outcome: Result<tandem_images::Pushed, PushError>| {
        outcome.expect_err("refused").to_string().replace(&cluster.server, "ADDRESS")
    };
    let mut errors = Vec::new();
    errors.push(said(push(&node, module(), "registry.tandem/samples/tick:2").await));
    let anonymous = Endpoint { credentials: Credentials::Anonymous, ..admin.clone() };
    errors.push(said(push(&anonymous, module(), "registry.tandem/samples/tick:2").await));
    let stranger = Endpoint { authority: Vec::new(), ..admin };
    errors.push(said(push(&stranger, module(), "registry.tandem/samples/tick:2").await));
    expect_test::expect![[r#"
        the registry at https://ADDRESS answered 403 Forbidden: system:node:n1 may not push to repository samples/tick
        the registry at https://ADDRESS answered 401 Unauthorized: Unauthorized
        cannot reach the registry at https://ADDRESS: invalid peer certificate: UnknownIssuer"#]]
    .assert_eq(&errors.join("\n"));
    cluster.end().await;
}

#[tokio::test]
async fn containers_by_client_certificate() {
    let cluster = start().await;
    let source = cluster.folder.path().join("source");
    layout(&source);
    let admin = cluster.certificates("admin", &["system:masters"]);
    let node = cluster.certificates("system:node:n1", &["system:nodes"]);
    let remote = format!("docker://{}/library/tiny:1", cluster.server);
    skopeo(format!("copy --dest-cert-dir {admin} oci:{}:1 {remote}", source.display())).await.expect("pushed");
    skopeo(format!("inspect --cert-dir {node} {remote}")).await.expect("read");
    let back = cluster.folder.path().join("back");
    skopeo(format!("copy --src-cert-dir {node} {remote} oci:{}:1", back.display())).await.expect("pulled");
    let denied = skopeo(format!("copy --dest-cert-dir {node} oci:{}:1 {remote}2", back.display())).await;
    let denied = denied.expect_err("nodes only pull");
    assert!(denied.contains("may not push to repository library/tiny"), "{denied}");
    cluster.end().await;
}
