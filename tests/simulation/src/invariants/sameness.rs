//! State equal on all members: in the end each holds what the line of revisions says, and so the same as the others.

use super::Evidence;

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    let newest = evidence.line.newest();
    for last in &evidence.history.finals {
        if last.revision != newest {
            broken(format!("member {} ended at revision {}, not at {newest}", last.member, last.revision));
        }
        let expected = evidence.line.list("", last.revision);
        if last.items != expected {
            let differing = last.items.iter().find(|item| !expected.contains(item));
            let missing = expected.iter().find(|item| !last.items.contains(item));
            broken(format!("member {} ended with {differing:?} too much and {missing:?} too little", last.member));
        }
    }
}
