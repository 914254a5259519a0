use std::{
    net::TcpListener,
    process::{Command, Output},
    time::{Duration, Instant},
};

use tandem_tests::{
    allowed,
    cluster::Daemon,
    machine::Network,
    neighbours::{self, Client, median_ratio},
    root, tandem, until,
};

const DEADLINE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 3;
const RATIO_MAX: f64 = 6.0;

fn refused(output: &Output, words: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(words), "expected {words:?}, got: {error}");
}

fn pod_address(cluster: &Daemon, pod: &str) -> String {
    cluster.read(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    cluster.read(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
}

fn status(cluster: &Daemon, url: &str) -> String {
    let output = cluster.machine.shell(&format!("curl -s -o /dev/null --max-time 10 -w '%{{http_code}}' '{url}'"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Components that fail in every way, beside one that must not notice.
#[test]
fn a_failing_component_harms_nobody_else() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    cluster.read(&["apply", "-f", &root().join("tests/scripts/faults.yaml").display().to_string()]);
    let (faults, neighbour) = (pod_address(&cluster, "faults"), pod_address(&cluster, "neighbour"));
    let fault = |path: &str| status(&cluster, &format!("http://{faults}:8080{path}"));
    let neighbour = format!("http://{neighbour}:8080/");

    // A trap fails its request; the next one works; the user is told.
    assert_eq!(fault("/trap"), "500");
    assert_eq!(fault("/"), "200");
    until("the trap is an Event", DEADLINE, || {
        let events = cluster.read(&["get", "events", "--field-selector", "involvedObject.name=faults"]);
        if events.contains("Trapped") { Ok(()) } else { Err(events) }
    });
    assert_eq!(
        cluster.read(&["get", "pod", "faults", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]),
        "0"
    );

    // A guest that ends itself, content, has not trapped; one that says that it failed has.
    let limited = pod_address(&cluster, "limited");
    for code in [0, 1] {
        assert_eq!(status(&cluster, &format!("http://{limited}:8080/exit?code={code}")), "500");
    }
    let traps = until("the failure is an Event", DEADLINE, || {
        let of_limited = ["get", "events", "--field-selector", "involvedObject.name=limited,reason=Trapped"];
        let events = cluster.read(&[&of_limited[..], &["-o", "jsonpath={.items[*].message}"]].concat());
        if events.is_empty() { Err(events) } else { Ok(events) }
    });
    assert!(traps.contains("exit status 1") && !traps.contains("exit status 0"), "{traps}");

    // Endless loops take their own time only.
    let loops =
        format!("for i in 1 2 3 4; do curl -s --max-time 8 -o /dev/null http://{faults}:8080/loop & done; wait");
    let mut looping = cluster.machine.command("bash").args(["-c", &loops]).spawn().expect("bash runs");
    for _ in 0..50 {
        assert_eq!(status(&cluster, &neighbour), "200");
    }
    looping.wait().expect("the loops' clients end");

    // More requests than instances: they queue, and beyond the queue are told when to come back.
    let flood = format!(
        "seq 40 | xargs -P 40 -I{{}} curl -s -o /dev/null --max-time 20 -w '%{{http_code}} %header{{retry-after}}\\n' 'http://{limited}:8080/sleep?ms=500'"
    );
    let codes = String::from_utf8_lossy(&cluster.machine.shell(&flood).stdout).into_owned();
    let count = |code: &str| codes.lines().filter(|line| line.starts_with(code)).count();
    assert!(count("200") >= 2 && count("503") >= 1 && count("200") + count("503") == 40, "{codes}");
    assert!(codes.lines().filter(|line| line.starts_with("503")).all(|line| line.len() > 4), "{codes}");
}

/// Four components loop for ever, each within half a core, so that they want all of this test's machine.
///
/// The goal is a ratio of 1.2 between the neighbour's 99th percentiles with and without them; `make bench` holds a
/// release build against it. In a dev build, on cores that other tests use, too, the ratio scatters: 1.4 to 3.3 were seen with
/// seven processes waiting for each core, and 9 to 24 while a request that had waited for a core was taken for one that
/// computes. So this test takes the middle of interleaved rounds and asserts [`RATIO_MAX`], which lies between.
#[test]
fn loops_do_not_slow_a_neighbour_down() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let rounds = neighbours::measure(&cluster, ROUNDS, Client::OnTheNode);
    let ratio = median_ratio(&rounds, |phases| phases.beside_loops.first, |phases| phases.alone.first);
    assert!(ratio <= RATIO_MAX, "{ratio:.2}: {rounds:#?}");
}

/// Images that can never run are refused by name, before they run.
#[test]
fn what_cannot_run_is_refused_with_the_reason() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.display().to_string()
    };
    let text = write("text.wasm", b"this is not a component");
    let push = |file: &str, reference: &str| {
        cluster.tandem(&["push", file, reference, "--kubeconfig", &cluster.kubeconfig().display().to_string()])
    };
    refused(&push(&text, "registry.tandem/bad:1"), "not a WebAssembly");
    refused(&cluster.tandem(&["inspect", &text]), "not a WebAssembly");

    let needy =
        wat::parse_str(r#"(component (import "acme:db/store@1.0.0" (instance (export "get" (func)))) (core module))"#);
    let needy = write("needy.wasm", &needy.expect("a component"));
    let pushed = push(&needy, "registry.tandem/needy:1");
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    cluster.read(&["run", "needy", "--image=registry.tandem/needy:1"]);
    until("the interface is named", DEADLINE, || {
        let pod = cluster.read(&[
            "get",
            "pod",
            "needy",
            "-o",
            "jsonpath={.status.containerStatuses[0].state.waiting.message}",
        ]);
        if pod.contains("acme:db/store@1.0.0") { Ok(()) } else { Err(pod) }
    });
}

/// Starts that cannot work say why, and change nothing.
#[test]
fn a_start_that_cannot_work_says_why() {
    let network = Network::new();
    let cluster = Daemon::up(network.machine(11), &["--containerd", "off"]);
    let other = tempfile::tempdir().expect("a folder");
    let path = other.path().join("data").display().to_string();
    let up = |arguments: &[&str]| {
        let all: Vec<&str> =
            ["up", "--node-ip", "10.250.0.11", "--data-dir"].iter().chain(arguments).copied().collect();
        cluster.tandem(&all)
    };
    refused(&up(&[&path, "--listen", "127.0.0.1:6443"]), "in use");
    refused(&up(&[&cluster.data_dir(), "--listen", "127.0.0.1:7443"]), "in use by another tandem");
    let foreign = tempfile::tempdir().expect("a folder");
    std::fs::write(foreign.path().join("thesis"), "x").expect("a file");
    refused(
        &up(&[&foreign.path().display().to_string(), "--listen", "127.0.0.1:7443"]),
        "holds files of something else",
    );
    let newer = tempfile::tempdir().expect("a folder");
    std::fs::write(newer.path().join("format"), "tandem-data 99\n").expect("a file");
    refused(&up(&[&newer.path().display().to_string(), "--listen", "127.0.0.1:7443"]), "use the newer version");
    refused(&up(&[&path, "--listen", "127.0.0.1:7443", "--node-mask", "40"]), "node mask");
    assert!(!std::path::Path::new(&path).exists(), "a refused start makes no data folder");

    let nobody = Command::new("setpriv").args(["--reuid=65534", "--clear-groups"]).arg(tandem()).args(["up"]).output();
    refused(&nobody.expect("setpriv runs"), "sudo tandem up");

    a_start_that_waits_can_be_interrupted(&cluster);
    let status = cluster.read(&["get", "node", "one", "-o", "jsonpath={.spec.taints[*].key}"]);
    assert!(status.contains("tandem.dev/no-containers"), "{status}");
    let usage = cluster.tandem(&["up", "--no-such-flag"]);
    assert_eq!(usage.status.code(), Some(2));
}

/// Joining a server that takes connections and says nothing.
fn a_start_that_waits_can_be_interrupted(cluster: &Daemon) {
    let silent = cluster.machine.inside(async { TcpListener::bind(("127.0.0.1", 7444)).expect("a free port") });
    let token = cluster.tandem(&["token", "create", "--role", "node", "--data-dir", &cluster.data_dir()]);
    let token = String::from_utf8_lossy(&token.stdout).trim().to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = cluster.machine.command(tandem());
    node.args(["node", "--server", "https://127.0.0.1:7444", "--node-ip", "10.250.0.11", "--token", &token]);
    let mut node = node.arg("--data-dir").arg(folder.path()).spawn().expect("tandem starts");
    let _connection = silent.accept().expect("it asks the server");
    let began = Instant::now();
    assert!(Command::new("kill").arg(node.id().to_string()).status().expect("kill runs").success());
    let ended = node.wait().expect("it ends");
    assert!(
        ended.success() && began.elapsed() < allowed(Duration::from_millis(1500)),
        "{ended} after {:?}",
        began.elapsed()
    );
}
