//! Recent events in order, as a whole and by resource, within limits.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tandem_api::{Key, Revision};

use crate::Event;

/// Events kept at most. At 1,000 writes a second this is a quarter of an hour; beyond it the horizons move by themselves.
pub const HISTORY_EVENTS_MAX: usize = 1_000_000;

/// Bytes of keys and values that history holds at most.
pub const HISTORY_BYTES_MAX: usize = 256 << 20;

/// What an event costs besides its key and value: itself, its places in the two queues, the superseded version.
const EVENT_OVERHEAD_BYTES: usize = 320;

/// How many events one look at history considers at most, so that a reader never holds the state's lock for long.
const SCAN_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> HistoryLimits {
        HistoryLimits { events: HISTORY_EVENTS_MAX, bytes: HISTORY_BYTES_MAX }
    }
}

/// Which events a watch has to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    All,
    /// One resource: `/GROUP/RESOURCE/`.
    Resource(Arc<str>),
}

impl Group {
    pub(crate) fn of_prefix(prefix: &Key) -> Group {
        let resource = prefix.resource_prefix();
        if is_resource(resource) { Group::Resource(resource.into()) } else { Group::All }
    }
}

fn is_resource(prefix: &str) -> bool {
    prefix.bytes().filter(|byte| *byte == b'/').count() == 3
}

#[derive(Debug, Default)]
struct Line {
    events: VecDeque<Arc<Event>>,
    /// The newest event that was forgotten.
    dropped: Revision,
}

/// What a watch finds when it looks for events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) events: Vec<Arc<Event>>,
    /// Everything up to here has been looked at.
    pub(crate) through: Revision,
    /// Whether nothing newer is known.
    pub(crate) caught_up: bool,
    /// Events of the group, of interest or not, that were still ahead when the look began.
    pub(crate) behind: usize,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    limits: HistoryLimits,
    all: Line,
    resources: HashMap<Box<str>, Line>,
    bytes: usize,
    /// Nothing is known of what happened up to here.
    begins_after: Revision,
}

impl History {
    pub(crate) fn new(limits: HistoryLimits, begins_after: Revision) -> History {
        History { limits, begins_after, ..History::default() }
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        debug_assert!(self.all.events.back().is_none_or(|last| last.revision <= event.revision));
        self.bytes += cost(&event);
        let resource = event.key.resource_prefix();
        if is_resource(resource) {
            match self.resources.get_mut(resource) {
                Some(line) => line.events.push_back(event.clone()),
                None => {
                    let line = Line { events: VecDeque::from([event.clone()]), dropped: Revision::ZERO };
                    self.resources.insert(resource.into(), line);
                }
            }
        }
        self.all.events.push_back(event);
    }

    /// When a limit is passed: up to which revision events have to go.
    pub(crate) fn overflow(&self) -> Option<Revision> {
        let excess = self.all.events.len().saturating_sub(self.limits.events);
        let mut floor = excess.checked_sub(1).and_then(|last| self.all.events.get(last)).map(|event| event.revision);
        let mut bytes = self.bytes;
        for event in &self.all.events {
            if bytes <= self.limits.bytes {
                break;
            }
            bytes -= cost(event);
            floor = floor.max(Some(event.revision));
        }
        floor
    }

    /// Forgets the oldest event if it is not newer than `floor`.
    pub(crate) fn pop_through(&mut self, floor: Revision) -> Option<Arc<Event>> {
        self.all.events.front().filter(|event| event.revision <= floor)?;
        let event = self.all.events.pop_front()?;
        self.bytes -= cost(&event);
        self.all.dropped = event.revision;
        if let Some(line) = self.resources.get_mut(event.key.resource_prefix()) {
            line.events.pop_front();
            line.dropped = event.revision;
        }
        Some(event)
    }

    pub(crate) fn begins_by(&self, floor: Revision) -> bool {
        self.all.events.front().is_some_and(|event| event.revision <= floor)
    }

    /// The events of the first revision after `after`.
    pub(crate) fn one_revision_after(&self, after: Revision) -> Vec<Arc<Event>> {
        let mut events = self.all_after(after).peekable();
        let Some(revision) = events.peek().map(|event| event.revision) else { return Vec::new() };
        events.take_while(|event| event.revision == revision).cloned().collect()
    }

    pub(crate) fn all_after(&self, after: Revision) -> impl Iterator<Item = &Arc<Event>> {
        let start = self.all.events.partition_point(|event| event.revision <= after);
        self.all.events.range(start..)
    }

    /// The next events of `group` below `prefix` after `after`, whole revisions at a time, about `limit` of them.
    /// `None` when some of them were forgotten. `newest` is the state's present revision.
    pub(crate) fn find(
        &self,
        group: &Group,
        prefix: &Key,
        after: Revision,
        limit: usize,
        newest: Revision,
    ) -> Option<Found> {
        if after < self.begins_after {
            return None;
        }
        let line = match group {
            Group::All => &self.all,
            Group::Resource(resource) => match self.resources.get(&**resource) {
                Some(line) => line,
                None => {
                    return Some(Found { events: Vec::new(), through: newest.max(after), caught_up: true, behind: 0 });
                }
            },
        };
        if after < line.dropped {
            return None;
        }
        let start = line.events.partition_point(|event| event.revision <= after);
        let behind = line.events.len() - start;
        let mut found = Found { events: Vec::new(), through: newest.max(after), caught_up: true, behind };
        let mut last = after;
        for (scanned, event) in line.events.range(start..).enumerate() {
            if event.revision != last && (found.events.len() >= limit || scanned >= SCAN_MAX) {
                found.through = last;
                found.caught_up = false;
                break;
            }
            last = event.revision;
            if event.key.starts_with(prefix) {
                found.events.push(event.clone());
            }
        }
        Some(found)
    }
}

fn cost(event: &Event) -> usize {
    EVENT_OVERHEAD_BYTES + 2 * event.key.as_str().len() + event.value.as_ref().map_or(0, bytes::Bytes::len)
}
