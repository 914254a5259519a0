//! Signs of life that need no place in the log: the newest renewal of each node's Lease, in the leader's memory.
//!
//! A node renews its Lease every few seconds, and nobody asks for older renewals. So the leader keeps a renewal in
//! memory, answers reads with it, and writes one down every [`WRITTEN_EVERY`]; its revision stays that of the object
//! as it was written last, and watches see what is written. Members that do not lead write every renewal. After a
//! change of leaders renewals that were not written are gone, so whoever judges a silence counts it from when it
//! began to listen.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::RwLock;
use tandem_api::{Key, Object, Revision};
use tandem_registry::ResourceDef;
use tandem_store::{Leadership, Stored};
use tokio::sync::watch;

use crate::managed;

/// How old what is written down may become.
const WRITTEN_EVERY: Duration = Duration::from_secs(60);

/// Objects whose renewals are kept; those of others are written.
const KEPT_MAX: usize = 16_384;

struct Beat {
    value: Bytes,
    /// Of the object in the store that this is the newest form of.
    revision: Revision,
    /// When it was first newer than what is written.
    since: Instant,
}

pub(crate) struct Heartbeats {
    leadership: watch::Receiver<Leadership>,
    beats: RwLock<BTreeMap<Key, Beat>>,
}

/// Whether `new` says nothing but that its writer lives.
pub(crate) fn is_heartbeat(def: &ResourceDef, new: &Object, live: &Object) -> bool {
    let Some(heartbeat) = &def.hooks.heartbeat else { return false };
    if live.namespace() != Some(heartbeat.namespace) || live.at(heartbeat.field).is_none() {
        return false;
    }
    let without = |object: &Object| {
        let mut object = object.clone();
        object.remove(heartbeat.field);
        object
    };
    new.at(heartbeat.field).is_some() && managed::same(&without(new), &without(live))
}

impl Heartbeats {
    pub(crate) fn new(leadership: watch::Receiver<Leadership>) -> Heartbeats {
        Heartbeats { leadership, beats: RwLock::default() }
    }

    /// Keeps `value` as the newest form of what is stored at `revision`; `false` when it is to be written instead.
    pub(crate) fn keep(&self, key: &Key, revision: Revision, value: Bytes, now: Instant) -> bool {
        if !self.leadership.borrow().leader {
            return false;
        }
        let mut beats = self.beats.write();
        let since = match beats.get(key) {
            Some(beat) if beat.revision == revision => beat.since,
            Some(_) => now,
            None if beats.len() >= KEPT_MAX => return false,
            None => now,
        };
        if now.duration_since(since) >= WRITTEN_EVERY {
            beats.remove(key);
            return false;
        }
        beats.insert(key.clone(), Beat { value, revision, since });
        true
    }

    /// What is stored, in its newest form.
    pub(crate) fn newest(&self, mut stored: Stored) -> Stored {
        if let Some(beat) = self.beats.read().get(&stored.key)
            && beat.revision == stored.revision
        {
            stored.value = beat.value.clone();
        }
        stored
    }

    /// Whether anything below `prefix` has a newer form than what is stored.
    pub(crate) fn covers(&self, prefix: &Key) -> bool {
        let beats = self.beats.read();
        beats.range(prefix.clone()..).next().is_some_and(|(key, _)| key.as_str().starts_with(prefix.as_str()))
    }

    /// Forgets an object that is gone.
    pub(crate) fn forget(&self, key: &Key) {
        self.beats.write().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeats(leader: bool) -> Heartbeats {
        Heartbeats::new(watch::channel(Leadership { leader, term: 1 }).1)
    }

    fn lease() -> (std::sync::Arc<ResourceDef>, Object) {
        let registry = tandem_registry::Registry::builtin();
        let def = registry.by_kind("coordination.k8s.io", "v1", "Lease").unwrap();
        let mut lease = Object::default();
        lease.set(&["metadata", "namespace"], "kube-node-lease");
        lease.set(&["spec", "holderIdentity"], "n1");
        lease.set(&["spec", "renewTime"], "2026-01-01T00:00:00.000000Z");
        (def, lease)
    }

    #[test]
    fn only_a_renewal_is_a_heartbeat() {
        let (def, live) = lease();
        let renewed = |path: &[&str], value: &str| {
            let mut new = live.clone();
            new.set(path, value);
            is_heartbeat(&def, &new, &live)
        };
        assert!(renewed(&["spec", "renewTime"], "2026-01-01T00:00:03.000000Z"));
        assert!(!renewed(&["spec", "holderIdentity"], "n2"));
        assert!(!renewed(&["metadata", "namespace"], "default"));
        let mut elsewhere = live.clone();
        elsewhere.set(&["metadata", "namespace"], "default");
        assert!(!is_heartbeat(&def, &elsewhere, &elsewhere), "a lock of somebody else");
    }

    #[test]
    fn a_heartbeat_is_kept_until_it_is_time_to_write() {
        let beats = heartbeats(true);
        let key = Key::object("coordination.k8s.io", "leases", Some("kube-node-lease"), "n1");
        let (begun, written) = (Instant::now(), Bytes::from_static(b"written"));
        let stored = |revision| Stored {
            key: key.clone(),
            value: written.clone(),
            created: Revision(1),
            revision: Revision(revision),
        };
        let beat = Bytes::from_static(b"beat");
        assert!(beats.keep(&key, Revision(5), beat.clone(), begun));
        assert_eq!(beats.newest(stored(5)).value, beat);
        assert!(beats.covers(&Key::prefix("coordination.k8s.io", "leases", None)));
        assert!(!beats.covers(&Key::prefix("", "pods", None)));
        assert_eq!(beats.newest(stored(6)).value, written, "somebody wrote it since");
        assert!(!beats.keep(&key, Revision(5), beat.clone(), begun + WRITTEN_EVERY));
        assert!(beats.keep(&key, Revision(7), beat, begun + WRITTEN_EVERY), "written at 7");
    }

    #[test]
    fn who_does_not_lead_writes() {
        let key = Key::object("coordination.k8s.io", "leases", Some("kube-node-lease"), "n1");
        assert!(!heartbeats(false).keep(&key, Revision(5), Bytes::new(), Instant::now()));
    }
}
