//! A registry that holds what a test puts into it.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tandem_component::image;
use tokio::net::TcpListener;

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    answers: Answers,
}

/// Path to content type and bytes.
type Answers = Arc<Mutex<HashMap<String, (String, Bytes)>>>;

impl Registry {
    pub(crate) async fn start() -> Registry {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Answers::default();
        let serving = answers.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = serving.clone();
                let service = service_fn(move |request| std::future::ready(answer(&answers, &request)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Registry { address, answers }
    }

    fn put(&self, repository: &str, kind: &str, name: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/{kind}/{name}");
        self.answers.lock().insert(path, (media_type.to_owned(), Bytes::copy_from_slice(bytes)));
    }

    /// Puts a wasm file there as an image, and gives back its name.
    pub(crate) fn push(&self, name: &str, wasm: &[u8]) -> String {
        let image = image::wrap(wasm, BTreeMap::new()).unwrap();
        self.put(name, "blobs", &image.layer_digest, "application/octet-stream", wasm);
        self.put(name, "blobs", &image.config_digest, "application/octet-stream", &image.config);
        self.manifest(name, &image.manifest)
    }

    /// Any manifest.
    pub(crate) fn manifest(&self, name: &str, manifest: &[u8]) -> String {
        self.put(name, "manifests", "latest", image::MANIFEST, manifest);
        self.put(name, "manifests", &image::digest(manifest), image::MANIFEST, manifest);
        format!("{}/{name}:latest", self.address)
    }

    pub(crate) fn blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = image::digest(bytes);
        self.put(name, "blobs", &digest, "application/octet-stream", bytes);
        digest
    }
}

fn answer(answers: &Answers, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let found = answers.lock().get(request.uri().path()).cloned();
    let response = match found {
        Some((media_type, bytes)) => {
            Response::builder().header(header::CONTENT_TYPE, media_type).body(Full::new(bytes)).unwrap()
        }
        None => {
            let text = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            Response::builder().status(StatusCode::NOT_FOUND).body(Full::from(text)).unwrap()
        }
    };
    Ok(response)
}
