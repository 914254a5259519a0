//! Strategic merge patch, as `kubectl apply`, `set`, `edit` and the Python client send it: lists are merged by the merge
//! keys of the type table, directives (`$patch`, `$retainKeys`, `$setElementOrder`, `$deleteFromPrimitiveList`) steer it.

use serde_json::{Map, Value};
use tandem_api::{ApiError, Object};
use tandem_registry::{
    Schema,
    schema::{Field, Label, Type},
};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

pub(crate) fn strategic_merge(
    schema: &Schema,
    type_name: &str,
    live: &Object,
    patch: &Map<String, Value>,
) -> Result<Object, ApiError> {
    let place = schema.ty(type_name).map_or(Place::Free, Place::Struct);
    Ok(Object(merge_map(schema, place, &live.0, patch)?))
}

/// What the type table says about an object in the tree.
#[derive(Clone, Copy)]
enum Place<'a> {
    Struct(&'a Type),
    /// A map whose values are of the field's type.
    Map(&'a Field),
    Free,
}

impl<'a> Place<'a> {
    fn field(self, name: &str) -> Option<&'a Field> {
        match self {
            Place::Struct(found) => found.field(name),
            Place::Map(_) | Place::Free => None,
        }
    }

    fn below(self, schema: &'a Schema, name: &str) -> Place<'a> {
        let of = |field: &Field| field.object().map_or(Place::Free, |id| Place::Struct(schema.get(id)));
        match self {
            Place::Struct(found) => match found.field(name) {
                Some(field) if field.label == Label::Map => Place::Map(field),
                Some(field) => of(field),
                None => Place::Free,
            },
            Place::Map(field) => of(field),
            Place::Free => Place::Free,
        }
    }
}

fn merge_map(
    schema: &Schema,
    place: Place<'_>,
    live: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    match patch.get(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(without_directives(patch)),
            "delete" => return Ok(Map::new()),
            "merge" => {}
            other => return Err(ApiError::bad_request(format!("unknown patch type found: {other}"))),
        },
        Some(_) => return Err(bad_directive(PATCH)),
    }
    let mut merged = retained(live, patch)?;
    for (key, value) in patch {
        if key == PATCH || key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_FROM) {
            delete_from(&mut merged, name, value)?;
            continue;
        }
        if value.is_null() {
            merged.shift_remove(key);
            continue;
        }
        let order = patch.get(&format!("{ELEMENT_ORDER}{key}"));
        let new = merge_value(schema, place, key, merged.get(key), value, order)?;
        merged.insert(key.clone(), new);
    }
    reorder_rest(place, &mut merged, patch)?;
    Ok(merged)
}

fn merge_value(
    schema: &Schema,
    place: Place<'_>,
    key: &str,
    live: Option<&Value>,
    patch: &Value,
    order: Option<&Value>,
) -> Result<Value, ApiError> {
    let field = place.field(key);
    match (live, patch) {
        (live, Value::Object(patch)) => {
            let empty = Map::new();
            let live = live.and_then(Value::as_object).unwrap_or(&empty);
            Ok(Value::Object(merge_map(schema, place.below(schema, key), live, patch)?))
        }
        (live, whole @ Value::Array(patch)) => {
            let live = live.and_then(Value::as_array).map_or(&[] as &[Value], Vec::as_slice);
            match field.filter(|field| field.label == Label::List && field.patch_strategy.merge) {
                // Without an order of its own the patch is one: what it adds comes first, as in Kubernetes.
                Some(merging) => {
                    let merged = merge_list(schema, place.below(schema, key), merging, live, patch)?;
                    ordered(field, merged, live, order.or(Some(whole)))
                }
                None => ordered(field, replacement(patch), live, order),
            }
        }
        (_, scalar) => Ok(scalar.clone()),
    }
}

/// `$retainKeys`: what the live object has beyond these keys goes.
fn retained(live: &Map<String, Value>, patch: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(live.clone()) };
    let keys = keys.as_array().ok_or_else(|| bad_directive(RETAIN_KEYS))?;
    let is_kept = |key: &str| keys.iter().any(|kept| kept == key);
    let stray = patch.iter().find(|(key, value)| !key.starts_with('$') && !value.is_null() && !is_kept(key));
    if stray.is_some() {
        return Err(bad_directive(RETAIN_KEYS));
    }
    Ok(live.iter().filter(|(key, _)| is_kept(key)).map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn delete_from(merged: &mut Map<String, Value>, name: &str, gone: &Value) -> Result<(), ApiError> {
    let gone = gone.as_array().ok_or_else(|| bad_directive(DELETE_FROM))?;
    if let Some(Value::Array(list)) = merged.get_mut(name) {
        list.retain(|value| !gone.contains(value));
    }
    Ok(())
}

fn merge_list(
    schema: &Schema,
    element: Place<'_>,
    field: &Field,
    live: &[Value],
    patch: &[Value],
) -> Result<Vec<Value>, ApiError> {
    let Some(key) = field.patch_key.as_deref().filter(|_| field.object().is_some()) else {
        let mut united = live.to_vec();
        united.extend(patch.iter().filter(|value| !live.contains(value)).cloned());
        return Ok(united);
    };
    let directive = |value: &Value| value.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|value| directive(value).as_deref() == Some("replace")) {
        let rest: Vec<Value> = patch.iter().filter(|value| value.get(PATCH).is_none()).cloned().collect();
        return Ok(replacement(&rest));
    }
    let mut merged = live.to_vec();
    for value in patch {
        let Value::Object(map) = value else {
            return Err(ApiError::bad_request(format!(
                "expected an object with the key {key} in the list {}",
                field.name
            )));
        };
        let Some(name) = map.get(key) else {
            return Err(ApiError::bad_request(format!(
                "map: {} does not contain declared merge key: {key}",
                go_value(value)
            )));
        };
        let at = merged.iter().position(|live| live.get(key) == Some(name));
        match (directive(value).as_deref(), at) {
            (Some("delete"), _) => merged.retain(|live| live.get(key) != Some(name)),
            (_, Some(at)) => {
                let empty = Map::new();
                let live = merged[at].as_object().unwrap_or(&empty);
                merged[at] = Value::Object(merge_map(schema, element, live, map)?);
            }
            (_, None) => merged.push(Value::Object(merge_map(schema, element, &Map::new(), map)?)),
        }
    }
    Ok(merged)
}

/// Lists whose order alone was sent.
fn reorder_rest(place: Place<'_>, merged: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), ApiError> {
    for (directive, order) in patch {
        let Some(name) = directive.strip_prefix(ELEMENT_ORDER) else { continue };
        if patch.contains_key(name) {
            continue;
        }
        if let Some(Value::Array(list)) = merged.get(name) {
            let list = list.clone();
            let live = list.clone();
            merged.insert(name.to_owned(), ordered(place.field(name), list, &live, Some(order))?);
        }
    }
    Ok(())
}

/// `$setElementOrder`: the elements that it names come in its order, the others stay among their old neighbours.
fn ordered(
    field: Option<&Field>,
    merged: Vec<Value>,
    live: &[Value],
    order: Option<&Value>,
) -> Result<Value, ApiError> {
    let Some(order) = order else { return Ok(Value::Array(merged)) };
    let order = order.as_array().ok_or_else(|| bad_directive(ELEMENT_ORDER))?;
    let key = field.and_then(|field| field.patch_key.as_deref());
    let name = |value: &Value| key.and_then(|key| value.get(key)).unwrap_or(value).clone();
    let place = |list: &[Value], value: &Value| list.iter().position(|one| name(one) == name(value));
    let (mut named, rest): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|value| place(order, value).is_some());
    named.sort_by_key(|value| place(order, value));
    let (mut named, mut rest) = (named.into_iter().peekable(), rest.into_iter().peekable());
    let mut result = Vec::new();
    while let (Some(right), Some(left)) = (named.peek(), rest.peek()) {
        let before = matches!((place(live, left), place(live, right)), (Some(left), Some(right)) if left < right);
        result.extend(if before { rest.next() } else { named.next() });
    }
    result.extend(named);
    result.extend(rest);
    Ok(Value::Array(result))
}

/// A list that replaces another, without what only steers.
fn replacement(patch: &[Value]) -> Vec<Value> {
    patch.iter().map(plain).collect()
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(key, value)| (key.clone(), plain(value)))
        .collect()
}

fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(list) => Value::Array(replacement(list)),
        scalar => scalar.clone(),
    }
}

fn bad_directive(directive: &str) -> ApiError {
    ApiError::bad_request(format!("invalid value for the directive {}", directive.trim_end_matches('/')))
}

/// A value as Go prints it with `%v`, which is how Kubernetes quotes patches in its messages.
pub(crate) fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_value(value))).collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}
