//! The objects of the load: ConfigMaps with one value, and how they are written in requests and answers.

use bytes::Bytes;
use serde::Deserialize;
use tandem_simulation::history::{Item, Text};

/// Names begin with the run that they belong to: what others or earlier runs left is not looked at.
#[derive(Clone, Debug)]
pub(crate) struct Run(pub(crate) String);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    resource_version: String,
}

impl Meta {
    pub(crate) fn revision(&self) -> u64 {
        self.resource_version.parse().unwrap_or_else(|_| panic!("no resource version: {self:?}"))
    }

    pub(crate) fn key(&self) -> Text {
        key(&self.namespace, &self.name)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Data {
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    pub(crate) metadata: Meta,
    pub(crate) data: Option<Data>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct List {
    pub(crate) metadata: Meta,
    pub(crate) items: Vec<Object>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) object: Box<serde_json::value::RawValue>,
}

/// The part of a refusal that tells why.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default)]
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) code: u16,
}

pub(crate) fn read<T: for<'a> Deserialize<'a>>(body: &[u8]) -> T {
    serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(body)))
}

impl Object {
    pub(crate) fn item(&self) -> Item {
        Item { key: self.metadata.key(), revision: self.metadata.revision(), value: self.value() }
    }

    pub(crate) fn value(&self) -> Text {
        self.data.as_ref().map_or("", |data| &data.value).into()
    }
}

impl Run {
    pub(crate) fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.0)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        name.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.starts_with('-'))
    }

    pub(crate) fn is_ours(&self, object: &Object) -> bool {
        self.has(&object.metadata.name)
    }

    /// The last object of a namespace, which ends its watches.
    pub(crate) fn is_last(&self, key: &str) -> bool {
        key.contains("-last-")
    }

    pub(crate) fn items(&self, list: &List) -> Vec<Item> {
        let mut items: Vec<Item> = list.items.iter().filter(|object| self.is_ours(object)).map(Object::item).collect();
        items.sort_by(|left, right| left.key.cmp(&right.key));
        items
    }
}

pub(crate) fn key(namespace: &str, name: &str) -> Text {
    format!("{namespace}/{name}").into()
}

pub(crate) fn namespace(number: usize) -> String {
    format!("load-{number:02}")
}

pub(crate) fn path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps{}{name}", if name.is_empty() { "" } else { "/" })
}

pub(crate) fn map(name: &str, value: &str, at: Option<u64>) -> Bytes {
    let version = at.map_or(String::new(), |at| format!(r#","resourceVersion":"{at}""#));
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"{version}}},"data":{{"value":"{value}"}}}}"#
    )
    .into()
}

pub(crate) fn deletion(at: u64) -> Bytes {
    format!(r#"{{"apiVersion":"v1","kind":"DeleteOptions","preconditions":{{"resourceVersion":"{at}"}}}}"#).into()
}
