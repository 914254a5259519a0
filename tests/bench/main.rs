//! What the product costs and how fast it is, beside its goals and beside peers in the same run. `make bench` runs it.
//!
//! Figures are printed, never asserted: machines are noisy. Ratios compare two programs that ran right after each other.

#![allow(clippy::print_stdout, reason = "a report is printed")]

mod api;
mod etcd;
mod failover;
mod footprint;
mod neighbours;
mod pods;
mod report;
mod scale;
mod serving;
mod store;

use report::Report;
use tandem_tests::{cluster::Daemon, machine::Network};

fn main() -> anyhow::Result<()> {
    let mut report = Report::begin();
    report.machine();
    let network = Network::new();
    // `cargo bench ... -- scale` measures this part alone.
    if std::env::args().any(|argument| argument == "scale") {
        scale::clients(&mut report, &network)?;
        scale::objects(&mut report, &network)?;
        report.end();
        return Ok(());
    }
    let store = store::alone(&mut report)?;
    let cluster = footprint::starts(&mut report, &network)?;
    footprint::idle(&mut report, &cluster)?;
    upload(&cluster)?;
    api::writes(&mut report, &cluster, store)?;
    pods::creation(&mut report, &cluster)?;
    serving::requests(&mut report, &cluster)?;
    neighbours::loops(&mut report, &cluster);
    drop(cluster);
    failover::kills(&mut report, &network)?;
    scale::clients(&mut report, &network)?;
    scale::objects(&mut report, &network)?;
    report.end();
    Ok(())
}

fn upload(cluster: &Daemon) -> anyhow::Result<()> {
    let mut push = cluster.machine.command(tandem_tests::root().join("samples/push.sh"));
    let output = push.arg(cluster.kubeconfig()).env("TANDEM", tandem_tests::tandem()).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
