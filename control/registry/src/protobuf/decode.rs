use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{
    MAX_DEPTH, MAX_VALUES, Malformed, values,
    wire::{Raw, Reader},
};
use crate::schema::{Field, Label, Schema, Shape, Type, WireField};

/// `runtime.Unknown`: the kind, and the bytes of an object of that kind.
pub(super) struct Envelope<'a> {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) raw: &'a [u8],
}

pub(super) fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, Malformed> {
    let mut envelope = Envelope { api_version: String::new(), kind: String::new(), raw: &[] };
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.next()? {
        match (number, raw) {
            (1, Raw::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, raw)) = meta.next()? {
                    match number {
                        1 => envelope.api_version = text(raw, "apiVersion")?,
                        2 => envelope.kind = text(raw, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Raw::Bytes(bytes)) => envelope.raw = bytes,
            _ => {}
        }
    }
    Ok(envelope)
}

fn bytes<'a>(raw: Raw<'a>, field: &str) -> Result<&'a [u8], Malformed> {
    match raw {
        Raw::Bytes(bytes) => Ok(bytes),
        other => Err(Malformed::WrongWireType { wire_type: other.wire_type(), field: field.to_owned() }),
    }
}

fn text(raw: Raw<'_>, field: &str) -> Result<String, Malformed> {
    let bytes = bytes(raw, field)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed::Utf8(field.to_owned()))
}

fn number(raw: Raw<'_>, field: &str) -> Result<u64, Malformed> {
    match raw {
        Raw::Varint(number) => Ok(number),
        other => Err(Malformed::WrongWireType { wire_type: other.wire_type(), field: field.to_owned() }),
    }
}

pub(super) fn message(schema: &Schema, ty: &Type, bytes: &[u8]) -> Result<Map<String, Value>, Malformed> {
    let mut map = Map::new();
    Decoder { schema, left: MAX_VALUES }.message(ty, bytes, &mut map, 0)?;
    Ok(map)
}

struct Decoder<'a> {
    schema: &'a Schema,
    left: usize,
}

impl Decoder<'_> {
    fn message(
        &mut self,
        ty: &Type,
        bytes: &[u8],
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed::Depth);
        }
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.next()? {
            self.left = self.left.checked_sub(1).ok_or(Malformed::Size)?;
            match ty.on_wire(number) {
                // Fields of newer releases are dropped, as every protobuf reader does.
                None => {}
                Some(WireField::Inline(inner)) => {
                    let inner = self.schema.get(inner);
                    self.message(inner, self::bytes(raw, &inner.name)?, into, depth + 1)?;
                }
                Some(WireField::Field(at)) => self.field(&ty.fields[at], raw, into, depth)?,
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        raw: Raw<'_>,
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Malformed> {
        match field.label {
            Label::One => {
                // A message that comes in parts is merged; a later scalar replaces an earlier one.
                if let Shape::Object(id) = field.shape
                    && let Some(Value::Object(earlier)) = into.get_mut(&*field.name)
                {
                    return self.message(self.schema.get(id), bytes(raw, &field.name)?, earlier, depth + 1);
                }
                match self.value(field, raw, depth)? {
                    Some(value) if field.keeps_zero() || !field.is_zero(&value) => {
                        into.insert(field.name.clone().into_owned(), value);
                    }
                    Some(_) => {}
                    None => {
                        into.shift_remove(&*field.name);
                    }
                }
            }
            Label::List => {
                let list = into.entry(&*field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Ok(()) };
                self.elements(field, raw, list, depth)?;
            }
            Label::Map => {
                let (key, value) = self.entry(field, bytes(raw, &field.name)?, depth)?;
                let map = into.entry(&*field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = map else { return Ok(()) };
                map.insert(key, value);
            }
        }
        Ok(())
    }

    fn elements(&mut self, field: &Field, raw: Raw<'_>, list: &mut Vec<Value>, depth: usize) -> Result<(), Malformed> {
        let is_number = matches!(field.shape, Shape::Int32 | Shape::Int64 | Shape::Bool);
        if let (Raw::Bytes(packed), true) = (raw, is_number) {
            let mut reader = Reader(packed);
            while !reader.0.is_empty() {
                self.left = self.left.checked_sub(1).ok_or(Malformed::Size)?;
                let one = Raw::Varint(reader.varint()?);
                list.extend(self.value(field, one, depth)?);
            }
            return Ok(());
        }
        // A list keeps its length: what is nothing stands as null.
        list.push(self.value(field, raw, depth)?.unwrap_or_default());
        Ok(())
    }

    fn entry(&mut self, field: &Field, bytes: &[u8], depth: usize) -> Result<(String, Value), Malformed> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.next()? {
            match number {
                1 => key = text(raw, &field.name)?,
                2 => value = self.value(field, raw, depth)?,
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| empty(field.shape))))
    }

    /// One value. `None` stands for JSON's null, as zero times are written.
    fn value(&mut self, field: &Field, raw: Raw<'_>, depth: usize) -> Result<Option<Value>, Malformed> {
        let name = &*field.name;
        Ok(Some(match field.shape {
            Shape::String => text(raw, name)?.into(),
            Shape::Bool => (number(raw, name)? != 0).into(),
            Shape::Int32 => (number(raw, name)? as i32).into(),
            Shape::Int64 => (number(raw, name)? as i64).into(),
            Shape::Double => match raw {
                Raw::Fixed64(bits) => f64::from_bits(bits).into(),
                other => {
                    return Err(Malformed::WrongWireType { wire_type: other.wire_type(), field: name.to_owned() });
                }
            },
            Shape::Bytes => STANDARD.encode(bytes(raw, name)?).into(),
            Shape::Object(id) => {
                let mut map = Map::new();
                self.message(self.schema.get(id), bytes(raw, name)?, &mut map, depth + 1)?;
                Value::Object(map)
            }
            _ => return self.special(field, bytes(raw, name)?, depth),
        }))
    }

    fn special(&mut self, field: &Field, bytes: &[u8], depth: usize) -> Result<Option<Value>, Malformed> {
        let name = &*field.name;
        let parts = Parts::read(bytes)?;
        Ok(match field.shape {
            Shape::Quantity => {
                let quantity = parts.text(1, name)?;
                Some(if quantity.is_empty() { "0".into() } else { quantity.into() })
            }
            Shape::IntOrString if parts.number(1) == 1 => Some(parts.text(3, name)?.into()),
            Shape::IntOrString => Some((parts.number(2) as i32).into()),
            Shape::Time | Shape::MicroTime if bytes.is_empty() => None,
            Shape::Time => values::time(parts.number(1) as i64).map(Value::from),
            Shape::MicroTime => values::micro_time(parts.number(1) as i64, parts.number(2) as i32).map(Value::from),
            Shape::Duration => Some(values::duration(parts.number(1) as i64).into()),
            Shape::Raw | Shape::Fields | Shape::Json => self.json(parts.last(1), name)?,
            Shape::Strings => {
                let list: Result<Vec<Value>, _> = parts.all(1).map(|raw| Ok(text(raw, name)?.into())).collect();
                Some(Value::Array(list?))
            }
            Shape::SchemaOrArray(id) => Some(match parts.first_message(2) {
                Some(_) => self.schemas(id, &parts, depth)?,
                None => self.schema(id, parts.last(1), depth)?,
            }),
            Shape::SchemaOrBool(id) => Some(match parts.first_message(2) {
                Some(schema) => self.schema(id, schema, depth)?,
                None => (parts.number(1) != 0).into(),
            }),
            Shape::SchemaOrStrings(id) => Some(match parts.first_message(1) {
                Some(schema) => self.schema(id, schema, depth)?,
                None => {
                    let list: Result<Vec<Value>, _> = parts.all(2).map(|raw| Ok(text(raw, name)?.into())).collect();
                    Value::Array(list?)
                }
            }),
            // Handled by `value`.
            Shape::String
            | Shape::Bool
            | Shape::Int32
            | Shape::Int64
            | Shape::Double
            | Shape::Bytes
            | Shape::Object(_) => None,
        })
    }

    fn schema(&mut self, id: crate::schema::TypeId, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
        let mut map = Map::new();
        self.message(self.schema.get(id), bytes, &mut map, depth + 1)?;
        Ok(Value::Object(map))
    }

    fn schemas(&mut self, id: crate::schema::TypeId, parts: &Parts<'_>, depth: usize) -> Result<Value, Malformed> {
        let list: Vec<Raw<'_>> = parts.all(2).collect();
        let list: Result<Vec<Value>, _> =
            list.into_iter().map(|raw| self.schema(id, bytes(raw, "jSONSchemas")?, depth)).collect();
        list.map(Value::Array)
    }

    /// JSON inside protobuf. Depth is bounded by serde_json, size by the body.
    fn json(&mut self, bytes: &[u8], field: &str) -> Result<Option<Value>, Malformed> {
        if bytes.is_empty() {
            return Ok(None);
        }
        self.left = self.left.checked_sub(bytes.len() / 64).ok_or(Malformed::Size)?;
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|why| Malformed::Json { field: field.to_owned(), why: why.to_string() })?;
        Ok(Some(value).filter(|value| !value.is_null()))
    }
}

/// The fields of a small message that is not in the type table's own form.
struct Parts<'a>(Vec<(u32, Raw<'a>)>);

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Parts<'a>, Malformed> {
        let (mut parts, mut reader) = (Vec::new(), Reader(bytes));
        while let Some(part) = reader.next()? {
            parts.push(part);
        }
        Ok(Parts(parts))
    }

    fn all(&self, wanted: u32) -> impl Iterator<Item = Raw<'a>> {
        self.0.iter().filter(move |(number, _)| *number == wanted).map(|(_, raw)| *raw)
    }

    fn number(&self, wanted: u32) -> u64 {
        self.all(wanted).fold(0, |number, raw| if let Raw::Varint(given) = raw { given } else { number })
    }

    fn last(&self, wanted: u32) -> &'a [u8] {
        self.all(wanted).fold(&[], |bytes, raw| if let Raw::Bytes(given) = raw { given } else { bytes })
    }

    fn first_message(&self, wanted: u32) -> Option<&'a [u8]> {
        self.all(wanted).find_map(|raw| if let Raw::Bytes(bytes) = raw { Some(bytes) } else { None })
    }

    fn text(&self, wanted: u32, field: &str) -> Result<String, Malformed> {
        std::str::from_utf8(self.last(wanted)).map(str::to_owned).map_err(|_| Malformed::Utf8(field.to_owned()))
    }
}

/// What a map holds for a key that came without a value.
fn empty(shape: Shape) -> Value {
    match shape {
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Object(_) | Shape::Raw | Shape::Fields => Value::Object(Map::new()),
        Shape::Strings => Value::Array(Vec::new()),
        Shape::Time | Shape::MicroTime | Shape::Json => Value::Null,
        _ => "".into(),
    }
}
