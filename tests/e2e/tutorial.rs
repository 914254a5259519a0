use tandem_tests::{cluster::Daemon, kubectl, machine::Network, root, session, tandem};

/// Runs a script in a namespace of its own, with the variables that scripts use.
pub(super) fn run(cluster: &Daemon, script: &str, namespace: &str, variables: &[(&str, &str)]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    cluster.read(&["create", "namespace", namespace]);
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::copy(cluster.kubeconfig(), &kubeconfig).expect("the kubeconfig is copied");
    let newest = kubectl(37);
    let path =
        format!("{}:{}", newest.parent().expect("a folder").display(), std::env::var("PATH").unwrap_or_default());
    let kubeconfig = kubeconfig.display().to_string();
    let folder_path = folder.path().display().to_string();
    let node = cluster.machine.address.to_string();
    let old = kubectl(32).display().to_string();
    let mut environment = vec![
        ("PATH", path.as_str()),
        ("KUBECONFIG", &kubeconfig),
        ("DIR", &folder_path),
        ("NODE", &node),
        ("KUBECTL_OLD", &old),
    ];
    environment.extend(variables);
    let context = cluster
        .machine
        .command(&newest)
        .args(["config", "set-context", "--current", "--namespace", namespace])
        .env("KUBECONFIG", &kubeconfig)
        .output();
    assert!(context.expect("kubectl runs").status.success());
    session::run(&cluster.machine, &root().join("tests/scripts").join(script), &environment);
    cluster.read(&["delete", "namespace", namespace, "--wait=false"]);
}

/// The same session for a container image and for a component: only the image differs.
#[test]
fn the_tutorial_runs_on_containers_and_components() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let container = [("IMAGE", "nginx"), ("V1", "1.25"), ("V2", "1.26"), ("PORT", "80"), ("NODE_PORT", "30080")];
    run(&cluster, "tutorial.txt", "tutorial", &container);
    let component = [
        ("IMAGE", "registry.tandem/samples/hello-http"),
        ("V1", "1"),
        ("V2", "2"),
        ("PORT", "8080"),
        ("NODE_PORT", "30081"),
    ];
    cluster.read(&["wait", "--for=delete", "namespace/tutorial", "--timeout=60s"]);
    run(&cluster, "tutorial.txt", "tutorial", &component);
    run(&cluster, "workloads.txt", "workloads", &[]);
    run(&cluster, "clients.txt", "clients", &[]);
    run(&cluster, "rbac.txt", "rbac", &[]);
}

#[test]
fn quotas_and_autoscalers_hold_for_containers_and_components() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    run(&cluster, "quotas.txt", "quotas", &[]);
    run(&cluster, "autoscaling.txt", "autoscaling", &[]);
}

#[test]
fn kinds_are_defined_and_running_pods_are_talked_to() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let image = upload_command(&cluster);
    run(&cluster, "streams.txt", "streams", &[("COMMAND", &image)]);
    run(&cluster, "custom.txt", "custom", &[]);
    // What a kind made at run time leaves in a namespace goes with the namespace.
    cluster.read(&["wait", "--for=delete", "namespace/custom", "--timeout=60s"]);
}

/// A component that does what its arguments say, in the cluster's registry.
fn upload_command(cluster: &Daemon) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("command.wasm");
    let text = root().join("node/wasm/tests/host/command.wat");
    std::fs::write(&file, wat::parse_file(text).expect("the component's text is sound")).expect("the file is written");
    let image = "registry.tandem/tests/command:1".to_owned();
    let mut push = cluster.machine.command(tandem());
    let output = push.arg("push").arg("--kubeconfig").arg(cluster.kubeconfig()).arg(&file).arg(&image).output();
    let output = output.expect("tandem push runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}
