//! Pods in network namespaces. These tests make namespaces, so they need root.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{RData, Record, rdata::A},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tandem_runtime::{ContainerSpec, Dns, Network, Runtime, SandboxSpec};

use crate::{
    bench::{Bench, http, spec},
    guests,
};

/// A network namespace with a few local addresses, gone when this is.
struct Namespace(String);

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}, which needs root, said: {text}");
}

impl Namespace {
    fn new() -> Namespace {
        let name = format!("tandem-wasm-{}-{}", std::process::id(), NAMESPACES.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Namespace(name);
        ip(&["-n", &namespace.0, "link", "set", "lo", "up"]);
        ip(&["-n", &namespace.0, "route", "add", "local", "10.200.0.0/24", "dev", "lo"]);
        namespace
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/netns/{}", self.0))
    }

    /// The status of a request that is sent from inside.
    async fn get(&self, url: &str) -> String {
        let mut curl = tokio::process::Command::new("nsenter");
        curl.arg(format!("--net={}", self.path().display()));
        curl.args(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", url]);
        String::from_utf8(curl.output().await.unwrap().stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left over is seen by whoever looks; the test has its result.
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// Answers every question for one name with one address, from inside a namespace, as long as the test runs.
fn name_server(namespace: &Namespace, address: Ipv4Addr, name: &'static str, found: Ipv4Addr) {
    let file = std::fs::File::open(namespace.path()).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let socket = std::net::UdpSocket::bind((address, 53)).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = question.queries[0].clone();
            let mut answer = Message::response(question.metadata.id, OpCode::Query);
            if query.name().to_string() == name {
                answer.add_answer(Record::from_rdata(query.name().clone(), 5, RData::A(A(found))));
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            answer.add_query(query);
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    is_ready.recv().unwrap();
}

#[tokio::test]
async fn names_are_asked_of_the_pods_own_servers() {
    let namespace = Namespace::new();
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let light = |last| Network::Light { namespace: namespace.path(), address: Ipv4Addr::new(10, 200, 0, last) };
    let servers = Ipv4Addr::new(10, 200, 0, 53);
    name_server(&namespace, servers, "web.test.svc.cluster.local.", Ipv4Addr::new(10, 200, 0, 2));
    let dns = Dns {
        servers: vec![servers.to_string()],
        searches: vec!["test.svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    };
    serve(&bench, &image, light(2)).await;
    let spec1 = SandboxSpec { dns: dns.clone(), ..bench.sandbox_spec(light(1)) };
    let sandbox = bench.host.create_sandbox(&spec1).await.unwrap();
    bench.run(&sandbox, &ContainerSpec { ports: vec![http(8080)], ..spec(&image) }).await;
    assert_eq!(namespace.get("http://10.200.0.1:8080/aweb:8080").await, "200");
    assert_eq!(namespace.get("http://10.200.0.1:8080/anothing:8080").await, "502");

    let looker = bench.image("looker", &guests::looker()).await;
    let spec3 = SandboxSpec { dns, ..bench.sandbox_spec(light(3)) };
    let sandbox = bench.host.create_sandbox(&spec3).await.unwrap();
    let id = bench.run(&sandbox, &spec(&looker)).await;
    assert_eq!(bench.exit(&id).await.0, 0);
    bench.finish().await;
}

async fn serve(bench: &Bench, image: &str, network: Network) {
    let sandbox = bench.host.create_sandbox(&bench.sandbox_spec(network)).await.unwrap();
    bench.run(&sandbox, &ContainerSpec { ports: vec![http(8080)], ..spec(image) }).await;
}

#[tokio::test]
async fn light_pods_have_their_own_addresses_in_one_namespace() {
    let namespace = Namespace::new();
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let light = |last| Network::Light { namespace: namespace.path(), address: Ipv4Addr::new(10, 200, 0, last) };
    serve(&bench, &image, light(1)).await;
    serve(&bench, &image, light(2)).await;
    assert_eq!(namespace.get("http://10.200.0.1:8080/").await, "200");
    assert_eq!(namespace.get("http://10.200.0.2:8080/").await, "200");
    // Nobody has this address, and no pod listens on all of them.
    assert_eq!(namespace.get("http://10.200.0.3:8080/").await, "000");
    assert_eq!(namespace.get("http://127.0.0.1:8080/").await, "000");
    // From pod to pod, and to itself by its own name for itself.
    assert_eq!(namespace.get("http://10.200.0.1:8080/a10.200.0.2:8080").await, "200");
    assert_eq!(namespace.get("http://10.200.0.1:8080/alocalhost:8080").await, "200");
    // The node's own loopback is out of reach.
    let node = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = node.local_addr().unwrap().port();
    assert_eq!(namespace.get(&format!("http://10.200.0.1:8080/a127.0.0.1:{port}")).await, "502");
    bench.finish().await;
}

#[tokio::test]
async fn a_component_beside_containers_listens_for_them_too() {
    let namespace = Namespace::new();
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let network = Network::Join { namespace: namespace.path(), address: Ipv4Addr::new(10, 200, 0, 9) };
    serve(&bench, &image, network).await;
    assert_eq!(namespace.get("http://10.200.0.9:8080/").await, "200");
    assert_eq!(namespace.get("http://127.0.0.1:8080/").await, "200");
    assert_eq!(namespace.get("http://127.0.0.1:8080/alocalhost:8080").await, "200");
    bench.finish().await;
}

#[tokio::test]
async fn sockets_of_a_guest_are_its_pods() {
    let namespace = Namespace::new();
    let bench = Bench::start().await;
    let own = Ipv4Addr::new(10, 200, 0, 4);
    let light = Network::Light { namespace: namespace.path(), address: own };
    let joined = Network::Join { namespace: namespace.path(), address: own };
    for (name, network, address, code) in [
        ("own", &light, own, 0),
        ("all", &light, Ipv4Addr::UNSPECIFIED, 1),
        ("others", &light, Ipv4Addr::new(10, 200, 0, 5), 1),
        ("joined", &joined, Ipv4Addr::UNSPECIFIED, 0),
        // The node has no such address: it was the namespace that said yes above.
        ("node", &Network::Host { address: Ipv4Addr::LOCALHOST }, own, 1),
    ] {
        let image = bench.image(name, &guests::listener(address.octets(), 8181)).await;
        let sandbox = bench.host.create_sandbox(&bench.sandbox_spec(network.clone())).await.unwrap();
        let id = bench.run(&sandbox, &spec(&image)).await;
        let (got, _, message) = bench.exit(&id).await;
        assert_eq!(got, code, "{name}: {message}");
    }
    bench.finish().await;
}
