use serde_json::{Map, Value};
use tandem_api::Object;

use crate::{
    quantity::Quantity,
    schema::{Field, Label, Schema, Shape, Type},
};

/// Drops unknown fields, nulls and what a Go struct cannot tell from nothing, and writes quantities in their canonical
/// form: what Kubernetes' decoder and encoder do to a body together. Types that the schema doesn't have are left alone.
pub fn prune(schema: &Schema, type_name: &str, object: &mut Object) {
    if let Some(ty) = schema.ty(type_name) {
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
            list.iter_mut().for_each(|value| prune_value(schema, field.shape, value));
        }
        (Label::Map, Value::Object(map)) => {
            map.values_mut().for_each(|value| prune_value(schema, field.shape, value));
        }
        (Label::One, value) => prune_value(schema, field.shape, value),
        _ => {}
    }
    field.keeps_zero() || !field.is_zero(value)
}

fn prune_value(schema: &Schema, shape: Shape, value: &mut Value) {
    match (shape, &mut *value) {
        (Shape::Object(id), Value::Object(map)) => prune_object(schema, schema.get(id), map),
        (Shape::Object(_), value @ Value::Null) => *value = Value::Object(Map::new()),
        (Shape::String | Shape::Bytes, value @ Value::Null) => *value = "".into(),
        (Shape::Quantity, value) => canonical(value),
        (Shape::SchemaOrArray(id) | Shape::SchemaOrBool(id) | Shape::SchemaOrStrings(id), Value::Object(map)) => {
            prune_object(schema, schema.get(id), map);
        }
        (Shape::SchemaOrArray(id), Value::Array(list)) => {
            list.iter_mut().for_each(|value| prune_value(schema, Shape::Object(id), value));
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
