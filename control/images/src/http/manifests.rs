use axum::{
    body::{Body, to_bytes},
    response::Response,
};
use http::{HeaderName, Method, StatusCode, header};

use super::{CONTENT_DIGEST, Call, reply};
use crate::{
    access::Action,
    error::Error,
    manifest::check,
    name::{Digest, Reference, Repository, Tag},
    registry::failed,
    uploads::hash_of,
};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const ACCEPTED_TAGS: HeaderName = HeaderName::from_static("oci-tag");
/// Tags that one manifest can be pushed with.
const TAGS_MAX: usize = 32;

pub(super) async fn get(call: &Call, repository: &Repository, reference: &Reference) -> Result<Response, Error> {
    call.authorize(repository, Action::Pull)?;
    let unknown = || Error::manifest_unknown(repository.as_str(), &reference.to_string());
    let entry = call.registry.entry(repository, reference).await?.ok_or_else(unknown)?;
    let headers = [
        (CONTENT_DIGEST, entry.digest.to_string()),
        (header::CONTENT_TYPE, entry.media_type.clone()),
        (header::CONTENT_LENGTH, entry.size.to_string()),
        (header::ETAG, format!("\"{}\"", entry.digest)),
    ];
    let mut response = reply(StatusCode::OK, &headers);
    if call.method == Method::GET {
        if !call.is_here_only() {
            call.registry.fetch_manifest(repository, &entry.digest).await?;
        }
        let bytes = call.registry.blobs.read(&entry.digest, call.registry.limits.manifest_bytes).await?;
        *response.body_mut() = Body::from(bytes);
    }
    Ok(response)
}

pub(super) async fn put(
    call: &Call,
    repository: &Repository,
    reference: &Reference,
    body: Body,
) -> Result<Response, Error> {
    call.authorize(repository, Action::Push)?;
    let registry = &call.registry;
    let content_type = call.header(header::CONTENT_TYPE);
    let more_tags = call.query.get("tag").cloned().unwrap_or_default();
    if more_tags.len() > TAGS_MAX {
        return Err(Error::too_many_tags(TAGS_MAX));
    }
    let limit = registry.limits.manifest_bytes;
    let bytes = to_bytes(body, usize::try_from(limit).unwrap_or(usize::MAX)).await;
    let bytes = bytes.map_err(|_| Error::too_large("the manifest", limit))?;
    let digest = match reference {
        Reference::Digest(wanted) => {
            let found = hash_of(wanted.algorithm(), &bytes);
            if found != *wanted {
                return Err(Error::digest_invalid(format!("the manifest has the digest {found}, not {wanted}")));
            }
            found
        }
        Reference::Tag(_) => Digest::of(&bytes),
    };
    let mut tags = more_tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Tag>, Error>>()?;
    if let Reference::Tag(tag) = reference {
        tags.push(tag.clone());
    }
    let sound = check(&bytes, content_type)?;
    let subject = sound.subject.clone();
    registry.put(repository, &tags, &digest, bytes, sound).await?;
    let mut headers =
        vec![(header::LOCATION, format!("/v2/{repository}/manifests/{digest}")), (CONTENT_DIGEST, digest.to_string())];
    headers.extend(subject.map(|subject| (SUBJECT, subject.to_string())));
    if !more_tags.is_empty() {
        headers.push((ACCEPTED_TAGS, more_tags.join(", ")));
    }
    Ok(reply(StatusCode::CREATED, &headers))
}

pub(super) async fn delete(call: &Call, repository: &Repository, reference: &Reference) -> Result<Response, Error> {
    call.authorize(repository, Action::Delete)?;
    let registry = &call.registry;
    let _alone = registry.changes.write().await;
    let unknown = || Error::manifest_unknown(repository.as_str(), &reference.to_string());
    if let Reference::Digest(digest) = reference {
        let entries = registry.entries(repository).await?;
        if let Some(user) = entries.iter().find(|entry| entry.references.contains(digest)) {
            return Err(Error::in_use(format!("index {} refers to manifest {digest}", user.digest)));
        }
        // Tags go first: what a tag points to is there at every moment.
        for tag in entries.iter().filter(|entry| entry.digest == *digest && entry.reference != *reference) {
            registry.index.delete(repository, &tag.reference).await.map_err(|error| failed(&error))?;
        }
    }
    let was_there = registry.index.delete(repository, reference).await.map_err(|error| failed(&error))?;
    if was_there { Ok(reply(StatusCode::ACCEPTED, &[])) } else { Err(unknown()) }
}
