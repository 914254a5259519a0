use std::process::{Command, Stdio};

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::rules::transaction;

/// `namespace/name@node=address label=value … port:http/tcp=80`.
fn pod(text: &str) -> Arc<PodFacts> {
    let mut words = text.split_whitespace();
    let (place, address) = words.next().unwrap().split_once('=').unwrap();
    let (name, node) = place.split_once('@').unwrap();
    let (namespace, name) = name.split_once('/').unwrap();
    let mut pod = PodFacts {
        namespace: namespace.into(),
        name: name.into(),
        node: node.into(),
        addresses: vec![address.parse().unwrap()],
        ..PodFacts::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key.strip_prefix("port:").and_then(|port| port.split_once('/')) {
            Some((name, of)) => {
                pod.ports.push(Port {
                    name: name.into(),
                    protocol: protocol(Some(&of.to_uppercase())),
                    number: value.parse().unwrap(),
                });
            }
            None => drop(pod.labels.insert(key.into(), value.into())),
        }
    }
    Arc::new(pod)
}

fn policy(namespace: &str, spec: Value) -> Arc<NetworkPolicy> {
    let object = json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

const PODS: [&str; 5] = [
    "shop/web@n1=10.128.0.2 app=web port:http/tcp=8080",
    "shop/db@n1=10.128.0.3 app=db",
    "shop/far@n2=10.128.64.2 app=web port:http/tcp=9090",
    "other/client@n2=10.128.64.3 app=client",
    "other/local@n1=10.128.0.4 app=client",
];

fn snapshot(pods: &[&str], policies: Vec<Arc<NetworkPolicy>>) -> PolicySnapshot {
    let labels = |name: &str| Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
    PolicySnapshot {
        node: "n1".into(),
        pod_cidr: "10.128.0.0/10".parse().unwrap(),
        dns: Some("10.96.0.10".parse().unwrap()),
        api: Some(("10.128.0.1".parse().unwrap(), 6443)),
        members: vec!["192.0.2.1:6443".parse().unwrap()],
        activator: Some(("10.128.0.1".parse().unwrap(), 7000)),
        namespaces: ["shop", "other", "kube-system"].map(|name| (name.to_owned(), labels(name))).into(),
        pods: pods.iter().map(|text| pod(text)).collect(),
        policies,
    }
}

/// What changes when the pods of [`PODS`] get these policies, beside what is always there.
fn check(policies: Vec<Arc<NetworkPolicy>>, expected: Expect) {
    let ruleset = policy_rules(&snapshot(&PODS, policies));
    let script = transaction(None, &ruleset);
    let own = |line: &&str| !line.contains("denied_") || line.contains("goto");
    let always = |line: &&str| line.contains(" policy_") || line.contains("table ip") || line.contains(" map ");
    let shown: Vec<&str> =
        script.lines().filter(|line| own(line) && !always(line) && !line.contains("itself")).collect();
    expected.assert_eq(
        &shown.iter().map(|line| format!("{}\n", line.replace(" ip tandem_policy", ""))).collect::<String>(),
    );
}

#[test]
fn without_policies_there_is_nothing() {
    assert_eq!(policy_rules(&snapshot(&PODS, vec![])), Ruleset::new(POLICY_TABLE));
    expect![[r#"
        add table ip tandem_policy
        delete table ip tandem_policy
        add table ip tandem_policy

    "#]]
    .assert_eq(&transaction(None, &policy_rules(&snapshot(&PODS, vec![]))));
}

#[test]
fn the_hooks_are_always_the_same() {
    let script = transaction(None, &policy_rules(&snapshot(&[], vec![policy("shop", json!({"podSelector": {}}))])));
    expect![[r#"
        add table ip tandem_policy
        delete table ip tandem_policy
        add table ip tandem_policy
        add set ip tandem_policy denied_egress { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic,timeout; timeout 120s; size 4096; }
        add counter ip tandem_policy denied_egress_packets
        add set ip tandem_policy denied_ingress { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic,timeout; timeout 120s; size 4096; }
        add counter ip tandem_policy denied_ingress_packets
        add map ip tandem_policy egress { type ipv4_addr : verdict; }
        add map ip tandem_policy ingress { type ipv4_addr : verdict; }
        add set ip tandem_policy itself { type ipv4_addr . ipv4_addr; }
        add chain ip tandem_policy denied_egress
        add chain ip tandem_policy denied_ingress
        add rule ip tandem_policy denied_egress counter name denied_egress_packets
        add rule ip tandem_policy denied_egress update @denied_egress { ip saddr . ip daddr . meta l4proto . th dport counter }
        add rule ip tandem_policy denied_egress reject with icmp type admin-prohibited
        add rule ip tandem_policy denied_ingress counter name denied_ingress_packets
        add rule ip tandem_policy denied_ingress update @denied_ingress { ip daddr . ip saddr . meta l4proto . th dport counter }
        add rule ip tandem_policy denied_ingress reject with icmp type admin-prohibited
        add chain ip tandem_policy policy_forward { type filter hook forward priority 10; policy accept; }
        add rule ip tandem_policy policy_forward ct state established,related accept
        add rule ip tandem_policy policy_forward ip saddr . ip daddr @itself accept
        add rule ip tandem_policy policy_forward ip saddr vmap @egress
        add rule ip tandem_policy policy_forward ip daddr vmap @ingress
        add chain ip tandem_policy policy_input { type filter hook input priority 10; policy accept; }
        add rule ip tandem_policy policy_input ct state established,related accept
        add rule ip tandem_policy policy_input ip daddr . th dport { 10.96.0.10 . 53, 10.128.0.1 . 6443, 10.128.0.1 . 7000 } ip saddr vmap @egress
        add chain ip tandem_policy policy_sources { type filter hook prerouting priority -300; policy accept; }
        add rule ip tandem_policy policy_sources ip saddr 10.128.0.0/10 fib saddr . iif oif 0 drop
    "#]]
    .assert_eq(&script);
}

#[test]
fn a_policy_that_allows_nothing_isolates_what_it_selects() {
    check(
        vec![policy("shop", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))],
        expect![[r#"
            add chain egress-62253a9a06aaa594
            add chain ingress-f3e3a50b1f29f2e5
            add rule egress-62253a9a06aaa594 goto denied_egress
            add rule ingress-f3e3a50b1f29f2e5 goto denied_ingress
            add element egress { 10.128.0.2 : jump egress-62253a9a06aaa594, 10.128.0.3 : jump egress-62253a9a06aaa594 }
            add element ingress { 10.128.0.2 : jump ingress-f3e3a50b1f29f2e5, 10.128.0.3 : jump ingress-f3e3a50b1f29f2e5 }
        "#]],
    );
}

#[test]
fn types_follow_from_the_rules_where_they_are_left_out() {
    check(
        vec![policy("shop", json!({"podSelector": {"matchLabels": {"app": "db"}}, "egress": [{}]}))],
        expect![[r#"
            add chain egress-f6b211e6bddb3483
            add chain ingress-f3e3a50b1f29f2e5
            add rule egress-f6b211e6bddb3483 return
            add rule egress-f6b211e6bddb3483 goto denied_egress
            add rule ingress-f3e3a50b1f29f2e5 goto denied_ingress
            add element egress { 10.128.0.3 : jump egress-f6b211e6bddb3483 }
            add element ingress { 10.128.0.3 : jump ingress-f3e3a50b1f29f2e5 }
        "#]],
    );
}

#[test]
fn peers_are_pods_namespaces_both_or_blocks() {
    let from = json!([
        {"podSelector": {"matchLabels": {"app": "web"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}, "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}},
        {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25", "192.0.2.0/32"]}},
        {"ipBlock": {"cidr": "2001:db8::/32"}},
    ]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": from}]});
    check(
        vec![policy("shop", spec)],
        expect![[r#"
            add set blocks-2cbafedc5c840656 { type ipv4_addr; flags interval; }
            add set pods-7ed4bfc39981ed55 { type ipv4_addr; }
            add chain ingress-1df2b8fb61e67e7c
            add rule ingress-1df2b8fb61e67e7c ip saddr @blocks-2cbafedc5c840656 return
            add rule ingress-1df2b8fb61e67e7c ip saddr @pods-7ed4bfc39981ed55 return
            add rule ingress-1df2b8fb61e67e7c goto denied_ingress
            add element blocks-2cbafedc5c840656 { 192.0.2.1-192.0.2.127 }
            add element ingress { 10.128.0.3 : jump ingress-1df2b8fb61e67e7c }
            add element pods-7ed4bfc39981ed55 { 10.128.0.2, 10.128.0.4, 10.128.64.2, 10.128.64.3 }
        "#]],
    );
}

#[test]
fn ports_are_numbers_ranges_names_and_protocols() {
    let ports = json!([
        {"port": 80}, {"protocol": "TCP", "port": 81, "endPort": 90}, {"protocol": "UDP"}, {"protocol": "SCTP", "port": 7},
        {"protocol": "TCP", "port": "http"},
    ]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": ports}]});
    check(
        vec![policy("shop", spec)],
        expect![[r#"
            add set named-1cb19e23c3a60c51 { type ipv4_addr . inet_proto . inet_service; }
            add set ports-472b650381e6ae9e { type inet_proto . inet_service; flags interval; }
            add chain ingress-f5701efd0ef544fa
            add rule ingress-f5701efd0ef544fa ip daddr . meta l4proto . th dport @named-1cb19e23c3a60c51 return
            add rule ingress-f5701efd0ef544fa meta l4proto . th dport @ports-472b650381e6ae9e return
            add rule ingress-f5701efd0ef544fa goto denied_ingress
            add element ingress { 10.128.0.2 : jump ingress-f5701efd0ef544fa }
            add element named-1cb19e23c3a60c51 { 10.128.0.2 . tcp . 8080, 10.128.64.2 . tcp . 9090 }
            add element ports-472b650381e6ae9e { sctp . 7, tcp . 80-90, udp . 0-65535 }
        "#]],
    );
}

#[test]
fn cluster_dns_is_the_pod_that_it_is_elsewhere() {
    let dns = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    });
    let ports = json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": "dns-tcp"}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "egress": [{"to": [dns], "ports": ports}]});
    check(
        vec![policy("shop", spec)],
        expect![[r#"
            add set named-95cab4adac924848 { type ipv4_addr . inet_proto . inet_service; }
            add set pods-6aa6c3dc0c93e4bb { type ipv4_addr; }
            add set ports-e7a1224e5078d74f { type inet_proto . inet_service; flags interval; }
            add chain egress-8fad864ede64a0ad
            add rule egress-8fad864ede64a0ad ip daddr @pods-6aa6c3dc0c93e4bb ip daddr . meta l4proto . th dport @named-95cab4adac924848 return
            add rule egress-8fad864ede64a0ad ip daddr @pods-6aa6c3dc0c93e4bb meta l4proto . th dport @ports-e7a1224e5078d74f return
            add rule egress-8fad864ede64a0ad goto denied_egress
            add element egress { 10.128.0.3 : jump egress-8fad864ede64a0ad }
            add element named-95cab4adac924848 { 10.96.0.10 . tcp . 53 }
            add element pods-6aa6c3dc0c93e4bb { 10.96.0.10 }
            add element ports-e7a1224e5078d74f { udp . 53 }
        "#]],
    );
}

#[test]
fn the_api_server_is_where_its_members_are() {
    let to = |cidr: &str| {
        let egress = json!([{"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"port": 6443}]}]);
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": egress});
        let ruleset = policy_rules(&snapshot(&PODS, vec![policy("shop", spec)]));
        let blocks = ruleset.sets.iter().find(|(name, _)| name.starts_with("blocks"));
        blocks.map(|(_, set)| set.elements.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    assert_eq!(to("192.0.2.1/32"), ["10.128.0.1", "192.0.2.1"]);
    assert_eq!(to("10.128.0.0/24"), ["10.128.0.0", "10.128.0.2-10.128.0.255"]);
    assert_eq!(to("10.128.0.1/32"), <[String; 0]>::default());
    assert_eq!(to("0.0.0.0/0"), ["0.0.0.0-255.255.255.255"]);
}

#[test]
fn a_pod_that_comes_is_an_element() {
    let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": from}]});
    let before = policy_rules(&snapshot(&PODS, vec![policy("shop", spec.clone())]));
    let more = [&PODS[..], &["shop/next@n2=10.128.64.9 app=web", "shop/db-2@n1=10.128.0.9 app=db"]].concat();
    let after = policy_rules(&snapshot(&more, vec![policy("shop", spec)]));
    expect![[r#"
        add element ip tandem_policy ingress { 10.128.0.9 : jump ingress-e576e6de653319d8 }
        add element ip tandem_policy itself { 10.128.0.9 . 10.128.0.9 }
        add element ip tandem_policy pods-fcc2666a08ec0d2f { 10.128.64.9 }
    "#]]
    .assert_eq(&transaction(Some(&before), &after));
    assert_eq!(transaction(Some(&after), &after), "");
}

#[test]
fn policies_add_up() {
    let from = |app: &str| json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]});
    check(
        vec![policy("shop", from("web")), policy("shop", from("db")), policy("other", from("web"))],
        expect![[r#"
            add set pods-7b07fc4de7938067 { type ipv4_addr; }
            add set pods-fcc2666a08ec0d2f { type ipv4_addr; }
            add chain ingress-a84802f8e3ad89b9
            add rule ingress-a84802f8e3ad89b9 ip saddr @pods-fcc2666a08ec0d2f return
            add rule ingress-a84802f8e3ad89b9 ip saddr @pods-7b07fc4de7938067 return
            add rule ingress-a84802f8e3ad89b9 goto denied_ingress
            add element ingress { 10.128.0.3 : jump ingress-a84802f8e3ad89b9 }
            add element pods-7b07fc4de7938067 { 10.128.0.3 }
            add element pods-fcc2666a08ec0d2f { 10.128.0.2, 10.128.64.2 }
        "#]],
    );
}

/// The kernel takes every script, in a namespace of the test's own.
#[test]
fn the_kernel_takes_every_transaction() {
    let peers = json!([
        {"podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}, {"ipBlock": {"cidr": "255.0.0.0/8"}},
    ]);
    let ports =
        json!([{"port": 80, "endPort": 90}, {"protocol": "UDP"}, {"port": "http"}, {"protocol": "SCTP", "port": 7}]);
    let spec = json!({
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
    });
    let none = policy_rules(&snapshot(&PODS, vec![]));
    let all = policy_rules(&snapshot(&PODS, vec![policy("shop", spec.clone()), policy("other", spec.clone())]));
    let fewer = policy_rules(&snapshot(&PODS[..3], vec![policy("shop", spec)]));
    let script = [
        transaction(None, &none),
        transaction(Some(&none), &all),
        transaction(Some(&all), &fewer),
        transaction(Some(&fewer), &all),
        transaction(Some(&all), &none),
    ];
    for (index, _) in script.iter().enumerate() {
        let script = script[..=index].concat();
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
}
