//! The conformance suite of Kubernetes, unchanged, on a cluster of two nodes. `make conformance` runs it.
//!
//! ```text
//!   scripts/conformance ──> the suite (Go), its images, this program ──> cluster ──> the suite ──> what failed
//! ```
//!
//! `TANDEM_CONFORMANCE_FOCUS` names tests by a regular expression, `TANDEM_CONFORMANCE_SKIP` those to leave out,
//! `TANDEM_CONFORMANCE_PROCESSES` says how many run at a time.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a test says by a panic what is wrong")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Deserialize;
use tandem_tests::{cluster::Daemon, kubectl, machine::Network, root, tandem};

/// Where nodes find the suite's images: in the cluster's own registry.
const REPOSITORY: &str = "e2e-test-images";
const PROCESSES: &str = "4";

/// A run, as Ginkgo reports it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

fn main() -> ExitCode {
    let suite = root().join("target/conformance");
    let network = Network::new();
    let first = Daemon::up(network.machine(11), &[]);
    let _second = Daemon::join(network.machine(12), &first, "two", &[]);
    first.read(&["wait", "--for=create", "node/two", "--timeout=60s"]);
    first.read(&["wait", "--for=condition=Ready", "node/two", "--timeout=60s"]);
    push(&first, &suite);
    let report = report_of(&first, &suite);
    let runs: Vec<Run> = serde_json::from_slice(&fs::read(&report).expect("the suite reports")).expect("JSON");
    let specs: Vec<Spec> = runs.into_iter().flat_map(|run| run.spec_reports.unwrap_or_default()).collect();
    print(&specs)
}

/// Uploads the images of the suite, and Tandem's own nginx under the suite's names for it.
fn push(cluster: &Daemon, suite: &Path) {
    let push = root().join("samples/push.sh");
    let mut command = cluster.machine.command(push);
    command.arg(cluster.kubeconfig()).arg(suite.join("images")).arg(REPOSITORY).env("TANDEM", tandem());
    let output = command.output().expect("samples/push.sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs the suite and gives back where its report is.
fn report_of(cluster: &Daemon, suite: &Path) -> PathBuf {
    let registries = suite.join("registries.yaml");
    let own = format!("registry.tandem/{REPOSITORY}");
    let lines = ["promoterE2eRegistry", "gcEtcdRegistry", "gcRegistry"].map(|key| format!("{key}: {own}\n"));
    fs::write(&registries, lines.concat()).expect("a file");
    let variable = |name: &str, other: &str| std::env::var(name).unwrap_or_else(|_| other.to_owned());
    let report = suite.join("report.json");
    let mut command = cluster.machine.command(suite.join("ginkgo"));
    command.arg(format!("--procs={}", variable("TANDEM_CONFORMANCE_PROCESSES", PROCESSES)));
    command.arg(format!("--focus={}", variable("TANDEM_CONFORMANCE_FOCUS", r"\[Conformance\]")));
    command.arg(format!("--skip={}", variable("TANDEM_CONFORMANCE_SKIP", "^$")));
    command.args(["--timeout=6h", "--no-color", "--silence-skips", "--json-report=report.json"]);
    command.arg(format!("--output-dir={}", suite.display()));
    command.arg(suite.join("e2e.test")).arg("--").arg("--provider=skeleton").arg("--disable-log-dump");
    command.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
    command.arg(format!("--kubectl-path={}", kubectl(36).display()));
    command.env("KUBE_TEST_REPO_LIST", registries).env("KUBECONFIG", cluster.kubeconfig());
    let log = fs::File::create(suite.join("e2e.log")).expect("a log file");
    println!("the suite runs; its words are in {}", suite.join("e2e.log").display());
    command.stdout(log.try_clone().expect("a log file")).stderr(log).status().expect("ginkgo runs");
    report
}

fn print(specs: &[Spec]) -> ExitCode {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for spec in specs.iter().filter(|spec| spec.leaf_node_type == "It" && spec.state != "skipped") {
        *counts.entry(spec.state.as_str()).or_default() += 1;
        if spec.state != "passed" {
            let place = spec.container_hierarchy_texts.clone().unwrap_or_default().join(" ");
            let why = spec.failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or_default();
            let why: String = why.lines().take(4).collect::<Vec<_>>().join(" ").chars().take(400).collect();
            println!("{}: {place} {} ({} s): {why}", spec.state, spec.leaf_node_text, spec.run_time / 1_000_000_000);
        }
    }
    let (passed, all) = (counts.get("passed").copied().unwrap_or(0), counts.values().sum::<usize>());
    println!("{passed} of {all} tests passed: {counts:?}");
    if passed == all && all > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
