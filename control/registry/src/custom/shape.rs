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

/// What defaults may add to one object, and those of one schema to each other, in bytes: more than any object may have.
const GROWTH_MAX_BYTES: usize = 2 << 20;
/// What a value takes at least.
const VALUE_BYTES: usize = 8;
pub(crate) const TOO_LARGE: &str = "the defaults of the schema make too large an object: they multiply each other";

/// That defaults make an object too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Fills in defaults, as long as they are not too large: defaults within defaults multiply.
pub(crate) struct Growth {
    left: usize,
}

impl Default for Growth {
    fn default() -> Growth {
        Growth { left: GROWTH_MAX_BYTES }
    }
}

impl Growth {
    /// A copy of a default, if there is room for it.
    fn copy(&mut self, default: &Value) -> Result<Value, TooLarge> {
        let mut rest = vec![default];
        while let Some(value) = rest.pop() {
            self.take(VALUE_BYTES)?;
            match value {
                Value::String(text) => self.take(text.len())?,
                Value::Array(list) => rest.extend(list),
                Value::Object(map) => {
                    for (name, value) in map {
                        self.take(name.len())?;
                        rest.push(value);
                    }
                }
                _ => {}
            }
        }
        Ok(default.clone())
    }

    fn take(&mut self, bytes: usize) -> Result<(), TooLarge> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(TooLarge),
        }
    }

    /// Fills in defaults; drops nulls that the schema does not allow.
    pub(crate) fn object(
        &mut self,
        node: &Node,
        object: &mut Map<String, Value>,
        resource: bool,
    ) -> Result<(), TooLarge> {
        object.retain(|key, value| {
            !value.is_null()
                || (resource && RESOURCE.contains(&key.as_str()))
                || node.member(key).is_none_or(|member| member.nullable || member.default.is_some())
        });
        // Of many small objects each would else look at all properties.
        let properties = node.has_defaults.then_some(&node.properties);
        for (name, property) in properties.into_iter().flatten() {
            if resource && RESOURCE.contains(&name.as_str()) {
                continue;
            }
            let Some(value) = &property.default else { continue };
            let missing = object.get(name).is_none_or(|found| found.is_null() && !property.nullable);
            if missing {
                self.take(name.len())?;
                object.insert(name.clone(), self.copy(value)?);
            }
        }
        for (name, value) in object.iter_mut() {
            if resource && RESOURCE.contains(&name.as_str()) {
                continue;
            }
            if let Some(member) = node.member(name) {
                self.value(member, value)?;
            }
        }
        Ok(())
    }

    pub(crate) fn value(&mut self, node: &Node, value: &mut Value) -> Result<(), TooLarge> {
        match value {
            Value::Object(map) => self.object(node, map, node.embedded)?,
            Value::Array(list) => {
                let Some(items) = &node.items else { return Ok(()) };
                for value in list {
                    if value.is_null()
                        && !items.nullable
                        && let Some(default) = &items.default
                    {
                        *value = self.copy(default)?;
                    }
                    self.value(items, value)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
