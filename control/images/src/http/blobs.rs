use std::io::SeekFrom;

use axum::{body::Body, response::Response};
use http::{Method, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{CONTENT_DIGEST, Call, reply};
use crate::{
    access::Action,
    error::Error,
    name::{Digest, Repository},
};

const CHUNK_BYTES: usize = 128 * 1024;
const YEAR: &str = "max-age=31536000, immutable";

/// The part of a blob that a `Range` header asks for: first byte and length. None for the whole, also when the
/// header is of a kind that may be ignored.
fn part(range: Option<&str>, size: u64) -> Result<Option<(u64, u64)>, Error> {
    let Some(spec) = range.and_then(|range| range.strip_prefix("bytes=")) else { return Ok(None) };
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else { return Ok(None) };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
        (Err(_), Ok(length)) if first.is_empty() && length > 0 => (size.saturating_sub(length), u64::MAX),
        _ => return Ok(None),
    };
    if first >= size || last < first {
        return Err(Error::no_such_part(size));
    }
    Ok(Some((first, last.min(size - 1) - first + 1)))
}

pub(super) async fn get(call: &Call, repository: &Repository, digest: &Digest) -> Result<Response, Error> {
    call.authorize(repository, Action::Pull)?;
    if !call.is_here_only() {
        call.registry.fetch_blob(repository, digest).await?;
    }
    let (mut file, size) = call.registry.blobs.open_in(repository, digest).await?;
    let mut headers = vec![
        (CONTENT_DIGEST, digest.to_string()),
        (header::ETAG, format!("\"{digest}\"")),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CACHE_CONTROL, YEAR.to_owned()),
    ];
    let (status, first, length) = match part(call.header(header::RANGE), size)? {
        None => (StatusCode::OK, 0, size),
        Some((first, length)) => {
            headers.push((header::CONTENT_RANGE, format!("bytes {first}-{}/{size}", first + length - 1)));
            (StatusCode::PARTIAL_CONTENT, first, length)
        }
    };
    headers.push((header::CONTENT_LENGTH, length.to_string()));
    let mut response = reply(status, &headers);
    if call.method == Method::GET {
        file.seek(SeekFrom::Start(first)).await.map_err(|error| Error::storage("read a blob", &error))?;
        *response.body_mut() = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK_BYTES));
    }
    Ok(response)
}

pub(super) async fn delete(call: &Call, repository: &Repository, digest: &Digest) -> Result<Response, Error> {
    call.authorize(repository, Action::Delete)?;
    let _alone = call.registry.changes.write().await;
    let entries = call.registry.entries(repository).await?;
    if let Some(user) = entries.iter().find(|entry| entry.references.contains(digest)) {
        return Err(Error::in_use(format!("manifest {} refers to blob {digest}", user.digest)));
    }
    call.registry.blobs.unlink(repository, digest).await?;
    Ok(reply(StatusCode::ACCEPTED, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        assert_eq!(part(None, 10), Ok(None));
        assert_eq!(part(Some("bytes=0-3"), 10), Ok(Some((0, 4))));
        assert_eq!(part(Some("bytes=4-"), 10), Ok(Some((4, 6))));
        assert_eq!(part(Some("bytes=-4"), 10), Ok(Some((6, 4))));
        assert_eq!(part(Some("bytes=-40"), 10), Ok(Some((0, 10))));
        assert_eq!(part(Some("bytes=4-99"), 10), Ok(Some((4, 6))));
        assert_eq!(part(Some("bytes=0-1,4-5"), 10), Ok(None));
        assert_eq!(part(Some("lines=1-2"), 10), Ok(None));
        for bad in ["bytes=10-", "bytes=5-4", "bytes=99-100"] {
            assert!(part(Some(bad), 10).is_err(), "{bad}");
        }
        assert!(part(Some("bytes=0-"), 0).is_err());
    }
}
