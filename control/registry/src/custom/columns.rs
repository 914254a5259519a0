use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::path::JsonPath;
use crate::{
    Column, columns,
    json::{Fields, FieldsExt},
};

const NAME_TEXT: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const AGE_TEXT: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.";
/// The types of columns that definitions may name.
pub(crate) const TYPES: [&str; 5] = ["integer", "number", "string", "boolean", "date"];

/// Where a column's cells come from.
#[derive(Debug)]
pub(crate) struct Cell {
    kind: &'static str,
    path: JsonPath,
}

impl Cell {
    pub(crate) fn show(&self, object: &Value, now: Timestamp) -> Value {
        let Some(found) = self.path.first(object).filter(|found| !found.is_null()) else { return Value::Null };
        match (self.kind, found) {
            ("string", Value::String(text)) => text.as_str().into(),
            ("string", other) => other.to_string().into(),
            ("integer", Value::Number(number)) => {
                let whole = number.as_f64().map(|number| format!("{number:.0}"));
                number.as_i64().or_else(|| whole?.parse().ok()).into()
            }
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
            ("date", Value::String(text)) => {
                if text.parse::<Timestamp>().is_ok() {
                    columns::since(Some(text), now).into()
                } else {
                    "<invalid>".into()
                }
            }
            _ => Value::Null,
        }
    }
}

fn column(name: &str, kind: &'static str, format: &'static str, description: String, priority: i64) -> Column {
    Column {
        name: Cow::Owned(name.to_owned()),
        kind,
        format,
        description: Cow::Owned(description),
        priority: i32::try_from(priority).unwrap_or(i32::MAX),
    }
}

/// The columns of a version and where their cells come from; the first column is the name.
pub(crate) fn columns(version: &Fields) -> (Vec<Column>, Vec<Cell>) {
    let mut columns = vec![column("Name", "string", "name", NAME_TEXT.to_owned(), 0)];
    let mut cells = Vec::new();
    for given in version.each("additionalPrinterColumns") {
        let kind = TYPES.into_iter().find(|kind| *kind == given.text("type"));
        let (Some(kind), Ok(path)) = (kind, JsonPath::parse(given.text("jsonPath"))) else { continue };
        let text = match given.text("description") {
            "" => format!("Custom resource definition column (in JSONPath format): {}", given.text("jsonPath")),
            text => text.to_owned(),
        };
        columns.push(column(given.text("name"), kind, "", text, given.int("priority").unwrap_or_default()));
        cells.push(Cell { kind, path });
    }
    if cells.is_empty()
        && let Ok(path) = JsonPath::parse(".metadata.creationTimestamp")
    {
        columns.push(column("Age", "date", "", AGE_TEXT.to_owned(), 0));
        cells.push(Cell { kind: "date", path });
    }
    (columns, cells)
}
