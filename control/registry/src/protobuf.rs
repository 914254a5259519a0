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

use serde_json::{Map, Value};
use tandem_api::{ApiError, GroupVersion, Object};

use crate::{
    Registry, Schema,
    schema::{Label, Type},
};
use wire::put_bytes;

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
pub fn encode(schema: &Schema, object: &Value) -> Option<Vec<u8>> {
    let text = |field| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let ty = message_type(schema, api_version, kind)?;
    let raw = encode::message(schema, ty, object.as_object()?);
    Some(encode::envelope(api_version, kind, &raw))
}

fn message_type<'a>(schema: &'a Schema, api_version: &str, kind: &str) -> Option<&'a Type> {
    let GroupVersion { group, version } = GroupVersion::parse(api_version)?;
    schema.kind_type(&group, &version, kind).filter(|ty| ty.has_type_meta)
}

/// A list that is written item by item, so that it never stands in memory as JSON.
pub struct List<'a> {
    schema: &'a Schema,
    api_version: &'a str,
    kind: &'a str,
    items: u32,
    item: &'a Type,
    raw: Vec<u8>,
}

impl<'a> List<'a> {
    /// `None` if the kind is no list, or has no type in the table.
    pub fn new(schema: &'a Schema, api_version: &'a str, kind: &'a str, metadata: &Value) -> Option<List<'a>> {
        let ty = message_type(schema, api_version, kind)?;
        let field = ty.field("items").filter(|field| field.label == Label::List)?;
        let (items, item) = (field.number, schema.get(field.object()?));
        let mut head = Map::new();
        head.insert("metadata".to_owned(), metadata.clone());
        let raw = encode::message(schema, ty, &head);
        Some(List { schema, api_version, kind, items, item, raw })
    }

    pub fn push(&mut self, object: &Map<String, Value>) {
        put_bytes(&mut self.raw, self.items, &encode::message(self.schema, self.item, object));
    }

    pub fn finish(self) -> Vec<u8> {
        encode::envelope(self.api_version, self.kind, &self.raw)
    }
}

/// One event of a watch, as it stands in the stream: its length in four bytes, then `meta.k8s.io/v1` `WatchEvent`
/// without an envelope, whose object has one.
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let (mut raw, mut event) = (Vec::new(), Vec::new());
    put_bytes(&mut raw, 1, object);
    put_bytes(&mut event, 1, kind.as_bytes());
    put_bytes(&mut event, 2, &raw);
    let mut frame = u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    frame.append(&mut event);
    frame
}
