use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A set of field paths: a tree whose edges are path elements in the form of `fieldsV1` (`f:spec`, `k:{"name":"x"}`,
/// `v:"x"`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// Whether the path that leads here is itself in the set.
    own: bool,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(crate) fn is_empty(&self) -> bool {
        !self.own && self.children.values().all(FieldSet::is_empty)
    }

    pub(crate) fn owns_itself(&self) -> bool {
        self.own
    }

    pub(crate) fn child(&self, element: &str) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = (&str, &FieldSet)> {
        self.children.iter().map(|(element, child)| (element.as_str(), child))
    }

    /// The place of a child, made if need be.
    pub(crate) fn enter(&mut self, element: String) -> &mut FieldSet {
        self.children.entry(element).or_default()
    }

    pub(crate) fn insert_self(&mut self) {
        self.own = true;
    }

    pub(crate) fn union(&mut self, other: &FieldSet) {
        self.own |= other.own;
        for (element, child) in &other.children {
            self.enter(element.clone()).union(child);
        }
    }

    pub(crate) fn subtract(&mut self, other: &FieldSet) {
        self.own &= !other.own;
        for (element, child) in &other.children {
            if let Some(mine) = self.children.get_mut(element) {
                mine.subtract(child);
            }
        }
        self.children.retain(|_, child| !child.is_empty());
    }

    #[must_use]
    pub(crate) fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut common = FieldSet { own: self.own && other.own, children: BTreeMap::new() };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                let both = child.intersection(theirs);
                if !both.is_empty() {
                    common.children.insert(element.clone(), both);
                }
            }
        }
        common
    }

    /// The paths in Kubernetes' notation: `.spec.containers[name="web"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut String, paths: &mut Vec<String>) {
        if self.own {
            paths.push(prefix.clone());
        }
        for (element, child) in &self.children {
            let length = prefix.len();
            prefix.push_str(&readable(element));
            child.collect(prefix, paths);
            prefix.truncate(length);
        }
    }

    /// Reads `fieldsV1`; what is no field set reads as an empty one.
    pub(crate) fn from_json(value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        for (element, child) in value.as_object().into_iter().flatten() {
            if element == "." {
                set.own = true;
                continue;
            }
            let mut below = FieldSet::from_json(child);
            if child.as_object().is_some_and(Map::is_empty) {
                below.own = true;
            }
            set.children.insert(element.clone(), below);
        }
        set
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.own && !self.children.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (element, child) in &self.children {
            if !child.is_empty() {
                map.insert(element.clone(), child.to_json());
            }
        }
        Value::Object(map)
    }
}

fn readable(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("v:", value)) => format!("[={value}]"),
        Some(("i:", index)) => format!("[{index}]"),
        Some(("k:", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let pairs: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", pairs.join(","))
        }
        _ => element.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: &Value) -> FieldSet {
        FieldSet::from_json(value)
    }

    #[test]
    fn reads_and_writes_fields_v1() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}}}}});
        assert_eq!(set(&fields).to_json(), fields);
        assert_eq!(
            set(&fields).paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"web\"]",
                ".spec.containers[name=\"web\"].image",
            ]
        );
    }

    #[test]
    fn set_operations() {
        let mut one = set(&json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}}));
        let other = set(&json!({"f:b": {"f:c": {}, "f:d": {}}}));
        assert_eq!(one.intersection(&other).paths(), [".b.c"]);
        one.union(&other);
        assert_eq!(one.paths(), [".a", ".b", ".b.c", ".b.d"]);
        one.subtract(&other);
        assert_eq!(one.paths(), [".a", ".b"]);
        one.subtract(&one.clone());
        assert!(one.is_empty());
    }
}
