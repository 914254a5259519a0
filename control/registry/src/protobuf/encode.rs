use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    MAGIC, values,
    wire::{put_bytes, put_double, put_number},
};
use crate::schema::{Field, Label, Schema, Shape, Type, TypeId, WireField};

pub(super) fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut bytes = MAGIC.to_vec();
    put_bytes(&mut bytes, 1, &meta);
    put_bytes(&mut bytes, 2, raw);
    put_bytes(&mut bytes, 3, b"");
    put_bytes(&mut bytes, 4, b"");
    bytes
}

pub(super) fn message(schema: &Schema, ty: &Type, map: &Map<String, Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, entry) in &ty.wire {
        match entry {
            WireField::Inline(inner) => {
                let inner = message(schema, schema.get(*inner), map);
                put_bytes(&mut bytes, *number, &inner);
            }
            WireField::Field(at) => {
                let field = &ty.fields[*at];
                if let Some(value) = map.get(&*field.name).filter(|value| !value.is_null()) {
                    put_field(schema, field, value, &mut bytes);
                }
            }
        }
    }
    bytes
}

/// A message that is a field; what is no object is an empty one.
fn nested(schema: &Schema, id: TypeId, value: &Value) -> Vec<u8> {
    value.as_object().map(|map| message(schema, schema.get(id), map)).unwrap_or_default()
}

fn put_field(schema: &Schema, field: &Field, value: &Value, into: &mut Vec<u8>) {
    match (field.label, value) {
        (Label::One, value) => put_value(schema, field.shape, field.number, value, into),
        (Label::List, Value::Array(list)) => {
            list.iter().for_each(|value| put_value(schema, field.shape, field.number, value, into));
        }
        (Label::Map, Value::Object(map)) => {
            for (key, value) in map {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                put_value(schema, field.shape, 2, value, &mut entry);
                put_bytes(into, field.number, &entry);
            }
        }
        _ => {}
    }
}

fn put_value(schema: &Schema, shape: Shape, number: u32, value: &Value, into: &mut Vec<u8>) {
    match shape {
        Shape::String => put_bytes(into, number, value.as_str().unwrap_or_default().as_bytes()),
        Shape::Bool => put_number(into, number, u64::from(value.as_bool().unwrap_or_default())),
        Shape::Int32 | Shape::Int64 => put_number(into, number, integer(value) as u64),
        Shape::Double => put_double(into, number, value.as_f64().unwrap_or_default()),
        Shape::Bytes => {
            let plain = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
            put_bytes(into, number, &plain);
        }
        Shape::Object(id) => put_bytes(into, number, &nested(schema, id, value)),
        other => put_bytes(into, number, &special(schema, other, value)),
    }
}

fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn special(schema: &Schema, shape: Shape, value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = value.as_str().unwrap_or_default();
    match shape {
        Shape::Quantity if value.is_number() => put_bytes(&mut bytes, 1, value.to_string().as_bytes()),
        Shape::Quantity => put_bytes(&mut bytes, 1, text.as_bytes()),
        Shape::IntOrString => {
            put_number(&mut bytes, 1, u64::from(value.is_string()));
            put_number(&mut bytes, 2, integer(value) as u64);
            put_bytes(&mut bytes, 3, text.as_bytes());
        }
        Shape::Time | Shape::MicroTime => {
            if let Ok(time) = text.parse::<Timestamp>() {
                put_number(&mut bytes, 1, time.as_second() as u64);
                put_number(&mut bytes, 2, time.subsec_nanosecond() as u64);
            }
        }
        Shape::Duration => put_number(&mut bytes, 1, values::parse_duration(text).unwrap_or_default() as u64),
        Shape::Raw | Shape::Fields | Shape::Json => {
            put_bytes(&mut bytes, 1, &serde_json::to_vec(value).unwrap_or_default());
        }
        Shape::Strings => put_strings(&mut bytes, 1, value),
        Shape::SchemaOrArray(id) => match value {
            Value::Array(list) => list.iter().for_each(|one| put_schema(schema, id, 2, one, &mut bytes)),
            one => put_schema(schema, id, 1, one, &mut bytes),
        },
        Shape::SchemaOrBool(id) => {
            put_number(&mut bytes, 1, u64::from(value.as_bool().unwrap_or(true)));
            if value.is_object() {
                put_schema(schema, id, 2, value, &mut bytes);
            }
        }
        Shape::SchemaOrStrings(id) => match value {
            Value::Object(_) => put_schema(schema, id, 1, value, &mut bytes),
            list => put_strings(&mut bytes, 2, list),
        },
        // Written by `put_value`.
        Shape::String | Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Double | Shape::Bytes | Shape::Object(_) => {
        }
    }
    bytes
}

fn put_strings(into: &mut Vec<u8>, number: u32, list: &Value) {
    for one in list.as_array().into_iter().flatten() {
        put_bytes(into, number, one.as_str().unwrap_or_default().as_bytes());
    }
}

fn put_schema(schema: &Schema, id: TypeId, number: u32, value: &Value, into: &mut Vec<u8>) {
    put_bytes(into, number, &nested(schema, id, value));
}
