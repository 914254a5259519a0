use std::slice;

use json_patch::{PatchError, PatchErrorKind, PatchOperation};
use serde_json::Value;
use tandem_api::{ApiError, Object, Reason};

/// Kubernetes' limit for the operations of one JSON patch.
const OPERATIONS_MAX: usize = 10_000;
/// Kubernetes' limit for what the operations of one JSON patch copy together.
const COPIED_MAX_BYTES: usize = 3 * 1024 * 1024;
/// How many arrays and objects may stand within each other; less than what JSON is read with, since what is stored and
/// sent has more around it.
const DEPTH_MAX: usize = 100;

/// Why a JSON patch does not apply.
#[derive(Debug)]
pub(crate) enum JsonFailure {
    /// Something is not as one of its tests wants it.
    Test(ApiError),
    Refused(ApiError),
}

impl From<ApiError> for JsonFailure {
    fn from(error: ApiError) -> JsonFailure {
        JsonFailure::Refused(error)
    }
}

/// RFC 6902.
pub(crate) fn json_patch(live: &Object, patch: &[u8]) -> Result<Object, ApiError> {
    apply_json(live, patch).map_err(|failure| match failure {
        JsonFailure::Test(error) | JsonFailure::Refused(error) => error,
    })
}

/// As [`json_patch`], with tests that do not hold told apart.
pub(crate) fn apply_json(live: &Object, patch: &[u8]) -> Result<Object, JsonFailure> {
    let operations: json_patch::Patch =
        serde_json::from_slice(patch).map_err(|why| ApiError::bad_request(format!("error decoding patch: {why}")))?;
    if operations.0.len() > OPERATIONS_MAX {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.0.len()
        );
        return Err(ApiError::new(Reason::RequestEntityTooLarge, message).into());
    }
    let mut patched = Value::Object(live.0.clone());
    let mut copied = 0;
    for (at, operation) in operations.0.iter().enumerate() {
        copied += growth(&patched, operation)?;
        if copied > COPIED_MAX_BYTES {
            return Err(JsonFailure::Refused(too_large(&format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {COPIED_MAX_BYTES}"
            ))));
        }
        // What is half done is dropped, so that nothing need be undone.
        json_patch::patch_unsafe(&mut patched, slice::from_ref(operation)).map_err(|why| {
            let is_test = matches!(why.kind, PatchErrorKind::TestFailed);
            let error = refused(why, at);
            if is_test { JsonFailure::Test(error) } else { JsonFailure::Refused(error) }
        })?;
    }
    Ok(object(patched)?)
}

/// The bytes that an operation copies. An error where its value would stand too deep.
fn growth(patched: &Value, operation: &PatchOperation) -> Result<usize, ApiError> {
    let (value, copies) = match operation {
        PatchOperation::Add(add) => (Some(&add.value), false),
        PatchOperation::Replace(replace) => (Some(&replace.value), false),
        PatchOperation::Copy(copy) => (patched.pointer(copy.from.as_str()), true),
        // A move that leads deeper is walked through like a copy, so it counts as one.
        PatchOperation::Move(moved) if moved.path.count() > moved.from.count() => {
            (patched.pointer(moved.from.as_str()), true)
        }
        PatchOperation::Move(_) | PatchOperation::Remove(_) | PatchOperation::Test(_) => (None, false),
    };
    let Some(value) = value else { return Ok(0) };
    let extent = Extent::of(value);
    if operation.path().count() + extent.depth > DEPTH_MAX {
        return Err(too_large(&format!("the patched object would be nested more than {DEPTH_MAX} levels deep")));
    }
    Ok(if copies { extent.bytes } else { 0 })
}

/// How large a value is.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    /// About as many as its JSON has.
    bytes: usize,
    /// Arrays and objects within each other.
    depth: usize,
}

impl Extent {
    /// Without recursion, so that no value overflows the stack.
    fn of(value: &Value) -> Extent {
        let mut extent = Extent::default();
        let mut rest = vec![(value, 1)];
        while let Some((value, depth)) = rest.pop() {
            extent.bytes += match value {
                Value::Null | Value::Bool(_) => "null,".len(),
                Value::Number(_) => size_of::<u64>(),
                Value::String(text) => text.len() + "\"\",".len(),
                Value::Array(list) => {
                    extent.depth = extent.depth.max(depth);
                    rest.extend(list.iter().map(|value| (value, depth + 1)));
                    "[],".len()
                }
                Value::Object(map) => {
                    extent.depth = extent.depth.max(depth);
                    rest.extend(map.values().map(|value| (value, depth + 1)));
                    map.keys().map(|key| key.len() + "\"\":".len()).sum::<usize>() + "{},".len()
                }
            };
        }
        extent
    }
}

fn too_large(why: &str) -> ApiError {
    ApiError::new(Reason::RequestEntityTooLarge, format!("Request entity too large: {why}"))
}

fn refused(mut why: PatchError, at: usize) -> ApiError {
    why.operation = at;
    tracing::debug!(%why, "a JSON patch does not apply");
    ApiError::new(Reason::Invalid, format!("the server rejected our request due to an error in our request: {why}"))
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
