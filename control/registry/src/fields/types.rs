use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};
use tandem_api::{ApiError, Object};

use super::strict::json_kind;
use crate::{
    protobuf::parse_duration,
    quantity::Quantity,
    schema::{Field, Label, Schema, Shape, Type},
};

/// Named string types of Go, as they stand in decoder errors.
const NAMED: [(&str, &str); 12] = [
    ("dnsPolicy", "v1.DNSPolicy"),
    ("externalTrafficPolicy", "v1.ServiceExternalTrafficPolicy"),
    ("imagePullPolicy", "v1.PullPolicy"),
    ("operator", "v1.LabelSelectorOperator"),
    ("pathType", "v1.PathType"),
    ("phase", "v1.PodPhase"),
    ("preemptionPolicy", "v1.PreemptionPolicy"),
    ("protocol", "v1.Protocol"),
    ("restartPolicy", "v1.RestartPolicy"),
    ("sessionAffinity", "v1.ServiceAffinity"),
    ("terminationMessagePolicy", "v1.TerminationMessagePolicy"),
    ("uid", "types.UID"),
];

/// Wrong JSON types, as the 400 that Kubernetes answers with. The first one found is told.
pub fn types(schema: &Schema, type_name: &str, object: &Object) -> Result<(), ApiError> {
    if let Some(custom) = schema.custom(type_name) {
        return custom.types(schema, object);
    }
    let Some(ty) = schema.ty(type_name) else { return Ok(()) };
    let mut walk = Walk { schema, path: Vec::new() };
    walk.object(ty, &object.0).map_err(|why| {
        let mut parts = type_name.rsplit('.');
        let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    })
}

struct Walk<'a> {
    schema: &'a Schema,
    /// The JSON names on the way down. Go leaves out list indices and map keys.
    path: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    fn object(&mut self, ty: &'a Type, map: &Map<String, Value>) -> Result<(), String> {
        for (key, value) in map {
            let Some(field) = ty.field(key) else {
                if ty.has_type_meta && (key == "apiVersion" || key == "kind") && !value.is_string() {
                    let found = json_kind(value);
                    return Err(format!(
                        "json: cannot unmarshal {found} into Go struct field TypeMeta.{key} of type string"
                    ));
                }
                continue;
            };
            self.path.push(&field.name);
            self.field(ty, field, value)?;
            self.path.pop();
        }
        Ok(())
    }

    fn field(&mut self, owner: &Type, field: &'a Field, value: &Value) -> Result<(), String> {
        match (field.label, value) {
            (_, Value::Null) => Ok(()),
            (Label::One, value) => self.value(owner, field, value),
            (Label::List, Value::Array(list)) => list.iter().try_for_each(|value| self.value(owner, field, value)),
            (Label::Map, Value::Object(map)) => map.values().try_for_each(|value| self.value(owner, field, value)),
            (label, value) => {
                let element = self.go_type(field);
                let wanted = if label == Label::List { format!("[]{element}") } else { self.go_map(field, &element) };
                Err(self.mismatch(owner, json_kind(value), &wanted))
            }
        }
    }

    fn go_map(&self, field: &Field, element: &str) -> String {
        let is_resources = field.shape == Shape::Quantity;
        if is_resources { "v1.ResourceList".to_owned() } else { format!("map[string]{element}") }
    }

    /// The Go type of one value of a field.
    fn go_type(&self, field: &Field) -> String {
        match field.shape {
            Shape::String => {
                let named = NAMED.iter().find(|(name, _)| *name == field.name).map(|(_, named)| *named);
                named.unwrap_or("string").to_owned()
            }
            Shape::Bool => "bool".to_owned(),
            Shape::Int32 => "int32".to_owned(),
            Shape::Int64 => "int64".to_owned(),
            Shape::Double => "float64".to_owned(),
            Shape::Bytes => "[]uint8".to_owned(),
            Shape::Strings => "v1.ExtraValue".to_owned(),
            Shape::Object(id) => {
                let name = &self.schema.get(id).name;
                name.split_once('.').map_or(&**name, |(_, rest)| rest).to_owned()
            }
            _ => "string".to_owned(),
        }
    }

    fn mismatch(&self, owner: &Type, found: &str, wanted: &str) -> String {
        let (path, owner) = (self.path.join("."), owner.short_name());
        format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")
    }

    fn value(&mut self, owner: &Type, field: &'a Field, value: &Value) -> Result<(), String> {
        let sound = match (field.shape, value) {
            (_, Value::Null) => true,
            (Shape::Object(id), Value::Object(map)) => return self.object(self.schema.get(id), map),
            (Shape::Int32 | Shape::Int64, Value::Number(number)) => {
                let fits = match field.shape {
                    Shape::Int32 => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
                    _ => number.as_i64().is_some(),
                };
                if !fits {
                    return Err(self.mismatch(owner, &format!("number {number}"), &self.go_type(field)));
                }
                true
            }
            (Shape::String, Value::String(_))
            | (Shape::Bool, Value::Bool(_))
            | (Shape::Double, Value::Number(_))
            | (Shape::Json, _)
            | (Shape::Raw | Shape::Fields, _)
            | (Shape::SchemaOrArray(_) | Shape::SchemaOrBool(_) | Shape::SchemaOrStrings(_), _) => true,
            (Shape::Strings, Value::Array(list)) => list.iter().all(Value::is_string),
            (Shape::Bytes, Value::String(text)) => return base64_problem(text).map_or(Ok(()), Err),
            _ => return self.special(owner, field, value),
        };
        if sound { Ok(()) } else { Err(self.mismatch(owner, json_kind(value), &self.go_type(field))) }
    }

    /// Types that read themselves in Go, so that the error has no path.
    fn special(&self, owner: &Type, field: &Field, value: &Value) -> Result<(), String> {
        let into_string = || format!("json: cannot unmarshal {} into Go value of type string", json_kind(value));
        match (field.shape, value) {
            (Shape::Quantity, Value::String(text)) => {
                Quantity::parse(text.trim()).map(|_| ()).map_err(|why| why.to_string())
            }
            (Shape::Quantity, other) => Quantity::parse(&other.to_string()).map(|_| ()).map_err(|why| why.to_string()),
            (Shape::IntOrString, Value::String(_)) => Ok(()),
            (Shape::IntOrString, Value::Number(number)) => match number.as_i64().map(i32::try_from) {
                Some(Ok(_)) => Ok(()),
                _ => Err(format!("json: cannot unmarshal number {number} into Go value of type int32")),
            },
            (Shape::IntOrString, other) => {
                Err(format!("json: cannot unmarshal {} into Go value of type int32", json_kind(other)))
            }
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                time_problem(text, field.shape).map_or(Ok(()), Err)
            }
            (Shape::Duration, Value::String(text)) => {
                parse_duration(text).map(|_| ()).ok_or_else(|| format!("time: invalid duration {text:?}"))
            }
            (Shape::Time | Shape::MicroTime | Shape::Duration, _) => Err(into_string()),
            _ => Err(self.mismatch(owner, json_kind(value), &self.go_type(field))),
        }
    }
}

fn base64_problem(text: &str) -> Option<String> {
    let error = STANDARD.decode(text.replace(['\n', '\r'], "")).err()?;
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(length) => length,
        base64::DecodeError::InvalidPadding => text.len(),
    };
    Some(format!("illegal base64 data at input byte {at}"))
}

fn time_problem(text: &str, shape: Shape) -> Option<String> {
    // Go's layouts ask for the offset, which jiff's parser does too.
    if text.parse::<Timestamp>().is_ok() && text.as_bytes().get(10) == Some(&b'T') {
        return None;
    }
    let layout = if shape == Shape::Time { "2006-01-02T15:04:05Z07:00" } else { "2006-01-02T15:04:05.000000Z07:00" };
    Some(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
}
