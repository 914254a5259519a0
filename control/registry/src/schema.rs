//! The type table: every field of every built-in type, with its protobuf number and its merge rules.
//!
//! Types refer to each other by [`TypeId`]. Fields that stand in their parent in JSON (`inline`) are spread out in
//! [`Type::fields`]; only the protobuf codec sees them as messages, in [`Type::wire`].

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use serde_json::Value;

use crate::{ResourceDef, custom::CustomType};

mod load;
mod presence;

/// A type's place in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub(crate) u32);

/// What a single value of a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 text in JSON.
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// `1m30s` in JSON, nanoseconds on the wire.
    Duration,
    /// Any JSON object (`runtime.RawExtension`).
    Raw,
    /// `metadata.managedFields[].fieldsV1`.
    Fields,
    /// Any JSON value (`apiextensions.v1.JSON`).
    Json,
    /// A list of strings that is a type of its own on the wire (`ExtraValue`, `Verbs`).
    Strings,
    /// A JSON schema, or a list of them.
    SchemaOrArray(TypeId),
    /// A JSON schema, or `true` or `false`.
    SchemaOrBool(TypeId),
    /// A JSON schema, or a list of strings.
    SchemaOrStrings(TypeId),
    Object(TypeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    One,
    List,
    Map,
}

/// How lists and maps merge in server-side apply (`x-kubernetes-list-type`, `x-kubernetes-map-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ListType {
    /// Not said: lists are atomic, maps and objects are granular.
    #[default]
    Unset,
    Atomic,
    Set,
    /// A list whose elements are told apart by their keys.
    Map,
    /// An object or map that is replaced as a whole.
    AtomicMap,
    GranularMap,
}

/// How strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
}

#[derive(Clone, Debug)]
pub struct Field {
    /// The name in JSON.
    pub name: Cow<'static, str>,
    /// The protobuf field number.
    pub number: u32,
    pub label: Label,
    pub shape: Shape,
    pub required: bool,
    pub list_type: ListType,
    /// The keys of a list of type map.
    pub list_keys: Vec<Cow<'static, str>>,
    pub patch_strategy: PatchStrategy,
    /// The key by which strategic merge patch tells elements apart.
    pub patch_key: Option<Cow<'static, str>>,
    /// `int32`, `int64`, `double`, `byte`, as in OpenAPI.
    pub format: Option<Cow<'static, str>>,
    /// What OpenAPI calls the default.
    pub default: Option<Value>,
    /// Whether a zero value differs from none: a pointer in Kubernetes' own types.
    pub presence: bool,
}

impl Field {
    /// The type of the value or, for a list or map, of its elements.
    pub fn object(&self) -> Option<TypeId> {
        match self.shape {
            Shape::Object(id) => Some(id),
            _ => None,
        }
    }

    /// Whether the zero value of this field is written down.
    pub(crate) fn keeps_zero(&self) -> bool {
        self.required || self.presence
    }

    /// Whether a value is what a Go struct holds when nothing was set. Structs and the types that write themselves
    /// (quantities, times) are never omitted by Go.
    pub(crate) fn is_zero(&self, value: &Value) -> bool {
        match (self.label, value) {
            (Label::List, Value::Array(list)) => list.is_empty(),
            (Label::Map, Value::Object(map)) => map.is_empty(),
            (Label::One, Value::String(text)) => text.is_empty() && matches!(self.shape, Shape::String | Shape::Bytes),
            (Label::One, Value::Bool(set)) => !set && self.shape == Shape::Bool,
            (Label::One, Value::Number(number)) => {
                number.as_f64() == Some(0.0) && matches!(self.shape, Shape::Int32 | Shape::Int64 | Shape::Double)
            }
            _ => false,
        }
    }
}

/// A field as it stands in a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireField {
    /// An index into [`Type::fields`].
    Field(usize),
    /// A message whose fields stand in the parent in JSON.
    Inline(TypeId),
}

#[derive(Clone, Debug, Default)]
pub struct Type {
    /// Such as `apps.v1.Deployment` or `meta.v1.ObjectMeta`.
    pub name: Cow<'static, str>,
    /// All fields as they stand in JSON, the inlined ones among them.
    pub fields: Vec<Field>,
    /// Whether objects of this type carry `apiVersion` and `kind`.
    pub has_type_meta: bool,
    /// Whether server-side apply replaces objects of this type as a whole (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Protobuf number to field, in ascending order.
    pub(crate) wire: Vec<(u32, WireField)>,
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The last part of the name: what Go calls the struct.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    pub(crate) fn on_wire(&self, number: u32) -> Option<WireField> {
        let at = self.wire.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.wire[at].1)
    }
}

/// All types, by id and by name. Cloning shares the built-in ones.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    types: Arc<Vec<Type>>,
    by_name: Arc<HashMap<Cow<'static, str>, TypeId>>,
    /// The types of kinds that are defined at run time, by the names of their rows' types.
    custom: HashMap<String, Arc<CustomType>>,
}

impl Schema {
    /// The types of the built-in kinds.
    pub fn builtin() -> Schema {
        load::builtin()
    }

    /// The same types with those of custom rows.
    #[must_use]
    pub(crate) fn with(&self, rows: &[Arc<ResourceDef>]) -> Schema {
        let custom = |def: &Arc<ResourceDef>| Some((def.type_name.clone(), def.custom.clone()?));
        Schema { custom: rows.iter().filter_map(custom).collect(), ..self.clone() }
    }

    /// The type of a kind that is defined at run time.
    pub fn custom(&self, name: &str) -> Option<&CustomType> {
        self.custom.get(name).map(|custom| &**custom)
    }

    pub fn ty(&self, name: &str) -> Option<&Type> {
        self.id(name).map(|id| self.get(id))
    }

    pub fn id(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The type of an id of this schema.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    pub fn types(&self) -> impl Iterator<Item = &Type> {
        self.types.iter()
    }

    /// The name of a kind's type: `apps.v1.Deployment` for `apps`, `v1`, `Deployment`. Options that every group
    /// accepts (`DeleteOptions` ..) are found under `meta.v1`.
    pub fn kind_type(&self, group: &str, version: &str, kind: &str) -> Option<&Type> {
        let prefix = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
        let prefix = if group == "meta.k8s.io" { "meta" } else { prefix };
        let own = self.ty(&format!("{prefix}.{version}.{kind}"));
        own.or_else(|| self.ty(&format!("meta.v1.{kind}")).filter(|found| found.has_type_meta))
    }
}
