//! Revisions are unique and ordered: each belongs to one write, no write happens twice, what was refused or never
//! asked for does not happen at all, and what begins later gets a newer revision.

use std::collections::HashMap;

use super::Evidence;
use crate::history::{Outcome, Text, Write};

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    let (line, floors) = (&evidence.line, &evidence.floors);
    line.contradictions.iter().cloned().for_each(&mut *broken);
    let mut expected = 1;
    for revision in line.revisions.keys() {
        if *revision != expected && !evidence.history.beside_others {
            broken(format!("revision {revision} follows {}", expected - 1));
        }
        expected = revision + 1;
    }
    let mut writers: HashMap<&Text, &Write> = HashMap::new();
    for write in &evidence.history.writes {
        for (_, value) in &write.changes {
            if let Some(value) = value {
                writers.insert(value, write);
            }
        }
    }
    let mut places: HashMap<&Text, u64> = HashMap::new();
    for (revision, changes) in &line.revisions {
        for (key, value) in changes {
            let Some(value) = value else { continue };
            let Some(write) = writers.get(value) else {
                broken(format!("{key} = {value} at revision {revision} was written by nobody"));
                continue;
            };
            if let Some(before) = places.insert(value, *revision) {
                broken(format!("{key} = {value} happened at revision {before} and again at {revision}"));
            }
            match write.outcome {
                Outcome::Refused => broken(format!("{key} = {value} was refused and is at revision {revision}")),
                Outcome::Done(told) if told != *revision => {
                    broken(format!("{key} = {value} is at revision {revision}, and its writer was told {told}"));
                }
                Outcome::Done(_) | Outcome::Unknown => {}
            }
            let floor = floors.at(write.begun);
            if *revision <= floor {
                broken(format!("{key} = {value} got revision {revision}, and {floor} had been told before it began"));
            }
        }
    }
}
