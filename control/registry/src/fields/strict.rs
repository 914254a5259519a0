use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use tandem_api::{ApiError, Object};

use crate::schema::{Label, Schema, Shape, Type, TypeId};

/// How many complaints one body gets; Kubernetes too stops at 100.
const MAX_MESSAGES: usize = 100;

/// Reads a JSON body. Beside the object come the messages about fields that were given twice (`duplicate field
/// "spec.replicas"`), of which the last one counts.
pub fn parse_strict(bytes: &[u8]) -> Result<(Object, Vec<String>), ApiError> {
    let mut reader = Reader { path: String::new(), duplicates: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node(&mut reader).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    let value = value
        .map_err(|error| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}")))?;
    let kind = json_kind(&value);
    let object = Object::from_value(value).ok_or_else(|| {
        ApiError::bad_request(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into Go value of type struct"
        ))
    })?;
    Ok((object, reader.duplicates))
}

/// What Go's decoder calls a JSON value.
pub(super) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

const DUPLICATE: &str = "duplicate field ";

struct Reader {
    path: String,
    duplicates: Vec<String>,
}

impl Reader {
    fn note_duplicate(&mut self) {
        let message = format!("{DUPLICATE}\"{}\"", self.path);
        if self.duplicates.len() < MAX_MESSAGES && !self.duplicates.contains(&message) {
            self.duplicates.push(message);
        }
    }
}

/// A value somewhere in the body; what it finds goes to the reader.
struct Node<'a>(&'a mut Reader);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let (mut values, length) = (Vec::new(), self.0.path.len());
        loop {
            self.0.path.push_str(&format!("[{}]", values.len()));
            let next = list.next_element_seed(Node(self.0))?;
            self.0.path.truncate(length);
            match next {
                Some(value) => values.push(value),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let (mut map, length) = (Map::new(), self.0.path.len());
        while let Some(key) = entries.next_key::<String>()? {
            push_key(&mut self.0.path, &key);
            let value = entries.next_value_seed(Node(self.0))?;
            if map.contains_key(&key) {
                self.0.note_duplicate();
            }
            self.0.path.truncate(length);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// The unknown fields, each as `unknown field "spec.replica"`, in the order of the object.
pub fn check(schema: &Schema, type_name: &str, object: &Object) -> Vec<String> {
    strict(schema, type_name, object, &[])
}

/// The unknown fields and, among them in the order of the object, the duplicates that [`parse_strict`] found in known
/// fields. For types that the schema doesn't have, the duplicates alone.
pub fn strict(schema: &Schema, type_name: &str, object: &Object, duplicates: &[String]) -> Vec<String> {
    if let Some(custom) = schema.custom(type_name) {
        let unknown = custom.prune(schema, &mut object.clone());
        return duplicates
            .iter()
            .cloned()
            .chain(unknown.iter().map(|path| format!("unknown field {path:?}")))
            .collect();
    }
    let Some(ty) = schema.ty(type_name) else { return duplicates.to_vec() };
    // Of YAML it is known on which line a key is given again, and not in which field.
    let messages = duplicates.iter().filter(|message| !message.starts_with(DUPLICATE)).cloned().collect();
    let mut walk = Walk { schema, duplicates, path: String::new(), messages };
    walk.object(ty, &object.0);
    walk.messages
}

struct Walk<'a> {
    schema: &'a Schema,
    duplicates: &'a [String],
    path: String,
    messages: Vec<String>,
}

impl Walk<'_> {
    fn say(&mut self, what: &str) {
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(format!("{what} field \"{}\"", self.path));
        }
    }

    fn note_duplicate(&mut self) {
        // Nearly always there are none, so the path is seldom turned into a message.
        if !self.duplicates.is_empty() && self.duplicates.contains(&format!("duplicate field \"{}\"", self.path)) {
            self.say("duplicate");
        }
    }

    fn object(&mut self, ty: &Type, map: &Map<String, Value>) {
        let length = self.path.len();
        for (key, value) in map {
            push_key(&mut self.path, key);
            match ty.field(key) {
                Some(field) => {
                    self.labelled(field.label, field.shape, value);
                    self.note_duplicate();
                }
                None if ty.has_type_meta && (key == "apiVersion" || key == "kind") => self.note_duplicate(),
                None => self.say("unknown"),
            }
            self.path.truncate(length);
        }
    }

    fn labelled(&mut self, label: Label, shape: Shape, value: &Value) {
        match (label, value) {
            (Label::List, Value::Array(list)) => self.list(shape, list),
            (Label::Map, Value::Object(map)) => {
                let length = self.path.len();
                for (key, value) in map {
                    push_key(&mut self.path, key);
                    self.value(shape, value);
                    self.note_duplicate();
                    self.path.truncate(length);
                }
            }
            (Label::One, value) => self.value(shape, value),
            _ => {}
        }
    }

    fn list(&mut self, shape: Shape, list: &[Value]) {
        let length = self.path.len();
        for (at, value) in list.iter().enumerate() {
            self.path.push_str(&format!("[{at}]"));
            self.value(shape, value);
            self.path.truncate(length);
        }
    }

    fn value(&mut self, shape: Shape, value: &Value) {
        match (shape, value) {
            (Shape::Object(id), Value::Object(map)) => self.object(self.schema.get(id), map),
            (
                Shape::SchemaOrArray(id) | Shape::SchemaOrBool(id) | Shape::SchemaOrStrings(id),
                Value::Object(_) | Value::Array(_),
            ) => self.schema_or(id, value),
            _ => {}
        }
    }

    fn schema_or(&mut self, id: TypeId, value: &Value) {
        match value {
            Value::Object(map) => self.object(self.schema.get(id), map),
            Value::Array(list) => self.list(Shape::Object(id), list),
            _ => {}
        }
    }
}
