use std::{path::PathBuf, process::Command};

use anyhow::Context as _;
use serde::Deserialize;

use crate::report::{Goal, Report};

/// What `store_bench` prints of one or of many writers.
#[derive(Deserialize)]
struct Writes {
    writes_per_second: f64,
    fsyncs_per_1000_writes: f64,
}

#[derive(Deserialize)]
struct FanOut {
    watchers: usize,
    writes_per_second: f64,
    events_lost: usize,
    late_ms_max: f64,
}

/// How often one and 64 writers are measured after each other; the round with the median ratio is shown, because the
/// time of one fsync changes from second to second.
const ROUNDS: usize = 3;

const ROUND_SECONDS: &str = "4";

/// The store without the API: one member, its two files on this disk. Gives back the writes a second of 64 writers.
pub(crate) fn alone(report: &mut Report) -> anyhow::Result<f64> {
    let mut rounds: Vec<(Writes, Writes, FanOut)> = (0..ROUNDS).map(|_| round()).collect::<anyhow::Result<_>>()?;
    let ratio = |(one, many, _): &(Writes, Writes, FanOut)| many.writes_per_second / one.writes_per_second;
    rounds.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    let middle = rounds.get(ROUNDS / 2).context("there is a round")?;
    let (one, many, watch) = middle;
    report.figure("store alone, durable writes/s, 1 writer", one.writes_per_second, "/s", Goal::None);
    report.figure("store alone, durable writes/s, 64 writers", many.writes_per_second, "/s", Goal::None);
    report.figure("store alone, 64 writers to one", ratio(middle), "", Goal::AtLeast(8.0));
    report.figure("store alone, fsyncs per 1,000 writes", many.fsyncs_per_1000_writes, "", Goal::AtMost(50.0));
    let latest = rounds.iter().map(|(_, _, watch)| watch.late_ms_max).fold(0.0, f64::max);
    let what = format!("{} watchers at {:.0} writes/s, latest event", watch.watchers, watch.writes_per_second);
    report.figure(&what, latest, "ms", Goal::AtMost(100.0));
    let lost: usize = rounds.iter().map(|(_, _, watch)| watch.events_lost).sum();
    report.figure("the same, events lost", lost as f64, "", Goal::AtMost(0.0));
    Ok(many.writes_per_second)
}

fn round() -> anyhow::Result<(Writes, Writes, FanOut)> {
    let folder = tempfile::tempdir()?;
    let output = Command::new(program()?).arg(folder.path()).arg(ROUND_SECONDS).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines();
    let mut next = || lines.next().with_context(|| format!("store_bench said: {text}"));
    Ok((serde_json::from_str(next()?)?, serde_json::from_str(next()?)?, serde_json::from_str(next()?)?))
}

/// Built beside this benchmark: `target/release/examples/store_bench`, this one being in `target/release/deps`.
fn program() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here.ancestors().nth(2).context("a benchmark lies two folders below its target")?;
    let program = folder.join("examples/store_bench");
    anyhow::ensure!(program.exists(), "{} is not built: run `make bench`", program.display());
    Ok(program)
}
