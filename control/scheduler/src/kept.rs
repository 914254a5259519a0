//! All objects of a kind, as an informer shows them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube::runtime::watcher::Event;

/// Namespace, empty for what has none, and name.
type Key = (String, String);

/// All objects of a kind, and what the list under way has shown of them.
#[derive(Debug)]
pub(crate) struct Kept<K> {
    all: HashMap<Key, Arc<K>>,
    seen: HashSet<Key>,
    listed: bool,
}

impl<K> Default for Kept<K> {
    fn default() -> Kept<K> {
        Kept { all: HashMap::new(), seen: HashSet::new(), listed: false }
    }
}

impl<K: kube::Resource> Kept<K> {
    pub(crate) fn take(&mut self, event: Event<K>) {
        let key = |object: &K| {
            let meta = object.meta();
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        match event {
            Event::Init => self.seen.clear(),
            Event::InitApply(object) => {
                self.seen.insert(key(&object));
                self.all.insert(key(&object), Arc::new(object));
            }
            Event::InitDone => {
                let seen = std::mem::take(&mut self.seen);
                self.all.retain(|key, _| seen.contains(key));
                self.listed = true;
            }
            Event::Apply(object) => drop(self.all.insert(key(&object), Arc::new(object))),
            Event::Delete(object) => drop(self.all.remove(&key(&object))),
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.all.get(&(namespace.to_owned(), name.to_owned()))
    }
}

impl<K> Kept<K> {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<K>> {
        self.all.values()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.all.iter().filter(move |((own, _), _)| own == namespace).map(|(_, object)| object)
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed
    }

    /// What was listed counts no more.
    pub(crate) fn unlist(&mut self) {
        self.listed = false;
    }
}
