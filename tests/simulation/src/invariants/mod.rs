//! What must hold whatever happens, one file for each promise. Every check is a pure function of what clients saw.
//!
//! Revisions are the order in which everything happened, by the store's own word; so the checks need no search: each
//! thing that was seen must fit at its revision, and revisions must fit the time in which they were told.

#[cfg(test)]
mod cases;
mod completeness;
mod fencing;
mod linearizability;
mod loss;
mod revisions;
mod sameness;

use crate::history::{Floors, History, Line, Violation};

/// What the checks look at.
#[derive(Debug)]
pub struct Evidence<'a> {
    pub history: &'a History,
    pub line: Line,
    pub floors: Floors,
}

type Check = fn(&Evidence<'_>, &mut dyn FnMut(String));

/// The named invariants.
pub const INVARIANTS: &[(&str, Check)] = &[
    ("no acknowledged write is lost", loss::check),
    ("revisions are unique and ordered", revisions::check),
    ("reads are linearizable", linearizability::check),
    ("watches are complete and in order", completeness::check),
    ("one leader works in a term", fencing::check),
    ("all members hold the same state", sameness::check),
];

/// How many violations of one invariant are told.
const TOLD_MAX: usize = 5;

/// Everything in `history` that breaks a promise.
pub fn check(history: &History) -> Vec<Violation> {
    let evidence = Evidence { history, line: Line::of(history), floors: Floors::of(history) };
    let mut violations = Vec::new();
    for (invariant, check) in INVARIANTS {
        let mut told = 0;
        check(&evidence, &mut |what| {
            told += 1;
            if told <= TOLD_MAX {
                violations.push(Violation { invariant, what });
            }
        });
    }
    violations
}
