//! An own containerd on this machine: each test in a network namespace of its own, with folders of its own. Needs
//! root and the packages containerd, runc, containernetworking-plugins, iproute2 and busybox-static.
//!
//! It has no test harness, because this program is also the plugin `tandem-ipam` that containerd calls by that name.
//! `cargo test -p tandem-containerd --test containerd WORD` runs the tests whose name holds the word.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by a panic what is wrong")]

mod conformance;
mod life;
mod network;
mod node;
mod pods;
mod pull;
mod registry;

use std::{io::Write, path::Path, process::ExitCode, time::Instant};

use futures::future::BoxFuture;

type Test = fn() -> BoxFuture<'static, ()>;

macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        const TESTS: &[(&str, Test)] =
            &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*];
    };
}

tests![
    conformance::passes_the_suite,
    life::is_adopted_with_its_pods,
    life::is_started_again_when_it_dies,
    life::is_started_anew_when_its_configuration_changes,
    life::another_ones_socket_can_be_used,
    life::strict_refuses_what_is_otherwise_warned_of,
    life::down_leaves_nothing,
    life::down_works_while_nobody_answers_the_plugins,
    network::pods_reach_each_other_and_the_node,
    network::components_join_a_pods_namespace,
    network::host_ports_lead_to_the_pod,
    network::addresses_come_back,
    pods::memory_over_the_limit_is_told,
    pods::security_settings_arrive,
    pods::root_in_a_container_does_not_reach_the_machine,
    pods::privileged_containers_need_a_privileged_sandbox,
    pods::host_network_is_the_nodes,
    pods::exec_carries_streams_and_terminals,
    pods::statistics_grow,
    pods::the_end_of_a_container_wakes,
    pull::the_clusters_registry_is_asked_with_a_certificate,
    pull::failures_carry_the_registrys_answer,
];

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "tandem-ipam") {
        return tandem_net::ipam::plugin_main();
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    if std::env::args().any(|word| word == "--list") {
        TESTS.iter().for_each(|(name, _)| say(&format!("{name}: test\n")));
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let failed: Vec<&str> = TESTS
        .iter()
        .filter(|(name, _)| chosen(name))
        .filter(|(name, test)| !run(name, *test))
        .map(|(name, _)| *name)
        .collect();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    say(&format!("\nfailed: {}\n", failed.join(", ")));
    ExitCode::FAILURE
}

fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

/// The threads of a test are all in a network namespace that ends with the test.
fn run(name: &str, test: Test) -> bool {
    say(&format!("test {name} ... "));
    let begun = Instant::now();
    let outcome = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        assert!(rustix::process::geteuid().is_root(), "these tests run containers: run them as root");
        #[allow(unsafe_code, reason = "a new namespace is made by leaving the old one")]
        // SAFETY: only the network namespace of this thread changes.
        unsafe {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET).unwrap();
        }
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test());
    });
    let passed = outcome.unwrap().join().is_ok();
    let word = if passed { "ok" } else { "FAILED" };
    say(&format!("{word} ({:.1} s)\n", begun.elapsed().as_secs_f32()));
    passed
}
