use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use tandem_tests::{cluster::Daemon, machine::Network, until};

use crate::report::{Goal, Report};

const IDLE: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(10);

/// Starts a cluster twice, from nothing and with its data.
pub(crate) fn starts(report: &mut Report, network: &Network) -> anyhow::Result<Daemon> {
    let began = Instant::now();
    let mut cluster = Daemon::up(network.machine(11), &[]);
    report.figure("first start to ready", began.elapsed().as_secs_f64(), "s", Goal::AtMost(3.0));
    cluster.stop();
    let began = Instant::now();
    cluster.start();
    report.figure("second start to ready", began.elapsed().as_secs_f64(), "s", Goal::AtMost(1.0));
    Ok(cluster)
}

/// What a cluster with nothing to do takes over a minute.
pub(crate) fn idle(report: &mut Report, cluster: &Daemon) -> anyhow::Result<()> {
    wait(SETTLE);
    let before = processes(cluster)?;
    wait(IDLE);
    let after = processes(cluster)?;
    let memory = |ours: bool| {
        let chosen = after.values().filter(|process| !ours || process.name == "tandem");
        chosen.map(|process| process.resident_bytes).sum::<u64>() as f64 / 1e6
    };
    report.figure("resident memory, idle, without containerd", memory(true), "MB", Goal::AtMost(60.0));
    report.figure("resident memory, idle, all processes", memory(false), "MB", Goal::AtMost(130.0));
    let difference = |of: fn(&Process) -> u64| {
        let spent = |(pid, process): (&u32, &Process)| of(process).saturating_sub(before.get(pid).map_or(0, of));
        after.iter().map(spent).sum::<u64>() as f64
    };
    let ticks = difference(|process| process.cpu_ticks);
    report.figure("CPU, idle, all processes", ticks / IDLE.as_secs_f64(), "%", Goal::AtMost(0.5));
    let written = difference(|process| process.written_bytes) / 1e3;
    report.figure("written to disk, idle, in a minute", written, "kB", Goal::AtMost(100.0));
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "an idle cluster is measured over time")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

struct Process {
    name: String,
    /// With pages that several processes share counted once in all (PSS): the sum is what the machine lacks.
    resident_bytes: u64,
    /// Hundredths of a second.
    cpu_ticks: u64,
    written_bytes: u64,
}

/// The processes of the cluster: those that run in its machine's network namespace.
fn processes(cluster: &Daemon) -> anyhow::Result<BTreeMap<u32, Process>> {
    let output = Command::new("ip").args(["netns", "pids", &cluster.machine.name]).output()?;
    let pids = String::from_utf8(output.stdout)?;
    let mut found = BTreeMap::new();
    for pid in pids.lines().filter_map(|line| line.trim().parse::<u32>().ok()) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (Ok(name), Ok(stat), Ok(memory), Ok(io)) = (read("comm"), read("stat"), read("smaps_rollup"), read("io"))
        else {
            continue;
        };
        let field = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default()
        };
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let cpu_ticks =
            after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        found.insert(
            pid,
            Process {
                name: name.trim().to_owned(),
                resident_bytes: field(&memory, "Pss:") * 1024,
                cpu_ticks,
                written_bytes: field(&io, "write_bytes:"),
            },
        );
    }
    anyhow::ensure!(!found.is_empty(), "the cluster has no processes");
    Ok(found)
}

/// Waits until a URL answers on the cluster's machine.
pub(crate) fn answers(cluster: &Daemon, url: &str) {
    until(url, Duration::from_secs(30), || {
        let output = cluster.machine.shell(&format!("curl -s --fail --max-time 2 -o /dev/null {url}"));
        if output.status.success() { Ok(()) } else { Err(output) }
    });
}
