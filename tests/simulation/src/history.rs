//! What clients saw: the evidence that the invariants are checked on. Nothing here knows whether it was a simulation
//! or real processes that the clients talked to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

pub type Text = Arc<str>;

/// A moment of the run. Only the order counts: a number that goes up, or nanoseconds of one clock.
pub type Moment = u64;

/// How a write ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged with this revision.
    Done(u64),
    /// It was refused: it must never be seen.
    Refused,
    /// No answer, or one that leaves it open.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Write {
    pub begun: Moment,
    /// When the client had its answer; the end of time where it got none.
    pub ended: Moment,
    /// Each key with its new value, which no other write uses; `None` deletes.
    pub changes: Vec<(Text, Option<Text>)>,
    pub outcome: Outcome,
    /// Whose work it is, when it is a leader's: the member and its term.
    pub work: Option<(u64, u64)>,
}

/// How fresh a read was asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Linearizable,
    AtLeast(u64),
    Exactly(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key: Text,
    pub revision: u64,
    pub value: Text,
}

#[derive(Clone, Debug)]
pub enum Seen {
    Key { key: Text, found: Option<Item> },
    List { prefix: Text, revision: u64, items: Vec<Item> },
}

#[derive(Clone, Debug)]
pub struct Read {
    pub member: u64,
    pub begun: Moment,
    pub ended: Moment,
    pub asked: Freshness,
    pub seen: Seen,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub key: Text,
    pub value: Option<Text>,
    /// The revision of what the key held before.
    pub previous: Option<u64>,
}

#[derive(Clone, Debug)]
pub enum Delivered {
    Change(Change),
    /// Everything up to this revision has been delivered.
    Progress(u64),
}

/// One watch from its opening to its end.
#[derive(Clone, Debug)]
pub struct Watch {
    pub member: u64,
    pub prefix: Text,
    pub after: u64,
    pub delivered: Vec<Delivered>,
}

/// A member that said of itself that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    pub member: u64,
    pub term: u64,
}

/// The whole of a member's state at the end.
#[derive(Clone, Debug)]
pub struct Final {
    pub member: u64,
    pub revision: u64,
    pub items: Vec<Item>,
    /// The member's own hashes over its state, each with the log entry that it is of.
    pub hashes: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    pub watches: Vec<Watch>,
    pub reigns: Vec<Reign>,
    pub finals: Vec<Final>,
    /// Others write beside these clients: revisions that nobody here saw are theirs.
    pub beside_others: bool,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

/// Everything that watches delivered, as one line of revisions, with what each key held when.
#[derive(Debug, Default)]
pub struct Line {
    /// Each revision's changes, by key.
    pub revisions: BTreeMap<u64, BTreeMap<Text, Option<Text>>>,
    /// Each key's changes, oldest first.
    keys: HashMap<Text, Vec<(u64, Option<Text>)>>,
    /// Where two watches told different stories.
    pub contradictions: Vec<String>,
}

impl Line {
    pub fn of(history: &History) -> Line {
        let mut line = Line::default();
        for watch in &history.watches {
            for delivered in &watch.delivered {
                let Delivered::Change(change) = delivered else { continue };
                let changes = line.revisions.entry(change.revision).or_default();
                match changes.get(&change.key) {
                    Some(known) if *known != change.value => line.contradictions.push(format!(
                        "member {} delivered {:?} for {} at revision {}, another one {known:?}",
                        watch.member, change.value, change.key, change.revision
                    )),
                    Some(_) => {}
                    None => drop(changes.insert(change.key.clone(), change.value.clone())),
                }
            }
        }
        for (revision, changes) in &line.revisions {
            for (key, value) in changes {
                line.keys.entry(key.clone()).or_default().push((*revision, value.clone()));
            }
        }
        line
    }

    pub fn newest(&self) -> u64 {
        self.revisions.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// All changes of a key, oldest first.
    pub fn of_key(&self, key: &str) -> &[(u64, Option<Text>)] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// What a key held at a revision: since when, and the value.
    pub fn at(&self, key: &str, revision: u64) -> Option<(u64, &Text)> {
        let changes = self.of_key(key);
        let newest = changes.partition_point(|(changed, _)| *changed <= revision).checked_sub(1)?;
        let (changed, value) = &changes[newest];
        Some((*changed, value.as_ref()?))
    }

    /// Everything below a prefix as it was at a revision, in key order.
    pub fn list(&self, prefix: &str, revision: u64) -> Vec<Item> {
        let mut items: Vec<Item> = self
            .keys
            .keys()
            .filter(|key| key.starts_with(prefix))
            .filter_map(|key| {
                let (changed, value) = self.at(key, revision)?;
                Some(Item { key: key.clone(), revision: changed, value: value.clone() })
            })
            .collect();
        items.sort_by(|left, right| left.key.cmp(&right.key));
        items
    }
}

/// The newest revision that anyone was told of, by moment: what begins later must not be older.
#[derive(Debug)]
pub struct Floors(Vec<(Moment, u64)>);

impl Floors {
    pub fn of(history: &History) -> Floors {
        let writes = history.writes.iter().filter_map(|write| match write.outcome {
            Outcome::Done(revision) => Some((write.ended, revision)),
            Outcome::Refused | Outcome::Unknown => None,
        });
        let reads = history.reads.iter().filter_map(|read| match &read.seen {
            Seen::Key { found, .. } => found.as_ref().map(|found| (read.ended, found.revision)),
            Seen::List { revision, .. } => Some((read.ended, *revision)),
        });
        let mut told: Vec<(Moment, u64)> = writes.chain(reads).collect();
        told.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut told {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Floors(told)
    }

    /// The newest revision that had been told when `begun` came.
    pub fn at(&self, begun: Moment) -> u64 {
        let told = self.0.partition_point(|(ended, _)| *ended < begun);
        told.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}
