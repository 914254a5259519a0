use std::time::Duration;

use tandem_tests::{cluster::Daemon, machine::Network, root, until};

use super::tutorial::run;

/// What the containers of a kind run: one that ends well, one that fails, one that never ends.
const CONTAINERS: [(&str, &str); 4] = [
    ("IMAGE", "busybox:1.36"),
    ("ONCE", r#"command: [sh, -c, 'echo "$TICK_MESSAGE 1"']"#),
    ("FAIL", r#"command: [sh, -c, "exit 3"]"#),
    ("FOREVER", r#"command: [sleep, "1000"]"#),
];
const COMPONENTS: [(&str, &str); 4] = [
    ("IMAGE", "registry.tandem/samples/tick:1"),
    ("ONCE", r#"args: ["1"]"#),
    ("FAIL", r#"args: ["1", "3"]"#),
    ("FOREVER", "args: []"),
];

/// Counts in a file, as the component does by itself.
const COUNT: &str = r#"command: [sh, -c, "n=$(cat $TICK_FILE || echo 0); while true; do n=$((n+1)); echo $n > $TICK_FILE.new; mv $TICK_FILE.new $TICK_FILE; echo tick $n; sleep 1; done"]"#;
const DEADLINE: Duration = Duration::from_secs(60);

/// The same session for a container image and for a component.
fn run_both(script: &str) {
    let network = Network::new();
    let cluster = super::cluster(&network);
    run(&cluster, &format!("{script}.txt"), &format!("{script}-containers"), &CONTAINERS);
    run(&cluster, &format!("{script}.txt"), &format!("{script}-components"), &COMPONENTS);
}

#[test]
fn jobs_run_on_containers_and_components() {
    run_both("batch");
}

#[test]
fn pods_make_room_for_those_of_higher_priority() {
    run_both("preemption");
}

#[test]
fn daemon_sets_run_on_containers_and_components() {
    run_both("daemons");
}

#[test]
fn stateful_sets_run_on_containers_and_components() {
    let network = Network::new();
    let mut cluster = super::cluster(&network);
    for (kind, variables, count) in [("containers", CONTAINERS, COUNT), ("components", COMPONENTS, "args: []")] {
        run(&cluster, "stateful.txt", &format!("stateful-{kind}"), &variables);
        let volume = format!("by-hand-{kind}");
        let variables = [variables[0], ("COUNT", count), ("VOLUME", &volume)];
        run(&cluster, "volumes.txt", &format!("volumes-{kind}"), &variables);
    }
    claims_outlive_the_node(&mut cluster);
}

/// What is written to a claim is there after the node's process was killed, and goes with the claim.
fn claims_outlive_the_node(cluster: &mut Daemon) {
    let folders = std::path::Path::new(&cluster.data_dir()).join("node/volumes");
    let empty = || match std::fs::read_dir(&folders).expect("the node's volumes").count() {
        0 => Ok(()),
        count => Err(format!("{count} folders")),
    };
    until("the folders of deleted claims are gone", DEADLINE, empty);
    cluster.read(&["apply", "-f", &root().join("tests/scripts/volumes.yaml").display().to_string()]);
    let ticks = |cluster: &Daemon, name: &str| {
        let log = cluster.kubectl(&["logs", &format!("deployment/{name}")]);
        let text = String::from_utf8_lossy(&log.stdout).into_owned();
        let numbers = text.lines().filter_map(|line| line.strip_prefix("tick ")?.parse::<u64>().ok());
        numbers.collect::<Vec<u64>>()
    };
    let mut before = Vec::new();
    for name in ["container", "component"] {
        cluster.read(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
        until("it counts", DEADLINE, || match ticks(cluster, name).last() {
            Some(last) if *last >= 2 => Ok(()),
            last => Err(format!("{last:?}")),
        });
        before.push((name, ticks(cluster, name)));
    }
    cluster.kill();
    cluster.start();
    cluster.read(&["delete", "pod", "-l", "test=volumes", "--timeout=60s"]);
    for (name, before) in before {
        until("it goes on", DEADLINE, || match (before.last(), ticks(cluster, name).first()) {
            (Some(last), Some(first)) if first > last => Ok(()),
            found => Err(format!("{name}: {found:?}")),
        });
    }
    cluster.read(&["delete", "deployments,persistentvolumeclaims", "-l", "test=volumes", "--timeout=60s"]);
    until("the folders of deleted claims are gone", DEADLINE, empty);
}
