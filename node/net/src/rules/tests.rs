use std::process::{Command, Stdio};

use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::*;

fn service(name: &str, address: &str, node_port: Option<i32>) -> Service {
    let port = ServicePort { port: 80, node_port, ..ServicePort::default() };
    Service {
        metadata: ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() },
        spec: Some(ServiceSpec { cluster_ip: Some(address.into()), ports: Some(vec![port]), ..ServiceSpec::default() }),
        ..Service::default()
    }
}

/// `10.0.0.1@n1:ready`, `:terminating` or `:not`.
fn slice(name: &str, endpoints: &str) -> EndpointSlice {
    let endpoint = |text: &str| {
        let (address, rest) = text.split_once('@').unwrap();
        let (node, state) = rest.split_once(':').unwrap();
        let conditions = EndpointConditions {
            ready: Some(state == "ready"),
            serving: Some(state != "not"),
            terminating: Some(state == "terminating"),
        };
        Endpoint {
            addresses: vec![address.into()],
            node_name: Some(node.into()),
            conditions: Some(conditions),
            ..Endpoint::default()
        }
    };
    EndpointSlice {
        address_type: "IPv4".into(),
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            labels: Some([("kubernetes.io/service-name".to_owned(), name.to_owned())].into()),
            ..ObjectMeta::default()
        },
        endpoints: Some(endpoints.split_whitespace().map(endpoint).collect()),
        ports: Some(vec![EndpointPort { port: Some(8080), ..EndpointPort::default() }]),
    }
}

fn snapshot(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Snapshot {
    Snapshot {
        node: "n1".into(),
        pod_cidr: "10.128.0.0/10".parse().unwrap(),
        api: Some(("10.128.0.1".parse().unwrap(), 6443)),
        zone: Some("z1".into()),
        external_ips: false,
        activator: Some(("10.128.0.1".parse().unwrap(), 7000)),
        services,
        slices,
    }
}

fn check(old: &Snapshot, new: &Snapshot, expected: Expect) {
    expected.assert_eq(&transaction(Some(&rules(old)), &rules(new)));
}

#[test]
fn a_service_is_spread_over_its_ready_endpoints() {
    let before = snapshot(vec![], vec![]);
    let after = snapshot(
        vec![service("web", "10.96.0.5", Some(30080))],
        vec![slice("web", "10.128.0.2@n1:ready 10.128.0.3@n2:ready 10.128.0.4@n1:not 10.128.0.5@n1:terminating")],
    );
    check(
        &before,
        &after,
        expect![[r#"
            add chain ip tandem ext-23bb61fe5c771066-web
            add chain ip tandem svc-23bb61fe5c771066-web
            add rule ip tandem ext-23bb61fe5c771066-web meta mark set meta mark | 0x4000
            add rule ip tandem ext-23bb61fe5c771066-web meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.128.0.2 . 8080, 1 : 10.128.0.3 . 8080 }
            add rule ip tandem svc-23bb61fe5c771066-web meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.128.0.2 . 8080, 1 : 10.128.0.3 . 8080 }
            add element ip tandem hairpins { 10.128.0.2 . 10.128.0.2, 10.128.0.3 . 10.128.0.3 }
            add element ip tandem nodeports { tcp . 30080 : goto ext-23bb61fe5c771066-web }
            add element ip tandem services { 10.96.0.5 . tcp . 80 : goto svc-23bb61fe5c771066-web }
        "#]],
    );
}

#[test]
fn a_change_costs_what_changed() {
    let web = service("web", "10.96.0.5", None);
    let before = snapshot(vec![web.clone()], vec![slice("web", "10.128.0.2@n1:ready 10.128.0.3@n2:ready")]);
    let after = snapshot(vec![web], vec![slice("web", "10.128.0.3@n2:ready")]);
    check(
        &before,
        &after,
        expect![[r#"
            flush chain ip tandem svc-23bb61fe5c771066-web
            add rule ip tandem svc-23bb61fe5c771066-web meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.3 . 8080 }
            delete element ip tandem hairpins { 10.128.0.2 . 10.128.0.2 }
        "#]],
    );
    check(&after, &after, expect![""]);
}

#[test]
fn a_service_without_endpoints_is_refused_and_a_deleted_one_is_gone() {
    let web = service("web", "10.96.0.5", None);
    let served = snapshot(vec![web.clone()], vec![slice("web", "10.128.0.2@n1:ready")]);
    let empty = snapshot(vec![web], vec![slice("web", "10.128.0.2@n1:not")]);
    check(
        &served,
        &empty,
        expect![[r#"
            delete element ip tandem hairpins { 10.128.0.2 . 10.128.0.2 }
            add element ip tandem no_endpoints { 10.96.0.5 . tcp . 80 }
            delete element ip tandem services { 10.96.0.5 . tcp . 80 }
            flush chain ip tandem svc-23bb61fe5c771066-web
            delete chain ip tandem svc-23bb61fe5c771066-web
        "#]],
    );
    check(
        &empty,
        &snapshot(vec![], vec![]),
        expect![[r#"
        delete element ip tandem no_endpoints { 10.96.0.5 . tcp . 80 }
    "#]],
    );
}

#[test]
fn endpoints_that_end_serve_on_where_no_other_is_left() {
    let web = service("web", "10.96.0.5", None);
    let ruleset = rules(&snapshot(vec![web], vec![slice("web", "10.128.0.2@n1:terminating")]));
    assert_eq!(ruleset.keys("services").len(), 1);
}

fn changed(service: Service, change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let mut service = service;
    change(service.spec.get_or_insert_default());
    service
}

/// The chains that these endpoints of one Service become.
fn chains(service: Service, endpoints: &str, expected: Expect) {
    let ruleset = rules(&snapshot(vec![service], vec![slice("web", endpoints)]));
    let shown = ruleset.chains.iter().filter(|(name, _)| *name != "dispatch");
    let shown = shown.flat_map(|(name, rules)| rules.iter().map(move |rule| format!("{}: {rule}\n", &name[..3])));
    expected.assert_eq(&shown.collect::<String>());
}

#[test]
fn local_policies_keep_to_the_node() {
    let web =
        changed(service("web", "10.96.0.5", Some(30080)), |spec| spec.external_traffic_policy = Some("Local".into()));
    chains(
        web.clone(),
        "10.128.0.2@n1:ready 10.128.0.3@n2:ready",
        expect![[r#"
        any: meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.128.0.2 . 8080, 1 : 10.128.0.3 . 8080 }
        ext: ip saddr 10.128.0.0/10 goto any-23bb61fe5c771066-web
        ext: fib saddr type local meta mark set meta mark | 0x4000 goto any-23bb61fe5c771066-web
        ext: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.2 . 8080 }
        svc: meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.128.0.2 . 8080, 1 : 10.128.0.3 . 8080 }
    "#]],
    );
    chains(
        web.clone(),
        "10.128.0.2@n2:ready",
        expect![[r#"
        any: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.2 . 8080 }
        ext: ip saddr 10.128.0.0/10 goto any-23bb61fe5c771066-web
        ext: fib saddr type local meta mark set meta mark | 0x4000 goto any-23bb61fe5c771066-web
        ext: drop
        svc: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.2 . 8080 }
    "#]],
    );
    let nobody = rules(&snapshot(vec![web], vec![slice("web", "10.128.0.2@n2:not")]));
    assert_eq!(nobody.keys("no_node_endpoints"), ["tcp . 30080"]);
}

#[test]
fn near_endpoints_are_preferred_where_the_service_says_so() {
    let web =
        changed(service("web", "10.96.0.5", None), |spec| spec.traffic_distribution = Some("PreferSameNode".into()));
    chains(
        web.clone(),
        "10.128.0.2@n1:ready 10.128.0.3@n2:ready",
        expect![[r#"
        svc: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.2 . 8080 }
    "#]],
    );
    chains(
        web,
        "10.128.0.3@n2:ready",
        expect![[r#"
        svc: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.3 . 8080 }
    "#]],
    );
}

#[test]
fn a_load_balancer_takes_what_comes_from_its_ranges() {
    let mut web = changed(service("web", "10.96.0.5", None), |spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.load_balancer_source_ranges = Some(vec!["192.0.2.0/25".into(), "192.0.2.128/25".into()]);
        spec.external_ips = Some(vec!["198.51.100.1".into()]);
    });
    let status =
        serde_json::json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}]}});
    web.status = serde_json::from_value(status).unwrap();
    let ruleset = rules(&snapshot(vec![web.clone()], vec![slice("web", "10.128.0.2@n1:ready")]));
    assert_eq!(ruleset.keys("services"), ["10.96.0.5 . tcp . 80", "192.0.2.9 . tcp . 80"]);
    chains(
        web.clone(),
        "10.128.0.2@n1:ready",
        expect![[r#"
        ext: meta mark set meta mark | 0x4000
        ext: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.2 . 8080 }
        src: ip saddr { 192.0.2.0/24 } goto ext-23bb61fe5c771066-web
        src: fib saddr type local goto ext-23bb61fe5c771066-web
        src: drop
        svc: meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.128.0.2 . 8080 }
    "#]],
    );
    // What was a load balancer's stays nobody's when it is none any more.
    web.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
    let mut snapshot = snapshot(vec![web], vec![slice("web", "10.128.0.2@n1:ready")]);
    assert_eq!(rules(&snapshot).keys("services"), ["10.96.0.5 . tcp . 80"]);
    snapshot.external_ips = true;
    assert_eq!(rules(&snapshot).keys("services"), ["10.96.0.5 . tcp . 80", "198.51.100.1 . tcp . 80"]);
}

/// The kernel takes every script: built from nothing, changed, and emptied again, in a namespace of the test's own.
#[test]
fn the_kernel_takes_every_transaction() {
    let mut sticky = service("sticky", "10.96.0.6", Some(30081));
    if let Some(spec) = &mut sticky.spec {
        spec.session_affinity = Some("ClientIP".into());
    }
    let mut balancer = changed(service("web", "10.96.0.7", Some(30082)), |spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.external_traffic_policy = Some("Local".into());
        spec.load_balancer_source_ranges = Some(vec!["192.0.2.1/24".into()]);
    });
    balancer.status =
        serde_json::from_value(serde_json::json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}})).unwrap();
    balancer.metadata.namespace = Some("other".into());
    let mut of_balancer = slice("web", "10.128.0.2@n1:ready 10.128.0.3@n2:ready");
    of_balancer.metadata.namespace = Some("other".into());
    let empty = rules(&snapshot(vec![], vec![]));
    let full = rules(&snapshot(
        vec![service("web", "10.96.0.5", Some(30080)), sticky, service("kubernetes", "10.96.0.1", None), balancer],
        vec![
            of_balancer,
            slice("web", "10.128.0.2@n1:ready 10.128.0.3@n2:ready"),
            slice("sticky", "10.128.0.2@n1:ready 10.128.0.3@n2:ready"),
        ],
    ));
    let script =
        [transaction(None, &empty), transaction(Some(&empty), &full), transaction(Some(&full), &empty)].concat();
    let mut nft = Command::new("unshare")
        .args(["--net", "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare and nft are installed");
    std::io::Write::write_all(&mut nft.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = nft.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
}

fn woken(mut slice: EndpointSlice) -> EndpointSlice {
    let by = (tandem_api::WOKEN_BY_ANNOTATION.to_owned(), "scaler".to_owned());
    slice.metadata.annotations = Some([by].into());
    slice
}

#[test]
fn connections_to_a_workload_at_zero_go_to_the_activator() {
    let web = || service("web", "10.96.0.10", Some(30080));
    let check = |endpoints: &str, asleep: bool| {
        let snapshot = snapshot(vec![web()], vec![woken(slice("web", endpoints))]);
        let ruleset = rules(&snapshot);
        let of_service = ruleset.chains.iter().filter(|(name, _)| name.ends_with("-web"));
        let to_activator: Vec<bool> =
            of_service.map(|(_, rules)| rules.iter().any(|rule| rule.contains("10.128.0.1 . 7000"))).collect();
        assert_eq!(to_activator, [asleep, asleep], "{endpoints}: {:?}", ruleset.chains);
        assert!(ruleset.sets["no_endpoints"].elements.is_empty(), "{endpoints}");
    };
    check("", true);
    check("10.128.0.5@n1:not", true);
    // Who ends still answers what it has; what comes now waits for the next one.
    check("10.128.0.5@n1:terminating", true);
    check("10.128.0.5@n1:ready", false);
    let refused = rules(&snapshot(vec![web()], vec![slice("web", "")]));
    assert_eq!(refused.sets["no_endpoints"].elements.len(), 1, "nobody would wake it");
}

#[test]
fn the_activator_knows_whom_a_connection_is_for() {
    let services = vec![service("web", "10.96.0.10", Some(30080)), service("other", "10.96.0.11", None)];
    let slices = vec![woken(slice("web", "10.128.0.5@n1:ready 10.128.0.6@n2:terminating")), slice("other", "")];
    let found = sleepers(&snapshot(services, slices));
    let expected = Sleeper {
        service: ("default".to_owned(), "web".to_owned()),
        autoscaler: ("default".to_owned(), "scaler".to_owned()),
        ready: vec!["10.128.0.5:8080".parse().unwrap()],
    };
    let find = |address: &str| found.find(address.parse().unwrap()).map(|one| (**one).clone());
    assert_eq!(find("10.96.0.10:80"), Some(expected.clone()));
    assert_eq!(find("192.0.2.1:30080"), Some(expected));
    assert_eq!(find("10.96.0.11:80"), None);
    assert_eq!(find("10.96.0.10:81"), None);
}
