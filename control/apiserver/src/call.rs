use std::sync::Arc;

use axum::{body::Body, extract::Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tandem_api::{ApiError, Fence, Identity, Reason};
use tandem_registry::columns::IncludeObject;
use tokio::time::{Duration, timeout};

use crate::{
    audit::Trail,
    layers::Audit,
    negotiate::{self, Offer, Representation},
    request::{RequestInfo, ResourcePath},
};

/// Kubernetes' limit for request bodies.
pub(crate) const BODY_MAX_BYTES: usize = 3 * 1024 * 1024;
/// How long a whole body may take to arrive.
const BODY_MAX: Duration = Duration::from_secs(30);
/// Warnings beyond these are dropped: headers have a size limit.
const WARNINGS_MAX: usize = 16;
const WARNING_MAX_BYTES: usize = 256;

/// What the client of a request is warned of.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// What is said already is not said again.
    pub(crate) fn add(&self, message: impl Into<String>) {
        let (message, mut warnings) = (message.into(), self.0.lock());
        if warnings.len() < WARNINGS_MAX && !warnings.contains(&message) {
            warnings.push(message);
        }
    }
}

/// One request behind the layers.
pub(crate) struct Call {
    pub(crate) info: Arc<RequestInfo>,
    pub(crate) identity: Identity,
    pub(crate) audit: Audit,
    /// The term in which a leader in this process asks.
    pub(crate) fence: Option<u64>,
    pub(crate) parts: Parts,
    body: Mutex<Option<Body>>,
    pub(crate) warnings: Warnings,
}

impl Call {
    pub(crate) fn new(request: Request) -> Result<Call, ApiError> {
        let (parts, body) = request.into_parts();
        let missing = || ApiError::internal("the request did not pass the layers");
        Ok(Call {
            info: parts.extensions.get::<Arc<RequestInfo>>().cloned().ok_or_else(missing)?,
            identity: parts.extensions.get::<Identity>().cloned().ok_or_else(missing)?,
            audit: parts.extensions.get::<Audit>().cloned().ok_or_else(missing)?,
            fence: parts.extensions.get::<Fence>().map(|fence| fence.0),
            parts,
            body: Mutex::new(Some(body)),
            warnings: Warnings::default(),
        })
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// The resource of the request; only calls of resources ask.
    pub(crate) fn path(&self) -> Result<&ResourcePath, ApiError> {
        self.info.resource().ok_or_else(crate::request::not_found)
    }

    pub(crate) fn take_body(&self) -> Body {
        self.body.lock().take().unwrap_or_default()
    }

    /// Whether the body is known to have nothing in it.
    pub(crate) fn body_is_empty(&self) -> bool {
        self.body.lock().as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// The whole body, bounded in size and time.
    pub(crate) async fn body(&self) -> Result<Bytes, ApiError> {
        let body = self.take_body();
        let length = self.header(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        if length.is_some_and(|length| length > BODY_MAX_BYTES) {
            return Err(too_large());
        }
        let late = |_| ApiError::new(Reason::Timeout, "Timeout: the request body did not arrive in time");
        let body = timeout(BODY_MAX, collect(body)).await.map_err(late)??;
        if let Some(trail) = self.parts.extensions.get::<Arc<Trail>>() {
            trail.sent(self.header(header::CONTENT_TYPE), &body);
        }
        Ok(body)
    }

    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.warnings.add(message);
    }

    /// As `Warning` headers (RFC 7234, 5.5): code 299, no agent.
    pub(crate) fn warnings(&self) -> Vec<HeaderValue> {
        let quoted = |message: &String| {
            let text: String = message.chars().filter(|letter| !letter.is_control()).take(WARNING_MAX_BYTES).collect();
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
            HeaderValue::from_str(&format!("299 - \"{escaped}\"")).ok()
        };
        self.warnings.0.lock().iter().filter_map(quoted).collect()
    }

    pub(crate) fn representation(&self, offer: Offer) -> Result<Representation, ApiError> {
        negotiate::negotiate(self.header(header::ACCEPT), offer)
    }

    pub(crate) fn include_object(&self) -> Result<IncludeObject, ApiError> {
        match self.info.query.get("includeObject") {
            None | Some("Metadata") => Ok(IncludeObject::Metadata),
            Some("None") => Ok(IncludeObject::None),
            Some("Object") => Ok(IncludeObject::Object),
            Some(other) => Err(ApiError::bad_request(format!(
                "includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

async fn collect(mut body: Body) -> Result<Bytes, ApiError> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|why| ApiError::bad_request(format!("the request body could not be read: {why}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > BODY_MAX_BYTES {
            return Err(too_large());
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

fn too_large() -> ApiError {
    ApiError::new(Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {BODY_MAX_BYTES}"))
}
