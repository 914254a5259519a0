use std::{net::IpAddr, rc::Rc};

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Map, Value as Json};
use tandem_api::quantity::Quantity;

use crate::{Error, eval::Budget, functions};

/// How deep the parts of a value that becomes JSON may be nested: JSON is read no deeper.
const DEPTH_MAX: usize = 100;

/// A value that whoever asks has made: its fields and methods are its own.
pub trait Host: std::fmt::Debug {
    fn type_name(&self) -> &'static str;
    fn field(&self, name: &str) -> Option<Value<'static>>;
    /// `None` where it has no such method for these arguments.
    fn call(&self, name: &str, arguments: &[&str]) -> Option<Value<'static>>;
}

/// A value of CEL. Lists and maps of the object that is asked about are looked at where they are.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Rc<str>),
    Bytes(Rc<[u8]>),
    List(Rc<Vec<Value<'a>>>),
    /// In the order in which it was written.
    Map(Rc<Vec<(Value<'a>, Value<'a>)>>),
    JsonText(&'a str),
    JsonList(&'a [Json]),
    JsonMap(&'a Map<String, Json>),
    Timestamp(Timestamp),
    /// In nanoseconds.
    Duration(i64),
    Optional(Option<Rc<Value<'a>>>),
    Type(&'static str),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpNet),
    Url(Rc<str>),
    Semver(Rc<semver::Version>),
    /// A named format of text, by the name of the function that names it.
    Format(&'static str),
    Host(Rc<dyn Host>),
}

impl<'a> Value<'a> {
    /// Whether it has more than so many values within each other, of those that an expression has made.
    pub(crate) fn is_deeper_than(&self, most: usize) -> bool {
        let within = |inner: &Value<'_>| most == 0 || inner.is_deeper_than(most - 1);
        match self {
            Value::List(items) => items.iter().any(within),
            Value::Map(entries) => entries.iter().any(|(_, value)| within(value)),
            Value::Optional(Some(inner)) => within(inner),
            _ => false,
        }
    }

    pub fn from_json(json: &'a Json) -> Value<'a> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Value::Int(value),
                (None, Some(value)) => Value::Uint(value),
                (None, None) => Value::Double(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Value::JsonText(text),
            Json::Array(list) => Value::JsonList(list),
            Json::Object(map) => Value::JsonMap(map),
        }
    }

    /// A value that may be missing, which expressions ask by `hasValue()`.
    pub fn optional(json: Option<&'a Json>) -> Value<'a> {
        Value::Optional(json.map(|json| Rc::new(Value::from_json(json))))
    }

    pub(crate) fn text(text: impl Into<Rc<str>>) -> Value<'a> {
        Value::Text(text.into())
    }

    pub(crate) fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(Rc::new(items))
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Url(text) => Some(text),
            Value::JsonText(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Uint(value) => i64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(crate) fn as_double(&self) -> Option<f64> {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "CEL converts so")]
            Value::Int(value) => Some(*value as f64),
            #[allow(clippy::cast_precision_loss, reason = "CEL converts so")]
            Value::Uint(value) => Some(*value as f64),
            Value::Double(value) => Some(*value),
            _ => None,
        }
    }

    /// The elements of a list.
    pub(crate) fn items(&self) -> Option<Vec<Value<'a>>> {
        match self {
            Value::List(items) => Some(items.as_ref().clone()),
            Value::JsonList(items) => Some(items.iter().map(Value::from_json).collect()),
            _ => None,
        }
    }

    /// The entries of a map.
    pub(crate) fn entries(&self) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        match self {
            Value::Map(entries) => Some(entries.as_ref().clone()),
            Value::JsonMap(map) => {
                Some(map.iter().map(|(key, value)| (Value::JsonText(key), Value::from_json(value))).collect())
            }
            _ => None,
        }
    }

    /// How many elements, entries, letters or bytes.
    pub(crate) fn size(&self) -> Option<usize> {
        match self {
            Value::List(items) => Some(items.len()),
            Value::JsonList(items) => Some(items.len()),
            Value::Map(entries) => Some(entries.len()),
            Value::JsonMap(map) => Some(map.len()),
            Value::Bytes(bytes) => Some(bytes.len()),
            _ => self.as_text().map(|text| text.chars().count()),
        }
    }

    /// What copying or reading all of it costs, the parts of its parts not counted.
    pub(crate) fn weight(&self) -> u64 {
        let size = match self {
            Value::List(items) => items.len(),
            Value::JsonList(items) => items.len(),
            Value::Map(entries) => entries.len(),
            Value::JsonMap(map) => map.len(),
            Value::Bytes(bytes) => bytes.len() / 8,
            _ => self.as_text().map_or(0, |text| text.len() / 8),
        };
        u64::try_from(size).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The value as JSON; what has no form of its own there is refused in words. What it costs is taken from the budget.
    pub fn to_json(&self, budget: &Budget) -> Result<Json, Error> {
        self.json(budget, DEPTH_MAX)
    }

    fn json(&self, budget: &Budget, depth: usize) -> Result<Json, Error> {
        budget.spend(self.weight())?;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(Error::of(format!("a value may be nested at most {DEPTH_MAX} deep")));
        };
        if let Some(items) = self.items() {
            return items.iter().map(|item| item.json(budget, depth)).collect();
        }
        if let Some(entries) = self.entries() {
            let mut map = Map::new();
            for (key, value) in &entries {
                let key = functions::text_of(key).ok_or_else(|| Error::of("the keys of an object must be texts"))?;
                map.insert(key, value.json(budget, depth)?);
            }
            return Ok(Json::Object(map));
        }
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Uint(value) => (*value).into(),
            Value::Double(value) => (*value).into(),
            Value::Bytes(bytes) => base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes).into(),
            Value::Optional(_) | Value::Type(_) | Value::Format(_) | Value::Host(_) => {
                return Err(Error::of(format!("a value of type '{}' has no form in JSON", self.type_name())));
            }
            other => functions::text_of(other).map_or(Json::Null, Json::String),
        })
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::Text(_) | Value::JsonText(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::List(_) | Value::JsonList(_) => "list",
            Value::Map(_) | Value::JsonMap(_) => "map",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Quantity(_) => "kubernetes.Quantity",
            Value::Ip(_) => "net.IP",
            Value::Cidr(_) => "net.CIDR",
            Value::Url(_) => "kubernetes.URL",
            Value::Semver(_) => "kubernetes.Semver",
            Value::Format(_) => "kubernetes.NamedFormat",
            Value::Host(host) => host.type_name(),
        }
    }
}
