//! The columns of `kubectl get`, their cells, and the tables made of them.
//!
//! Which columns a kind has stands in `layout`; what its cells hold, in one file a family. A test keeps both in step.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_api::Object;

use crate::{ResourceDef, json::Fields};

pub(crate) mod admission;
mod age;
pub(crate) mod core;
mod layout;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod rbac;
pub(crate) mod storage;
mod text;
pub(crate) mod usage;
pub(crate) mod workloads;

#[cfg(test)]
mod tests;

pub(crate) use age::since;
pub use age::{age, human_duration};
pub(crate) use layout::columns;

/// A kind that has no columns of its own.
pub(crate) fn name_and_creation(object: &Object, _now: Timestamp) -> Vec<Value> {
    let created = object.str_at(&["metadata", "creationTimestamp"]);
    vec![object.name().into(), created.into()]
}

pub(crate) fn name_and_age(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), age(object, now).into()]
}

/// The fields under a key; none where there is no object.
fn part<'a>(object: &'a Object, key: &str) -> Cow<'a, Fields> {
    match object.at(&[key]) {
        Some(Value::Object(fields)) => Cow::Borrowed(fields),
        _ => Cow::Owned(Fields::new()),
    }
}

/// What each row of a table carries beside its cells (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

/// A `meta.k8s.io/v1` Table. `list_metadata` is the metadata of the list (`resourceVersion`, `continue` ..);
/// `with_columns` is false for all but the first event of a watch.
pub fn table(
    def: &ResourceDef,
    objects: &[&Object],
    list_metadata: Value,
    include: IncludeObject,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> = def
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects.iter().map(|object| row(def, object, include, now)).collect();
    let mut table = json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata });
    table["columnDefinitions"] = if with_columns { columns.into() } else { Value::Null };
    table["rows"] = rows.into();
    table
}

fn row(def: &ResourceDef, object: &Object, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = Fields::new();
    row.insert("cells".to_owned(), def.cells(object, now).into());
    let carried = match include {
        IncludeObject::None => None,
        IncludeObject::Metadata => Some(json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object.at(&["metadata"]).cloned().unwrap_or_default(),
        })),
        IncludeObject::Object => Some(Value::Object(object.0.clone())),
    };
    if let Some(carried) = carried {
        row.insert("object".to_owned(), carried);
    }
    Value::Object(row)
}
