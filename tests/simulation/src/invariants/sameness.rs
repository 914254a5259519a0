//! State equal on all members: in the end each holds what the line of revisions says, and so the same as the others.

use std::collections::BTreeMap;

use super::Evidence;

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    let mut hashes: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for last in &evidence.history.finals {
        for (index, hash) in &last.hashes {
            let (member, known) = *hashes.entry(*index).or_insert((last.member, *hash));
            if known != *hash {
                broken(format!("members {member} and {} have different hashes after entry {index}", last.member));
            }
        }
    }
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
