//! No lost acknowledged write: what was answered with a revision is in the line of revisions at that place, and still
//! is at the end.

use super::Evidence;
use crate::history::Outcome;

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    let line = &evidence.line;
    for write in &evidence.history.writes {
        let Outcome::Done(revision) = write.outcome else { continue };
        let there = line.revisions.get(&revision);
        for (key, value) in &write.changes {
            let found = there.and_then(|changes| changes.get(key));
            let nothing_to_delete = value.is_none() && line.at(key, revision).is_none();
            if found != Some(value) && !nothing_to_delete {
                broken(format!("{key} = {value:?} was acknowledged at revision {revision}, where {found:?} is"));
            }
        }
    }
}
