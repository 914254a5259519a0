//! Requests: found by their path, authorised, answered.

mod blobs;
mod lists;
mod manifests;
mod uploads;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tandem_api::Identity;

use crate::{
    access::{Action, authenticate, authorize},
    elsewhere::HERE_ONLY,
    error::Error,
    name::{Digest, Reference, Repository},
    registry::Registry,
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

pub(crate) fn router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/v2", any(handle))
        .route("/v2/", any(handle))
        .route("/v2/{*path}", any(handle))
        .with_state(registry)
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Version,
    Catalog,
    Tags(Repository),
    Manifest(Repository, Reference),
    Blob(Repository, Digest),
    Uploads(Repository),
    Upload(Repository, String),
    Referrers(Repository, Digest),
}

impl Target {
    /// Read from the end, since a repository's name may contain any of the words.
    fn of(path: &str) -> Result<Target, Error> {
        let path = path.strip_prefix("/v2").unwrap_or(path);
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.is_empty() {
            return Ok(Target::Version);
        }
        if path == "_catalog" {
            return Ok(Target::Catalog);
        }
        let (head, last) = path.rsplit_once('/').ok_or_else(Error::not_found)?;
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            let name = name.parse()?;
            return Ok(if last.is_empty() { Target::Uploads(name) } else { Target::Upload(name, last.to_owned()) });
        }
        let (name, word) = head.rsplit_once('/').ok_or_else(Error::not_found)?;
        match (word, last) {
            ("tags", "list") => Ok(Target::Tags(name.parse()?)),
            ("manifests", reference) => Ok(Target::Manifest(name.parse()?, reference.parse()?)),
            ("blobs", "uploads") => Ok(Target::Uploads(name.parse()?)),
            ("blobs", digest) => Ok(Target::Blob(name.parse()?, digest.parse()?)),
            ("referrers", digest) => Ok(Target::Referrers(name.parse()?, digest.parse()?)),
            _ => Err(Error::not_found()),
        }
    }
}

/// A request after its path and its sender are known; its body goes only to those who read it.
struct Call {
    registry: Arc<Registry>,
    identity: Identity,
    method: Method,
    headers: HeaderMap,
    query: HashMap<String, Vec<String>>,
}

impl Call {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name)?.first().map(String::as_str)
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether another member asks, which has asked everybody already.
    fn is_here_only(&self) -> bool {
        self.headers.contains_key(HERE_ONLY)
    }

    fn authorize(&self, repository: &Repository, action: Action) -> Result<(), Error> {
        authorize(&self.identity, Some(repository), action)
    }
}

async fn handle(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let mut response = answer(registry, request).await.unwrap_or_else(IntoResponse::into_response);
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

async fn answer(registry: Arc<Registry>, request: Request) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let found = parts.extensions.get::<Identity>().cloned();
    let identity = authenticate(found, &parts.headers, registry.verifier.as_ref()).await?;
    let target = Target::of(parts.uri.path())?;
    let query = query(parts.uri.query().unwrap_or_default());
    let method = parts.method.clone();
    let call = Call { registry, identity, method: parts.method, headers: parts.headers, query };
    match (&method, target) {
        (&Method::GET | &Method::HEAD, Target::Version) => Ok(axum::Json(lists::Empty {}).into_response()),
        (&Method::GET, Target::Catalog) => lists::catalog(&call).await,
        (&Method::GET, Target::Tags(name)) => lists::tags(&call, &name).await,
        (&Method::GET, Target::Referrers(name, digest)) => lists::referrers(&call, &name, &digest).await,
        (&Method::GET | &Method::HEAD, Target::Manifest(name, reference)) => {
            manifests::get(&call, &name, &reference).await
        }
        (&Method::PUT, Target::Manifest(name, reference)) => manifests::put(&call, &name, &reference, body).await,
        (&Method::DELETE, Target::Manifest(name, reference)) => manifests::delete(&call, &name, &reference).await,
        (&Method::GET | &Method::HEAD, Target::Blob(name, digest)) => blobs::get(&call, &name, &digest).await,
        (&Method::DELETE, Target::Blob(name, digest)) => blobs::delete(&call, &name, &digest).await,
        (&Method::POST, Target::Uploads(name)) => uploads::start(&call, &name, body).await,
        (&Method::GET, Target::Upload(name, id)) => uploads::status(&call, &name, &id).await,
        (&Method::PATCH, Target::Upload(name, id)) => uploads::append(&call, &name, &id, body).await,
        (&Method::PUT, Target::Upload(name, id)) => uploads::finish(&call, &name, &id, body).await,
        (&Method::DELETE, Target::Upload(name, id)) => uploads::cancel(&call, &name, &id).await,
        (method, _) => Err(Error::unsupported(format!("{method} is not possible here"))),
    }
}

/// The parameters of a query string, percent-decoded. What does not decode stays as it is.
fn query(text: &str) -> HashMap<String, Vec<String>> {
    let mut parameters: HashMap<String, Vec<String>> = HashMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters.entry(decode(name)).or_default().push(decode(value));
    }
    parameters
}

fn decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map_or_else(|_| text.to_owned(), |text| text.into_owned())
}

/// An answer without a body. The headers are ours, so a value that is none is a defect and left out.
fn reply(status: StatusCode, headers: &[(HeaderName, String)]) -> Response {
    let mut response = status.into_response();
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name.clone(), value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let hash = format!("sha256:{}", "0".repeat(64));
        let name = |text: &str| text.parse::<Repository>().unwrap();
        assert_eq!(Target::of("/v2/"), Ok(Target::Version));
        assert_eq!(Target::of("/v2"), Ok(Target::Version));
        assert_eq!(Target::of("/v2/_catalog"), Ok(Target::Catalog));
        assert_eq!(Target::of("/v2/blobs/manifests/tags/list"), Ok(Target::Tags(name("blobs/manifests"))));
        assert_eq!(Target::of("/v2/a/blobs/uploads/"), Ok(Target::Uploads(name("a"))));
        assert_eq!(Target::of("/v2/a/blobs/uploads"), Ok(Target::Uploads(name("a"))));
        assert_eq!(Target::of("/v2/a/blobs/uploads/x"), Ok(Target::Upload(name("a"), "x".to_owned())));
        assert_eq!(Target::of(&format!("/v2/a/b/blobs/{hash}")), Ok(Target::Blob(name("a/b"), hash.parse().unwrap())));
        for bad in
            ["/v2/a", "/v2/../a/tags/list", "/v2/a%2fb/tags/list", "/v2/A/tags/list", "/v2//tags/list", "/v2/a/x/y"]
        {
            assert!(Target::of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queries() {
        let parameters = query("digest=sha256%3Aab&tag=a&tag=b&mount");
        assert_eq!(parameters["digest"], ["sha256:ab"]);
        assert_eq!(parameters["tag"], ["a", "b"]);
        assert_eq!(parameters["mount"], [""]);
    }
}
