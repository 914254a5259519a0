use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use http::{StatusCode, header};
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use tandem_api::CLUSTER_REGISTRY;
use tandem_component::{
    Component, Inspection, SIZE_MAX,
    image::{Form, ImageKind, MANIFEST, Manifest, kind, wrap},
};

use crate::{
    endpoint::{Credentials, Endpoint, EndpointError},
    name::{Digest, ImageName, Reference, Repository},
};

/// Why a component did not reach the registry, or could not be read from it.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Component(#[from] tandem_component::Error),
    #[error("{reference:?} is not an image reference: {why}")]
    Reference { reference: String, why: String },
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("cannot reach the registry at {server}: {cause}")]
    Unreachable { server: String, cause: String },
    #[error("the registry at {server} answered {status}: {message}")]
    Refused { server: String, status: StatusCode, message: String },
}

/// The deepest cause, which is the one that says what happened.
fn cause(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// A component that is in the registry.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The reference with its digest, which always means these bytes.
    pub image: String,
    pub digest: Digest,
    pub inspection: Inspection,
}

impl fmt::Display for Pushed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.image)
    }
}

/// The body of a failure: the registry's, or the API server's that stands in front of it.
#[derive(Deserialize)]
struct Failures {
    #[serde(default)]
    errors: Vec<Failure>,
    message: Option<String>,
}

impl Failures {
    fn first(self) -> Option<String> {
        self.errors.into_iter().next().map(|failure| failure.message).or(self.message)
    }
}

#[derive(Deserialize)]
struct Failure {
    message: String,
}

const ATTEMPTS: usize = 5;
const WAIT_MAX: Duration = Duration::from_secs(5);

struct Session<'a> {
    endpoint: &'a Endpoint,
    client: Client,
}

impl Session<'_> {
    fn url(&self, path: &str) -> String {
        if path.starts_with('/') { format!("{}{path}", self.endpoint.server) } else { path.to_owned() }
    }

    /// Sends, and sends again while the registry says that it is busy.
    async fn send(&self, build: impl Fn(&Client) -> RequestBuilder) -> Result<Response, PushError> {
        let server = || self.endpoint.server.clone();
        let mut attempt = 1;
        loop {
            let mut request = build(&self.client);
            if let Credentials::Token(token) = &self.endpoint.credentials {
                request = request.bearer_auth(token);
            }
            let response = request
                .send()
                .await
                .map_err(|error| PushError::Unreachable { server: server(), cause: cause(&error) })?;
            let status = response.status();
            let busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
            if !busy || attempt == ATTEMPTS {
                return Ok(response);
            }
            attempt += 1;
            let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            tokio::time::sleep(Duration::from_secs(wait.unwrap_or(1)).min(WAIT_MAX)).await;
        }
    }

    /// The answer, if it has the status that was hoped for.
    async fn expect(
        &self,
        status: StatusCode,
        build: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, PushError> {
        let response = self.send(build).await?;
        if response.status() == status {
            return Ok(response);
        }
        let found = response.status();
        let text = response.text().await.unwrap_or_default();
        let message = serde_json::from_str(&text).ok().and_then(Failures::first).unwrap_or(text);
        Err(PushError::Refused { server: self.endpoint.server.clone(), status: found, message })
    }

    async fn blob(&self, repository: &Repository, digest: &str, bytes: Bytes) -> Result<(), PushError> {
        let at = self.url(&format!("/v2/{repository}/blobs/{digest}"));
        if self.send(|client| client.head(&at)).await?.status() == StatusCode::OK {
            return Ok(());
        }
        let start = self.url(&format!("/v2/{repository}/blobs/uploads/"));
        let started = self.expect(StatusCode::ACCEPTED, |client| client.post(&start)).await?;
        let location =
            started.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let separator = if location.contains('?') { '&' } else { '?' };
        let target = format!("{}{separator}digest={digest}", self.url(location));
        self.expect(StatusCode::CREATED, |client| client.put(&target).body(bytes.clone())).await?;
        Ok(())
    }

    async fn fetch(&self, path: &str) -> Result<Bytes, PushError> {
        let url = self.url(path);
        let response = self.expect(StatusCode::OK, |client| client.get(&url).header(header::ACCEPT, MANIFEST)).await?;
        let server = self.endpoint.server.clone();
        response.bytes().await.map_err(|error| PushError::Unreachable { server, cause: cause(&error) })
    }
}

fn parse(reference: &str) -> Result<ImageName, PushError> {
    let wrong = |why: String| PushError::Reference { reference: reference.to_owned(), why };
    let name: ImageName = reference.parse().map_err(|error: crate::Error| wrong(error.to_string()))?;
    if name.is_local() {
        return Ok(name);
    }
    let suggestion = format!("{CLUSTER_REGISTRY}/{}", name.repository);
    Err(wrong(format!("{} is not the cluster's registry; try {suggestion}", name.host)))
}

/// Checks a component or module and uploads it as an image under this reference.
///
/// What nobody provides is in the inspection; it is not refused here, since it may be composed with others later.
pub async fn push(endpoint: &Endpoint, wasm: Bytes, reference: &str) -> Result<Pushed, PushError> {
    let name = parse(reference)?;
    if name.digest.is_some() {
        let why = "a digest cannot be chosen; leave it out".to_owned();
        return Err(PushError::Reference { reference: reference.to_owned(), why });
    }
    let image = wrap(&wasm, BTreeMap::new())?;
    let session = Session { endpoint, client: endpoint.client()? };
    session.blob(&name.repository, &image.layer_digest, wasm).await?;
    session.blob(&name.repository, &image.config_digest, image.config.into()).await?;
    let target = session.url(&format!("/v2/{}/manifests/{}", name.repository, name.reference()));
    let manifest = Bytes::from(image.manifest);
    let put = |client: &Client| client.put(&target).header(header::CONTENT_TYPE, MANIFEST).body(manifest.clone());
    session.expect(StatusCode::CREATED, put).await?;
    let digest = Digest::of(&manifest);
    let image_name = format!("{}/{}:{}@{digest}", name.host, name.repository, name.reference());
    Ok(Pushed { image: image_name, digest, inspection: image.inspection })
}

/// What a component in the registry is, from its bytes.
pub async fn inspect(endpoint: &Endpoint, reference: &str) -> Result<Inspection, PushError> {
    let name = parse(reference)?;
    let session = Session { endpoint, client: endpoint.client()? };
    let path = format!("/v2/{}/manifests/{}", name.repository, name.reference());
    let broken = |why: String| PushError::Component(tandem_component::Error::Image(why));
    let bytes = session.fetch(&path).await?;
    if let Reference::Digest(digest) = name.reference() {
        check_digest(&digest, &bytes)?;
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
    let blob = |digest: &str| format!("/v2/{}/blobs/{digest}", name.repository);
    let config = match &manifest.config {
        Some(config) => session.fetch(&blob(&config.digest)).await?,
        None => Bytes::new(),
    };
    let layers = manifest.layers.as_deref().unwrap_or_default();
    let layer = match kind(&manifest, &config)? {
        ImageKind::Wasm(Form::Layer(index)) => {
            layers.get(index).ok_or_else(|| broken("it has no layers".to_owned()))?
        }
        ImageKind::Wasm(_) => return Err(broken("its component is inside an archive".to_owned())),
        ImageKind::Container => return Err(broken(format!("{reference} is a container, not a component"))),
        ImageKind::Index => return Err(broken(format!("{reference} is an index of several images"))),
        ImageKind::Artifact(media_type) => return Err(broken(format!("{reference} is a {media_type}"))),
    };
    if layer.size > SIZE_MAX {
        return Err(tandem_component::Error::TooLarge { size: layer.size }.into());
    }
    let wasm = session.fetch(&blob(&layer.digest)).await?;
    check_digest(&layer.digest.parse().map_err(|error: crate::Error| broken(error.to_string()))?, &wasm)?;
    Ok(Component::inspect(&wasm)?)
}

fn check_digest(digest: &Digest, bytes: &[u8]) -> Result<(), PushError> {
    let found = crate::uploads::hash_of(digest.algorithm(), bytes);
    if found == *digest {
        return Ok(());
    }
    let why = format!("the registry sent bytes with the digest {found} for {digest}");
    Err(PushError::Component(tandem_component::Error::Image(why)))
}
