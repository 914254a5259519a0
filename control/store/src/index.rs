//! The multi-version index in memory: what every key holds, what it held until the horizon, and the recent events.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tandem_api::{Key, Revision};

use crate::{
    Error, Event, StateHash, Stored,
    apply::{Change, Outcome},
    hash::Running,
    history::{History, HistoryLimits},
};

/// How far back history reaches. Both are part of the replicated state; a member with little memory may know less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Horizons {
    /// Reads as of an older revision fail.
    pub(crate) lists: Revision,
    /// Watches from an older revision fail. Never newer than `lists`: what reads need is found through the events.
    pub(crate) watches: Revision,
}

impl Horizons {
    pub(crate) fn advanced(self, lists: Revision, watches: Revision, newest: Revision) -> Horizons {
        let lists = self.lists.max(lists.min(newest));
        Horizons { lists, watches: self.watches.max(watches.min(lists)) }
    }
}

/// What a key held from one revision on; no value when it was deleted.
#[derive(Clone, Debug)]
struct Version {
    revision: Revision,
    created: Revision,
    value: Option<Bytes>,
}

#[derive(Debug)]
struct Versions {
    present: Version,
    /// Superseded versions that reads may still ask for, oldest first.
    older: Vec<Version>,
}

/// A present value without its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present<'a> {
    pub(crate) value: &'a Bytes,
    pub(crate) created: Revision,
    pub(crate) revision: Revision,
}

impl Present<'_> {
    pub(crate) fn stored(&self, key: &Key) -> Stored {
        Stored { key: key.clone(), value: self.value.clone(), created: self.created, revision: self.revision }
    }
}

impl Version {
    fn present(&self) -> Option<Present<'_>> {
        let value = self.value.as_ref()?;
        Some(Present { value, created: self.created, revision: self.revision })
    }
}

impl Versions {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.present.revision <= revision {
            return Some(&self.present);
        }
        self.older.iter().rev().find(|version| version.revision <= revision)
    }
}

/// One slice of a listing.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) items: Vec<Stored>,
    /// Whether keys may follow that the limit cut off.
    pub(crate) more: bool,
}

/// The state that `apply` is applied to.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Key, Versions>,
    revision: Revision,
    horizons: Horizons,
    history: History,
    /// Versions superseded up to here have been forgotten.
    trimmed: Revision,
    hash: Running,
}

impl Index {
    pub(crate) fn new(limits: HistoryLimits) -> Index {
        Index { history: History::new(limits, Revision::ZERO), ..Index::default() }
    }

    /// An index that continues at `revision` with `horizons`; the versions follow through [`Index::restore`].
    pub(crate) fn restored(limits: HistoryLimits, revision: Revision, horizons: Horizons) -> Index {
        let history = History::new(limits, horizons.watches);
        Index { history, revision, horizons, trimmed: horizons.lists, ..Index::default() }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn horizons(&self) -> Horizons {
        self.horizons
    }

    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    pub(crate) fn present(&self, key: &Key) -> Option<Present<'_>> {
        self.keys.get(key)?.present.present()
    }

    /// Carries out what `apply` decided. The events, if any, are the newest in [`Index::history`] afterwards.
    pub(crate) fn commit(&mut self, outcome: &Outcome) {
        if !outcome.changes.is_empty() {
            self.revision = self.revision.next();
        }
        for change in &outcome.changes {
            match change {
                Change::Put(Stored { key, value, created, revision }) => {
                    self.supersede(key, Version { revision: *revision, created: *created, value: Some(value.clone()) });
                }
                Change::Delete { key, revision } => {
                    self.supersede(key, Version { revision: *revision, created: Revision::ZERO, value: None });
                }
            }
        }
        if let Some(horizons) = outcome.horizons {
            self.horizons = self.horizons.advanced(horizons.lists, horizons.watches, self.revision);
        }
        if let Some(floor) = self.history.overflow() {
            self.horizons = self.horizons.advanced(floor, floor, self.revision);
        }
    }

    /// Everything up to this entry of the log has been applied.
    pub(crate) fn reached(&mut self, index: u64) {
        self.hash.reached(index);
    }

    /// The hashes of the state that are remembered, the present one last.
    pub(crate) fn hashes(&self) -> Vec<StateHash> {
        self.hash.all()
    }

    /// Puts back a version that was read from disk; versions come in the order of their revisions.
    pub(crate) fn restore(&mut self, key: &Key, created: Revision, revision: Revision, value: Option<Bytes>) {
        let forgotten = value.is_none() && revision <= self.horizons.lists;
        self.supersede(key, Version { revision, created, value });
        if forgotten {
            self.keys.remove(key);
        }
    }

    fn supersede(&mut self, key: &Key, version: Version) {
        let (revision, value) = (version.revision, version.value.clone());
        if let Some(value) = &value {
            self.hash.add(key, revision, value);
        }
        let previous = match self.keys.get_mut(key) {
            Some(versions) => {
                let old = std::mem::replace(&mut versions.present, version);
                let previous = old.present().map(|present| present.stored(key));
                if let Some(Stored { revision, value, .. }) = &previous {
                    self.hash.remove(key, *revision, value);
                }
                // A read at the horizon itself still needs what was superseded after it.
                if revision > self.horizons.lists {
                    versions.older.push(old);
                }
                previous
            }
            None => {
                self.keys.insert(key.clone(), Versions { present: version, older: Vec::new() });
                None
            }
        };
        if revision > self.horizons.watches {
            self.history.push(Arc::new(Event { key: key.clone(), revision, value, previous }));
        }
    }

    /// Forgets up to `budget` events' worth of what lies behind the horizons; says whether there is more to forget.
    /// `dropped` is told each event that no watch can reach any more.
    pub(crate) fn trim(&mut self, budget: usize, mut dropped: impl FnMut(&Event)) -> bool {
        let mut steps = 0;
        while self.trimmed < self.horizons.lists && steps < budget {
            let events = self.history.one_revision_after(self.trimmed);
            let reached = events.first().map_or(self.horizons.lists, |event| event.revision).min(self.horizons.lists);
            for event in events.iter().filter(|event| event.revision <= reached) {
                self.forget_older(&event.key, reached);
            }
            steps += events.len().max(1);
            self.trimmed = reached;
        }
        let floor = self.horizons.watches.min(self.trimmed);
        while steps < budget {
            let Some(event) = self.history.pop_through(floor) else { break };
            dropped(&event);
            steps += 1;
        }
        self.trimmed < self.horizons.lists || self.history.begins_by(self.horizons.watches)
    }

    fn forget_older(&mut self, key: &Key, horizon: Revision) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        // The newest version at or before the horizon is what a read at the horizon sees.
        let newest = versions.older.partition_point(|version| version.revision <= horizon);
        let keep_from =
            if versions.present.revision <= horizon { versions.older.len() } else { newest.saturating_sub(1) };
        versions.older.drain(..keep_from);
        if versions.older.is_empty() {
            versions.older = Vec::new();
        }
        if versions.present.value.is_none() && versions.present.revision <= horizon {
            self.keys.remove(key);
        }
    }

    pub(crate) fn check_readable(&self, requested: Revision) -> Result<(), Error> {
        if requested < self.horizons.lists {
            return Err(Error::Compacted { requested, compacted: self.horizons.lists });
        }
        if requested > self.revision {
            return Err(Error::TooNew { requested, current: self.revision });
        }
        Ok(())
    }

    pub(crate) fn get(&self, key: &Key, at: Revision) -> Option<Stored> {
        let version = self.keys.get(key)?.at(at)?;
        Some(version.present()?.stored(key))
    }

    /// Up to `limit` keys below `prefix` after `from`, as they were at `at`.
    pub(crate) fn slice(&self, prefix: &Key, from: Option<&Key>, at: Revision, limit: usize) -> Slice {
        let mut items = Vec::new();
        for (key, present) in self.below(prefix, from, at) {
            if items.len() == limit {
                return Slice { items, more: true };
            }
            items.push(present.stored(key));
        }
        Slice { items, more: false }
    }

    /// How many keys below `prefix` follow `after`, as of `at`.
    pub(crate) fn count(&self, prefix: &Key, after: &Key, at: Revision) -> usize {
        self.below(prefix, Some(after), at).count()
    }

    fn below<'a>(
        &'a self,
        prefix: &'a Key,
        from: Option<&'a Key>,
        at: Revision,
    ) -> impl Iterator<Item = (&'a Key, Present<'a>)> + 'a {
        let start = match from {
            Some(from) if from >= prefix => Excluded(from),
            _ => Included(prefix),
        };
        self.keys
            .range((start, Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(key, versions)| Some((key, versions.at(at)?.present()?)))
    }

    /// Every present value and, where it is still within the horizon, every deleted key, for checks of the whole state.
    #[cfg(test)]
    pub(crate) fn versions(&self) -> usize {
        self.keys.values().map(|versions| 1 + versions.older.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{Command, Expect, Reply, apply::apply};

    fn key(name: u8) -> Key {
        Key::from_raw(format!("/core/things/{name}"))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
        Compact(u8, u8),
        Trim(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6u8, 0..4u8).prop_map(|(key, value)| Step::Put(key, value)),
            2 => (0..6u8).prop_map(Step::Delete),
            1 => (0..30u8, 0..10u8).prop_map(|(behind, watches)| Step::Compact(behind, watches)),
            1 => (0..6u8).prop_map(Step::Trim),
        ]
    }

    type Model = BTreeMap<Key, Bytes>;

    fn run(index: &mut Index, step: &Step) -> Option<Reply> {
        let command = match step {
            Step::Put(name, value) => Command::put(key(*name), Bytes::copy_from_slice(&[*value]), Expect::Any),
            Step::Delete(name) => Command::delete(key(*name), Expect::Any),
            Step::Compact(behind, watches) => {
                let lists = Revision(index.revision().0.saturating_sub(u64::from(*behind)));
                Command::horizons(lists, Revision(lists.0.saturating_sub(u64::from(*watches))))
            }
            Step::Trim(budget) => {
                index.trim(usize::from(*budget), |_| {});
                return None;
            }
        };
        let outcome = apply(index, 1, &command);
        index.commit(&outcome);
        Some(outcome.reply)
    }

    fn listed(index: &Index, at: Revision) -> Model {
        let slice = index.slice(&Key::from_raw("/"), None, at, usize::MAX);
        slice.items.into_iter().map(|stored| (stored.key, stored.value)).collect()
    }

    proptest! {
        #[test]
        fn every_revision_within_the_horizon_reads_as_it_was(steps in prop::collection::vec(step(), 1..120)) {
            let mut index = Index::default();
            let mut states: BTreeMap<Revision, Model> = BTreeMap::from([(Revision::ZERO, Model::new())]);
            for step in &steps {
                run(&mut index, step);
                states.entry(index.revision()).or_insert_with(|| listed(&index, index.revision()));
            }
            while index.trim(3, |_| {}) {}
            for (revision, state) in &states {
                match index.check_readable(*revision) {
                    Ok(()) => prop_assert_eq!(&listed(&index, *revision), state),
                    Err(_) => prop_assert!(*revision < index.horizons().lists),
                }
            }
            let (mut replayed, from) = (None, index.horizons().watches);
            if let Some(state) = states.get(&from) {
                let mut model = state.clone();
                for event in index.history().all_after(from) {
                    match &event.value {
                        Some(value) => model.insert(event.key.clone(), value.clone()),
                        None => model.remove(&event.key),
                    };
                }
                replayed = Some(model);
            }
            prop_assert_eq!(replayed, states.get(&index.revision()).cloned().filter(|_| states.contains_key(&from)));
        }
    }

    #[test]
    fn trimming_leaves_nothing_behind_the_horizon() {
        let mut index = Index::default();
        for value in 0..50 {
            run(&mut index, &Step::Put(value % 5, value));
        }
        run(&mut index, &Step::Delete(0));
        assert_eq!(index.versions(), 51);
        let mut dropped = 0;
        let newest = index.revision();
        let outcome = apply(&index, 1, &Command::compact(newest));
        index.commit(&outcome);
        while index.trim(7, |_| dropped += 1) {}
        assert_eq!((index.versions(), dropped), (4, 51));
    }

    #[test]
    fn memory_limits_move_the_horizons() {
        let mut index = Index::new(HistoryLimits { events: 10, ..HistoryLimits::default() });
        for value in 0..100 {
            run(&mut index, &Step::Put(1, value));
            index.trim(8, |_| {});
        }
        assert_eq!(index.horizons(), Horizons { lists: Revision(90), watches: Revision(90) });
        assert_eq!(index.history().all_after(Revision::ZERO).count(), 10);
    }
}
