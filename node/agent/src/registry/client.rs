use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use base64::Engine;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tandem_runtime::RegistryAuth;

use super::{
    Endpoint, Reference, Registries,
    kind::{self, ImageConfig, Manifest},
};
use crate::observed::{ImageKind, Kind};

/// Manifests and configurations beyond this size are refused.
const DOCUMENT_MAX: usize = 4 << 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KNOWN_MAX: usize = 1024;
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The registry answered, and the image is not to be had.
    #[error("{reference}: {answer}")]
    Refused { reference: String, answer: String },
    /// No registry answered.
    #[error("{reference}: {source}")]
    Unreachable { reference: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Asks registries what images are, and remembers the answers by digest.
pub(crate) struct Resolver {
    registries: Registries,
    clients: Mutex<BTreeMap<Endpoint, reqwest::Client>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    kinds: HashMap<String, ImageKind>,
    order: VecDeque<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A registry's error document.
#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// What asking one server came to.
enum Answer {
    Kind(ImageKind),
    Refused(String),
}

impl Resolver {
    pub(crate) fn new(registries: Registries) -> Resolver {
        Resolver { registries, clients: Mutex::default(), known: Mutex::default() }
    }

    /// What the image is, by the first server that has it.
    pub(crate) async fn kind(&self, reference: &Reference, auths: &[RegistryAuth]) -> Result<ImageKind, Error> {
        let mut refused = None;
        let mut unreachable = None;
        for endpoint in self.registries.endpoints(reference) {
            let anonymous = auths.is_empty().then_some(None);
            for auth in anonymous.into_iter().chain(auths.iter().map(Some)) {
                match self.ask(&endpoint, reference, auth).await {
                    Ok(Answer::Kind(kind)) => return Ok(kind),
                    Ok(Answer::Refused(answer)) => refused = Some(answer),
                    Err(problem) => unreachable = Some(problem),
                }
            }
        }
        let name = reference.to_string();
        match (refused, unreachable) {
            (None, Some(source)) => Err(Error::Unreachable { reference: name, source }),
            // A mirror that has not got it says more than a server that cannot be reached.
            (Some(answer), Some(source)) => {
                Err(Error::Refused { reference: name, answer: format!("{answer}; {}: {source}", reference.host()) })
            }
            (Some(answer), None) => Err(Error::Refused { reference: name, answer }),
            (None, None) => {
                let answer = format!("no registry is configured for {}", reference.host());
                Err(Error::Refused { reference: name, answer })
            }
        }
    }

    /// Nothing but the server that the reference names is asked: no mirror, not the cluster's registry.
    pub(crate) fn is_direct(&self, reference: &Reference) -> bool {
        let host = reference.host();
        host != tandem_api::CLUSTER_REGISTRY && !self.registries.mirrors.contains_key(host)
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Answer, Problem> {
        let session = Session { client: self.client(endpoint)?, endpoint, reference, auth };
        let mut token = None;
        let (manifest, digest) = match session.manifest(reference.manifest(), &mut token).await? {
            Ok(found) => found,
            Err(answer) => return Ok(Answer::Refused(answer)),
        };
        if let Some(kind) = self.known.lock().kinds.get(&digest) {
            return Ok(Answer::Kind(*kind));
        }
        let manifest = if manifest.manifests.is_empty() {
            manifest
        } else {
            let Some(chosen) = kind::choose(&manifest) else {
                return Ok(Answer::Refused("no match for platform in manifest".to_owned()));
            };
            match session.manifest(&chosen.digest, &mut token).await? {
                Ok((manifest, _)) => manifest,
                Err(answer) => return Ok(Answer::Refused(answer)),
            }
        };
        let config = match &manifest.config {
            Some(config) if config.size as usize <= DOCUMENT_MAX => session.config(&config.digest, &mut token).await,
            _ => Ok(ImageConfig::default()),
        };
        let found = match (config, kind::by_manifest(&manifest)) {
            (Ok(config), _) => kind::by_config(&manifest, &config),
            (Err(_), Some(Kind::Component)) => kind::by_config(&manifest, &ImageConfig::default()),
            (Err(problem), _) => return Err(problem),
        };
        self.remember(digest, found);
        Ok(Answer::Kind(found))
    }

    fn remember(&self, digest: String, kind: ImageKind) {
        let mut known = self.known.lock();
        if known.order.len() >= KNOWN_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.kinds.remove(&oldest);
        }
        if known.kinds.insert(digest.clone(), kind).is_none() {
            known.order.push_back(digest);
        }
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Problem> {
        if let Some(client) = self.clients.lock().get(endpoint) {
            return Ok(client.clone());
        }
        let mut builder = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).connect_timeout(CONNECT_TIMEOUT);
        if let Some(authority) = &endpoint.authority {
            let certificates = reqwest::Certificate::from_pem_bundle(&std::fs::read(authority)?)?;
            builder = builder.tls_certs_only(certificates).no_proxy();
        }
        if let Some((certificate, key)) = &endpoint.identity {
            let mut pem = std::fs::read(certificate)?;
            pem.push(b'\n');
            pem.extend(std::fs::read(key)?);
            builder = builder.identity(reqwest::Identity::from_pem(&pem)?);
        }
        let client = builder.build()?;
        // A node's certificate is renewed while it runs: a client that shows one is not kept.
        if endpoint.identity.is_none() {
            self.clients.lock().insert(endpoint.clone(), client.clone());
        }
        Ok(client)
    }
}

/// One conversation with one server.
struct Session<'a> {
    client: reqwest::Client,
    endpoint: &'a Endpoint,
    reference: &'a Reference,
    auth: Option<&'a RegistryAuth>,
}

impl Session<'_> {
    async fn manifest(
        &self,
        name: &str,
        token: &mut Option<String>,
    ) -> Result<Result<(Manifest, String), String>, Problem> {
        let response = self.get(&format!("manifests/{name}"), token).await?;
        let status = response.status();
        let body = bounded(response).await?;
        if status.is_success() {
            // What was read decides, not what a server calls it.
            let digest = hex::encode(Sha256::digest(&body));
            return Ok(Ok((serde_json::from_slice(&body)?, digest)));
        }
        let answer = refusal(status, &body);
        if status.is_client_error() { Ok(Err(answer)) } else { Err(answer.into()) }
    }

    async fn config(&self, digest: &str, token: &mut Option<String>) -> Result<ImageConfig, Problem> {
        let response = self.get(&format!("blobs/{digest}"), token).await?;
        let status = response.status();
        let body = bounded(response).await?;
        if !status.is_success() {
            return Err(refusal(status, &body).into());
        }
        Ok(serde_json::from_slice(&body)?)
    }

    async fn get(&self, path: &str, token: &mut Option<String>) -> Result<reqwest::Response, Problem> {
        let response = self.request(path, token.as_deref()).send().await?;
        if response.status() != StatusCode::UNAUTHORIZED || token.is_some() {
            return Ok(response);
        }
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(response) };
        *token = Some(self.token(&challenge).await?);
        Ok(self.request(path, token.as_deref()).send().await?)
    }

    fn request(&self, path: &str, token: Option<&str>) -> reqwest::RequestBuilder {
        let mut url = format!("{}/v2/{}/{path}", self.endpoint.url, self.reference.repository());
        // A mirror learns which registry the image is of, as containerd tells it.
        if self.reference.host() != tandem_api::CLUSTER_REGISTRY && self.endpoint.authority.is_some() {
            url = format!("{url}?ns={}", self.reference.host());
        }
        let request = self.client.get(url).header(header::ACCEPT, ACCEPT);
        match (token, self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, Some(RegistryAuth::Basic { username, password })) => request.basic_auth(username, Some(password)),
            (None, Some(RegistryAuth::Token(token))) => request.bearer_auth(token),
            (None, None) => request,
        }
    }

    async fn token(&self, challenge: &Challenge) -> Result<String, Problem> {
        let mut url = reqwest::Url::parse(&challenge.realm)?;
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", self.reference.repository()));
        let mut request = self.client.get(url);
        if let Some(RegistryAuth::Basic { username, password }) = self.auth {
            request = request.basic_auth(username, Some(password));
        }
        let response = request.send().await?;
        let status = response.status();
        let body = bounded(response).await?;
        if !status.is_success() {
            return Err(format!("failed to authorize: {}", refusal(status, &body)).into());
        }
        let token: Token = serde_json::from_slice(&body)?;
        token.token.or(token.access_token).ok_or_else(|| "the token server gave no token".into())
    }
}

/// `WWW-Authenticate: Bearer realm="…",service="…"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Challenge {
    fn of(headers: &HeaderMap) -> Option<Challenge> {
        let text = headers.get(header::WWW_AUTHENTICATE)?.to_str().ok()?;
        let parameters = text.strip_prefix("Bearer ")?;
        let value = |name: &str| {
            let (_, rest) = parameters.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        Some(Challenge { realm: value("realm")?, service: value("service") })
    }
}

async fn bounded(mut response: reqwest::Response) -> Result<Vec<u8>, Problem> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > DOCUMENT_MAX {
            return Err(format!("the registry's answer is longer than {DOCUMENT_MAX} bytes").into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let said = serde_json::from_slice::<Errors>(body).unwrap_or(Errors { errors: Vec::new() });
    let said: Vec<String> = said
        .errors
        .iter()
        .map(|error| format!("{}: {}", error.code, error.message).trim_end_matches(": ").to_owned())
        .collect();
    let reason = status.canonical_reason().unwrap_or_default();
    match (status, said.is_empty()) {
        (StatusCode::NOT_FOUND, true) => "not found".to_owned(),
        (StatusCode::NOT_FOUND, false) => format!("not found: {}", said.join("; ")),
        (_, true) => format!("unexpected status from the registry: {} {reason}", status.as_u16()),
        (_, false) => format!("unexpected status from the registry: {} {reason}: {}", status.as_u16(), said.join("; ")),
    }
}

/// The credentials of a `kubernetes.io/dockerconfigjson` Secret that are meant for this reference.
pub(crate) fn credentials(document: &[u8], reference: &Reference) -> Vec<RegistryAuth> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: BTreeMap<String, Entry>,
    }
    let Some(file) = parse::<File>(document) else { return Vec::new() };
    matching(file.auths, reference)
}

/// As [`credentials`], of the older `kubernetes.io/dockercfg` form.
pub(crate) fn legacy_credentials(document: &[u8], reference: &Reference) -> Vec<RegistryAuth> {
    parse(document).map(|auths| matching(auths, reference)).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(document: &[u8]) -> Option<T> {
    serde_json::from_slice(document).ok()
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

fn matching(auths: BTreeMap<String, Entry>, reference: &Reference) -> Vec<RegistryAuth> {
    let wanted = format!("{}/{}", reference.host(), reference.repository());
    let meant = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        let key = key.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let key = if key == "index.docker.io" { "docker.io" } else { key };
        wanted == key || wanted.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'))
    };
    let mut found: Vec<(usize, RegistryAuth)> = Vec::new();
    for (key, entry) in auths.into_iter().filter(|(key, _)| meant(key)) {
        let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim()).unwrap_or_default();
        let joined = String::from_utf8(decoded).unwrap_or_default();
        let (username, password) = match joined.split_once(':') {
            Some((username, password)) => (username.to_owned(), password.to_owned()),
            None => (entry.username, entry.password),
        };
        if !username.is_empty() {
            found.push((key.len(), RegistryAuth::Basic { username, password }));
        }
    }
    // The key that says most about the repository is tried first.
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

#[cfg(test)]
mod tests;
