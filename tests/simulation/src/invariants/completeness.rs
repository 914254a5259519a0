//! Watches: every change below the prefix after the beginning, once, in order, whole revisions, with what was before.

use super::Evidence;
use crate::history::{Change, Delivered, Line, Watch};

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    for watch in &evidence.history.watches {
        check_watch(&evidence.line, watch, broken);
    }
}

fn check_watch(line: &Line, watch: &Watch, broken: &mut dyn FnMut(String)) {
    let Watch { member, prefix, after, delivered } = watch;
    let name = format!("the watch of {prefix:?} on member {member} after {after}");
    let mut expected = line
        .revisions
        .range(after + 1..)
        .flat_map(|(revision, changes)| changes.iter().map(move |(key, value)| (*revision, key, value)))
        .filter(|(_, key, _)| key.starts_with(&**prefix))
        .peekable();
    let mut seen = std::collections::HashSet::new();
    let mut newest = *after;
    for item in delivered {
        match item {
            Delivered::Progress(revision) => {
                if *revision < newest {
                    return broken(format!("{name} goes back to {revision} from {newest}"));
                }
                newest = *revision;
                if let Some((missing, key, _)) = expected.peek().filter(|(missing, _, _)| missing <= revision) {
                    return broken(format!("{name} missed {key} at revision {missing} and says it is at {revision}"));
                }
            }
            Delivered::Change(change) => {
                let Change { revision, key, previous, .. } = change;
                if !seen.insert((*revision, key)) {
                    return broken(format!("{name} delivered {key} at revision {revision} twice"));
                }
                if *revision < newest {
                    return broken(format!("{name} delivered revision {revision} after {newest}"));
                }
                newest = *revision;
                let before = line.at(key, revision - 1).map(|(changed, _)| changed);
                if *previous != before {
                    return broken(format!("{name} says that {key} was of {previous:?} before {revision}: {before:?}"));
                }
                // Within a revision the order of keys is the writer's.
                match expected.next() {
                    Some((place, _, _)) if place == *revision => {}
                    Some((place, missing, _)) => {
                        return broken(format!("{name} missed {missing} at {place}: {key} at {revision} came instead"));
                    }
                    None => return broken(format!("{name} delivered {key} at {revision}, which nobody else saw")),
                }
            }
        }
    }
}
