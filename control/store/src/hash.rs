//! One number over everything that a member has applied, kept along as it is applied, so that members can be compared.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use tandem_api::{Key, Revision};
use tokio::sync::watch;

use crate::{Answer, Call, cluster::Cluster, members::metrics_of};

/// Every so many entries the hash is remembered, because members are seldom at the same entry when they are asked.
pub const HASH_MARK_ENTRIES: u64 = 256;

/// Remembered hashes.
pub const HASH_MARKS_MAX: usize = 64;

/// How often the leader compares its hash with those of the others.
pub const HASH_INTERVAL: Duration = Duration::from_secs(60);

/// How long a member may take to tell its hash.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Two members that have applied the same entry have the same hash, or one of them is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The last entry that was applied.
    pub index: u64,
    /// Over the key, the revision and the value of everything that is stored.
    pub hash: u64,
}

/// The hash as it goes along. A sum of one number for each stored value, so that the order does not matter and each
/// change costs the same, however much is stored.
#[derive(Debug, Default)]
pub(crate) struct Running {
    now: StateHash,
    marks: VecDeque<StateHash>,
}

impl Running {
    pub(crate) fn add(&mut self, key: &Key, revision: Revision, value: &[u8]) {
        self.now.hash = self.now.hash.wrapping_add(part(key, revision, value));
    }

    pub(crate) fn remove(&mut self, key: &Key, revision: Revision, value: &[u8]) {
        self.now.hash = self.now.hash.wrapping_sub(part(key, revision, value));
    }

    /// Everything up to this entry has been applied.
    pub(crate) fn reached(&mut self, index: u64) {
        self.now.index = index;
        if index.is_multiple_of(HASH_MARK_ENTRIES) {
            self.marks.push_back(self.now);
        }
        while self.marks.len() > HASH_MARKS_MAX {
            self.marks.pop_front();
        }
    }

    /// What is remembered, the present last.
    pub(crate) fn all(&self) -> Vec<StateHash> {
        self.marks.iter().copied().chain([self.now]).collect()
    }
}

/// A checksum over all of it, spread over 64 bits so that differences do not cancel out in the sum.
fn part(key: &Key, revision: Revision, value: &[u8]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&revision.0.to_be_bytes());
    hasher.update(key.as_str().as_bytes());
    hasher.update(&[0]);
    hasher.update(value);
    // The finalizer of SplitMix64.
    let mut mixed = (u64::from(hasher.finalize()) << 32) ^ revision.0;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The first entry after which two members differ, as far as they remember the same ones.
pub fn first_difference(one: &[StateHash], other: &[StateHash]) -> Option<u64> {
    let differs = |mark: &&StateHash| other.iter().any(|seen| seen.index == mark.index && seen.hash != mark.hash);
    one.iter().find(differs).map(|mark| mark.index)
}

/// The members that are not what the leader is, from one comparison to the next.
pub(crate) async fn compare(cluster: Cluster, interval: Duration, told: watch::Sender<Vec<u64>>) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let mut differing = Vec::new();
        let metrics = metrics_of(cluster.raft());
        // Who does not lead any more does not go on telling what it found.
        let others =
            metrics.membership_config.nodes().filter(|(id, _)| metrics.state.is_leader() && **id != cluster.node);
        for (id, node) in others {
            let asked = cluster.peers.call(*id, &node.address, Call::Hash);
            // A member that cannot be asked is somebody else's alarm.
            let Ok(Ok(Answer::Hash(theirs))) = tokio::time::timeout(ANSWER_TIMEOUT, asked).await else { continue };
            if let Some(index) = first_difference(&cluster.leader.replica.hashes(), &theirs) {
                tracing::error!(member = id, index, "a member has applied something else than the leader has");
                differing.push(*id);
            }
        }
        cluster.leader.metrics.differing_members.set(i64::try_from(differing.len()).unwrap_or(i64::MAX));
        told.send_if_modified(|before| {
            *before != differing && {
                *before = differing;
                true
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_difference_is_found_at_an_entry_that_both_remember() {
        let hash = |index, hash| StateHash { index, hash };
        let ours = [hash(256, 1), hash(512, 2), hash(600, 3)];
        assert_eq!(first_difference(&ours, &[hash(256, 1), hash(512, 2), hash(601, 9)]), None);
        assert_eq!(first_difference(&ours, &[hash(512, 7), hash(768, 9)]), Some(512));
        assert_eq!(first_difference(&ours, &[]), None);
    }

    #[test]
    fn marks_are_kept_within_their_limit() {
        let mut running = Running::default();
        for index in 0..=HASH_MARK_ENTRIES * 100 {
            running.reached(index);
        }
        let all = running.all();
        assert_eq!((all.len(), all[0].index), (HASH_MARKS_MAX + 1, HASH_MARK_ENTRIES * 37));
    }

    proptest! {
        #[test]
        fn what_goes_leaves_nothing_behind(rows in prop::collection::vec((0u8..9, 1u64..99, any::<u8>()), 1..40)) {
            let mut running = Running::default();
            let key = |name: u8| Key::from_raw(format!("/core/things/{name}"));
            for (name, revision, value) in &rows {
                running.add(&key(*name), Revision(*revision), &[*value]);
            }
            prop_assert_ne!(running.all()[0].hash, 0);
            for (name, revision, value) in rows.iter().rev() {
                running.remove(&key(*name), Revision(*revision), &[*value]);
            }
            prop_assert_eq!(running.all()[0].hash, 0);
        }
    }
}
