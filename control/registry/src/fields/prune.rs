use serde_json::{Map, Value};
use tandem_api::Object;

use crate::{
    quantity::Quantity,
    schema::{Field, Label, Schema, Shape, Type},
};

/// What Go's `time.Time` holds when nothing was set.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Drops unknown fields, nulls and what a Go struct cannot tell from nothing, and writes quantities and base64 in their
/// canonical form: what Kubernetes' decoder and encoder do to a body together. Types that the schema doesn't have are
/// left alone.
pub fn prune(schema: &Schema, type_name: &str, object: &mut Object) {
    if let Some(custom) = schema.custom(type_name) {
        custom.prune(schema, object);
    } else if let Some(ty) = schema.ty(type_name) {
        prune_object(schema, ty, &mut object.0);
    }
}

fn prune_object(schema: &Schema, ty: &Type, map: &mut Map<String, Value>) {
    map.retain(|key, value| match ty.field(key) {
        Some(field) => !value.is_null() && prune_field(schema, field, value),
        None => ty.has_type_meta && (key == "apiVersion" || key == "kind"),
    });
}

/// Whether the field stays.
fn prune_field(schema: &Schema, field: &Field, value: &mut Value) -> bool {
    match (field.label, &mut *value) {
        (Label::List, Value::Array(list)) => {
            list.iter_mut().for_each(|value| prune_element(schema, field.shape, value));
        }
        (Label::Map, Value::Object(map)) => {
            map.values_mut().for_each(|value| prune_element(schema, field.shape, value));
        }
        (Label::One, value) => prune_value(schema, field.shape, value),
        _ => {}
    }
    field.keeps_zero() || !field.is_zero(value)
}

/// An element cannot be left out as a field can: Go decodes a null to the zero value of its type.
fn prune_element(schema: &Schema, shape: Shape, value: &mut Value) {
    if value.is_null() {
        *value = zero(shape);
    }
    prune_value(schema, shape, value);
}

fn zero(shape: Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Time | Shape::MicroTime => ZERO_TIME.into(),
        Shape::Duration => "0s".into(),
        Shape::Strings => Value::Array(Vec::new()),
        Shape::Fields
        | Shape::SchemaOrArray(_)
        | Shape::SchemaOrBool(_)
        | Shape::SchemaOrStrings(_)
        | Shape::Object(_) => Value::Object(Map::new()),
        // Here null is a value like any other.
        Shape::Raw | Shape::Json => Value::Null,
    }
}

fn prune_value(schema: &Schema, shape: Shape, value: &mut Value) {
    match (shape, &mut *value) {
        (Shape::Object(id), Value::Object(map)) => prune_object(schema, schema.get(id), map),
        (Shape::Quantity, value) => canonical(value),
        // Go's decoder reads over these, others' do not.
        (Shape::Bytes, Value::String(text)) => text.retain(|letter| !matches!(letter, '\r' | '\n')),
        (Shape::SchemaOrArray(id) | Shape::SchemaOrBool(id) | Shape::SchemaOrStrings(id), Value::Object(map)) => {
            prune_object(schema, schema.get(id), map);
        }
        (Shape::SchemaOrArray(id), Value::Array(list)) => {
            list.iter_mut().for_each(|value| prune_element(schema, Shape::Object(id), value));
        }
        _ => {}
    }
}

/// Leaves alone what is no quantity: that is told by the type check.
fn canonical(value: &mut Value) {
    let parsed = match &*value {
        Value::String(text) => Quantity::parse(text.trim()),
        other => Quantity::parse(&other.to_string()),
    };
    if let Ok(quantity) = parsed {
        *value = quantity.to_string().into();
    }
}
