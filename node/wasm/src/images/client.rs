use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use base64::Engine as _;
use reqwest::{Response, StatusCode, Url, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tandem_component::{
    Error as ComponentError, SIZE_MAX,
    image::{self, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Form, INDEX, ImageKind, MANIFEST, Manifest},
};

use super::{Reference, layer};

const MANIFEST_BYTES: usize = 4 * 1024 * 1024;
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The longest silence in an answer.
const READ_TIME: Duration = Duration::from_secs(60);
/// An index in an index is not worth following further.
const INDEX_DEPTH: usize = 2;
/// What a layer may unpack to: a file of the largest size, and as much beside it.
const UNPACKED_MAX: u64 = 2 * SIZE_MAX;
/// Layers of one image that are looked into, from the last one on.
const LAYERS_MAX: usize = 32;

/// How a registry host is reached, where not by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registry {
    /// `https://127.0.0.1:6444`; images of the host are found there under their own repository path.
    pub endpoint: String,
    /// Certificate authorities, in PEM; without any, those that the machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This node's certificate and key, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// By host name: `registry.tandem`, `docker.io`.
pub type Registries = BTreeMap<String, Registry>;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Basic { username: String, password: String },
    Token(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error("{0:?} is not an image name")]
    Name(String),
    #[error("{reference}: not found: {message}")]
    NotFound { reference: String, message: String },
    #[error("{reference}: the registry does not let us in: {message}")]
    Denied { reference: String, message: String },
    #[error("{reference}: the registry answered {status}: {message}")]
    Answer { reference: String, status: StatusCode, message: String },
    #[error("{reference}: {message}")]
    Transport { reference: String, message: String },
    #[error("{reference}: what came is not what its digest says")]
    Digest { reference: String },
    /// It is there, and no component.
    #[error("{reference}: {message}")]
    NotWasm { reference: String, message: String },
    #[error("keeping {reference}: {source}")]
    Io { reference: String, source: io::Error },
}

/// An image as a registry gave it.
pub(super) struct Fetched {
    /// The digest of the manifest, which names the image.
    pub(super) id: String,
    pub(super) bytes: Vec<u8>,
}

/// One conversation with one registry about one image.
pub(super) struct Client<'a> {
    http: reqwest::Client,
    endpoint: Url,
    reference: &'a Reference,
    /// Whether the endpoint stands in for the host that the reference names.
    is_mirror: bool,
    credentials: Option<&'a Credentials>,
    authorization: Option<String>,
}

/// Hosts that speak plain HTTP unless the table says otherwise, as for other container tools.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.starts_with("127.")
}

const DOCKER_HUB: &str = "https://registry-1.docker.io";
const OWN_REGISTRY: &str = "registry.tandem";

impl<'a> Client<'a> {
    pub(super) fn new(
        registries: &Registries,
        reference: &'a Reference,
        credentials: Option<&'a Credentials>,
    ) -> Result<Client<'a>, PullError> {
        let failed = |message: String| PullError::Transport { reference: reference.to_string(), message };
        let entry = registries.get(&reference.host);
        let endpoint = match (entry, reference.host.as_str()) {
            (Some(registry), _) => registry.endpoint.clone(),
            (None, "docker.io") => DOCKER_HUB.to_owned(),
            (None, host) if is_local(host) => format!("http://{host}"),
            (None, host) => format!("https://{host}"),
        };
        let endpoint = Url::parse(&endpoint).map_err(|error| failed(format!("endpoint {endpoint:?}: {error}")))?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME)
            .read_timeout(READ_TIME)
            .user_agent(concat!("tandem-wasm/", env!("CARGO_PKG_VERSION")));
        if let Some(registry) = entry {
            builder = trust(builder.no_proxy(), registry).map_err(failed)?;
        }
        let http = builder.build().map_err(|error| failed(error_text(&error)))?;
        let is_mirror = entry.is_some() && reference.host != OWN_REGISTRY;
        Ok(Client { http, endpoint, reference, is_mirror, credentials, authorization: None })
    }

    pub(super) async fn fetch(&mut self) -> Result<Fetched, PullError> {
        let mut wanted = self.reference.wanted().to_owned();
        for _ in 0..=INDEX_DEPTH {
            let (manifest, id) = self.manifest(&wanted).await?;
            let config = self.config(&manifest).await?;
            let kind = image::kind(&manifest, &config).map_err(|error| self.not_wasm(component_text(&error)))?;
            let layers = manifest.layers.unwrap_or_default();
            match kind {
                ImageKind::Index => {
                    let entries = manifest.manifests.unwrap_or_default();
                    wanted = wasm_entry(&entries)
                        .ok_or_else(|| self.not_wasm("none of its platforms is WebAssembly".to_owned()))?;
                }
                ImageKind::Wasm(form) => {
                    let bytes = self.wasm(form, &layers, &config).await?;
                    return Ok(Fetched { id, bytes });
                }
                ImageKind::Container => {
                    return Err(self.not_wasm("a container image, not a WebAssembly component".to_owned()));
                }
                ImageKind::Artifact(kind) => {
                    return Err(self.not_wasm(format!("an artifact of type {kind:?}, not a WebAssembly component")));
                }
            }
        }
        Err(self.not_wasm("an index of indexes of indexes".to_owned()))
    }

    fn not_wasm(&self, message: String) -> PullError {
        PullError::NotWasm { reference: self.reference.to_string(), message }
    }

    async fn manifest(&mut self, wanted: &str) -> Result<(Manifest, String), PullError> {
        let response = self.get(&format!("manifests/{wanted}")).await?;
        let bytes = self.body(response, MANIFEST_BYTES as u64).await?;
        let id = digest(&bytes);
        if wanted.starts_with("sha256:") && wanted != id {
            return Err(PullError::Digest { reference: self.reference.to_string() });
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| self.not_wasm(format!("its manifest cannot be read: {error}")))?;
        if manifest.manifests.is_some() && manifest.layers.is_some() {
            return Err(self.not_wasm("its manifest says that it is an image and an index".to_owned()));
        }
        Ok((manifest, id))
    }

    /// The config where what the image is depends on it; else nothing.
    async fn config(&mut self, manifest: &Manifest) -> Result<Vec<u8>, PullError> {
        match &manifest.config {
            Some(config) if config.media_type.contains("image") => {
                let config = config.clone();
                self.blob(&config, MANIFEST_BYTES as u64).await
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn wasm(&mut self, form: Form, layers: &[Descriptor], config: &[u8]) -> Result<Vec<u8>, PullError> {
        match form {
            Form::Layer(index) => {
                let layer = layers.get(index).ok_or_else(|| self.not_wasm("it has no layer".to_owned()))?;
                self.blob(layer, SIZE_MAX).await
            }
            Form::Compat => self.unpacked(layers, "plugin.wasm").await,
            Form::Entrypoint => {
                let entrypoint = layer::entrypoint(config)
                    .ok_or_else(|| self.not_wasm("its config names no entrypoint".to_owned()))?;
                self.unpacked(layers, &entrypoint).await
            }
        }
    }

    /// A file out of an image that is a root file system: from the last layer that has it.
    async fn unpacked(&mut self, layers: &[Descriptor], path: &str) -> Result<Vec<u8>, PullError> {
        for descriptor in layers.iter().rev().take(LAYERS_MAX) {
            let bytes = self.blob(descriptor, SIZE_MAX).await?;
            let wanted = path.to_owned();
            let found = aside(self.reference, move || layer::find(&bytes, &wanted, SIZE_MAX, UNPACKED_MAX)).await?;
            if let Some(file) = found.map_err(|error| self.not_wasm(error.to_string()))? {
                return Ok(file);
            }
        }
        if layers.len() > LAYERS_MAX {
            let count = layers.len();
            let text =
                format!("of its {count} layers only {LAYERS_MAX} are looked into, and none of them holds {path:?}");
            return Err(self.not_wasm(text));
        }
        Err(self.not_wasm(format!("no layer holds {path:?}")))
    }

    async fn blob(&mut self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, PullError> {
        if descriptor.size > limit {
            return Err(self.not_wasm(format!("{} bytes are more than the {limit} that are accepted", descriptor.size)));
        }
        if super::reference::valid_digest(&descriptor.digest).is_none() {
            return Err(self.not_wasm(format!("{:?} is not a digest", descriptor.digest)));
        }
        let response = self.get(&format!("blobs/{}", descriptor.digest)).await?;
        let bytes = self.body(response, limit).await?;
        let hash = move || (digest(&bytes), bytes);
        let (found, bytes) = aside(self.reference, hash).await?;
        if found != descriptor.digest {
            return Err(PullError::Digest { reference: self.reference.to_string() });
        }
        Ok(bytes)
    }

    async fn body(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, PullError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.transport(&error))? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(self.not_wasm(format!("larger than the {limit} bytes that are accepted")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn transport(&self, error: &reqwest::Error) -> PullError {
        PullError::Transport { reference: self.reference.to_string(), message: error_text(error) }
    }

    async fn get(&mut self, path: &str) -> Result<Response, PullError> {
        let response = self.send(path).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            self.authorization = self.authorize(&response).await?;
            self.send(path).await?
        } else {
            response
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let reference = self.reference.to_string();
        let message = answer_text(response).await;
        Err(match status {
            StatusCode::NOT_FOUND => PullError::NotFound { reference, message },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullError::Denied { reference, message },
            status => PullError::Answer { reference, status, message },
        })
    }

    async fn send(&self, path: &str) -> Result<Response, PullError> {
        let mut url = self.endpoint.clone();
        url.set_path(&format!("/v2/{}/{path}", self.reference.repository));
        if self.is_mirror {
            url.query_pairs_mut().append_pair("ns", &self.reference.host);
        }
        let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX, "*/*"].join(", ");
        let mut request = self.http.get(url).header(header::ACCEPT, accept);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|error| self.transport(&error))
    }

    /// What the registry wants to see, from its challenge and our credentials.
    async fn authorize(&self, response: &Response) -> Result<Option<String>, PullError> {
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = challenges.iter().filter_map(|value| value.to_str().ok()).next().unwrap_or_default();
        match (challenge.split_once(' ').unwrap_or((challenge, "")), self.credentials) {
            ((_, _), Some(Credentials::Token(token))) => Ok(Some(format!("Bearer {token}"))),
            ((scheme, parameters), credentials) if scheme.eq_ignore_ascii_case("bearer") => {
                self.token(&parse_challenge(parameters), credentials).await.map(Some)
            }
            (_, Some(Credentials::Basic { username, password })) => Ok(Some(basic(username, password))),
            (_, None) => Ok(None),
        }
    }

    async fn token(
        &self,
        parameters: &BTreeMap<String, String>,
        credentials: Option<&Credentials>,
    ) -> Result<String, PullError> {
        let denied =
            |message: &str| PullError::Denied { reference: self.reference.to_string(), message: message.to_owned() };
        let realm = parameters.get("realm").ok_or_else(|| denied("it names no token server"))?;
        let mut url = Url::parse(realm).map_err(|_| denied("its token server has no valid address"))?;
        if url.scheme() != "https" && self.endpoint.scheme() == "https" {
            return Err(denied("its token server would see the password in clear text"));
        }
        for key in ["service", "scope"] {
            if let Some(value) = parameters.get(key) {
                url.query_pairs_mut().append_pair(key, value);
            }
        }
        let mut request = self.http.get(url);
        if let Some(Credentials::Basic { username, password }) = credentials {
            request = request.header(header::AUTHORIZATION, basic(username, password));
        }
        let response = request.send().await.map_err(|error| self.transport(&error))?;
        if !response.status().is_success() {
            return Err(denied(&answer_text(response).await));
        }
        let answer: TokenAnswer = response.json().await.map_err(|error| self.transport(&error))?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| denied("its token server gave no token"))?;
        Ok(format!("Bearer {token}"))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn trust(mut builder: reqwest::ClientBuilder, registry: &Registry) -> Result<reqwest::ClientBuilder, String> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    if let Some(ca) = &registry.ca {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(ca)?);
        builder = builder.tls_certs_only(certificates.map_err(|error| format!("{}: {error}", ca.display()))?);
    }
    if let (Some(certificate), Some(key)) = (&registry.certificate, &registry.key) {
        let mut pem = read(certificate)?;
        pem.push(b'\n');
        pem.extend(read(key)?);
        let identity = reqwest::Identity::from_pem(&pem);
        builder = builder.identity(identity.map_err(|error| format!("{}: {error}", certificate.display()))?);
    }
    Ok(builder)
}

/// Has work that computes long done on another thread: this one answers for the whole node.
pub(super) async fn aside<T: Send + 'static>(
    reference: &Reference,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| PullError::Io { reference: reference.to_string(), source: io::Error::other(error) })
}

fn wasm_entry(entries: &[Descriptor]) -> Option<String> {
    let is_wasm = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(image::is_wasm_platform);
    match (entries.iter().find(is_wasm), entries) {
        (Some(entry), _) => Some(entry.digest.clone()),
        // Tools write an index around an artifact that has no platform.
        (None, [only]) if only.platform.is_none() => Some(only.digest.clone()),
        _ => None,
    }
}

fn basic(username: &str, password: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {encoded}")
}

/// `realm="https://…",service="…",scope="…"`.
fn parse_challenge(text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        parameters.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    parameters
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn component_text(error: &ComponentError) -> String {
    error.to_string()
}

/// The error with its causes: the outermost one alone says only that something failed.
fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text = format!("{text}: {current}");
        cause = current.source();
    }
    text
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

async fn answer_text(response: Response) -> String {
    const SHOWN: usize = 300;
    let status = response.status();
    let bytes = response.bytes().await.unwrap_or_default();
    match serde_json::from_slice::<ErrorAnswer>(&bytes) {
        Ok(answer) if !answer.errors.is_empty() => {
            let entries = answer.errors.iter().map(|entry| format!("{}: {}", entry.code, entry.message));
            entries.collect::<Vec<_>>().join("; ")
        }
        _ if bytes.is_empty() => status.to_string(),
        _ => String::from_utf8_lossy(&bytes).trim().chars().take(SHOWN).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let parameters = parse_challenge(
            r#"realm="https://auth.docker.io/token",service="registry, io",scope="repository:a/b:pull""#,
        );
        assert_eq!(parameters["realm"], "https://auth.docker.io/token");
        assert_eq!(parameters["service"], "registry, io");
        assert_eq!(parameters["scope"], "repository:a/b:pull");
        assert!(parse_challenge("").is_empty());
    }
}
