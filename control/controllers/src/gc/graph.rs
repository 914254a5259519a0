//! Who owns whom, over all resources. Keeps of each object only what collecting it needs.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::ApiResource;

use crate::cache::Key;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) resource: Arc<ApiResource>,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) resource_version: Option<String>,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) finalizers: Vec<String>,
    pub(super) is_deleting: bool,
}

impl Item {
    pub(super) fn of(resource: &Arc<ApiResource>, meta: ObjectMeta) -> Item {
        Item {
            resource: resource.clone(),
            key: Key::of(&meta),
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version,
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            is_deleting: meta.deletion_timestamp.is_some(),
        }
    }

    pub(super) fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|own| own == finalizer)
    }

    pub(super) fn waits_for_dependents(&self) -> bool {
        self.is_deleting && self.has(FOREGROUND)
    }

    /// Whether it can own an object that is where `other` is: what has a namespace owns nothing beyond it.
    pub(super) fn reaches(&self, other: &Item) -> bool {
        self.key.namespace.is_empty() || self.key.namespace == other.key.namespace
    }

    /// True when nothing has changed that collecting looks at.
    fn is_owned_like(&self, other: &Item) -> bool {
        self.owners == other.owners && self.finalizers == other.finalizers && self.is_deleting == other.is_deleting
    }

    fn is_of_interest(&self) -> bool {
        !self.owners.is_empty() || (self.is_deleting && (self.has(FOREGROUND) || self.has(ORPHAN)))
    }
}

/// Every change says whose turn it is to be looked at.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Item> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.items.get(uid))
    }

    pub(super) fn of_interest(&self) -> Vec<String> {
        self.items.values().filter(|item| item.is_of_interest()).map(|item| item.uid.clone()).collect()
    }

    pub(super) fn set(&mut self, item: Item) -> Vec<String> {
        let uid = item.uid.clone();
        let mut woken = Vec::new();
        let old = self.items.get(&uid);
        if old.is_some_and(|old| old.is_owned_like(&item)) {
            self.items.insert(uid, item);
            return woken;
        }
        let began_to_wait = item.waits_for_dependents() && !old.is_some_and(Item::waits_for_dependents);
        let old_owners: Vec<String> = old.iter().flat_map(|old| &old.owners).map(|owner| owner.uid.clone()).collect();
        for owner in &old_owners {
            self.unlink(owner, &uid);
        }
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        // An owner that waits may have been waiting for this one to let go of it.
        let owners = old_owners.into_iter().chain(item.owners.iter().map(|owner| owner.uid.clone()));
        woken.extend(owners.filter(|owner| self.items.get(owner).is_some_and(Item::waits_for_dependents)));
        if began_to_wait {
            woken.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        if item.is_of_interest() {
            woken.push(uid.clone());
        }
        self.items.insert(uid, item);
        woken
    }

    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        for owner in &item.owners {
            self.unlink(&owner.uid, uid);
        }
        let owners = item.owners.iter().map(|owner| owner.uid.clone());
        let mut woken: Vec<String> = owners.filter(|owner| self.items.contains_key(owner)).collect();
        woken.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        woken
    }

    /// Drops the objects of a resource that a list did not show.
    pub(super) fn retain(&mut self, resource: &ApiResource, listed: &HashSet<String>) -> Vec<String> {
        let of_resource = self.items.values().filter(|item| *item.resource == *resource);
        let gone: Vec<String> =
            of_resource.filter(|item| !listed.contains(&item.uid)).map(|item| item.uid.clone()).collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    fn unlink(&mut self, owner: &str, uid: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(uid);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}
