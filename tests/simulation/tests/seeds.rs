//! Many seeds: none breaks a promise, and together they reach every fault and every injection point.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a test says by a panic what is wrong")]

use std::collections::{BTreeMap, BTreeSet};

use tandem_simulation::{
    nemesis::Fault,
    run::ACKNOWLEDGED_MIN,
    seeds::{Enough, Runs},
    twins::TRAPS,
};

const BINARY: &str = env!("CARGO_BIN_EXE_simulate");

/// How many seeds are run, unless `TANDEM_SIMULATION_SEEDS` says otherwise (`FIRST..END` or a number).
const SEEDS: u64 = 200;

/// What the runs must have met beside the faults themselves.
const POINTS: &[&str] = &[
    "aborted on a failure of the disk",
    "append",
    "append call",
    "failed sync",
    "fenced work",
    "install",
    "forwarded write",
    "handed over",
    "log commit",
    "member added",
    "member removed",
    "message blocked",
    "message doubled",
    "message lost",
    "message overtaken",
    "pre-vote call",
    "purge",
    "read index call",
    "snapshot call",
    "state checkpoint",
    "state flush",
    "torn write",
    "transfer call",
    "truncation",
    "vote",
    "vote call",
    "watch began anew",
    "watch resumed",
    "write refused by a full disk",
];

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("TANDEM_SIMULATION_SEEDS") else { return 0..SEEDS };
    let number = |text: &str| text.parse().expect("TANDEM_SIMULATION_SEEDS is a number or FIRST..END");
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&text),
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    let runs = Runs::new(BINARY, None);
    let (seeds, begun) = (seeds(), std::time::Instant::now());
    let mut failures = Vec::new();
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let (mut acknowledged, mut events, mut faults, mut seconds) = (0, 0, 0, 0);
    runs.all(seeds.clone(), |report| {
        let mut broken = report.violations;
        if report.acknowledged < ACKNOWLEDGED_MIN || report.seconds < 60 || report.faults < 5 {
            let (writes, time, faults) = (report.acknowledged, report.seconds, report.faults);
            broken.push(format!("it shows nothing: {writes} acknowledged writes, {faults} faults in {time} s"));
        }
        if !broken.is_empty() {
            failures.push(format!("seed {}:\n  {}\n  {}", report.seed, broken.join("\n  "), runs.command(report.seed)));
        }
        for (point, count) in report.hits {
            *hits.entry(point).or_default() += count;
        }
        acknowledged += report.acknowledged;
        events += report.events;
        faults += report.faults;
        seconds += report.seconds;
        Enough::No
    });
    let count = seeds.end - seeds.start;
    let time = begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds in {time:.0} s ({:.1} a second): {seconds} simulated seconds, {acknowledged} acknowledged \
         writes, {events} watch events, {faults} faults\n{hits:#?}",
        count as f64 / time
    );
    assert!(failures.is_empty(), "{} seeds failed\n{}", failures.len(), failures.join("\n"));
    if count >= SEEDS {
        let faults = Fault::ALL.iter().map(|fault| fault.name());
        let wanted = faults.chain(TRAPS.iter().map(|trap| trap.name)).chain(POINTS.iter().copied());
        let missed: BTreeSet<&str> = wanted.filter(|point| !hits.contains_key(*point)).collect();
        assert!(missed.is_empty(), "never hit: {missed:?}");
    }
}

#[test]
fn a_seed_repeats() {
    let runs = Runs::new(BINARY, None);
    for seed in [3, 4] {
        let (first, second) = (runs.one(seed), runs.one(seed));
        assert_eq!(first.trace, second.trace, "seed {seed} took another course; {}", runs.command(seed));
        assert_eq!((first.acknowledged, first.events), (second.acknowledged, second.events));
        assert_ne!(first.trace, runs.one(seed + 2).trace);
    }
}
