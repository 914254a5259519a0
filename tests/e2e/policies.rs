use tandem_tests::{cluster::Daemon, machine::Network, root};

use super::tutorial::run;

/// What may reach what, and what leads where, on two nodes, for containers and components.
#[test]
fn policies_and_services_hold_on_every_node() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let second = Daemon::join(network.machine(12), &cluster, "two", &[]);
    cluster.read(&["wait", "--for=create", "node/two", "--timeout=60s"]);
    cluster.read(&["wait", "--for=condition=Ready", "node/two", "--timeout=60s"]);
    let yaml = root().join("tests/scripts/policies.yaml").display().to_string();
    run(&cluster, "policies.txt", "policies", &[("YAML", &yaml)]);
    let address = second.machine.address.to_string();
    run(&cluster, "services.txt", "services", &[("SECOND", &address)]);
}
