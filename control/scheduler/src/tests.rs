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
