use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tandem_runtime::{AddressClass, Addresses, HostPort};

use crate::node::{Node, get, listen_in, serve, until};

/// Serves a page with the pod's name.
const HTTPD: &str = "busybox mkdir -p /tmp/www; \
                     echo \"this is $(hostname)\" > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www";

/// The page at an address and port, from inside a container; nothing if it cannot be had.
fn fetch(address: impl std::fmt::Display, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {address} {port} | busybox sed '1,/^.$/d'")
}

async fn address_of(node: &Node, id: &tandem_runtime::SandboxId) -> Ipv4Addr {
    node.sandbox(id).await.address.expect("a pod has an address")
}

pub(crate) async fn pods_reach_each_other_and_the_node() {
    let node = Node::start().await;
    let (one, in_one) = node.pod("one", HTTPD).await;
    let (two, in_two) = node.pod("two", HTTPD).await;
    let (first, second) = (address_of(&node, &one).await, address_of(&node, &two).await);
    assert_eq!((first.octets(), second.octets()), ([10, 128, 0, 2], [10, 128, 0, 3]), "from our allocator, in order");

    let page = || async move { get(SocketAddr::from((first, 80))).await.ok().filter(|page| !page.is_empty()) };
    assert_eq!(until("the node reaches a pod", page).await, "this is one\n");
    assert_eq!(node.exec(&in_two, &fetch(first, 80)).await, Ok("this is one\n".to_owned()), "pod to pod");

    // Both ways between a pod and what is on the node and in the light namespace.
    let _gateway = serve(TcpListener::bind((node.gateway(), 6443)).unwrap());
    let _names = serve(TcpListener::bind((node.network.dns, 53)).unwrap());
    let light = Ipv4Addr::new(10, 128, 16, 9);
    let namespace = &node.links.names().light_namespace;
    let _light = serve(listen_in(namespace, SocketAddr::from((light, 8080))));
    let seen = Ok(second.to_string());
    assert_eq!(node.exec(&in_two, &fetch(node.gateway(), 6443)).await, seen, "pod to gateway");
    assert_eq!(node.exec(&in_two, &fetch(node.network.dns, 53)).await, seen, "pod to DNS address");
    assert_eq!(node.exec(&in_two, &fetch(light, 8080)).await, seen, "pod to light pod");
    let namespace = namespace.clone();
    let from_light = std::thread::spawn(move || {
        tandem_net::links::enter(&namespace).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((light, 0))).unwrap();
            socket.connect(SocketAddr::from((first, 80))).await.map(|stream| stream.local_addr().unwrap().ip())
        })
    });
    assert_eq!(from_light.join().unwrap().unwrap(), light, "light pod to pod");

    let resolv = node.exec(&in_one, "cat /etc/resolv.conf").await.unwrap();
    assert!(resolv.contains("nameserver 10.96.0.10") && resolv.contains("search test.svc"), "{resolv}");
    let links = node.exec(&in_one, "busybox ip address show eth0").await.unwrap();
    assert!(links.contains("mtu 1400") && links.contains("10.128.0.2/18"), "{links}");
}

pub(crate) async fn components_join_a_pods_namespace() {
    let node = Node::start().await;
    let (sandbox, container) = node.pod("mixed", HTTPD).await;
    let namespace = node.sandbox(&sandbox).await.network_namespace.expect("a pod's namespace has a path");
    assert!(namespace.starts_with(node.containerd_folder()), "{}", namespace.display());

    // A listener made there is the pod's: on its localhost, and on its address from outside.
    let inside = serve(listen_in(&namespace, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8089))));
    assert_eq!(node.exec(&container, &fetch("127.0.0.1", 8089)).await, Ok("127.0.0.1".to_owned()));
    let address = address_of(&node, &sandbox).await;
    assert_eq!(get(SocketAddr::from((address, 8089))).await, Ok(node.gateway().to_string()));
    assert!(get("127.0.0.1:8089".parse().unwrap()).await.is_err(), "not the node's localhost");
    drop(inside);
    node.runtime().stop_sandbox(&sandbox).await.unwrap();
    assert_eq!(node.sandbox(&sandbox).await.network_namespace, None);
    assert!(!namespace.exists());
}

pub(crate) async fn host_ports_lead_to_the_pod() {
    let node = Node::start().await;
    let mut spec = node.sandbox_spec("ported");
    spec.host_ports = vec![HostPort { container_port: 80, host_port: 18080, udp: false, host_ip: None }];
    let (sandbox, _) = node.pod_of(&spec, &node.container_spec(HTTPD).await).await;
    let to = SocketAddr::from((node.gateway(), 18080));
    let page = || async { get(to).await.ok().filter(|page| !page.is_empty()) };
    assert_eq!(until("the host port answers", page).await, "this is ported\n");
    node.runtime().stop_sandbox(&sandbox).await.unwrap();
    assert!(get(to).await.is_err(), "closed with the pod");
}

pub(crate) async fn addresses_come_back() {
    let node = Node::start().await;
    let light = node.allocator.allocate("light-pod", AddressClass::Light).await.unwrap();
    let (sandbox, _) = node.pod("one", "sleep 100000").await;
    let address = address_of(&node, &sandbox).await;
    assert!(node.allocator.owners().values().any(|held| *held == address));
    node.runtime().remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(node.allocator.owners().into_values().collect::<Vec<_>>(), [light]);
    let (sandbox, _) = node.pod("two", "sleep 100000").await;
    assert_ne!(address_of(&node, &sandbox).await, address, "not the same one again at once");
    node.runtime().remove_sandbox(&sandbox).await.unwrap();

    // No address, no pod, and the reason is told.
    let all: Vec<String> = (0..4094).map(|number| format!("held-{number}")).collect();
    let held = all.iter().map(|owner| node.allocator.allocate(owner, AddressClass::Own));
    futures::future::try_join_all(held).await.unwrap();
    let error = node.runtime().create_sandbox(&node.sandbox_spec("three")).await.unwrap_err().to_string();
    assert!(error.contains("all 4094 addresses for ordinary pods in 10.128.0.0/18 are in use"), "{error}");
    node.allocator.release("held-7").await.unwrap();
    node.runtime().create_sandbox(&node.sandbox_spec("three")).await.unwrap();
}
