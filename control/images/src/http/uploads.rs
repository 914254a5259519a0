use axum::{body::Body, response::Response};
use http::{StatusCode, header};
use uuid::Uuid;

use super::{CONTENT_DIGEST, Call, reply};
use crate::{
    access::{Action, allowed},
    error::Error,
    name::{Algorithm, Digest, Repository},
    uploads::{Range, Session},
};

const UPLOAD_ID: http::HeaderName = http::HeaderName::from_static("docker-upload-uuid");

fn location(repository: &Repository, id: Uuid) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

/// How far an upload came. No byte is said as `0-0`, as clients expect.
fn progress(status: StatusCode, repository: &Repository, id: Uuid, session: &Session) -> Response {
    let headers = [
        (header::LOCATION, location(repository, id)),
        (header::RANGE, format!("0-{}", session.arrived().saturating_sub(1))),
        (UPLOAD_ID, id.to_string()),
    ];
    reply(status, &headers)
}

fn created(repository: &Repository, digest: &Digest) -> Response {
    let headers =
        [(header::LOCATION, format!("/v2/{repository}/blobs/{digest}")), (CONTENT_DIGEST, digest.to_string())];
    reply(StatusCode::CREATED, &headers)
}

pub(super) async fn start(call: &Call, repository: &Repository, body: Body) -> Result<Response, Error> {
    call.authorize(repository, Action::Push)?;
    let registry = &call.registry;
    if let Some(algorithm) = call.parameter("digest-algorithm")
        && Algorithm::named(algorithm).is_none()
    {
        return Err(Error::digest_invalid(format!("digests of kind {algorithm:?} are not supported")));
    }
    if let Some(mount) = call.parameter("mount") {
        let digest: Digest = mount.parse()?;
        if mount_blob(call, repository, &digest).await? {
            return Ok(created(repository, &digest));
        }
    }
    let whole = call.parameter("digest").map(str::parse::<Digest>).transpose()?;
    let now = registry.clock.now();
    let upload = registry.uploads.start(repository, &call.identity, now).await?;
    let (id, mut session) = (upload.id, upload.hold()?);
    let Some(digest) = whole else { return Ok(progress(StatusCode::ACCEPTED, repository, id, &session)) };
    let outcome = receive(call, body, &mut session, None).await;
    if let Err(error) = outcome {
        registry.uploads.cancel(id).await?;
        return Err(error);
    }
    complete(registry, repository, id, &mut session, &digest).await
}

/// Whether the blob could be taken over from another repository. One that the caller may not read does not exist.
async fn mount_blob(call: &Call, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
    let Some(from) = call.parameter("from") else { return Ok(false) };
    let from: Repository = from.parse()?;
    if !allowed(&call.identity, Some(&from), Action::Pull) {
        return Ok(false);
    }
    let _change = call.registry.changes.read().await;
    if call.registry.blobs.size_in(&from, digest).await?.is_none() {
        return Ok(false);
    }
    call.registry.blobs.link(repository, digest).await?;
    Ok(true)
}

pub(super) async fn status(call: &Call, repository: &Repository, id: &str) -> Result<Response, Error> {
    call.authorize(repository, Action::Push)?;
    let uploads = &call.registry.uploads;
    let upload = uploads.find(id, repository, &call.identity, call.registry.clock.now()).await?;
    let (id, session) = (upload.id, upload.hold()?);
    Ok(progress(StatusCode::NO_CONTENT, repository, id, &session))
}

/// `Content-Range: 0-99`; tolerates the `bytes ` and `/total` that some clients send.
fn chunk(text: Option<&str>) -> Result<Option<Range>, Error> {
    let Some(text) = text else { return Ok(None) };
    let bounds = text.strip_prefix("bytes ").unwrap_or(text).split('/').next().unwrap_or_default();
    let pair = bounds.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match pair {
        Some((first, last)) if first <= last && last < u64::MAX => Ok(Some(Range { first, last })),
        _ => Err(Error::upload_invalid(format!("Content-Range {text:?} is not START-END"))),
    }
}

/// Writes a request's body to its upload, if there is room for another writer.
async fn receive(call: &Call, body: Body, session: &mut Session, range: Option<Range>) -> Result<(), Error> {
    let registry = &call.registry;
    let Ok(_writer) = registry.bodies.try_acquire() else {
        return Err(Error::busy("too many blobs are being written"));
    };
    let limit = registry.limits.blob_bytes;
    let now = registry.clock.now();
    session.append(body.into_data_stream(), range, limit, now).await
}

pub(super) async fn append(call: &Call, repository: &Repository, id: &str, body: Body) -> Result<Response, Error> {
    call.authorize(repository, Action::Push)?;
    let range = chunk(call.header(header::CONTENT_RANGE))?;
    let registry = &call.registry;
    let upload = registry.uploads.find(id, repository, &call.identity, registry.clock.now()).await?;
    let (id, mut session) = (upload.id, upload.hold()?);
    receive(call, body, &mut session, range).await?;
    Ok(progress(StatusCode::ACCEPTED, repository, id, &session))
}

pub(super) async fn finish(call: &Call, repository: &Repository, id: &str, body: Body) -> Result<Response, Error> {
    call.authorize(repository, Action::Push)?;
    let Some(digest) = call.parameter("digest") else {
        return Err(Error::digest_invalid("the digest parameter is missing"));
    };
    let digest: Digest = digest.parse()?;
    let range = chunk(call.header(header::CONTENT_RANGE))?;
    let registry = &call.registry;
    let upload = registry.uploads.find(id, repository, &call.identity, registry.clock.now()).await?;
    let (id, mut session) = (upload.id, upload.hold()?);
    receive(call, body, &mut session, range).await?;
    complete(registry, repository, id, &mut session, &digest).await
}

async fn complete(
    registry: &crate::registry::Registry,
    repository: &Repository,
    id: Uuid,
    session: &mut Session,
    digest: &Digest,
) -> Result<Response, Error> {
    let _change = registry.changes.read().await;
    registry.uploads.finish(id, session, digest, &registry.blobs).await?;
    registry.blobs.link(repository, digest).await?;
    Ok(created(repository, digest))
}

pub(super) async fn cancel(call: &Call, repository: &Repository, id: &str) -> Result<Response, Error> {
    call.authorize(repository, Action::Push)?;
    let uploads = &call.registry.uploads;
    let upload = uploads.find(id, repository, &call.identity, call.registry.clock.now()).await?;
    let mut session = upload.hold()?;
    session.end();
    uploads.cancel(upload.id).await?;
    Ok(reply(StatusCode::NO_CONTENT, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks() {
        assert_eq!(chunk(None), Ok(None));
        assert_eq!(chunk(Some("0-9")).unwrap().map(Range::length), Some(10));
        assert_eq!(chunk(Some("bytes 5-9/10")), Ok(Some(Range { first: 5, last: 9 })));
        for bad in ["", "9-5", "a-b", "5", "-5", "0-18446744073709551615"] {
            assert!(chunk(Some(bad)).is_err(), "{bad}");
        }
    }
}
