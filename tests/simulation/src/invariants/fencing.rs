//! One leader's work per term: a term has one leader, and once the work of a newer term is there, none of an older
//! one follows.

use std::collections::{BTreeMap, HashMap};

use super::Evidence;
use crate::history::{Reign, Text};

pub(super) fn check(evidence: &Evidence<'_>, broken: &mut dyn FnMut(String)) {
    let mut leaders: BTreeMap<u64, u64> = BTreeMap::new();
    for Reign { member, term } in &evidence.history.reigns {
        let first = *leaders.entry(*term).or_insert(*member);
        if first != *member {
            broken(format!("members {first} and {member} both led in term {term}"));
        }
    }
    let works = evidence.history.writes.iter().filter_map(|write| {
        let (_, value) = write.changes.first()?;
        Some((value.as_ref()?, write.work?))
    });
    let works: HashMap<&Text, (u64, u64)> = works.collect();
    let mut newest = 0;
    for (revision, changes) in &evidence.line.revisions {
        for value in changes.values().flatten() {
            let Some((member, term)) = works.get(value).copied() else { continue };
            if term < newest {
                broken(format!(
                    "work of member {member} in term {term} is at revision {revision}, after term {newest}"
                ));
            }
            newest = newest.max(term);
            if leaders.get(&term).is_some_and(|leader| *leader != member) {
                broken(format!("member {member} worked in term {term}, which it did not lead"));
            }
        }
    }
}
