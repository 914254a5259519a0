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
use tandem_client::volumes::{self, Promise};

use crate::{
    filters::Reason,
    kept::Kept,
    snapshot::{NodeInfo, Placed, PodInfo, Snapshot},
};

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
        self.claims.is_listed() && self.volumes.is_listed() && self.classes.is_listed()
    }

    /// What was listed counts no more.
    pub(crate) fn unlist(&mut self) {
        self.claims.unlist();
        self.volumes.unlist();
        self.classes.unlist();
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

    /// The claims of a pod that can go nowhere, which wait for a volume on a node that was chosen before: nobody has
    /// begun to make one, so another node may be chosen.
    pub(crate) fn to_deselect(&self, pod: &PodInfo) -> Vec<String> {
        let is_stuck = |name: &&String| {
            self.claims.get(&pod.namespace, name).is_some_and(|claim| {
                let class = volumes::class_of(claim).and_then(|class| self.classes.get("", class));
                let promised = |volume: &Arc<PersistentVolume>| volumes::promised(volume, claim) == Promise::This;
                selected(claim).is_some()
                    && volumes::volume_name(claim).is_none()
                    && class.is_some_and(|class| is_provisioned(class))
                    && !self.volumes.all().any(promised)
            })
        };
        pod.claims.iter().filter(is_stuck).cloned().collect()
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
        is_open && volumes::find(claim, self.volumes.all(), |volume| reaches(volume, node)).is_none()
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

/// Volumes, made by hand, that the claims of pods with a node are about to have, each with the uid of its pod.
#[derive(Debug, Default)]
pub(crate) struct Reservations(HashMap<String, String>);

impl Reservations {
    pub(crate) fn add(&mut self, uid: &str, volumes: Vec<String>) {
        self.0.extend(volumes.into_iter().map(|volume| (volume, uid.to_owned())));
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.0.retain(|_, owner| owner != uid);
    }

    fn is_free(&self, volume: &PersistentVolume, uid: &str) -> bool {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        self.0.get(name).is_none_or(|owner| owner == uid)
    }
}

/// One claim of a pod.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub(crate) struct Needs<'a> {
    snapshot: &'a Snapshot,
    needs: Vec<Need<'a>>,
    /// The pod's namespace, and its claims that only one pod may use.
    namespace: String,
    exclusive: Vec<String>,
    /// How often other pods use those.
    users: usize,
    /// Why the pod can go nowhere, whatever the node.
    pub(crate) refusal: Option<String>,
}

impl<'a> Needs<'a> {
    pub(crate) fn of(pod: &PodInfo, snapshot: &'a Snapshot) -> Needs<'a> {
        let (namespace, exclusive) = (pod.namespace.clone(), Vec::new());
        let mut found = Needs { snapshot, needs: Vec::new(), namespace, exclusive, users: 0, refusal: None };
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
        if volumes::is_exclusive(claim) {
            self.users += self.snapshot.claim_users(pod, name);
            self.exclusive.push(name.to_owned());
        }
        if volumes::is_bound(claim) {
            return Ok(Need::Bound(storage.volume_of(claim).map(AsRef::as_ref)));
        }
        let class = volumes::class_of(claim).and_then(|class| storage.classes.get("", class));
        let waits =
            |class: &&Arc<StorageClass>| class.volume_binding_mode.as_deref() == Some(volumes::WAIT_FOR_FIRST_CONSUMER);
        match class.filter(waits) {
            Some(class) if volumes::volume_name(claim).is_none() => {
                let mut candidates = volumes::candidates(claim, storage.volumes.all());
                candidates.retain(|volume| self.snapshot.reserved.is_free(volume, &pod.uid));
                Ok(Need::Unbound { claim, class, candidates })
            }
            _ => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
    }

    /// The claims that only one pod may use are free.
    pub(crate) fn restrict(&self) -> Vec<Reason> {
        if self.users > 0 { vec![Reason::ExclusiveClaim] } else { Vec::new() }
    }

    /// As if the other pod were there too.
    pub(crate) fn place(&mut self, other: &Placed) {
        self.users += self.shared(other);
    }

    /// As if the other pod were gone.
    pub(crate) fn displace(&mut self, other: &Placed) {
        self.users = self.users.saturating_sub(self.shared(other));
    }

    fn shared(&self, other: &Placed) -> usize {
        let is_shared = |name: &&String| other.claims.iter().any(|own| own == *name);
        if other.namespace == self.namespace { self.exclusive.iter().filter(is_shared).count() } else { 0 }
    }

    /// The volumes, made by hand, that the claims would have on the node.
    pub(crate) fn choose(&self, node: &NodeInfo) -> Vec<String> {
        let mut taken = HashSet::new();
        for need in &self.needs {
            if let Need::Unbound { claim, class, candidates } = need {
                self.find(claim, class, candidates, node, &mut taken);
            }
        }
        taken.into_iter().flatten().map(str::to_owned).collect()
    }

    /// Every claim has a volume that the node reaches, or can have one.
    pub(crate) fn check(&self, node: &NodeInfo) -> Vec<Reason> {
        let mut taken: HashSet<Option<&str>> = HashSet::new();
        for need in &self.needs {
            let reason = match need {
                Need::Bound(None) => Some(Reason::VolumeMissing),
                Need::Bound(Some(volume)) if reaches(volume, node) => None,
                Need::Bound(Some(_)) => Some(Reason::VolumeAffinity),
                Need::Unbound { claim, class, candidates } => self.find(claim, class, candidates, node, &mut taken),
            };
            if let Some(reason) = reason {
                return vec![reason];
            }
        }
        Vec::new()
    }

    fn find(
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
