//! Faults as a table, and how each is run: under load, injected, outlived, healed, judged.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{
    delays::Relays,
    load::{self, Evidence, Load},
    members::Members,
};

/// Writes that are acknowledged before a fault, and again while it lasts and after it.
const BEFORE: u64 = if cfg!(debug_assertions) { 60 } else { 700 };
const MEANWHILE: u64 = if cfg!(debug_assertions) { 40 } else { 300 };
/// Fewer writes a second than these, and a run is void: it proves nothing, and is run again.
const RATE_MIN: f64 = 500.0;
/// So many void runs of a row, one after the other, and the machine is too slow for the test.
const VOID_MAX: usize = 3;

/// What is healed by itself.
pub(crate) const NOTHING: fn(&mut Arena) = |_| ();

/// One fault.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Breaks something. What is asserted of the fault itself is asserted here.
    pub(crate) inject: fn(&mut Arena),
    /// Whether writes go on while it lasts.
    pub(crate) writes_go_on: bool,
    pub(crate) heal: fn(&mut Arena),
    /// Whether no client may see a request fail.
    pub(crate) unnoticed: bool,
    /// Whether it is short enough for every run of the tests.
    pub(crate) short: bool,
}

/// What a fault is injected into, and what it leaves for the healing.
pub(crate) struct Arena {
    pub(crate) members: Members,
    pub(crate) load: Option<Load>,
    pub(crate) victims: Vec<usize>,
    pub(crate) helpers: Vec<std::process::Child>,
    pub(crate) relays: Option<Relays>,
    pub(crate) long: bool,
}

impl Arena {
    pub(crate) fn of(members: Members, long: bool) -> Arena {
        Arena { members, load: None, victims: Vec::new(), helpers: Vec::new(), relays: None, long }
    }

    pub(crate) fn load(&self) -> &Load {
        self.load.as_ref().expect("a row runs under load")
    }

    pub(crate) fn await_progress(&self) {
        self.load().await_acknowledged(MEANWHILE);
    }

    pub(crate) fn victim(&mut self) -> usize {
        self.victims.pop().expect("the fault has a victim")
    }
}

/// What the rounds of a row measured.
#[derive(Default)]
struct Figures {
    gaps: Vec<f64>,
    failed: Vec<f64>,
    rates: Vec<f64>,
}

#[derive(Default)]
pub(crate) struct Report {
    rows: BTreeMap<String, Figures>,
    order: Vec<String>,
    void: usize,
}

/// Runs one row until a run counts, and panics with everything that was broken.
pub(crate) fn run(arena: &mut Arena, row: &Row, round: usize, report: &mut Report) {
    let counts = (0..VOID_MAX).any(|again| once(arena, row, &format!("{round}x{again}"), report));
    assert!(counts, "{}: fewer than {RATE_MIN} writes/s in {VOID_MAX} runs", row.name);
}

/// Whether the run counts.
fn once(arena: &mut Arena, row: &Row, round: &str, report: &mut Report) -> bool {
    let began = Instant::now();
    arena.members.await_whole();
    let serial = format!("r{}x{round}", report.serial());
    let servers = arena.members.addresses();
    arena.load = Some(Load::start(&arena.members.clients, arena.members.kubeconfig(), servers, &serial));
    arena.load().await_acknowledged(BEFORE / 2);
    let warm = Instant::now();
    arena.load().await_acknowledged(BEFORE);
    let failed_before = arena.load().tally.failed();
    let injected = Instant::now();
    (row.inject)(arena);
    if row.writes_go_on {
        arena.await_progress();
    }
    (row.heal)(arena);
    arena.members.await_whole();
    arena.load().serve_from(arena.members.addresses());
    arena.await_progress();
    let healed = Instant::now();
    let load = arena.load.take().expect("the load runs");
    let (failed, reasons) = (load.tally.failed() - failed_before, load.tally.reasons());
    let Evidence { history, acknowledged, broken, resumed, overrun } = load.end(&arena.members.addresses());
    let (gap, rate) = (load::gap(&acknowledged, injected, healed), load::rate(&acknowledged, warm, injected));
    println!(
        "{}: {:.3} s without an acknowledged write, {failed} requests failed, {rate:.0} writes/s before; {} writes, \
         {} reads, {resumed} watches resumed, {overrun} overrun; {:.1} s",
        row.name,
        gap.as_secs_f64(),
        history.writes.len(),
        history.reads.len(),
        began.elapsed().as_secs_f64()
    );
    print!("{reasons}");
    assert!(broken.is_empty(), "{}:\n{}", row.name, broken.join("\n"));
    // A machine that is busy with other things answers late, which clients take for a failure.
    let is_judged = row.unnoticed && !cfg!(debug_assertions);
    assert!(!is_judged || failed == 0, "{}: {failed} requests failed:\n{reasons}", row.name);
    let counts = cfg!(debug_assertions) || rate >= RATE_MIN;
    if counts {
        report.add(row.name, gap, failed, rate);
    } else {
        println!("{}: void, {rate:.0} writes/s only", row.name);
        report.void += 1;
    }
    counts
}

impl Report {
    fn serial(&self) -> usize {
        self.rows.values().map(|figures| figures.gaps.len()).sum()
    }

    fn add(&mut self, row: &str, gap: Duration, failed: u64, rate: f64) {
        if !self.rows.contains_key(row) {
            self.order.push(row.to_owned());
        }
        let figures = self.rows.entry(row.to_owned()).or_default();
        figures.gaps.push(gap.as_secs_f64());
        figures.failed.push(failed as f64);
        figures.rates.push(rate);
    }

    pub(crate) fn print(&self) {
        let build = if cfg!(debug_assertions) { "debug build: no figures to compare" } else { "release build" };
        println!(
            "{build}; {} writers, {} readers, {} watchers; {} void runs",
            load::WRITERS,
            load::READERS,
            load::WATCHERS,
            self.void
        );
        println!(
            "{:<50} {:>6} {:>10} {:>10} {:>8} {:>8} {:>9}",
            "fault", "rounds", "gap, s", "at most", "failed", "at most", "writes/s"
        );
        for row in &self.order {
            let Figures { gaps, failed, rates } = &self.rows[row];
            let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
            println!(
                "{row:<50} {:>6} {:>10.3} {:>10.3} {:>8.0} {:>8.0} {:>9.0}",
                gaps.len(),
                median(gaps),
                most(gaps),
                median(failed),
                most(failed),
                median(rates)
            );
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
