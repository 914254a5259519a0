//! What the product costs and how fast it is, beside its goals and beside peers in the same run. `make bench` runs it.
//!
//! Figures are printed, never asserted: machines are noisy. Ratios compare two programs that ran right after each other.

#![allow(clippy::print_stdout, reason = "a report is printed")]

mod api;
mod etcd;
mod failover;
mod footprint;
mod ingress;
mod neighbours;
mod pods;
mod report;
mod scale;
mod scheduling;
mod serving;
mod store;
mod zero;

use report::Report;
use tandem_tests::{cluster::Daemon, machine::Network};

/// Parts that can be measured alone: `cargo bench --workspace --bench product -- neighbours scale`.
const PARTS: [&str; 7] = ["node", "ingress", "neighbours", "failover", "scheduling", "scale", "zero"];

fn main() -> anyhow::Result<()> {
    let mut report = Report::begin();
    report.machine();
    let network = Network::new();
    let named: Vec<String> = std::env::args().filter(|argument| PARTS.contains(&argument.as_str())).collect();
    for part in PARTS.iter().filter(|part| named.is_empty() || named.iter().any(|name| name == *part)) {
        match *part {
            "node" => node(&mut report, &network)?,
            "neighbours" => {
                let cluster = Daemon::up(network.machine(12), &[]);
                upload(&cluster)?;
                neighbours::loops(&mut report, &cluster);
            }
            "ingress" => {
                let cluster = Daemon::up(network.machine(13), &[]);
                upload(&cluster)?;
                ingress::requests(&mut report, &cluster)?;
            }
            "zero" => {
                zero::first_answers(&mut report, &network)?;
                zero::step(&mut report, &network)?;
            }
            "failover" => failover::kills(&mut report, &network)?,
            "scheduling" => scheduling::decisions(&mut report)?,
            _ => {
                scale::clients(&mut report, &network)?;
                scale::objects(&mut report, &network)?;
            }
        }
    }
    report.end();
    Ok(())
}

/// What one machine needs and does.
fn node(report: &mut Report, network: &Network) -> anyhow::Result<()> {
    let store = store::alone(report)?;
    let cluster = footprint::starts(report, network)?;
    footprint::idle(report, &cluster)?;
    upload(&cluster)?;
    api::writes(report, &cluster, store)?;
    pods::creation(report, &cluster)?;
    serving::requests(report, &cluster)
}

fn upload(cluster: &Daemon) -> anyhow::Result<()> {
    let mut push = cluster.machine.command(tandem_tests::root().join("samples/push.sh"));
    let output = push.arg(cluster.kubeconfig()).env("TANDEM", tandem_tests::tandem()).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
