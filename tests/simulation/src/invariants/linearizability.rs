//! Reads: a linearizable one sees everything that anyone was told before it began; every one sees what was there at
//! one revision.

use super::Evidence;
use crate::history::{Freshness, Item, Read, Seen, Text};

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    for read in &evidence.history.reads {
        let floor = match read.asked {
            Freshness::Linearizable => evidence.floors.at(read.begun),
            Freshness::AtLeast(revision) | Freshness::Exactly(revision) => revision,
        };
        match &read.seen {
            Seen::Key { key, found } => check_key(evidence, read, floor, key, found.as_ref(), broken),
            Seen::List { prefix, revision, items } => {
                if *revision < floor {
                    broken(format!("a list of {prefix} from member {} is of {revision}, not {floor}", read.member));
                }
                let expected = evidence.line.list(prefix, *revision);
                if *items != expected {
                    let differing = items.iter().find(|item| !expected.contains(item));
                    let missing = expected.iter().find(|item| !items.contains(item));
                    broken(format!(
                        "a list of {prefix} from member {} at {revision} has {differing:?} too much, {missing:?} too little",
                        read.member
                    ));
                }
            }
        }
    }
}

fn check_key(
    evidence: &Evidence<'_>,
    read: &Read,
    floor: u64,
    key: &Text,
    found: Option<&Item>,
    broken: &mut dyn FnMut(String),
) {
    let changes = evidence.line.of_key(key);
    let member = read.member;
    if let Freshness::Exactly(revision) = read.asked {
        let there = evidence.line.at(key, revision).map(|(changed, value)| (changed, value.clone()));
        if found.map(|item| (item.revision, item.value.clone())) != there {
            broken(format!("member {member} says that {key} was {found:?} at revision {revision}; it was {there:?}"));
        }
        return;
    }
    let Some(item) = found else {
        let absent_since_floor = evidence.line.at(key, floor).is_none()
            || changes.iter().any(|(revision, value)| *revision > floor && value.is_none());
        if !absent_since_floor {
            broken(format!("member {member} does not know {key}, which was there at revision {floor} and after"));
        }
        return;
    };
    let Some(place) =
        changes.iter().position(|(revision, value)| *revision == item.revision && value.as_ref() == Some(&item.value))
    else {
        broken(format!("member {member} says that {key} is {item:?}, which it never was"));
        return;
    };
    if let Some((next, _)) = changes.get(place + 1)
        && *next <= floor
    {
        broken(format!(
            "a stale read: member {member} says that {key} is of {}, and {next} had been told",
            item.revision
        ));
    }
}
