use std::collections::BTreeMap;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;
use tandem_component::image::{Descriptor, INDEX, Manifest};

use super::Call;
use crate::{
    access::{Action, authorize},
    error::Error,
    index::Entry,
    name::{Digest, Reference, Repository},
    registry::failed,
};

/// A page that a client can ask for; also the page of one that asks for none.
const PAGE_MAX: usize = 1000;
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The body of the version check.
#[derive(Serialize)]
pub(super) struct Empty {}

#[derive(Serialize)]
struct Catalog {
    repositories: Vec<String>,
}

#[derive(Serialize)]
struct Tags {
    name: String,
    tags: Vec<String>,
}

/// One page of sorted names, and the path of the next one.
fn page(names: Vec<String>, call: &Call, path: &str) -> Result<(Vec<String>, Option<String>), Error> {
    let size = match call.parameter("n") {
        None => PAGE_MAX,
        Some(text) => match text.parse::<usize>() {
            Ok(size) if size <= PAGE_MAX => size,
            _ => return Err(Error::page_invalid(format!("n is {text:?}, and may be 0 to {PAGE_MAX}"))),
        },
    };
    let last = call.parameter("last").unwrap_or_default();
    let mut rest = names.into_iter().filter(|name| name.as_str() > last);
    let shown: Vec<String> = rest.by_ref().take(size).collect();
    let next = match (rest.next(), shown.last()) {
        (Some(_), Some(last)) => Some(format!("<{path}?n={size}&last={last}>; rel=\"next\"")),
        _ => None,
    };
    Ok((shown, next))
}

fn paged(body: impl Serialize, next: Option<String>) -> Response {
    let mut response = Json(body).into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}

pub(super) async fn catalog(call: &Call) -> Result<Response, Error> {
    authorize(&call.identity, None, Action::Catalog)?;
    let repositories = call.registry.index.repositories().await.map_err(|error| failed(&error))?;
    let names = repositories.into_iter().map(String::from).collect();
    let (repositories, next) = page(names, call, "/v2/_catalog")?;
    Ok(paged(Catalog { repositories }, next))
}

pub(super) async fn tags(call: &Call, repository: &Repository) -> Result<Response, Error> {
    call.authorize(repository, Action::Pull)?;
    let entries = call.registry.entries(repository).await?;
    if entries.is_empty() {
        return Err(Error::name_unknown(repository.as_str()));
    }
    let mut names: Vec<String> = entries
        .into_iter()
        .filter_map(|entry| match entry.reference {
            Reference::Tag(tag) => Some(String::from(tag)),
            Reference::Digest(_) => None,
        })
        .collect();
    names.sort();
    let (tags, next) = page(names, call, &format!("/v2/{repository}/tags/list"))?;
    Ok(paged(Tags { name: repository.to_string(), tags }, next))
}

pub(super) async fn referrers(call: &Call, repository: &Repository, digest: &Digest) -> Result<Response, Error> {
    call.authorize(repository, Action::Pull)?;
    let filter = call.parameter("artifactType");
    let entries = call.registry.entries(repository).await?;
    let about = entries.into_iter().filter(|entry| {
        matches!(entry.reference, Reference::Digest(_))
            && entry.subject.as_deref() == Some(digest.as_str())
            && filter.is_none_or(|wanted| entry.artifact_type.as_deref() == Some(wanted))
    });
    let index = Manifest {
        schema_version: 2,
        media_type: Some(INDEX.to_owned()),
        manifests: Some(about.map(descriptor).collect()),
        annotations: BTreeMap::new(),
        ..Manifest::default()
    };
    let mut response = Json(index).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    if filter.is_some() {
        response.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

fn descriptor(entry: Entry) -> Descriptor {
    Descriptor {
        media_type: entry.media_type,
        digest: entry.digest.to_string(),
        size: entry.size,
        platform: None,
        artifact_type: entry.artifact_type,
        annotations: entry.annotations,
    }
}
