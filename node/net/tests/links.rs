//! The node's links on a real kernel, in a network namespace that ends with the test. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by a panic what is wrong")]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use tandem_net::{
    addresses::Ranges,
    links::{self, Links, MTU, NodeNetwork},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `test` on a runtime whose threads are all in a new network namespace, which no file keeps.
fn in_new_namespace(test: impl Future<Output = ()>) {
    assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
    #[allow(unsafe_code, reason = "a new namespace is made by leaving the old one")]
    // SAFETY: only the network namespace of this thread changes.
    unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET).unwrap();
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn network() -> NodeNetwork {
    NodeNetwork {
        pods: Ranges::new("10.128.0.0/18".parse().unwrap()).unwrap(),
        services: "10.96.0.0/16".parse().unwrap(),
        dns: Ipv4Addr::new(10, 96, 0, 10),
        mtu: MTU,
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A server in the namespace that says from where it was reached; its thread ends with the test's process.
fn serve(namespace: Option<&Path>, address: &str) {
    let (ready, waiting) = std::sync::mpsc::channel();
    let namespace = namespace.map(Path::to_owned);
    let address: SocketAddr = address.parse().unwrap();
    std::thread::spawn(move || {
        if let Some(namespace) = namespace {
            links::enter(&namespace).unwrap();
        }
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip().to_string();
            stream.write_all(from.as_bytes()).unwrap();
        }
    });
    waiting.recv_timeout(PATIENCE).unwrap();
}

/// From where the server at `to` saw us, connecting from `from` in the namespace.
fn reach(namespace: Option<&Path>, from: Option<&str>, to: &str) -> Result<String, String> {
    let namespace = namespace.map(Path::to_owned);
    let (from, to): (Option<Ipv4Addr>, SocketAddr) = (from.map(|text| text.parse().unwrap()), to.parse().unwrap());
    let client = std::thread::spawn(move || -> std::io::Result<String> {
        if let Some(namespace) = namespace {
            links::enter(&namespace)?;
        }
        let mut stream = match from {
            Some(from) => connect_from(from, to)?,
            None => TcpStream::connect_timeout(&to, PATIENCE)?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    client.join().unwrap().map_err(|error| error.to_string())
}

fn connect_from(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await??.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    })
}

#[test]
fn light_pods_are_reached_and_reach_others_through_the_node() {
    in_new_namespace(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Links::new(directory.path()).unwrap();
        node.apply(&network()).await.unwrap();
        node.apply(&network()).await.unwrap();
        let light = node.names().light_namespace.clone();
        let light = Some(light.as_path());

        serve(light, "10.128.16.5:80");
        serve(light, "10.128.63.254:80");
        serve(None, "10.128.0.1:6443");
        serve(None, "10.96.0.10:53");
        let gateway = Ok("10.128.0.1".to_owned());
        assert_eq!(reach(None, None, "10.128.16.5:80"), gateway, "node to light pod");
        assert_eq!(reach(None, None, "10.128.63.254:80"), gateway, "node to the last light pod");
        let pod = Ok("10.128.40.9".to_owned());
        for to in ["10.128.0.1:6443", "10.96.0.10:53", "10.128.16.5:80", "10.128.63.254:80"] {
            assert_eq!(reach(light, Some("10.128.40.9"), to), pod, "light pod to {to}");
        }

        // Not by a short cut: what the node drops does not arrive.
        let rules = "add table ip t; add chain ip t f { type filter hook forward priority 0; policy drop; }";
        assert!(Command::new("nft").arg(rules).status().unwrap().success());
        assert!(reach(light, Some("10.128.40.9"), "10.128.16.5:80").is_err(), "the node forwards nothing any more");
        assert_eq!(reach(None, None, "10.128.16.5:80"), gateway);

        node.remove(&network()).await.unwrap();
        node.remove(&network()).await.unwrap();
        assert_eq!(ip("-4 route show proto 84"), "");
        assert!(!ip("link show").contains("tdl"));
        assert!(!ip("address show").contains("10.128.0.1"));
        assert!(!directory.path().join("netns/light").exists());
    });
}

#[test]
fn the_node_reaches_a_service_address_that_has_no_other_route() {
    in_new_namespace(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Links::new(directory.path()).unwrap();
        node.apply(&network()).await.unwrap();
        serve(Some(&node.names().light_namespace), "10.128.16.5:80");
        let rules = "add table ip t; add chain ip t o { type nat hook output priority -100; }; \
                     add rule ip t o ip daddr 10.96.0.77 tcp dport 80 dnat to 10.128.16.5:80";
        assert!(Command::new("nft").arg(rules).status().unwrap().success());
        assert_eq!(reach(None, None, "10.96.0.77:80"), Ok("10.128.0.1".to_owned()));
        node.remove(&network()).await.unwrap();
    });
}

#[test]
fn a_lost_namespace_is_made_again() {
    in_new_namespace(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Links::new(directory.path()).unwrap();
        node.apply(&network()).await.unwrap();
        let file = node.names().light_namespace.clone();
        rustix::mount::unmount(&file, rustix::mount::UnmountFlags::DETACH).unwrap();
        node.apply(&network()).await.unwrap();
        serve(Some(&file), "10.128.16.5:80");
        assert_eq!(reach(None, None, "10.128.16.5:80"), Ok("10.128.0.1".to_owned()));
        node.remove(&network()).await.unwrap();
    });
}

#[test]
fn a_node_that_gets_another_network_leaves_nothing_of_the_old_one_in_its_routes() {
    in_new_namespace(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Links::new(directory.path()).unwrap();
        node.apply(&network()).await.unwrap();
        let moved = NodeNetwork { pods: Ranges::new("10.128.64.0/18".parse().unwrap()).unwrap(), ..network() };
        node.apply(&moved).await.unwrap();
        let routes = ip("-4 route show proto 84");
        assert!(!routes.contains("10.128.16.0/20") && routes.contains("10.128.80.0/20"), "{routes}");
        node.remove(&moved).await.unwrap();
    });
}

#[test]
fn routes_to_other_nodes_follow_the_list() {
    in_new_namespace(async {
        ip("link add out type veth peer name away");
        ip("address add 192.0.2.1/24 dev out");
        ip("link set out up");
        ip("link set away up");
        let directory = tempfile::tempdir().unwrap();
        let node = Links::new(directory.path()).unwrap();
        let show = || {
            let mut lines: Vec<String> =
                ip("-4 route show proto 85").lines().map(|line| line.trim().to_owned()).collect();
            lines.sort();
            lines
        };
        let peers = |list: &[(&str, &str)]| -> BTreeMap<_, _> {
            list.iter().map(|(network, via)| (network.parse().unwrap(), via.parse().unwrap())).collect()
        };
        node.apply_peers(&peers(&[("10.128.64.0/18", "192.0.2.2"), ("10.128.128.0/18", "192.0.2.3")])).await.unwrap();
        assert_eq!(show(), ["10.128.128.0/18 via 192.0.2.3 dev out", "10.128.64.0/18 via 192.0.2.2 dev out"]);
        // One that cannot be reached is said, and does not stop the others.
        let failed = node
            .apply_peers(&peers(&[("10.128.0.0/18", "203.0.113.9"), ("10.128.64.0/18", "192.0.2.4")]))
            .await
            .unwrap_err();
        assert!(failed.to_string().contains("set the route to 10.128.0.0/18 via 203.0.113.9"), "{failed}");
        assert_eq!(show(), ["10.128.64.0/18 via 192.0.2.4 dev out"]);
        node.apply_peers(&BTreeMap::new()).await.unwrap();
        assert!(show().is_empty());
    });
}
