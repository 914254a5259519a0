use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Revision;

/// An API group and version: `v1`, `apps/v1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersion {
    pub group: String,
    pub version: String,
}

impl GroupVersion {
    /// Splits an `apiVersion`; the core group is empty.
    pub fn parse(api_version: &str) -> Option<GroupVersion> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let sound = !version.is_empty() && !version.contains('/');
        sound.then(|| GroupVersion { group: group.to_owned(), version: version.to_owned() })
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            return formatter.write_str(&self.version);
        }
        write!(formatter, "{}/{}", self.group, self.version)
    }
}

/// A JSON object of any kind, with accessors for what all kinds share: type and metadata.
///
/// Generic code goes through these accessors, so `["metadata"]["name"]` is written nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map<String, Value>);

impl Object {
    pub fn from_slice(bytes: &[u8]) -> Result<Object, serde_json::Error> {
        serde_json::from_slice(bytes).map(Object)
    }

    pub fn from_value(value: Value) -> Option<Object> {
        match value {
            Value::Object(map) => Some(Object(map)),
            _ => None,
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        // Serialising a map with string keys into memory cannot fail.
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    /// The value at a path of object keys.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(*first)?, |value, key| value.get(key))
    }

    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get_mut(*first)?, |value, key| value.get_mut(key))
    }

    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path).and_then(Value::as_str)
    }

    pub fn i64_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path).and_then(Value::as_i64)
    }

    pub fn array_at(&self, path: &[&str]) -> &[Value] {
        self.at(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Sets the value at a path, making the objects on the way. A scalar in the way is replaced.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut map = &mut self.0;
        for key in parents {
            let slot = map.entry(*key).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let Value::Object(next) = slot else { return };
            map = next;
        }
        map.insert((*last).to_owned(), value.into());
    }

    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        if parents.is_empty() {
            return self.0.shift_remove(*last);
        }
        self.at_mut(parents)?.as_object_mut()?.shift_remove(*last)
    }

    pub fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"]).unwrap_or_default()
    }

    pub fn kind(&self) -> &str {
        self.str_at(&["kind"]).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.str_at(&["metadata", "name"]).unwrap_or_default()
    }

    pub fn generate_name(&self) -> &str {
        self.str_at(&["metadata", "generateName"]).unwrap_or_default()
    }

    pub fn namespace(&self) -> Option<&str> {
        self.str_at(&["metadata", "namespace"]).filter(|namespace| !namespace.is_empty())
    }

    pub fn uid(&self) -> &str {
        self.str_at(&["metadata", "uid"]).unwrap_or_default()
    }

    /// The revision in `metadata.resourceVersion`; `None` where it is absent, empty or malformed.
    pub fn revision(&self) -> Option<Revision> {
        self.str_at(&["metadata", "resourceVersion"]).and_then(Revision::parse)
    }

    pub fn set_revision(&mut self, revision: Revision) {
        self.set(&["metadata", "resourceVersion"], revision.to_string());
    }

    pub fn generation(&self) -> i64 {
        self.i64_at(&["metadata", "generation"]).unwrap_or_default()
    }

    pub fn deletion_timestamp(&self) -> Option<&str> {
        self.str_at(&["metadata", "deletionTimestamp"])
    }

    pub fn finalizers(&self) -> Vec<&str> {
        self.array_at(&["metadata", "finalizers"]).iter().filter_map(Value::as_str).collect()
    }

    /// Labels in the order of the object.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs(&["metadata", "labels"])
    }

    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs(&["metadata", "annotations"])
    }

    fn pairs(&self, path: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        let map = self.at(path).and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_on_the_way() {
        let mut object = Object::default();
        object.set(&["metadata", "labels", "app"], "web");
        object.set_revision(Revision(5));
        assert_eq!(object.labels().collect::<Vec<_>>(), [("app", "web")]);
        assert_eq!(object.revision(), Some(Revision(5)));
        assert_eq!(object.remove(&["metadata", "labels", "app"]), Some("web".into()));
        assert_eq!(object.labels().count(), 0);
    }

    #[test]
    fn group_versions() {
        let apps = GroupVersion::parse("apps/v1").unwrap();
        assert_eq!((apps.group.as_str(), apps.version.as_str()), ("apps", "v1"));
        assert_eq!(GroupVersion::parse("v1").unwrap().to_string(), "v1");
        assert_eq!(GroupVersion::parse("a/b/c"), None);
    }
}
