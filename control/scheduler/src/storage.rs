//! Claims, volumes and classes: what of them decides where a pod can go. Pure.
//!
//! <https://kubernetes.io/docs/concepts/storage/storage-classes/#volume-binding-mode>

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::runtime::watcher::Event;
use tandem_client::volumes;

use crate::{
    filters::Reason,
    snapshot::{NodeInfo, PodInfo, Snapshot},
};

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

    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.all.get(&(namespace.to_owned(), name.to_owned()))
    }
}

/// The storage of the whole cluster.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    pub(crate) claims: Kept<PersistentVolumeClaim>,
    pub(crate) volumes: Kept<PersistentVolume>,
    pub(crate) classes: Kept<StorageClass>,
}

/// How the claims of a pod that was given a node stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Bound,
    Waiting,
    /// A claim is gone, got a volume that the node does not reach, or can have none there.
    Elsewhere,
}

impl Storage {
    pub(crate) fn is_listed(&self) -> bool {
        self.claims.listed && self.volumes.listed && self.classes.listed
    }

    /// What was listed counts no more.
    pub(crate) fn unlist(&mut self) {
        (self.claims.listed, self.volumes.listed, self.classes.listed) = (false, false, false);
    }

    /// The claims of a pod that wait for a node and have not been told this one.
    pub(crate) fn to_select(&self, pod: &PodInfo, node: &str) -> Vec<String> {
        let waits = |name: &&String| {
            self.claims
                .get(&pod.namespace, name)
                .is_some_and(|claim| !volumes::is_bound(claim) && selected(claim) != Some(node))
        };
        pod.claims.iter().filter(waits).cloned().collect()
    }

    pub(crate) fn standing(&self, pod: &PodInfo, node: &NodeInfo) -> Standing {
        let mut standing = Standing::Bound;
        for name in pod.claims.iter() {
            match self.claims.get(&pod.namespace, name) {
                None => return Standing::Elsewhere,
                Some(claim) if self.has_lost(claim, node) => return Standing::Elsewhere,
                // Its status comes last: a node that sees the pod before it would refuse to mount.
                Some(claim) if !volumes::is_bound(claim) || volumes::phase(claim) != "Bound" => {
                    standing = Standing::Waiting;
                }
                Some(claim) => match self.volume_of(claim) {
                    // The claim was seen before its volume.
                    None => standing = Standing::Waiting,
                    Some(volume) if !reaches(volume, node) => return Standing::Elsewhere,
                    Some(_) => {}
                },
            }
        }
        standing
    }

    /// Nobody makes volumes for the claim, and those that the node reaches went to others.
    fn has_lost(&self, claim: &PersistentVolumeClaim, node: &NodeInfo) -> bool {
        let class = volumes::class_of(claim).and_then(|class| self.classes.get("", class));
        let is_open = volumes::volume_name(claim).is_none() && class.is_some_and(|class| !is_provisioned(class));
        is_open && volumes::find(claim, self.volumes.all.values(), |volume| reaches(volume, node)).is_none()
    }

    fn volume_of(&self, claim: &PersistentVolumeClaim) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get("", volumes::volume_name(claim)?)
    }
}

fn selected(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.metadata.annotations.as_ref()?.get(volumes::SELECTED_NODE).map(String::as_str)
}

fn is_provisioned(class: &StorageClass) -> bool {
    class.provisioner != volumes::NO_PROVISIONER
}

fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    volumes::reaches(volume, &node.name, &node.labels)
}

/// One claim of a pod.
#[derive(Debug)]
enum Need<'a> {
    /// `None` when the volume is gone.
    Bound(Option<&'a PersistentVolume>),
    Unbound {
        claim: &'a PersistentVolumeClaim,
        class: &'a StorageClass,
        /// What it can have, wherever that is, the best first.
        candidates: Vec<&'a Arc<PersistentVolume>>,
    },
}

/// What a pod's claims ask of its node.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    snapshot: &'a Snapshot,
    needs: Vec<Need<'a>>,
    /// Another pod has a claim that only one may use.
    is_taken: bool,
    /// Why the pod can go nowhere, whatever the node.
    pub(crate) refusal: Option<String>,
}

impl<'a> Needs<'a> {
    pub(crate) fn of(pod: &PodInfo, snapshot: &'a Snapshot) -> Needs<'a> {
        let mut found = Needs { snapshot, needs: Vec::new(), is_taken: false, refusal: None };
        for name in pod.claims.iter() {
            match found.need(pod, name) {
                Ok(need) => found.needs.push(need),
                Err(why) => {
                    found.refusal = Some(why);
                    break;
                }
            }
        }
        found
    }

    fn need(&mut self, pod: &PodInfo, name: &str) -> Result<Need<'a>, String> {
        let storage = &self.snapshot.storage;
        let Some(claim) = storage.claims.get(&pod.namespace, name) else {
            return Err(format!("persistentvolumeclaim {name:?} not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if volumes::phase(claim) == "Lost" {
            let volume = volumes::volume_name(claim).unwrap_or_default();
            return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
        }
        self.is_taken |= volumes::is_exclusive(claim) && self.snapshot.uses_claim(pod, name);
        if volumes::is_bound(claim) {
            return Ok(Need::Bound(storage.volume_of(claim).map(AsRef::as_ref)));
        }
        let class = volumes::class_of(claim).and_then(|class| storage.classes.get("", class));
        let waits =
            |class: &&Arc<StorageClass>| class.volume_binding_mode.as_deref() == Some(volumes::WAIT_FOR_FIRST_CONSUMER);
        match class.filter(waits) {
            Some(class) if volumes::volume_name(claim).is_none() => {
                let candidates = volumes::candidates(claim, storage.volumes.all.values());
                Ok(Need::Unbound { claim, class, candidates })
            }
            _ => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
    }

    /// The claims that only one pod may use are free.
    pub(crate) fn restrict(&self) -> Vec<Reason> {
        if self.is_taken { vec![Reason::ExclusiveClaim] } else { Vec::new() }
    }

    /// Every claim has a volume that the node reaches, or can have one.
    pub(crate) fn check(&self, node: &NodeInfo) -> Vec<Reason> {
        let mut taken: HashSet<Option<&str>> = HashSet::new();
        for need in &self.needs {
            let reason = match need {
                Need::Bound(None) => Some(Reason::VolumeMissing),
                Need::Bound(Some(volume)) if reaches(volume, node) => None,
                Need::Bound(Some(_)) => Some(Reason::VolumeAffinity),
                Need::Unbound { claim, class, candidates } => self.place(claim, class, candidates, node, &mut taken),
            };
            if let Some(reason) = reason {
                return vec![reason];
            }
        }
        Vec::new()
    }

    fn place(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        candidates: &[&'a Arc<PersistentVolume>],
        node: &NodeInfo,
        taken: &mut HashSet<Option<&'a str>>,
    ) -> Option<Reason> {
        // Its volume may be being made on the node that was told first. Volumes that are made by hand are free until
        // they are bound: if another claim was faster there, this one looks elsewhere.
        if is_provisioned(class)
            && selected(claim).is_some_and(|other| other != node.name && self.snapshot.has_node(other))
        {
            return Some(Reason::VolumeAffinity);
        }
        let mut free = candidates.iter().filter(|one| !taken.contains(&one.metadata.name.as_deref()));
        if let Some(volume) = free.find(|volume| reaches(volume, node)) {
            taken.insert(volume.metadata.name.as_deref());
            return None;
        }
        let is_made = is_provisioned(class) && volumes::allows(class, &node.labels);
        (!is_made).then_some(Reason::NoVolume)
    }
}

#[cfg(test)]
#[path = "storage/tests.rs"]
mod tests;
