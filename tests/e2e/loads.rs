use tandem_tests::machine::Network;

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
fn daemon_sets_run_on_containers_and_components() {
    run_both("daemons");
}

#[test]
fn stateful_sets_run_on_containers_and_components() {
    run_both("stateful");
}
