//! Faults of real members under load, and whether anything that was promised is broken by them.
//!
//! ```text
//!   rows: fault, how it is injected, how it is healed ──> Arena: three or five `tandem control`, one machine each
//!                                                             ▲
//!   load: 16 writers, 16 readers, 64 watchers over HTTPS ─────┘──> history ──> invariants of tests/simulation
//! ```
//!
//! `TANDEM_MATRIX_ROUNDS` says how often each row is run; without it the short ones are run once.
//! `TANDEM_MATRIX_ROWS` names rows by a part of their names.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a test says by a panic what is wrong")]

mod client;
mod clocks;
mod delays;
mod disks;
mod herd;
mod load;
mod members;
mod membership;
mod networks;
mod objects;
mod processes;
mod rows;
mod watchers;
mod writers;

use std::time::Duration;

use disks::SmallDisks;
use members::Members;
use rows::{Arena, Report, Row};
use tandem_tests::cluster::folder;

/// How long anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(120);

fn rounds() -> Option<usize> {
    let rounds = std::env::var("TANDEM_MATRIX_ROUNDS").ok()?;
    Some(rounds.parse().expect("TANDEM_MATRIX_ROUNDS is a number"))
}

fn chosen(row: &Row) -> bool {
    match std::env::var("TANDEM_MATRIX_ROWS") {
        Ok(names) => names.split(',').any(|name| row.name.contains(name)),
        Err(_) => row.short || rounds().is_some(),
    }
}

/// Runs all chosen rows of some tables on one cluster, one after the other.
fn run(tables: &[&[Row]], start: impl FnOnce() -> Members) {
    let rows: Vec<&Row> = tables.iter().copied().flatten().filter(|row| chosen(row)).collect();
    if rows.is_empty() {
        return;
    }
    let mut report = Report::default();
    let mut arena = Arena::of(start(), rounds().is_some());
    for round in 0..rounds().unwrap_or(1) {
        for row in &rows {
            rows::run(&mut arena, row, round, &mut report);
        }
    }
    report.print();
}

const ALL: &[&[Row]] = &[processes::ROWS, networks::ROWS, disks::ROWS, clocks::ROWS, membership::ROWS];

#[test]
fn three_members() {
    run(ALL, || Members::start(3, folder));
}

/// The same faults where two members may be gone.
#[test]
fn five_members() {
    if rounds().is_some() {
        run(ALL, || Members::start(5, folder));
    }
}

/// Fewer and shorter lists in a debug build.
#[test]
fn a_herd_of_watchers_comes_back() {
    herd::run(&Members::start(3, folder), rounds().unwrap_or(1));
}

#[test]
fn members_on_small_disks() {
    let mut disks = SmallDisks::default();
    run(&[disks::SMALL_ROWS], || Members::start(3, || disks.folder()));
}
