//! End-to-end tests: the real binary, real containerd, real wasmtime, real kubectl, each cluster in a network namespace
//! of its own. They need root.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says by a panic what is wrong"
)]

mod faults;
mod ingress;
mod loads;
mod members;
mod nodes;
mod policies;
mod readme;
mod restart;
mod tutorial;
mod zero;

use tandem_tests::{cluster::Daemon, machine::Network, root, tandem};

/// The images of the samples, in the cluster's registry.
fn upload_samples(cluster: &Daemon) {
    let output = cluster
        .machine
        .command(root().join("samples/push.sh"))
        .arg(cluster.kubeconfig())
        .env("TANDEM", tandem())
        .output()
        .expect("samples/push.sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A one-machine cluster with the samples' images.
fn cluster(network: &Network) -> Daemon {
    let cluster = Daemon::up(network.machine(11), &[]);
    upload_samples(&cluster);
    cluster
}
