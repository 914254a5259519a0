use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tandem_api::Object;
use tandem_registry::{
    Schema,
    custom::{Merging, Place},
    schema::{Field, Label, ListType, Type},
};

use super::FieldSet;

/// Types that are set as a whole wherever they stand (`x-kubernetes-map-type: atomic` on the type).
const ATOMIC_TYPES: [&str; 15] = [
    "meta.v1.LabelSelector",
    "core.v1.ConfigMapKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "core.v1.FileKeySelector",
    "rbac.v1.RoleRef",
    "networking.v1.ServiceBackendPort",
];

/// What a place in an object is, as far as ownership and merging go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Node<'a> {
    /// Owned as one: scalars, atomic lists and objects.
    Leaf,
    Struct(&'a Type),
    /// A map from names to values of one sort.
    Map(&'a Field),
    Set,
    /// A list whose elements are told apart by keys.
    Keyed(&'a Field),
    /// In an object of a kind that is defined at run time.
    Custom(Place<'a>),
    /// Nothing is known: maps are merged, all else is a leaf.
    Unknown,
}

impl<'a> Node<'a> {
    pub(crate) fn root(schema: &'a Schema, type_name: &str) -> Node<'a> {
        match schema.custom(type_name) {
            Some(custom) => Node::Custom(custom.place()),
            None => schema.ty(type_name).map_or(Node::Unknown, Node::Struct),
        }
    }

    fn custom(place: Option<Place<'a>>) -> Node<'a> {
        place.map_or(Node::Unknown, |place| match place.merging() {
            Merging::Leaf => Node::Leaf,
            Merging::Members | Merging::Set | Merging::Keyed => Node::Custom(place),
        })
    }

    fn of(schema: &'a Schema, field: &'a Field) -> Node<'a> {
        match (field.label, field.list_type) {
            (_, ListType::Atomic | ListType::AtomicMap) => Node::Leaf,
            (Label::List, ListType::Set) => Node::Set,
            (Label::List, ListType::Map) if field.object().is_some() && !field.list_keys.is_empty() => {
                Node::Keyed(field)
            }
            (Label::List, _) => Node::Leaf,
            (Label::Map, _) => Node::Map(field),
            (Label::One, _) => Node::element(schema, field),
        }
    }

    /// What a single value of the field is.
    fn element(schema: &'a Schema, field: &Field) -> Node<'a> {
        let Some(id) = field.object() else { return Node::Leaf };
        let found = schema.get(id);
        if ATOMIC_TYPES.contains(&&*found.name) { Node::Leaf } else { Node::Struct(found) }
    }

    /// The place of a member of an object.
    pub(crate) fn member(self, schema: &'a Schema, name: &str) -> Node<'a> {
        match self {
            Node::Struct(found) => found.field(name).map_or(Node::Unknown, |field| Node::of(schema, field)),
            Node::Map(field) => Node::element(schema, field),
            Node::Custom(place) if place.is_metadata(name) => {
                schema.ty("meta.v1.ObjectMeta").map_or(Node::Unknown, Node::Struct)
            }
            Node::Custom(place) => Node::custom(place.member(name)),
            Node::Unknown => Node::Unknown,
            Node::Leaf | Node::Set | Node::Keyed(_) => Node::Leaf,
        }
    }

    /// The place of the elements of a list.
    pub(crate) fn item(self, schema: &'a Schema) -> Node<'a> {
        match self {
            Node::Keyed(field) => Node::element(schema, field),
            Node::Custom(place) => Node::custom(place.item()),
            _ => Node::Leaf,
        }
    }

    /// The value as the parts that are owned one by one; `None` where it is owned as a whole.
    pub(crate) fn parts<'v>(self, value: &'v Value) -> Option<Parts<'v>> {
        match (self, value) {
            (Node::Struct(_) | Node::Map(_) | Node::Unknown, Value::Object(map)) => Some(Parts::Members(map)),
            (Node::Custom(place), Value::Object(map)) if place.merging() == Merging::Members => {
                Some(Parts::Members(map))
            }
            (Node::Set, Value::Array(list)) => set_elements(list),
            (Node::Custom(place), Value::Array(list)) if place.merging() == Merging::Set => set_elements(list),
            (Node::Keyed(field), Value::Array(list)) => {
                let keys: Vec<(&str, Option<Value>)> =
                    field.list_keys.iter().map(|key| (&**key, default_key(key))).collect();
                keyed_elements(&keys, list)
            }
            (Node::Custom(place), Value::Array(list)) if place.merging() == Merging::Keyed => {
                let keys: Vec<(&str, Option<Value>)> =
                    place.keys().map(|(key, default)| (key, default.cloned())).collect();
                keyed_elements(&keys, list)
            }
            _ => None,
        }
    }

    /// Whether the place is a part of its parent's type, rather than something that was added to it.
    fn is_struct(self) -> bool {
        match self {
            Node::Struct(_) => true,
            Node::Custom(place) => !place.is_open(),
            _ => false,
        }
    }

    /// Whether a member is there because somebody put it there by name.
    fn is_put(self, element: &str) -> bool {
        match self {
            Node::Map(_) => true,
            Node::Custom(place) => element.strip_prefix("f:").is_some_and(|name| !place.declares(name)),
            _ => false,
        }
    }
}

fn set_elements(list: &[Value]) -> Option<Parts<'_>> {
    distinct(list.iter().map(|value| (format!("v:{value}"), value)).collect(), list.len())
}

fn keyed_elements<'v>(keys: &[(&str, Option<Value>)], list: &'v [Value]) -> Option<Parts<'v>> {
    let elements: Option<Vec<(String, &Value)>> =
        list.iter().map(|value| Some((key_element(keys, value)?, value))).collect();
    distinct(elements?, list.len())
}

/// Lists whose elements cannot be told apart are owned as a whole.
fn distinct(elements: Vec<(String, &Value)>, length: usize) -> Option<Parts<'_>> {
    let names: std::collections::HashSet<&str> = elements.iter().map(|(name, _)| name.as_str()).collect();
    let all = names.len() == length;
    all.then_some(Parts::Items(elements))
}

pub(crate) enum Parts<'v> {
    Members(&'v Map<String, Value>),
    /// Elements with their names, in the order of the list.
    Items(Vec<(String, &'v Value)>),
}

impl<'v> Parts<'v> {
    /// The parts by path element.
    fn named(&self) -> BTreeMap<String, &'v Value> {
        match self {
            Parts::Members(map) => map.iter().map(|(name, value)| (format!("f:{name}"), value)).collect(),
            Parts::Items(items) => items.iter().cloned().collect(),
        }
    }
}

/// `k:{"containerPort":80,"protocol":"TCP"}`; keys that are left out have their default.
fn key_element(keys: &[(&str, Option<Value>)], value: &Value) -> Option<String> {
    let map = value.as_object()?;
    let mut found = BTreeMap::new();
    for (key, default) in keys {
        if let Some(value) = map.get(*key).or(default.as_ref()) {
            found.insert(*key, value);
        }
    }
    let text = serde_json::to_string(&found).ok()?;
    (!found.is_empty()).then(|| format!("k:{text}"))
}

/// The one key with a default among all lists of the built-in kinds.
fn default_key(key: &str) -> Option<Value> {
    (key == "protocol").then(|| "TCP".into())
}

/// The child's place, for a path element.
fn below<'a>(node: Node<'a>, schema: &'a Schema, element: &str) -> Node<'a> {
    match element.strip_prefix("f:") {
        Some(name) => node.member(schema, name),
        None => node.item(schema),
    }
}

/// The fields that an applied object sets.
pub(crate) fn field_set(schema: &Schema, node: Node<'_>, object: &Object) -> FieldSet {
    let mut set = FieldSet::default();
    for (name, value) in &object.0 {
        insert(schema, node.member(schema, name), value, set.enter(format!("f:{name}")));
    }
    set
}

fn insert(schema: &Schema, node: Node<'_>, value: &Value, set: &mut FieldSet) {
    let Some(parts) = node.parts(value) else {
        set.insert_self();
        return;
    };
    let members = matches!(parts, Parts::Members(_));
    let named = parts.named();
    if named.is_empty() && members {
        set.insert_self();
    }
    for (element, value) in named {
        let child = set.enter(element.clone());
        insert(schema, below(node, schema, &element), value, child);
        // Elements of lists and entries of maps are there because somebody put them there.
        if !members || node.is_put(&element) {
            child.insert_self();
        }
    }
}

/// What differs between two objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// What was set by the change.
    pub(crate) fn set(&self) -> FieldSet {
        let mut set = self.added.clone();
        set.union(&self.modified);
        set
    }
}

pub(crate) fn compare(schema: &Schema, node: Node<'_>, before: &Object, after: &Object) -> Change {
    let mut change = Change::default();
    let (before, after) = (Value::Object(before.0.clone()), Value::Object(after.0.clone()));
    let mut path = Vec::new();
    Comparison { schema, change: &mut change, path: &mut path }.both(node, &before, &after);
    change
}

struct Comparison<'a> {
    schema: &'a Schema,
    change: &'a mut Change,
    path: &'a mut Vec<String>,
}

impl Comparison<'_> {
    fn both(&mut self, node: Node<'_>, before: &Value, after: &Value) {
        if before == after {
            return;
        }
        let (Some(old), Some(new)) = (node.parts(before), node.parts(after)) else {
            mark(&mut self.change.modified, self.path);
            return;
        };
        let (old, new) = (old.named(), new.named());
        for (element, value) in &new {
            let child = below(node, self.schema, element);
            self.path.push(element.clone());
            match old.get(element) {
                Some(before) => self.both(child, before, value),
                None => one_side(self.schema, child, value, &mut self.change.added, self.path),
            }
            self.path.pop();
        }
        for (element, value) in old.iter().filter(|(element, _)| !new.contains_key(*element)) {
            let child = below(node, self.schema, element);
            self.path.push(element.clone());
            one_side(self.schema, child, value, &mut self.change.removed, self.path);
            self.path.pop();
        }
    }
}

/// Everything below a place that only one of two objects has.
fn one_side(schema: &Schema, node: Node<'_>, value: &Value, set: &mut FieldSet, path: &mut Vec<String>) {
    let Some(parts) = node.parts(value) else {
        mark(set, path);
        return;
    };
    let named = parts.named();
    if named.is_empty() || !node.is_struct() || path.last().is_some_and(|element| !element.starts_with("f:")) {
        mark(set, path);
    }
    for (element, value) in named {
        let child = below(node, schema, &element);
        path.push(element);
        one_side(schema, child, value, set, path);
        path.pop();
    }
}

fn mark(set: &mut FieldSet, path: &[String]) {
    let place = path.iter().fold(set, |place, element| place.enter(element.clone()));
    place.insert_self();
}
