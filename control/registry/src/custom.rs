//! Kinds that are defined at run time, by CustomResourceDefinitions: rows as any other, whose types are structural
//! schemas instead of entries of the type table.
//!
//! ```text
//!  CustomResourceDefinition ─ definition (what is wrong with it) ─ rows ─> ResourceDef ─ CustomType ─ Node
//!  object ─ shape: prune, default ─ values: validate ─ rules: CEL ─ columns ─ path: JSONPath
//! ```
//! Schemas, patterns and expressions come from users: their sizes, their depth and what they cost have bounds.

mod columns;
mod definition;
mod formats;
mod path;
mod rows;
mod rules;
mod schema;
mod shape;
mod structure;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use definition::{prepare, validate};
pub use rows::rows;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tandem_api::{ApiError, Cause, Object};

use crate::schema::{ListType, Schema};
use path::JsonPath;
use structure::{Additional, JsonType};

/// The finalizer that holds a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What is particular to one version of a kind that a definition makes.
#[derive(Debug)]
pub struct CustomType {
    kind: String,
    version: String,
    /// The schema as it was written, as JSON. It is read when it is first needed: many kinds are never used.
    source: Bytes,
    node: OnceLock<structure::Node>,
    columns: Vec<columns::Cell>,
    selectable: Vec<(String, JsonPath)>,
    scale: Option<Scale>,
    /// Whether objects of this version are stored in it.
    is_stored: bool,
    /// Who converts objects between versions; `None` where versions differ by their names only.
    pub conversion: Option<Arc<ConversionWebhook>>,
    /// What clients that use this version are warned of.
    pub deprecation: Option<String>,
    /// Whether the definition is being deleted: objects can be deleted but not created.
    pub is_ending: bool,
}

/// A webhook that converts objects, as its definition names it.
#[derive(Debug)]
pub struct ConversionWebhook {
    pub client: Map<String, Value>,
    /// The version of reviews that it understands, of those that are spoken.
    pub review_version: &'static str,
}

/// Where an object keeps what its `scale` shows.
#[derive(Clone, Debug)]
pub struct Scale {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    pub label_selector: Option<Vec<String>>,
}

/// A place in the type of a custom object, for merging.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    node: &'a structure::Node,
    root: bool,
}

impl CustomType {
    fn node(&self) -> &structure::Node {
        self.node.get_or_init(|| {
            let schema: Map<String, Value> = serde_json::from_slice(&self.source).unwrap_or_default();
            structure::read(&schema).unwrap_or_else(|error| {
                // It was read when it was written. What cannot be read any more holds for no object.
                let why = format!("the schema of {} cannot be read: {error}", self.kind);
                structure::Node { preserve: true, broken: Some(why), ..structure::Node::default() }
            })
        })
    }

    pub fn scale(&self) -> Option<&Scale> {
        self.scale.as_ref()
    }

    /// Whether what is stored in this version reads as it is stored.
    pub fn reads_as_stored(&self) -> bool {
        self.is_stored && !self.node().has_defaults
    }

    /// Gives what was stored, perhaps in another version, the shape of this one.
    pub fn read(&self, object: &mut Object) {
        if !self.is_stored {
            shape::prune(self.node(), &mut object.0, &mut Vec::new());
        }
        self.default(object);
    }

    /// Drops what the schema does not know; answers with the paths of it, as strict validation names them.
    pub fn prune(&self, schema: &Schema, object: &mut Object) -> Vec<String> {
        let mut dropped = Vec::new();
        if let Some(metadata) = metadata(object) {
            dropped.extend(unknown_in(schema, &metadata));
            let mut pruned = Object::default();
            pruned.set(&["metadata"], metadata);
            crate::fields::prune(schema, METADATA_OWNER, &mut pruned);
            if let Some(metadata) = pruned.0.remove("metadata") {
                object.set(&["metadata"], metadata);
            }
        }
        shape::prune(self.node(), &mut object.0, &mut dropped);
        dropped
    }

    /// Fills in defaults. An object that they would make too large stays as it is: [`CustomType::validate`] refuses it.
    pub fn default(&self, object: &mut Object) {
        let node = self.node();
        // Nothing is added where there are no defaults: then only nulls go.
        let before = node.has_defaults.then(|| object.0.clone());
        if let (Err(shape::TooLarge), Some(before)) =
            (shape::Growth::default().object(node, &mut object.0, true), before)
        {
            object.0 = before;
        }
    }

    /// What is wrong with an object by its schema and its rules.
    pub fn validate(&self, object: &Object, old: Option<&Object>) -> Vec<Cause> {
        if let Some(why) = &self.node().broken {
            return vec![values::cause("FieldValueInvalid", "<nil>", format!("Invalid value: \"\": {why}"))];
        }
        let value = Value::Object(object.0.clone());
        let old = old.map(|old| Value::Object(old.0.clone()));
        let node = self.node();
        if node.has_defaults && shape::Growth::default().object(node, &mut object.0.clone(), true).is_err() {
            return vec![values::cause(
                "FieldValueInvalid",
                "<nil>",
                format!("Invalid value: \"\": {}", shape::TOO_LARGE),
            )];
        }
        let mut causes = values::validate(node, &value, old.as_ref(), "", &mut { values::STEPS_MAX });
        values::duplicates(node, &value, old.as_ref(), "", &mut causes);
        if !node.has_rules {
            return causes;
        }
        if values::blocks_rules(&causes) {
            let why = "Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            causes.push(values::cause("FieldValueInvalid", "<nil>", why));
            return causes;
        }
        causes.extend(rules::validate(node, &value, old.as_ref()));
        causes
    }

    pub(crate) fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let value = Value::Object(object.0.clone());
        let name = Value::from(object.name());
        std::iter::once(name).chain(self.columns.iter().map(|column| column.show(&value, now))).collect()
    }

    pub(crate) fn field(&self, object: &Object, field: &str) -> Option<String> {
        let (_, path) = self.selectable.iter().find(|(name, _)| name == field)?;
        let value = Value::Object(object.0.clone());
        Some(match path.first(&value) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        })
    }

    pub(crate) fn has_fields(&self) -> bool {
        !self.selectable.is_empty()
    }

    pub(crate) fn source(&self) -> &[u8] {
        &self.source
    }

    /// The schema as OpenAPI shows it.
    pub(crate) fn open_api(&self) -> Map<String, Value> {
        serde_json::from_slice(&self.source).unwrap_or_default()
    }

    pub fn place(&self) -> Place<'_> {
        Place { node: self.node(), root: true }
    }

    /// Wrong types in what every object has; the rest is for [`CustomType::validate`].
    pub fn types(&self, schema: &Schema, object: &Object) -> Result<(), ApiError> {
        let Some(metadata) = object.at(&["metadata"]) else { return Ok(()) };
        let (kind, version) = (&self.kind, &self.version);
        let refuse = |why: &str| {
            ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
        };
        if !metadata.is_object() && !metadata.is_null() {
            return Err(refuse("metadata must be an object"));
        }
        let mut partial = Object::default();
        partial.set(&["metadata"], metadata.clone());
        crate::fields::types(schema, METADATA_OWNER, &partial).map_err(|error| {
            let why = error.message.split_once(": ").map_or(error.message.as_str(), |(_, why)| why);
            refuse(why)
        })
    }
}

/// A type of the table whose metadata is every object's.
const METADATA_OWNER: &str = "core.v1.ConfigMap";

fn metadata(object: &Object) -> Option<Value> {
    object.at(&["metadata"]).filter(|metadata| metadata.is_object()).cloned()
}

/// The paths of unknown fields of metadata.
fn unknown_in(schema: &Schema, metadata: &Value) -> Vec<String> {
    let mut partial = Object::default();
    partial.set(&["metadata"], metadata.clone());
    let messages = crate::fields::check(schema, METADATA_OWNER, &partial);
    let path = |message: &String| Some(message.strip_prefix("unknown field \"")?.strip_suffix('"')?.to_owned());
    messages.iter().filter_map(path).collect()
}

/// How the parts of a place merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// Owned as one.
    Leaf,
    /// By member.
    Members,
    Set,
    /// By the keys of the elements.
    Keyed,
}

impl<'a> Place<'a> {
    pub fn merging(self) -> Merging {
        match (self.node.ty, self.node.list_type) {
            (_, ListType::AtomicMap) => Merging::Leaf,
            (Some(JsonType::Array), ListType::Set) => Merging::Set,
            (Some(JsonType::Array), ListType::Map) => Merging::Keyed,
            (Some(JsonType::Object) | None, _) => Merging::Members,
            _ => Merging::Leaf,
        }
    }

    /// Whether a member of this place is a resource's metadata.
    pub fn is_metadata(self, name: &str) -> bool {
        name == "metadata" && (self.root || self.node.embedded)
    }

    pub fn member(self, name: &str) -> Option<Place<'a>> {
        self.node.member(name).map(|node| Place { node, root: false })
    }

    /// Whether the type itself has this member, rather than somebody who put it there.
    pub fn declares(self, name: &str) -> bool {
        self.is_metadata(name) || self.node.properties.contains_key(name)
    }

    pub fn item(self) -> Option<Place<'a>> {
        self.node.items.as_deref().map(|node| Place { node, root: false })
    }

    /// Whether members that the type does not have are put there by name.
    pub fn is_open(self) -> bool {
        self.node.properties.is_empty() && !matches!(self.node.additional, Additional::None)
    }

    /// The keys of a list with their defaults.
    pub fn keys(self) -> impl Iterator<Item = (&'a str, Option<&'a Value>)> {
        self.node.list_keys.iter().map(move |key| (&**key, self.node.key_default(key)))
    }
}
