//! The columns of `kubectl get` and the tables made of them.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use crate::{Column, ResourceDef};

mod age;

pub use age::{age, human_duration};

/// The columns of a kind.
pub(crate) fn columns(group: &str, kind: &str) -> &'static [Column] {
    let _ = (group, kind);
    NAME_AND_AGE
}

pub(crate) const fn column(name: &'static str, kind: &'static str, format: &'static str, priority: i32, description: &'static str) -> Column {
    Column { name: std::borrow::Cow::Borrowed(name), kind, format, description: std::borrow::Cow::Borrowed(description), priority }
}

pub(crate) const NAME_AND_AGE: &[Column] = &[
    column("Name", "string", "name", 0, "Name must be unique within a namespace."),
    column("Age", "string", "", 0, "CreationTimestamp is a timestamp representing the server time when this object was created."),
];

pub(crate) fn name_and_age(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), age(object, now).into()]
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
            serde_json::json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects.iter().map(|object| row(def, object, include, now)).collect();
    let mut table = serde_json::json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata });
    table["columnDefinitions"] = if with_columns { columns.into() } else { Value::Null };
    table["rows"] = rows.into();
    table
}

fn row(def: &ResourceDef, object: &Object, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = serde_json::Map::new();
    row.insert("cells".to_owned(), (def.hooks.cells)(object, now).into());
    let carried = match include {
        IncludeObject::None => None,
        IncludeObject::Metadata => Some(serde_json::json!({
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
