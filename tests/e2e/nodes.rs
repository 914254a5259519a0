use std::time::Duration;

use tandem_tests::{cluster::Daemon, machine::Network, root, until};

const DEADLINE: Duration = Duration::from_secs(60);

/// A second machine joins with a token; pods run on both and reach each other, by address and by Service.
#[test]
fn a_second_node_joins_and_its_pods_are_reached() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let second = Daemon::join(network.machine(12), &cluster, "two", &[]);
    cluster.read(&["wait", "--for=create", "node/two", "--timeout=60s"]);
    cluster.read(&["wait", "--for=condition=Ready", "node/two", "--timeout=60s"]);
    cluster.read(&["apply", "-f", &root().join("tests/scripts/nodes.yaml").display().to_string()]);
    let pods = ["container-one", "component-one", "container-two", "component-two"];
    for pod in pods {
        cluster.read(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }
    for pod in pods {
        let address = cluster.read(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
        let port = if pod.starts_with("container") { 80 } else { 8080 };
        for machine in [&cluster.machine, &second.machine] {
            let url = format!("http://{address}:{port}/");
            until(&format!("{pod} answers {}", machine.name), DEADLINE, || {
                let output = machine.shell(&format!("curl -s --fail --max-time 2 {url}"));
                if output.status.success() { Ok(()) } else { Err(output) }
            });
        }
        let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} {port} | grep -q 200");
        until(&format!("{pod} answers a container on the other node"), DEADLINE, || {
            let from = if pod.ends_with("one") { "container-two" } else { "container-one" };
            let output = cluster.kubectl(&["exec", from, "--", "sh", "-c", &fetch]);
            if output.status.success() { Ok(()) } else { Err(output) }
        });
    }
    // The ingress of each node leads to the pods of both.
    for node in [&cluster.machine, &second.machine] {
        let ask = format!("for i in $(seq 60); do curl -s --max-time 5 http://{}/; done", node.address);
        let line = format!("{ask} | grep -oE '(container|component)-(one|two)' | sort -u | wc -l");
        until("all pods answer through the ingress", DEADLINE, || {
            let output = cluster.machine.shell(&line);
            let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if found == "4" { Ok(()) } else { Err(found) }
        });
    }
    // Names and Services work from pods of the second node, the API server's included.
    let names =
        "wget -q -O - http://everywhere.default.svc.cluster.local/ && nc -w 5 kubernetes.default 443 < /dev/null";
    until("names answer on the second node", DEADLINE, || {
        let output = cluster.kubectl(&["exec", "container-two", "--", "sh", "-c", names]);
        if output.status.success() { Ok(()) } else { Err(output) }
    });
    volumes_stay_on_their_node(&cluster, &second);
}

/// A claim's folder is on the node of its first pod: other pods go there or wait, and it is removed there.
fn volumes_stay_on_their_node(cluster: &Daemon, second: &Daemon) {
    let folders = std::path::Path::new(&second.data_dir()).join("node/volumes");
    let count = || std::fs::read_dir(&folders).expect("the node's volumes").count();
    cluster.read(&["apply", "-f", &root().join("tests/scripts/nodes-volumes.yaml").display().to_string()]);
    cluster.read(&["wait", "--for=condition=Ready", "pod/keeper", "--timeout=60s"]);
    assert_eq!(count(), 1, "the folder is on the second node");
    cluster.read(&["delete", "pod", "keeper", "--timeout=60s"]);
    cluster.read(&["label", "node", "one", "volumes=yes"]);
    let wanted = "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
                  1 node(s) had volume node affinity conflict. preemption: 0/2 nodes are available: \
                  2 Preemption is not helpful for scheduling.";
    until("a pod for the other node says why it waits", DEADLINE, || {
        let path = "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}";
        match cluster.read(&["get", "pod", "elsewhere", "-o", path]) {
            message if message == wanted => Ok(()),
            message => Err(message),
        }
    });
    cluster.read(&["delete", "pod/elsewhere", "persistentvolumeclaim/kept", "--timeout=60s"]);
    until("the second node has removed the folder", DEADLINE, || match count() {
        0 => Ok(()),
        count => Err(count),
    });
}

/// A node that falls silent is given up, and is as before when it is heard again, though nothing of it has changed.
#[test]
fn a_silent_node_is_given_up_until_it_is_heard_again() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    let second = Daemon::join(network.machine(12), &cluster, "two", &[]);
    let ready_is = |status: &str| {
        cluster.read(&["wait", &format!("--for=condition=Ready={status}"), "node/two", "--timeout=60s"]);
    };
    let effects = || cluster.read(&["get", "node", "two", "-o", "jsonpath={.spec.taints[*].effect}"]);
    cluster.read(&["wait", "--for=create", "node/two", "--timeout=60s"]);
    ready_is("True");
    second.signal("STOP");
    ready_is("Unknown");
    until("pods are sent away", DEADLINE, || match effects() {
        found if found.contains("NoExecute") => Ok(()),
        found => Err(found),
    });
    second.signal("CONT");
    ready_is("True");
    until("pods are welcome again", DEADLINE, || match effects() {
        found if found.is_empty() => Ok(()),
        found => Err(found),
    });
}
