use k8s_openapi::api::core::v1::{Container, ContainerPort, NodeStatus, Pod, PodSpec, ResourceRequirements};
use kube::api::ObjectMeta;

use super::*;

pub(crate) fn amounts(text: &str) -> Amounts {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect()
}

pub(crate) fn container(requests: &str) -> Container {
    let requests = Some(amounts(requests)).filter(|requests| !requests.is_empty());
    Container {
        resources: Some(ResourceRequirements { requests, ..ResourceRequirements::default() }),
        ..Container::default()
    }
}

fn pod(uid: &str, containers: Vec<Container>) -> Pod {
    Pod {
        metadata: ObjectMeta { name: Some(uid.into()), uid: Some(uid.into()), ..ObjectMeta::default() },
        spec: Some(PodSpec { containers, ..PodSpec::default() }),
        status: None,
    }
}

fn node(name: &str, allocatable: &str) -> Node {
    Node {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        spec: None,
        status: Some(NodeStatus { allocatable: Some(amounts(allocatable)), ..NodeStatus::default() }),
    }
}

#[test]
fn a_pod_asks_for_its_peak_and_its_overhead() {
    let mut pod = pod("a", vec![container("cpu=100m memory=1Mi"), container("cpu=200m gpu=1")]);
    let sidecar = Container { restart_policy: Some("Always".into()), ..container("cpu=50m") };
    let spec = pod.spec.as_mut().unwrap();
    spec.init_containers = Some(vec![container("cpu=10m memory=3Mi"), sidecar, container("cpu=400m")]);
    spec.overhead = Some(amounts("cpu=5m"));
    let info = PodInfo::of(&pod);
    assert_eq!(info.requests.milli_cpu, 455, "the last init container beside the sidecar, and the overhead");
    assert_eq!(info.requests.memory, 3 << 20);
    assert_eq!(info.requests.extended["gpu"], 1);
    assert_eq!(info.requests.pods, 1);
    assert_eq!(info.presumed.memory, 2 * DEFAULT_MEMORY + (1 << 20));
}

#[test]
fn a_pod_that_is_resized_counts_with_the_most_that_is_held_for_it() {
    for (wants, reason, expected) in [("1", "Deferred", 2000), ("5", "Deferred", 5000), ("5", "Infeasible", 2000)] {
        let mut pod = pod("a", vec![container(&format!("cpu={wants}"))]);
        let status = serde_json::json!({
            "containerStatuses": [{
                "name": "", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "allocatedResources": { "cpu": "2" }, "resources": { "requests": { "cpu": "1" } },
            }],
            "conditions": [{ "type": "PodResizePending", "status": "True", "reason": reason }],
        });
        pod.status = serde_json::from_value(status).unwrap();
        assert_eq!(PodInfo::of(&pod).requests.milli_cpu, expected, "{wants} {reason}");
    }
}

#[test]
fn what_the_whole_pod_asks_for_counts_in_place_of_its_parts() {
    let mut pod = pod("a", vec![container("cpu=100m memory=1Mi")]);
    let requests = Some(amounts("cpu=1"));
    pod.spec.as_mut().unwrap().resources = Some(ResourceRequirements { requests, ..ResourceRequirements::default() });
    let info = PodInfo::of(&pod);
    assert_eq!((info.requests.milli_cpu, info.requests.memory), (1000, 1 << 20));
}

#[test]
fn room_is_taken_once_and_given_back() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(&node("n1", "cpu=4 pods=10"));
    let mut info = PodInfo::of(&pod("a", vec![container("cpu=1")]));
    snapshot.assume(&info, "n1");
    info.node_name = Some("n1".into());
    snapshot.set_pod(&info);
    assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 1000, "confirmed, not added again");
    snapshot.forget("a");
    assert!(snapshot.is_placed("a"), "what the API has confirmed is not forgotten");
    assert!(snapshot.remove_pod("a"));
    assert_eq!(snapshot.nodes()[0].requested, Resources { extended: BTreeMap::new(), ..Resources::default() });
    snapshot.assume(&info, "n1");
    snapshot.forget_assumed();
    assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 0);
}

#[test]
fn pods_count_also_when_they_are_known_before_their_node() {
    let mut snapshot = Snapshot::default();
    let mut info = PodInfo::of(&pod("a", vec![container("cpu=1")]));
    info.node_name = Some("n2".into());
    snapshot.set_pod(&info);
    assert!(snapshot.set_node(&node("n1", "cpu=4")));
    assert!(snapshot.set_node(&node("n2", "cpu=4")));
    assert!(!snapshot.set_node(&node("n2", "cpu=4")), "nothing has changed");
    snapshot.remove_node("n1");
    assert_eq!(snapshot.nodes().len(), 1);
    assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 1000);
    assert!(snapshot.set_node(&node("n2", "cpu=8")));
    assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 1000);
    snapshot.remove_pod("a");
    assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 0);
}

#[test]
fn ports_conflict_by_address_and_protocol() {
    let port = |address: Option<&str>, protocol: &str| HostPort {
        address: address.map(Into::into),
        protocol: protocol.into(),
        port: 80,
    };
    assert!(port(None, "TCP").conflicts(&port(Some("10.0.0.1"), "TCP")));
    assert!(!port(Some("10.0.0.2"), "TCP").conflicts(&port(Some("10.0.0.1"), "TCP")));
    assert!(!port(None, "UDP").conflicts(&port(None, "TCP")));
    let mut pod = pod("a", vec![container("")]);
    pod.spec.as_mut().unwrap().containers[0].ports = Some(vec![
        ContainerPort {
            container_port: 80,
            host_port: Some(80),
            host_ip: Some("0.0.0.0".into()),
            ..ContainerPort::default()
        },
        ContainerPort { container_port: 81, ..ContainerPort::default() },
    ]);
    assert_eq!(PodInfo::of(&pod).ports, [port(None, "TCP")]);
}

#[test]
fn what_others_mind_of_a_pod_is_noticed_once() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(&node("n1", "cpu=4"));
    let mut info = PodInfo::of(&pod("a", vec![container("")]));
    assert_eq!(snapshot.set_pod(&info), Seen::Before, "it has no node");
    snapshot.assume(&info, "n1");
    info.node_name = Some("n1".into());
    assert_eq!(snapshot.set_pod(&info), Seen::New);
    assert_eq!(snapshot.set_pod(&info), Seen::Before);
    info.labels = Arc::new(Labels::from([("app".into(), "web".into())]));
    assert_eq!(snapshot.set_pod(&info), Seen::Changed);
    info.terminating = true;
    assert_eq!(snapshot.set_pod(&info), Seen::Changed);
    assert_eq!(snapshot.set_pod(&info), Seen::Before);
    assert!(snapshot.remove_node("n1") && !snapshot.remove_node("n1"));
}
