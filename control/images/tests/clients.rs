//! Real clients against the registry on a loopback socket: skopeo, oci-client, and our own.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::FutureExt;
use oci_client::{
    client::{ClientConfig, ClientProtocol, Config as OciConfig, ImageLayer},
    secrets::RegistryAuth,
};
use tandem_api::{Identity, SystemClock};
use tandem_component::image::{WASM_CONFIG, WASM_LAYER, wrap};
use tandem_images::{
    Config, Credentials, Endpoint, FileIndex, Kind, Limits, PushError, Registry, Verifier, inspect, push,
};
use tokio_util::sync::CancellationToken;

use common::{layout, try_skopeo};

const TOKEN: &str = "the-token";

struct Server {
    folder: tempfile::TempDir,
    registry: Arc<Registry>,
    address: String,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start() -> Server {
        // Another test may have come first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let folder = tempfile::tempdir().unwrap();
        let verifier: Verifier =
            Arc::new(|token| async move { (token == TOKEN).then(Identity::administrator) }.boxed());
        let config = Config {
            folder: folder.path().join("images"),
            index: Arc::new(FileIndex::open(&folder.path().join("index.json")).unwrap()),
            clock: Arc::new(SystemClock),
            verifier: Some(verifier),
            others: None,
            limits: Limits::default(),
        };
        let registry = Arc::new(Registry::open(config).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, router) = (CancellationToken::new(), registry.router());
        let stopped = stop.clone().cancelled_owned();
        let task =
            tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stopped).await.unwrap() });
        Server { folder, registry, address, stop, task }
    }

    fn endpoint(&self, credentials: Credentials) -> Endpoint {
        Endpoint { server: format!("http://{}", self.address), authority: Vec::new(), credentials }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn module() -> Bytes {
    wat::parse_str("(module (func (export \"_start\")))").unwrap().into()
}

async fn skopeo(arguments: String) -> String {
    try_skopeo(arguments).await.expect("skopeo succeeds")
}

#[tokio::test]
async fn skopeo_pushes_and_pulls() {
    let server = Server::start().await;
    let source = server.folder.path().join("source");
    layout(&source);
    let remote = |name: &str| format!("docker://{}/{name}", server.address);
    let local = format!("oci:{}:1", source.display());
    let from = format!("--src-tls-verify=false --src-creds token:{TOKEN}");
    let to = format!("--dest-tls-verify=false --dest-creds token:{TOKEN}");
    let login = format!("--tls-verify=false --creds token:{TOKEN}");
    let (first, second, docker) = (remote("library/a:1"), remote("library/b:2"), remote("library/b:docker"));
    skopeo(format!("copy {to} {local} {first}")).await;
    // From one repository to another: by mounts.
    skopeo(format!("copy {from} {to} {first} {second}")).await;
    // Docker's own format, which other tools still push.
    skopeo(format!("copy --format v2s2 {from} {to} {first} {docker}")).await;
    let archive = format!("oci-archive:{}:1", server.folder.path().join("back.tar").display());
    skopeo(format!("copy {from} {second} {archive}")).await;
    let there = skopeo(format!("inspect --format {{{{.Digest}}}} {login} {second}")).await;
    assert_eq!(skopeo(format!("inspect --format {{{{.Digest}}}} {archive}")).await, there);
    let tags = skopeo(format!("list-tags {login} {}", remote("library/b"))).await;
    assert!(tags.contains("\"2\"") && tags.contains("\"docker\""), "{tags}");
    assert_eq!(server.registry.known("b:docker").await.unwrap().unwrap().kind, Kind::Container);
    let refused = try_skopeo(format!("inspect --tls-verify=false --creds token:wrong {first}")).await;
    let complaint = refused.expect_err("a wrong token");
    assert!(complaint.contains("unauthorized"), "{complaint}");
    server.end().await;
}

#[tokio::test]
async fn oci_client_pushes_and_pulls_an_artifact() {
    let server = Server::start().await;
    let wasm = module();
    let image = wrap(&wasm, BTreeMap::new()).unwrap();
    let client = oci_client::Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: oci_client::Reference = format!("{}/samples/tick:1", server.address).parse().unwrap();
    let auth = RegistryAuth::Basic("token".to_owned(), TOKEN.to_owned());
    let layers = [ImageLayer::new(wasm.to_vec(), WASM_LAYER.to_owned(), None)];
    let config = OciConfig::new(image.config, WASM_CONFIG.to_owned(), None);
    client.push(&reference, &layers, config, &auth, None).await.expect("pushed");
    let pulled = client.pull(&reference, &auth, vec![WASM_LAYER]).await.expect("pulled");
    assert_eq!(pulled.layers[0].data, wasm);
    let known = server.registry.known("registry.tandem/samples/tick:1").await.unwrap().unwrap();
    assert_eq!((known.kind, known.broken), (Kind::Component, None));
    server.end().await;
}

#[tokio::test]
async fn our_own_client() {
    let server = Server::start().await;
    let endpoint = server.endpoint(Credentials::Token(TOKEN.to_owned()));
    let pushed = push(&endpoint, module(), "registry.tandem/samples/tick:1").await.unwrap();
    assert_eq!(pushed.to_string(), format!("registry.tandem/samples/tick:1@{}", pushed.digest));
    // The same bytes again: nothing new, the same digest.
    assert_eq!(push(&endpoint, module(), "registry.tandem/samples/tick:2").await.unwrap().digest, pushed.digest);
    assert_eq!(inspect(&endpoint, &pushed.image).await.unwrap(), pushed.inspection);

    let said = |outcome: Result<tandem_images::Pushed, PushError>| {
        outcome.expect_err("refused").to_string().replace(&server.address, "ADDRESS")
    };
    let mut errors = Vec::new();
    errors.push(said(push(&endpoint, Bytes::from_static(b"text"), "registry.tandem/a:1").await));
    errors.push(said(push(&endpoint, module(), "example.com/a:1").await));
    errors.push(said(push(&endpoint, module(), &pushed.image).await));
    errors.push(said(push(&endpoint, module(), "registry.tandem/A:1").await));
    errors.push(said(
        push(&server.endpoint(Credentials::Token("wrong".to_owned())), module(), "registry.tandem/a:1").await,
    ));
    let nowhere = Endpoint { server: "http://127.0.0.1:1".to_owned(), ..Endpoint::default() };
    errors.push(said(push(&nowhere, module(), "registry.tandem/a:1").await));
    errors.push(
        inspect(&endpoint, "registry.tandem/samples/none:1")
            .await
            .unwrap_err()
            .to_string()
            .replace(&server.address, "ADDRESS"),
    );
    expect_test::expect![[r#"
        not a WebAssembly component or module: it is text
        "example.com/a:1" is not an image reference: example.com is not the cluster's registry; try registry.tandem/a
        "registry.tandem/samples/tick:1@sha256:41e6146a9c4b6f1f1c0c0d7744752b75b231d862b66c8384d9f048f71ff0ffa7" is not an image reference: a digest cannot be chosen; leave it out
        "registry.tandem/A:1" is not an image reference: "A" is not a repository name
        the registry at http://ADDRESS answered 401 Unauthorized: authentication required
        cannot reach the registry at http://127.0.0.1:1: Connection refused (os error 111)
        the registry at http://ADDRESS answered 404 Not Found: manifest 1 is not in repository samples/none"#]].assert_eq(&errors.join("\n"));
    server.end().await;
}

#[tokio::test]
async fn passwords_are_tokens() {
    let server = Server::start().await;
    let get = |value: String| {
        let url = format!("http://{}/v2/", server.address);
        async move { reqwest::Client::new().get(url).header("authorization", value).send().await.unwrap().status().as_u16() }
    };
    assert_eq!(get(format!("Bearer {TOKEN}")).await, 200);
    assert_eq!(get(format!("Basic {}", STANDARD.encode(format!("token:{TOKEN}")))).await, 200);
    assert_eq!(get(format!("Basic {}", STANDARD.encode("token:guess"))).await, 401);
    assert_eq!(get("nonsense".to_owned()).await, 401);
    server.end().await;
}
