mod properties;
mod topology;

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::core::v1::{Container, Node, NodeSpec, NodeStatus, Pod, PodSpec, ResourceRequirements, Taint},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;

use super::*;

fn amounts(pairs: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    pairs.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
}

fn node(name: &str, cpu: &str, taint: &str) -> Node {
    let taint = Taint { key: taint.into(), value: Some("yes".into()), effect: "NoSchedule".into(), time_added: None };
    let taints = Some(vec![taint]).filter(|taints| !taints[0].key.is_empty());
    Node {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        spec: Some(NodeSpec { taints, ..NodeSpec::default() }),
        status: Some(NodeStatus {
            allocatable: Some(amounts(&[("cpu", cpu), ("memory", "32Gi"), ("pods", "110")])),
            ..NodeStatus::default()
        }),
    }
}

fn pod(name: &str, cpu: &str) -> PodInfo {
    let requests = Some(amounts(&[("cpu", cpu)]));
    let resources = Some(ResourceRequirements { requests, ..ResourceRequirements::default() });
    PodInfo::of(&Pod {
        metadata: ObjectMeta { name: Some(name.into()), uid: Some(name.into()), ..ObjectMeta::default() },
        spec: Some(PodSpec { containers: vec![Container { resources, ..Container::default() }], ..PodSpec::default() }),
        status: None,
    })
}

fn cluster(nodes: &[Node]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    snapshot
}

/// Schedules one pod after the other, and counts the pods of each node.
fn fill(snapshot: &mut Snapshot, pods: usize, cpu: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for turn in 0..pods {
        let pod = pod(&format!("p{turn}"), cpu);
        let node = schedule(&pod, snapshot, &Profile::default(), turn).unwrap();
        snapshot.assume(&pod, &node);
        *counts.entry(node).or_default() += 1;
    }
    counts
}

#[test]
fn the_emptier_node_is_chosen() {
    let mut snapshot = cluster(&[node("a", "4", ""), node("b", "4", "")]);
    snapshot.assume(&pod("x", "2"), "a");
    for turn in 0..4 {
        assert_eq!(schedule(&pod("p", "1"), &snapshot, &Profile::default(), turn).unwrap(), "b");
    }
}

#[test]
fn equal_nodes_take_turns() {
    let snapshot = cluster(&[node("a", "4", ""), node("b", "4", ""), node("c", "4", "")]);
    let choose = |turn| schedule(&pod("p", "1"), &snapshot, &Profile::default(), turn).unwrap();
    assert_eq!([0, 1, 2, 3].map(choose), ["a", "b", "c", "a"]);
}

#[test]
fn pending_pods_say_why_in_kubernetes_words() {
    let snapshot = cluster(&[node("a", "1", ""), node("b", "4", "gpu"), node("c", "4", "gpu")]);
    let refused = schedule(&pod("p", "2"), &snapshot, &Profile::default(), 1).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {gpu: yes}."
    );
    let refused = schedule(&pod("p", "2"), &Snapshot::default(), &Profile::default(), 7).unwrap_err();
    assert_eq!(refused.to_string(), "no nodes available to schedule pods");
}

#[test]
fn five_thousand_pods_fit_and_spread_over_a_thousand_nodes() {
    let nodes: Vec<Node> = (0..1000).map(|index| node(&format!("n{index}"), "4", "")).collect();
    let mut snapshot = cluster(&nodes);
    let counts = fill(&mut snapshot, 5000, "500m");
    assert!(snapshot.nodes().iter().all(|node| node.requested.milli_cpu <= node.allocatable.milli_cpu));
    let (least, most) = (counts.values().min(), counts.values().max());
    assert_eq!(counts.len(), 1000, "no node stays empty");
    assert!(least >= Some(&4) && most <= Some(&6), "between {least:?} and {most:?} pods a node");
    let again = fill(&mut cluster(&nodes), 5000, "500m");
    assert_eq!(counts, again, "the same from the same start");
}

#[test]
fn a_full_cluster_takes_no_more() {
    let nodes: Vec<Node> = (0..200).map(|index| node(&format!("n{index}"), "1", "")).collect();
    let mut snapshot = cluster(&nodes);
    let counts = fill(&mut snapshot, 400, "500m");
    assert!(counts.values().all(|count| *count == 2));
    let refused = schedule(&pod("p", "1m"), &snapshot, &Profile::default(), 0).unwrap_err();
    assert_eq!(refused.to_string(), "0/200 nodes are available: 200 Insufficient cpu.");
}

#[test]
fn pods_that_say_nothing_are_spread_like_those_of_their_owner() {
    use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Service};
    use kube::runtime::watcher::Event;
    use serde_json::json;
    use topology::read;

    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        snapshot.set_node(&read(json!({"metadata": {"name": name, "labels":
            {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "64", "memory": "64Gi", "pods": "110"}}})));
    }
    let place = |snapshot: &mut Snapshot, index: usize, owner: &str| {
        let name = format!("{owner}{index}");
        let owners = (owner == "set").then(
            || json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": "u", "controller": true}]),
        );
        let pod = PodInfo::of(&read(json!({
            "metadata": {"name": name, "uid": name, "namespace": "ns", "labels": {"app": owner}, "ownerReferences": owners},
            "spec": {"containers": [{"name": "c"}]}})));
        let node = schedule(&pod, snapshot, &Profile::default(), 0).unwrap();
        snapshot.assume(&pod, &node);
        node
    };
    let selector = json!({"matchLabels": {"app": "set"}});
    let set: ReplicaSet = read(json!({"metadata": {"name": "set", "namespace": "ns"}, "spec": {"selector": selector}}));
    snapshot.owners.replica_sets.take(Event::Apply(set));
    let service: Service =
        read(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": {"selector": {"app": "web"}}}));
    snapshot.owners.services.take(Event::Apply(service));
    for owner in ["set", "web"] {
        let mut nodes: Vec<String> = (0..3).map(|index| place(&mut snapshot, index, owner)).collect();
        assert!(nodes[..2].contains(&"b1".to_owned()), "zones first: {nodes:?}");
        nodes.sort();
        assert_eq!(nodes, ["a1", "a2", "b1"], "{owner}");
    }
    assert!(snapshot.owners.selector(&pod("alone", "1")).is_none());
}
