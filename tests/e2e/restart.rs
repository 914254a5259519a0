use std::{
    process::{Child, Stdio},
    time::Duration,
};

use tandem_tests::{allowed, cluster::Daemon, machine::Network, root, until};

const DEADLINE: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(1);

/// Asks a URL all the time with new connections and counts the answers, until it is ended.
struct Client {
    process: Child,
    codes: std::path::PathBuf,
    stop: std::path::PathBuf,
}

impl Client {
    fn start(cluster: &Daemon, url: &str, folder: &std::path::Path) -> Client {
        let codes = folder.join("codes");
        let stop = folder.join("stop");
        let line = format!(
            "while [ ! -e {stop} ]; do curl -s --max-time 5 -o /dev/null -w '%{{http_code}}\\n' {url}; done > {codes}",
            stop = stop.display(),
            codes = codes.display()
        );
        let process =
            cluster.machine.command("bash").args(["-c", &line]).stdin(Stdio::null()).spawn().expect("bash runs");
        Client { process, codes, stop }
    }

    fn end(mut self) -> Vec<String> {
        std::fs::write(&self.stop, "").expect("the client can be told to stop");
        self.process.wait().expect("the client ends");
        let text = std::fs::read_to_string(&self.codes).expect("the client wrote its codes");
        text.lines().map(ToOwned::to_owned).collect()
    }
}

fn facts(cluster: &Daemon) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.uid} {.status.podIP} {.status.containerStatuses[*].containerID} \
                {.status.containerStatuses[*].restartCount} \
                {.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}{\"\\n\"}{end}";
    let pods = cluster.read(&["get", "pods", "-l", "test=restart", "-o", path]);
    let node = "jsonpath=node ready since {.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}";
    pods + &cluster.read(&["get", "node", "one", "-o", node])
}

/// `kill -9` under load: no object is lost, containers and components are the same processes, Services answer on, and
/// neither the node nor a pod is said not to be ready in between.
#[test]
fn a_crash_of_tandem_stops_no_workload() {
    let network = Network::new();
    let mut cluster = super::cluster(&network);
    cluster.read(&["apply", "-f", &root().join("tests/scripts/restart.yaml").display().to_string()]);
    for name in ["container", "component"] {
        cluster.read(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    }
    let before = facts(&cluster);
    assert_eq!(before.lines().count(), 5, "{before}");

    let node = cluster.machine.address;
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let clients = [30090, 30091]
        .iter()
        .zip(&folders)
        .map(|(port, folder)| Client::start(&cluster, &format!("http://{node}:{port}/"), folder.path()));
    let clients: Vec<Client> = clients.collect();
    let written: Vec<String> = (0..20).map(|index| format!("written-{index}")).collect();
    for name in &written {
        cluster.read(&["create", "configmap", name, "--from-literal=a=b"]);
    }
    cluster.read(&["create", "-f", &root().join("tests/scripts/events.yaml").display().to_string()]);
    cluster.kill();
    cluster.start();
    for name in &written {
        cluster.read(&["get", "configmap", name]);
    }
    until("the pods are as they were", DEADLINE, || {
        let after = facts(&cluster);
        if after == before { Ok(()) } else { Err(format!("before:\n{before}after:\n{after}")) }
    });
    for name in ["container", "component"] {
        cluster.read(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    }
    // Whoever leads looks for what is too old to be kept.
    cluster.read(&["wait", "--for=delete", "event/long-ago", "--timeout=60s"]);
    cluster.read(&["get", "event", "just-now"]);
    for client in clients {
        let codes = client.end();
        let failed = codes.iter().filter(|code| *code != "200").count();
        assert!(codes.len() > 20 && failed == 0, "{failed} of {} requests failed: {codes:?}", codes.len());
    }
    let attached = Attached::all(&cluster);
    let took = cluster.stop();
    assert!(took < allowed(STOP_MAX), "stopping took {took:?}");
    drop(attached);
    cluster.start();
    assert_eq!(facts(&cluster), before);
}

/// Clients that wait for more of an answer that never ends.
struct Attached(Vec<Child>);

impl Attached {
    fn all(cluster: &Daemon) -> Attached {
        let folder = tempfile::tempdir().expect("a folder");
        let follow = |arguments: &[&str]| {
            let shown = folder.path().join(arguments[0]);
            let file = std::fs::File::create(&shown).expect("a file");
            let mut kubectl = cluster.machine.command(tandem_tests::kubectl(37));
            kubectl.args(arguments).env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null()).stderr(Stdio::null());
            let process = kubectl.stdout(file).spawn().expect("kubectl runs");
            until(&format!("{arguments:?} shows something"), DEADLINE, || {
                let text = std::fs::read_to_string(&shown).unwrap_or_default();
                if text.is_empty() { Err(text) } else { Ok(()) }
            });
            process
        };
        let endless = ["exec", "deployment/container", "--", "sh", "-c", "echo here; sleep 60"];
        let followed = ["get", "pods", "--watch"];
        Attached(vec![follow(&endless), follow(&followed), follow(&["logs", "-f", "deployment/container"])])
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for process in &mut self.0 {
            drop(process.kill());
            process.wait().expect("kubectl ends");
        }
    }
}
