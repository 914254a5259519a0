use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::*;
use crate::snapshot::{HostPort, Resources};

fn node() -> NodeInfo {
    NodeInfo {
        name: "n1".into(),
        labels: BTreeMap::from([("disk".into(), "ssd".into()), ("cores".into(), "8".into())]),
        allocatable: Resources { milli_cpu: 1000, memory: 1000, pods: 2, ..Resources::default() },
        ..NodeInfo::default()
    }
}

fn check(pod: &PodInfo, node: &NodeInfo) -> String {
    let snapshot = Snapshot::default();
    let cycle = Cycle::new(pod, &snapshot);
    let reasons = cycle.reasons(ALL, node);
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_cordoned_node_takes_only_who_tolerates_it() {
    let node = NodeInfo { unschedulable: true, ..node() };
    assert_eq!(check(&PodInfo::default(), &node), "node(s) were unschedulable");
    let toleration = Toleration { operator: Some("Exists".into()), ..Toleration::default() };
    assert_eq!(check(&PodInfo { tolerations: vec![toleration], ..PodInfo::default() }, &node), "");
}

#[test]
fn a_pod_runs_on_the_node_that_it_names() {
    let named = |name: &str| PodInfo { node_name: Some(name.into()), ..PodInfo::default() };
    assert_eq!(check(&named("n1"), &node()), "");
    assert_eq!(check(&named("n2"), &node()), "node(s) didn't match the requested node name");
}

#[test]
fn taints_with_a_hard_effect_keep_pods_away() {
    let taint =
        |effect: &str| Taint { key: "gpu".into(), value: Some("a".into()), effect: effect.into(), time_added: None };
    let tainted = |effect| NodeInfo { taints: vec![taint(effect)], ..node() };
    assert_eq!(check(&PodInfo::default(), &tainted("NoSchedule")), "node(s) had untolerated taint {gpu: a}");
    assert_eq!(check(&PodInfo::default(), &tainted("NoExecute")), "node(s) had untolerated taint {gpu: a}");
    assert_eq!(check(&PodInfo::default(), &tainted("PreferNoSchedule")), "");
}

#[test]
fn selectors_and_affinity_choose_by_label() {
    const REFUSED: &str = "node(s) didn't match Pod's node affinity/selector";
    let selecting =
        |value: &str| PodInfo { node_selector: BTreeMap::from([("disk".into(), value.into())]), ..PodInfo::default() };
    assert_eq!(check(&selecting("ssd"), &node()), "");
    assert_eq!(check(&selecting("tape"), &node()), REFUSED);
    let wanting = |key: &str, operator: &str, values: &[&str]| {
        let requirement = NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(ToString::to_string).collect()),
        };
        let fields = key.starts_with("metadata");
        let (match_fields, match_expressions) =
            if fields { (Some(vec![requirement]), None) } else { (None, Some(vec![requirement])) };
        let term = NodeSelectorTerm { match_fields, match_expressions };
        check(&PodInfo { required: Some(vec![NodeSelectorTerm::default(), term]), ..PodInfo::default() }, &node())
    };
    for (key, operator, values, fits) in [
        ("disk", "In", &["tape", "ssd"][..], true),
        ("disk", "NotIn", &["ssd"], false),
        ("zone", "NotIn", &["a"], true),
        ("disk", "Exists", &[], true),
        ("disk", "DoesNotExist", &[], false),
        ("cores", "Gt", &["4"], true),
        ("cores", "Lt", &["4"], false),
        ("disk", "Gt", &["4"], false),
        ("metadata.name", "In", &["n1"], true),
        ("metadata.name", "In", &["n2"], false),
        ("disk", "Like", &["ssd"], false),
    ] {
        assert_eq!(wanting(key, operator, values), if fits { "" } else { REFUSED }, "{key} {operator} {values:?}");
    }
    assert_eq!(check(&PodInfo { required: Some(Vec::new()), ..PodInfo::default() }, &node()), REFUSED);
}

#[test]
fn a_port_is_taken_once() {
    let port = HostPort { address: None, protocol: "TCP".into(), port: 80 };
    let pod = PodInfo { ports: vec![port.clone()], ..PodInfo::default() };
    assert_eq!(check(&pod, &node()), "");
    let taken = NodeInfo { ports: vec![port], ..node() };
    assert_eq!(check(&pod, &taken), "node(s) didn't have free ports for the requested pod ports");
}

#[test]
fn everything_that_is_missing_is_said() {
    let requests = Resources {
        milli_cpu: 600,
        memory: 2000,
        ephemeral_storage: 1,
        pods: 1,
        extended: BTreeMap::from([("example.com/gpu".into(), 1)]),
    };
    let pod = PodInfo { requests, ..PodInfo::default() };
    let mut node = node();
    node.requested = Resources { milli_cpu: 500, pods: 2, ..Resources::default() };
    let missing = "Too many pods; Insufficient cpu; Insufficient memory; Insufficient ephemeral-storage; Insufficient example.com/gpu";
    assert_eq!(check(&pod, &node), missing);
    node.requested = Resources { milli_cpu: 1500, ..Resources::default() };
    assert_eq!(check(&PodInfo::default(), &node), "", "who asks for nothing fits on a node that is overcommitted");
}
