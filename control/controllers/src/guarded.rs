//! Objects that are decoded one by one: one that cannot be decoded hides no other from whoever lists them.

use std::borrow::Cow;

use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// An object, or what is known of one that could not be decoded.
#[derive(Clone, Debug)]
pub(crate) enum Guarded<K> {
    Sound(K),
    Undecodable(Box<Undecodable>),
}

#[derive(Clone, Debug)]
pub(crate) struct Undecodable {
    /// Its name, namespace, uid and version.
    pub(crate) metadata: ObjectMeta,
    pub(crate) error: String,
}

impl<K> Guarded<K> {
    pub(crate) fn sound(self) -> Option<K> {
        match self {
            Guarded::Sound(object) => Some(object),
            Guarded::Undecodable(_) => None,
        }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Guarded<K>, D::Error> {
        // Text, since a deserializer that failed cannot be asked again.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(match serde_json::from_str(text.get()) {
            Ok(object) => Guarded::Sound(object),
            Err(error) => {
                let metadata = identity(text.get());
                Guarded::Undecodable(Box::new(Undecodable { metadata, error: error.to_string() }))
            }
        })
    }
}

#[derive(Default, Deserialize)]
struct Identified {
    metadata: Identity,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

fn identity(text: &str) -> ObjectMeta {
    let Identified { metadata } = serde_json::from_str(text).unwrap_or_default();
    let Identity { name, namespace, uid, resource_version } = metadata;
    ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &K::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &K::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Guarded::Sound(object) => object.meta(),
            Guarded::Undecodable(broken) => &broken.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Guarded::Sound(object) => object.meta_mut(),
            Guarded::Undecodable(broken) => &mut broken.metadata,
        }
    }
}

/// Tells of objects that could not be decoded: of the first after each list, as there may be many.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    told: bool,
}

impl Complaints {
    pub(crate) fn listing(&mut self) {
        self.told = false;
    }

    pub(crate) fn tell(&mut self, kind: &str, broken: &Undecodable) {
        let key = crate::Key::of(&broken.metadata);
        let error = &broken.error;
        if std::mem::replace(&mut self.told, true) {
            tracing::debug!(kind, %key, error, "an object cannot be decoded");
        } else {
            tracing::warn!(kind, %key, error, "an object cannot be decoded and is left as it was known");
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::{
        api::WatchEvent,
        core::{ObjectList, PartialObjectMeta},
    };

    use super::*;

    const LIST: &str = r#"{"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": [
        {"metadata": {"name": "a", "namespace": "ns"}},
        {"metadata": {"name": "b", "namespace": "ns", "uid": "u", "resourceVersion": "7", "generation": "x"},
         "spec": {"containers": [null]}},
        {"metadata": {"name": "c", "namespace": "ns"}}]}"#;

    fn broken<K>(guarded: &Guarded<K>) -> Option<&Undecodable> {
        match guarded {
            Guarded::Sound(_) => None,
            Guarded::Undecodable(broken) => Some(broken),
        }
    }

    #[test]
    fn one_object_that_cannot_be_decoded_hides_no_other() {
        assert!(serde_json::from_str::<ObjectList<Pod>>(LIST).is_err());
        let list: ObjectList<Guarded<Pod>> = serde_json::from_str(LIST).unwrap();
        let names: Vec<_> = list.items.iter().map(|item| item.meta().name.as_deref().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let found: Vec<_> = list.items.iter().filter_map(broken).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].metadata.uid.as_deref(), found[0].metadata.resource_version.as_deref()),
            (Some("u"), Some("7"))
        );
        let list: ObjectList<Guarded<PartialObjectMeta<Pod>>> = serde_json::from_str(LIST).unwrap();
        assert_eq!(list.items.iter().filter_map(broken).count(), 1, "its generation is no number");
    }

    #[test]
    fn changes_are_decoded_as_lists_are() {
        let event = r#"{"type":"MODIFIED","object":{"metadata":{"name":"b","resourceVersion":"7"},"spec":{"containers":[null]}}}"#;
        match serde_json::from_str(event).unwrap() {
            WatchEvent::Modified(Guarded::<Pod>::Undecodable(broken)) => {
                assert_eq!(broken.metadata.resource_version.as_deref(), Some("7"));
            }
            other => panic!("{other:?}"),
        }
        let event = r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#;
        assert!(matches!(serde_json::from_str(event).unwrap(), WatchEvent::Added(Guarded::<Pod>::Sound(_))));
    }
}
