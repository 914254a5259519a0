//! What a write does to the shape of a custom object: pruning, defaulting, unknown fields.

use serde_json::{Map, Value};

use super::structure::{Additional, Node};

/// What every object has, whatever its schema says.
const RESOURCE: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// How many complaints one body gets; Kubernetes too stops at 100.
const MESSAGES_MAX: usize = 100;

/// Drops what the schema does not know. The paths of what was dropped go to `dropped`.
pub(crate) fn prune(node: &Node, object: &mut Map<String, Value>, dropped: &mut Vec<String>) {
    Pruning { path: String::new(), dropped }.object(node, object, true);
}

struct Pruning<'a> {
    path: String,
    dropped: &'a mut Vec<String>,
}

impl Pruning<'_> {
    fn object(&mut self, node: &Node, map: &mut Map<String, Value>, resource: bool) {
        let length = self.path.len();
        map.retain(|key, value| {
            if resource && RESOURCE.contains(&key.as_str()) {
                return true;
            }
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(key);
            let known = match node.member(key) {
                Some(member) => {
                    self.value(member, value);
                    true
                }
                None => node.preserve || matches!(node.additional, Additional::Any),
            };
            if !known && self.dropped.len() < MESSAGES_MAX {
                self.dropped.push(self.path.clone());
            }
            self.path.truncate(length);
            known
        });
    }

    fn value(&mut self, node: &Node, value: &mut Value) {
        match value {
            Value::Object(map) => self.object(node, map, node.embedded),
            Value::Array(list) => {
                let Some(items) = &node.items else {
                    // Elements of which nothing is said: their fields are unknown, unless they may be anything.
                    if !node.preserve {
                        list.iter_mut().for_each(|value| self.value(&Node::default(), value));
                    }
                    return;
                };
                let length = self.path.len();
                for (at, value) in list.iter_mut().enumerate() {
                    self.path.push_str(&format!("[{at}]"));
                    self.value(items, value);
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }
}

/// Fills in defaults; drops nulls that the schema does not allow.
pub(crate) fn default(node: &Node, object: &mut Map<String, Value>, resource: bool) {
    object.retain(|key, value| {
        !value.is_null()
            || (resource && RESOURCE.contains(&key.as_str()))
            || node.member(key).is_none_or(|member| member.nullable || member.default.is_some())
    });
    for (name, property) in &node.properties {
        if resource && RESOURCE.contains(&name.as_str()) {
            continue;
        }
        let Some(value) = &property.default else { continue };
        let missing = object.get(name).is_none_or(|found| found.is_null() && !property.nullable);
        if missing {
            object.insert(name.clone(), value.clone());
        }
    }
    for (name, value) in object.iter_mut() {
        if resource && RESOURCE.contains(&name.as_str()) {
            continue;
        }
        if let Some(member) = node.member(name) {
            default_value(member, value);
        }
    }
}

pub(crate) fn default_value(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => default(node, map, node.embedded),
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for value in list {
                    if value.is_null()
                        && !items.nullable
                        && let Some(default) = &items.default
                    {
                        *value = default.clone();
                    }
                    default_value(items, value);
                }
            }
        }
        _ => {}
    }
}
