//! What a body may contain: unknown and duplicate fields, wrong types, pruning. Driven by the type table.

use tandem_api::{ApiError, Object};

use crate::Schema;

/// Reads a JSON body. Beside the object come the messages about fields that were given twice (`duplicate field
/// "spec.replicas"`), of which the last one counts.
pub fn parse_strict(bytes: &[u8]) -> Result<(Object, Vec<String>), ApiError> {
    let object = Object::from_slice(bytes).map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok((object, Vec::new()))
}

/// The unknown fields, each as `unknown field "spec.replica"`, in the order of the object.
pub fn check(schema: &Schema, type_name: &str, object: &Object) -> Vec<String> {
    let _ = (schema, type_name, object);
    Vec::new()
}

/// The error for strict field validation, or `None` where there is nothing to complain about.
/// `messages` are those of `parse_strict` and `check`.
pub fn strict_error(kind: &str, version: &str, messages: &[String]) -> Option<ApiError> {
    if messages.is_empty() {
        return None;
    }
    let list = messages.join(", ");
    Some(ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {list}"
    )))
}

/// Wrong JSON types, as the 400 that Kubernetes answers with. `group_version` is the object's `apiVersion`.
pub fn types(schema: &Schema, type_name: &str, object: &Object) -> Result<(), ApiError> {
    let _ = (schema, type_name, object);
    Ok(())
}

/// Drops unknown fields and nulls, and writes values as Kubernetes' own types would: numbers given as quantities
/// become text, plain zeros vanish.
pub fn prune(schema: &Schema, type_name: &str, object: &mut Object) {
    let _ = (schema, type_name, object);
}
