use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in the store's single, ordered history. In decimal it is an object's `resourceVersion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before every write: a watch from here sees the whole history that is still kept.
    pub const ZERO: Revision = Revision(0);

    /// The revision that follows this one.
    #[must_use]
    pub const fn next(self) -> Revision {
        Revision(self.0 + 1)
    }

    /// Parses a `resourceVersion` as Kubernetes requires it (KEP-5504): decimal digits without a leading zero, or `0`.
    pub fn parse(text: &str) -> Option<Revision> {
        let canonical = text == "0" || (!text.starts_with('0') && !text.is_empty());
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        (canonical && digits).then(|| text.parse().ok().map(Revision)).flatten()
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Where a value lives in the store: `/GROUP/RESOURCE/[NAMESPACE/]NAME`, ordered as bytes.
///
/// The core group is written `core`. A key that ends in `/` is a prefix: all of a resource, or all of one namespace of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// The key of one object. `namespace` is `None` for cluster-scoped resources.
    pub fn object(group: &str, resource: &str, namespace: Option<&str>, name: &str) -> Key {
        let mut key = Key::prefix(group, resource, namespace);
        key.0.push_str(name);
        key
    }

    /// The prefix of all objects of a resource, or of those in one namespace.
    pub fn prefix(group: &str, resource: &str, namespace: Option<&str>) -> Key {
        let group = if group.is_empty() { "core" } else { group };
        match namespace {
            Some(namespace) => Key(format!("/{group}/{resource}/{namespace}/")),
            None => Key(format!("/{group}/{resource}/")),
        }
    }

    /// A key as it was stored; the store itself gives keys no meaning.
    pub fn from_raw(raw: impl Into<String>) -> Key {
        Key(raw.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn starts_with(&self, prefix: &Key) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// `/GROUP/RESOURCE/`: what watches and metrics are grouped by.
    pub fn resource_prefix(&self) -> &str {
        let end = self.0.match_indices('/').nth(2).map_or(self.0.len(), |(index, _)| index + 1);
        &self.0[..end]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_resource_namespace_and_name() {
        let pod = Key::object("", "pods", Some("default"), "web");
        assert_eq!(pod.as_str(), "/core/pods/default/web");
        assert_eq!(pod.resource_prefix(), "/core/pods/");
        assert!(pod.starts_with(&Key::prefix("", "pods", Some("default"))));
        assert!(!pod.starts_with(&Key::prefix("", "pods", Some("def"))));
        assert_eq!(Key::object("", "nodes", None, "n1").as_str(), "/core/nodes/n1");
    }

    #[test]
    fn revisions_are_canonical_decimals() {
        assert_eq!(Revision::parse("17"), Some(Revision(17)));
        assert_eq!(Revision::parse("0"), Some(Revision(0)));
        for bad in ["", "017", "-1", "1a", "99999999999999999999"] {
            assert_eq!(Revision::parse(bad), None, "{bad}");
        }
    }
}
