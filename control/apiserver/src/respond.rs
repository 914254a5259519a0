use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tandem_api::{ApiError, Object};
use tandem_registry::{ResourceDef, columns, protobuf};

use crate::{
    call::Call,
    core::Core,
    negotiate::{Format, Offer, Representation, Shape},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const PROTOBUF: HeaderValue = HeaderValue::from_static("application/vnd.kubernetes.protobuf");

pub(crate) fn bytes(code: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

pub(crate) fn json_bytes(code: StatusCode, body: impl Into<Bytes>) -> Response {
    bytes(code, JSON, body)
}

pub(crate) fn text(code: StatusCode, body: impl Into<Bytes>) -> Response {
    bytes(code, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

/// The Status of a failed request.
pub fn error(error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_bytes(code, error.status().to_string());
    let seconds = error.details.retry_after_seconds;
    if seconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// The Status of a deletion that is done.
pub(crate) fn success(def: &ResourceDef, name: &str, uid: &str) -> Value {
    let mut details = json!({ "name": name, "kind": def.plural });
    if !def.group.is_empty() {
        details["group"] = def.group.as_str().into();
    }
    if !uid.is_empty() {
        details["uid"] = uid.into();
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// A value in the format that was asked for.
pub(crate) fn value(
    core: &Core,
    call: &Call,
    code: StatusCode,
    value: &Value,
    as_: Representation,
) -> Result<Response, ApiError> {
    let mut response = match as_.format {
        Format::Json => json_bytes(code, serde_json::to_vec(value).map_err(ApiError::internal)?),
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(ApiError::internal)?;
            bytes(code, HeaderValue::from_static("application/yaml"), text)
        }
        Format::Protobuf => bytes(code, PROTOBUF, protobuf_bytes(core, value)?),
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(warned(call, response))
}

/// The answer with what its client is warned of.
pub(crate) fn warned(call: &Call, mut response: Response) -> Response {
    if !response.headers().contains_key(header::WARNING) {
        for warning in call.warnings() {
            response.headers_mut().append(header::WARNING, warning);
        }
    }
    response
}

pub(crate) fn protobuf_bytes(core: &Core, value: &Value) -> Result<Vec<u8>, ApiError> {
    protobuf::encode(&core.schema(), value).ok_or_else(|| {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        ApiError::internal(format!("{kind} has no protobuf form"))
    })
}

/// One object in the shape and format that was asked for.
pub(crate) fn object(
    core: &Core,
    call: &Call,
    def: &ResourceDef,
    code: StatusCode,
    object: Object,
) -> Result<Response, ApiError> {
    let as_ = call.representation(Offer::of(def))?;
    let shaped = match as_.shape {
        Shape::Whole => Value::Object(object.0),
        Shape::Metadata => partial(&object),
        Shape::Table => {
            let metadata = json!({ "resourceVersion": object.str_at(&["metadata", "resourceVersion"]) });
            columns::table(def, &[&object], metadata, call.include_object()?, true, core.clock.now())
        }
    };
    value(core, call, code, &shaped, as_)
}

pub(crate) fn partial(object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.at(&["metadata"]).cloned().unwrap_or_else(|| json!({})),
    })
}
