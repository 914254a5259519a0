use serde_json::Value;
use tandem_api::{ApiError, Object, Reason};

/// Kubernetes' limit for the operations of one JSON patch.
const OPERATIONS_MAX: usize = 10_000;

/// RFC 6902.
pub(crate) fn json_patch(live: &Object, patch: &[u8]) -> Result<Object, ApiError> {
    let operations: json_patch::Patch =
        serde_json::from_slice(patch).map_err(|why| ApiError::bad_request(format!("error decoding patch: {why}")))?;
    if operations.0.len() > OPERATIONS_MAX {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.0.len()
        );
        return Err(ApiError::new(Reason::RequestEntityTooLarge, message));
    }
    let mut patched = Value::Object(live.0.clone());
    json_patch::patch(&mut patched, &operations.0).map_err(|why| {
        tracing::debug!(%why, "a JSON patch does not apply");
        ApiError::new(Reason::Invalid, format!("the server rejected our request due to an error in our request: {why}"))
    })?;
    object(patched)
}

/// RFC 7386.
pub(crate) fn merge_patch(live: &Object, patch: &Value) -> Result<Object, ApiError> {
    let mut patched = Value::Object(live.0.clone());
    json_patch::merge(&mut patched, patch);
    object(patched)
}

fn object(value: Value) -> Result<Object, ApiError> {
    Object::from_value(value).ok_or_else(|| ApiError::bad_request("the patched value is not an object"))
}
