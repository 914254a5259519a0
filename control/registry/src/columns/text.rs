//! How parts of objects are written into one cell.

use serde_json::Value;

use crate::json::{Fields, FieldsExt};

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
pub(super) const UNKNOWN: &str = "<unknown>";
/// How many entries of a list are shown.
const SHOWN: usize = 3;

pub(super) fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

/// Joins a list, or says that there is nothing.
pub(super) fn join(list: &[String], otherwise: &str) -> String {
    or(&list.join(","), otherwise)
}

/// The first entries of a list and how many more there are.
pub(super) fn first_few(list: &[String], otherwise: &str) -> String {
    if list.len() <= SHOWN {
        return join(list, otherwise);
    }
    format!("{} + {} more...", list[..SHOWN].join(","), list.len() - SHOWN)
}

pub(super) fn strings(fields: &Fields, key: &str) -> Vec<String> {
    fields.list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `a=b,c=d`, in the order of the keys.
pub(super) fn labels(fields: &Fields, key: &str) -> String {
    let mut pairs: Vec<String> = fields.pairs(key).map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    join(&pairs, NONE)
}

/// A `LabelSelector` as text: `app=web,tier in (a,b),!old`.
pub(super) fn selector(owner: &Fields, key: &str) -> String {
    let Some(selector) = owner.child(key) else { return NONE.to_owned() };
    let mut parts: Vec<(String, String)> =
        selector.pairs("matchLabels").map(|(key, value)| (key.to_owned(), format!("{key}={value}"))).collect();
    for expression in selector.each("matchExpressions") {
        let key = expression.text("key");
        let mut values = strings(expression, "values");
        values.sort();
        let values = values.join(",");
        let text = match expression.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort_by(|one, other| one.0.cmp(&other.0));
    let parts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    join(&parts, NONE)
}

/// The names and the images of a template's containers.
pub(super) fn containers(template: Option<&Fields>) -> (String, String) {
    let containers: Vec<&Fields> = template
        .and_then(|template| template.child("spec"))
        .into_iter()
        .flat_map(|spec| spec.each("containers"))
        .collect();
    let of = |key: &str| containers.iter().map(|one| one.text(key)).collect::<Vec<_>>().join(",");
    (of("name"), of("image"))
}

/// A scalar as text; empty if there is none.
pub(super) fn scalar(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// Go's `%t` with a capital, for pointers to booleans.
pub(super) fn flag(fields: &Fields, key: &str) -> String {
    match fields.get(key).and_then(Value::as_bool) {
        Some(true) => "True".to_owned(),
        Some(false) => "False".to_owned(),
        None => UNSET.to_owned(),
    }
}
