//! Objects as the typed clients of Kubernetes send them: the `k8s\0` envelope around protobuf, read and written through
//! the type table.
//!
//! The messages are those of Go structs, so a scalar that is not a pointer is always on the wire; its zero means "not
//! set" and does not become a field ([`crate::schema::Field::presence`]).

mod decode;
mod encode;
mod values;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

use serde_json::Value;
use tandem_api::{ApiError, GroupVersion, Object};

use crate::{Registry, Schema};

pub(crate) use values::parse_duration;

/// The bytes that every protobuf body starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// How deep messages may be nested: schemas of CRDs are the deepest in practice.
const MAX_DEPTH: usize = 96;
/// How many values one body may hold. Empty messages take two bytes on the wire and a hundred in memory.
const MAX_VALUES: usize = 500_000;

/// Why bytes are not the object that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Malformed {
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WrongWireType { wire_type: u8, field: String },
    #[error("proto: illegal tag 0")]
    Tag,
    #[error("proto: field {0} is not valid UTF-8")]
    Utf8(String),
    #[error("proto: field {field} does not hold JSON: {why}")]
    Json { field: String, why: String },
    #[error("proto: messages are nested too deeply")]
    Depth,
    #[error("proto: more than {MAX_VALUES} values")]
    Size,
}

/// Reads a body: the envelope (`runtime.Unknown`) and the object of the kind that it names.
pub fn decode(schema: &Schema, registry: &Registry, bytes: &[u8]) -> Result<Object, ApiError> {
    let Some(body) = bytes.strip_prefix(MAGIC) else {
        return Err(ApiError::bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ));
    };
    let envelope = decode::envelope(body).map_err(|why| ApiError::bad_request(why.to_string()))?;
    let unknown = || {
        ApiError::bad_request(format!(
            "no kind {:?} is registered for version {:?}",
            envelope.kind, envelope.api_version
        ))
    };
    let version = GroupVersion::parse(&envelope.api_version).ok_or_else(unknown)?;
    let GroupVersion { group, version } = &version;
    let row = registry.by_kind(group, version, &envelope.kind);
    let ty = match &row {
        Some(row) => schema.ty(&row.type_name),
        None => schema.kind_type(group, version, &envelope.kind),
    };
    let ty = ty.filter(|ty| ty.has_type_meta).ok_or_else(unknown)?;
    let fields = decode::message(schema, ty, envelope.raw).map_err(|why| {
        let kind = &envelope.kind;
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    })?;
    let mut object = Object::default();
    object.set(&["apiVersion"], envelope.api_version.as_str());
    object.set(&["kind"], envelope.kind.as_str());
    for (key, value) in fields {
        object.0.entry(key).or_insert(value);
    }
    Ok(object)
}

/// Writes an object as a typed client reads it. `None` if its kind has no type in the table, as custom kinds have none.
pub fn encode(schema: &Schema, object: &Object) -> Option<Vec<u8>> {
    let GroupVersion { group, version } = GroupVersion::parse(object.api_version())?;
    let ty = schema.kind_type(&group, &version, object.kind()).filter(|ty| ty.has_type_meta)?;
    let raw = encode::message(schema, ty, &Value::Object(object.0.clone()));
    Some(encode::envelope(object.api_version(), object.kind(), &raw))
}
