//! Every planted bug is found, so that what finds nothing in the product means something.

use tandem_simulation::{
    bugs::Bug,
    seeds::{Enough, Runs},
};

/// Within so many seeds.
const SEEDS: u64 = 200;

#[test]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let runs = Runs::new(env!("CARGO_BIN_EXE_simulate"), Some(*bug));
        let (mut run, mut caught) = (0, None);
        runs.all(0..SEEDS, |report| {
            run += 1;
            let Some(violation) = report.violations.into_iter().next() else { return Enough::No };
            caught.get_or_insert((report.seed, run, violation));
            Enough::Yes
        });
        match caught {
            Some((seed, run, violation)) => println!("{}: run {run}, seed {seed}: {violation}", bug.name()),
            None => missed.push(bug.name()),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}
