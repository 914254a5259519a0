use serde_json::{Map, Value};
use tandem_registry::Schema;

use super::{FieldSet, Node, nodes::Parts};

/// `live` with everything that `applied` says laid over it: structs and maps by member, keyed lists by key, sets united,
/// all else replaced.
pub(crate) fn merge(schema: &Schema, node: Node<'_>, live: &Value, applied: &Value) -> Value {
    let (Some(old), Some(new)) = (node.parts(live), node.parts(applied)) else { return applied.clone() };
    match (old, new) {
        (Parts::Members(old), Parts::Members(new)) => {
            let mut merged: Map<String, Value> = old.clone();
            for (name, value) in new {
                let member = node.member(schema, name);
                let value = match old.get(name) {
                    Some(before) => merge(schema, member, before, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Parts::Items(old), Parts::Items(new)) => Value::Array(merge_items(schema, node.item(schema), &old, &new)),
        _ => applied.clone(),
    }
}

/// In the order of the applied list; elements that only the live list has keep their place among their neighbours.
fn merge_items(schema: &Schema, item: Node<'_>, old: &[(String, &Value)], new: &[(String, &Value)]) -> Vec<Value> {
    let find = |list: &[(String, &Value)], name: &str| list.iter().position(|(mine, _)| mine == name);
    let mut merged = Vec::new();
    let (mut left, mut right) = (0, 0);
    while left < old.len() || right < new.len() {
        if let Some((name, value)) = old.get(left) {
            if find(new, name).is_none() {
                merged.push((*value).clone());
                left += 1;
                continue;
            }
            // It comes, or came, with the applied list.
            left += 1;
        }
        if let Some((name, value)) = new.get(right) {
            let live = find(old, name).map(|at| old[at].1);
            merged.push(live.map_or_else(|| (*value).clone(), |live| merge(schema, item, live, value)));
            right += 1;
        }
    }
    merged
}

/// Takes the paths of `gone` out of a value. A path of an element takes the whole element.
pub(crate) fn remove(schema: &Schema, node: Node<'_>, value: &mut Value, gone: &FieldSet) {
    if gone.is_empty() {
        return;
    }
    match value {
        Value::Object(map) if matches!(node, Node::Struct(_) | Node::Map(_) | Node::Unknown | Node::Custom(_)) => {
            for (element, below) in gone.children() {
                let Some(name) = element.strip_prefix("f:") else { continue };
                if below.owns_itself() {
                    map.shift_remove(name);
                } else if let Some(child) = map.get_mut(name) {
                    remove(schema, node.member(schema, name), child, below);
                }
            }
        }
        Value::Array(_) => remove_items(schema, node, value, gone),
        _ => {}
    }
}

fn remove_items(schema: &Schema, node: Node<'_>, value: &mut Value, gone: &FieldSet) {
    let Some(Parts::Items(items)) = node.parts(value) else { return };
    let kept: Vec<Value> = items
        .iter()
        .filter_map(|(element, item)| match gone.child(element) {
            Some(below) if below.owns_itself() => None,
            Some(below) => {
                let mut item = (*item).clone();
                remove(schema, node.item(schema), &mut item, below);
                Some(item)
            }
            None => Some((*item).clone()),
        })
        .collect();
    *value = Value::Array(kept);
}
