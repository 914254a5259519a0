use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// A request that failed, in the words of the OCI distribution specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub status: StatusCode,
    /// The specification's code, which clients branch on.
    pub code: &'static str,
    pub message: String,
    /// What the client needs for its next try: `Retry-After`, `Range`, `WWW-Authenticate`.
    pub hint: Option<(header::HeaderName, String)>,
}

impl Error {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Error {
        Error { status, code, message: message.into(), hint: None }
    }

    fn hinting(mut self, name: header::HeaderName, value: impl Into<String>) -> Error {
        self.hint = Some((name, value.into()));
        self
    }

    pub(crate) fn name_invalid(name: &str) -> Error {
        Error::new(StatusCode::BAD_REQUEST, "NAME_INVALID", format!("{name:?} is not a repository name"))
    }

    pub(crate) fn tag_invalid(tag: &str) -> Error {
        Error::new(StatusCode::BAD_REQUEST, "TAG_INVALID", format!("{tag:?} is not a tag"))
    }

    pub(crate) fn name_unknown(name: &str) -> Error {
        Error::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("repository {name} is not known to this registry"))
    }

    pub(crate) fn digest_invalid(message: impl Into<String>) -> Error {
        Error::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub(crate) fn blob_unknown(digest: &str) -> Error {
        Error::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not in this repository"))
    }

    pub(crate) fn upload_unknown(id: &str) -> Error {
        Error::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", format!("upload {id} is not known"))
    }

    pub(crate) fn upload_invalid(message: impl Into<String>) -> Error {
        Error::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    /// A chunk out of order. The hint says what has arrived.
    pub(crate) fn range(message: impl Into<String>, arrived: u64) -> Error {
        let error = Error::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message);
        error.hinting(header::RANGE, format!("0-{}", arrived.saturating_sub(1)))
    }

    /// A part of a blob that it does not have.
    pub(crate) fn no_such_part(size: u64) -> Error {
        let error = Error::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", format!("the blob has {size} bytes"));
        error.hinting(header::CONTENT_RANGE, format!("bytes */{size}"))
    }

    pub(crate) fn manifest_unknown(repository: &str, reference: &str) -> Error {
        let message = format!("manifest {reference} is not in repository {repository}");
        Error::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    pub(crate) fn manifest_invalid(message: impl Into<String>) -> Error {
        Error::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    pub(crate) fn manifest_blob_unknown(digest: &str) -> Error {
        let message = format!("the manifest refers to {digest}, which is not in this repository: push it first");
        Error::new(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", message)
    }

    pub(crate) fn too_large(what: &str, limit: u64) -> Error {
        Error::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", format!("{what} is larger than {limit} bytes"))
    }

    pub(crate) fn page_invalid(message: impl Into<String>) -> Error {
        Error::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message)
    }

    pub(crate) fn unauthorized() -> Error {
        let error = Error::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        error.hinting(header::WWW_AUTHENTICATE, "Basic realm=\"tandem\"")
    }

    pub(crate) fn denied(message: impl Into<String>) -> Error {
        Error::new(StatusCode::FORBIDDEN, "DENIED", message)
    }

    /// The specification knows no conflict: clients take 405 as "not here, not now".
    pub(crate) fn in_use(message: impl Into<String>) -> Error {
        Error::new(StatusCode::METHOD_NOT_ALLOWED, "DENIED", message)
    }

    pub(crate) fn too_many_tags(limit: usize) -> Error {
        let message = format!("a manifest can be pushed with {limit} tags at a time");
        Error::new(StatusCode::URI_TOO_LONG, "TAG_INVALID", message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Error {
        Error::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    pub(crate) fn not_found() -> Error {
        Error::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is no such path in a registry")
    }

    pub(crate) fn busy(message: impl Into<String>) -> Error {
        let error = Error::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message);
        error.hinting(header::RETRY_AFTER, "1")
    }

    /// A failure that is ours. The details go to the log, since they name files.
    pub(crate) fn internal(operation: &str, cause: &(dyn std::error::Error + 'static)) -> Error {
        tracing::error!(operation, error = cause, "registry storage");
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", format!("the registry could not {operation}"))
    }

    pub(crate) fn storage(operation: &str, cause: &std::io::Error) -> Error {
        if matches!(cause.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            tracing::error!(operation, error = %cause, "the disk of the registry is full");
            return Error::new(StatusCode::INSUFFICIENT_STORAGE, "DENIED", "the disk of the registry is full");
        }
        Error::internal(operation, cause)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    errors: [Item<'a>; 1],
}

#[derive(Serialize)]
struct Item<'a> {
    code: &'a str,
    message: &'a str,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = Body { errors: [Item { code: self.code, message: &self.message }] };
        let mut response = (self.status, Json(body)).into_response();
        if let Some((name, value)) = &self.hint
            && let Ok(value) = HeaderValue::from_str(value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
