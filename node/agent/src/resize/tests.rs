use k8s_openapi::api::core::v1::ContainerResizePolicy;
use tandem_runtime::Program;

use super::*;
use crate::{
    observed::{Kind, Probes},
    plan::plan_pod,
    status::pod_status,
    testing::{
        self, at,
        node::{TestNode, is_ready},
        prepared, running, sandbox, with_spec,
    },
};

const MIB: i64 = 1 << 20;

fn resources(text: &str) -> ResourceRequirements {
    let list = |prefix: &str| {
        let pairs = text.split_whitespace().filter_map(|pair| pair.strip_prefix(prefix)?.split_once('='));
        let map: BTreeMap<_, _> = pairs.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect();
        (!map.is_empty()).then_some(map)
    };
    ResourceRequirements { requests: list("requests."), limits: list("limits."), ..ResourceRequirements::default() }
}

fn asking(text: &str) -> Pod {
    with_spec(testing::pod(&["a"]), |spec| spec.containers[0].resources = Some(resources(text)))
}

/// A pod whose container runs with `has` and whose spec wants `wants`.
fn resizing(has: &str, wants: &str) -> (Pod, Observed) {
    let pod = asking(wants);
    let mut container = running("a", 0, 0);
    let json = serde_json::to_string(&resources(has)).unwrap();
    container.annotations.insert(RESOURCES_ANNOTATION.to_owned(), json);
    let seen = Observed { sandboxes: vec![sandbox(Kind::Container, 0, true, vec![container])], ..prepared(&pod) };
    (pod, seen)
}

#[test]
fn a_resize_fits_waits_or_never_fits() {
    let need = |milli_cpu, mib: i64| Need { milli_cpu, memory_bytes: mib * MIB };
    let capacity = need(2000, 1000);
    let table = [
        (need(500, 100), need(100, 100), need(1500, 0), "fits"),
        (
            need(501, 100),
            need(100, 100),
            need(1500, 0),
            "Deferred: Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000",
        ),
        (
            need(2001, 100),
            need(100, 100),
            need(0, 0),
            "Infeasible: Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000",
        ),
        (
            need(100, 1001),
            need(100, 100),
            need(0, 0),
            "Infeasible: Node didn't have enough capacity: memory, requested: 1049624576, capacity: 1048576000",
        ),
        // What shrinks, or stays, is never in the way.
        (need(100, 900), need(200, 900), need(5000, 5000), "fits"),
    ];
    for (wanted, has, others, expected) in table {
        let told = match fits(wanted, has, others, capacity) {
            Ok(()) => "fits".to_owned(),
            Err(pending) => format!("{}: {}", pending.reason, pending.message),
        };
        assert_eq!(told, expected, "{wanted:?} beside {others:?}");
    }
}

#[test]
fn room_is_given_once() {
    let room = Room::default();
    let need = |milli_cpu| Need { milli_cpu, memory_bytes: 0 };
    room.hold("a", need(500));
    room.hold("b", need(500));
    assert_eq!(room.take("a", need(1500), need(500), need(2000)), Ok(()));
    assert_eq!(room.take("b", need(600), need(500), need(2000)).unwrap_err().reason, "Deferred");
    room.leave("a");
    assert_eq!(room.take("b", need(600), need(500), need(2000)), Ok(()));
}

#[test]
fn what_was_given_is_found_again_and_kept_while_there_is_no_room() {
    let (mut pod, seen) = resizing("requests.cpu=100m", "requests.cpu=100m");
    let (room, capacity) = (Room::default(), Need { milli_cpu: 1000, memory_bytes: 0 });
    pod.status = Some(pod_status(&pod, &seen, &Probes::default(), at(5)));
    pod.spec.as_mut().unwrap().containers[0].resources = Some(resources("requests.cpu=2"));
    let (run, pending) = allot(pod.clone(), None, &room, capacity);
    assert_eq!(given(&run)["a"], resources("requests.cpu=100m"));
    assert_eq!(pending.unwrap().reason, "Infeasible");
    pod.spec.as_mut().unwrap().containers[0].resources = Some(resources("requests.cpu=1"));
    let (run, pending) = allot(pod, Some(&given(&run)), &room, capacity);
    assert_eq!((given(&run)["a"].clone(), pending), (resources("requests.cpu=1"), None));
}

fn check(has: &str, wants: &str, policy: Option<&str>, expected: &str) {
    let (pod, seen) = resizing(has, wants);
    let pod = with_spec(pod, |spec| {
        let policy = policy.map(|resource| ContainerResizePolicy {
            resource_name: resource.to_owned(),
            restart_policy: "RestartContainer".to_owned(),
        });
        spec.containers[0].resize_policy = policy.map(|policy| vec![policy]);
    });
    let plan = plan_pod(&pod, &seen, &Probes::default(), at(5));
    let steps: Vec<&str> = plan.steps.iter().map(crate::plan::Step::name).collect();
    assert_eq!(steps.join(" "), expected, "{has} to {wants}");
    let status = pod_status(&pod, &seen, &Probes::default(), at(5));
    let kinds: Vec<&str> = status.conditions.iter().flatten().map(|one| one.type_.as_str()).collect();
    assert_eq!(kinds.contains(&"PodResizeInProgress"), !expected.is_empty(), "{kinds:?}");
    let told = status.container_statuses.unwrap()[0].resources.clone();
    assert!(same(told.as_ref(), Some(&resources(has))), "{told:?}");
}

#[test]
fn a_container_is_changed_as_it_runs_or_started_anew() {
    let has = "requests.cpu=100m requests.memory=64Mi limits.memory=128Mi";
    check(has, has, Some("cpu"), "");
    check(has, "requests.cpu=200m requests.memory=64Mi limits.memory=128Mi", None, "resize");
    check(has, "requests.cpu=200m requests.memory=64Mi limits.memory=128Mi", Some("memory"), "resize");
    check(has, "requests.cpu=200m requests.memory=64Mi limits.memory=128Mi", Some("cpu"), "stop_container");
    check(has, "requests.cpu=100m requests.memory=64Mi limits.memory=256Mi", Some("memory"), "stop_container");
    check("requests.cpu=100m", "requests.cpu=0.1", None, "");
    check("requests.cpu=100m", "requests.cpu=100m limits.cpu=1", None, "resize");
}

#[test]
fn what_failed_is_told_and_what_was_applied_is_known() {
    let (pod, mut seen) = resizing("requests.cpu=100m", "requests.cpu=200m");
    let trouble = crate::observed::Trouble { reason: RESIZE_FAILED, message: "no".to_owned(), at: at(4), count: 1 };
    seen.troubles.insert(crate::observed::Subject::Resources, trouble);
    let status = pod_status(&pod, &seen, &Probes::default(), at(5));
    let condition = status.conditions.iter().flatten().find(|one| one.type_ == "PodResizeInProgress").unwrap();
    assert_eq!((condition.reason.as_deref(), condition.message.as_deref()), (Some("Error"), Some("no")));
    seen.applied.insert(running("a", 0, 0).id, resources("requests.cpu=200m"));
    let status = pod_status(&pod, &seen, &Probes::default(), at(5));
    assert!(!status.conditions.iter().flatten().any(|one| one.type_ == "PodResizeInProgress"));
    assert_eq!(status.container_statuses.unwrap()[0].resources, Some(resources("requests.cpu=200m")));
}

#[test]
fn the_pods_own_bounds_are_wide_enough_on_the_way() {
    let limits = |memory: Option<u64>, cpu: Option<i64>| Limits {
        memory_bytes: memory,
        cpu_quota_us: cpu,
        cpu_period_us: cpu.map(|_| 100_000),
        cpu_shares: Some(2),
        oom_score_adj: 0,
    };
    let table = [
        (limits(Some(1), Some(5)), limits(Some(2), Some(3)), limits(Some(2), Some(5))),
        (limits(None, Some(5)), limits(Some(2), None), limits(None, None)),
    ];
    for (one, other, expected) in table {
        assert_eq!(wider(&one, &other), expected);
    }
}

/// The memory limit that the container has, with the same container in the same attempt.
fn memory_of(node: &TestNode, name: &str) -> Option<u64> {
    let all = node.sandboxes();
    let container = all.iter().flat_map(|sandbox| &sandbox.containers).find(|one| one.name == name)?;
    assert_eq!(container.attempt, 0);
    node.containers.limits(&container.id).or_else(|| node.components.limits(&container.id))?.memory_bytes
}

#[tokio::test]
async fn containers_and_components_are_resized_as_they_run_also_by_the_next_agent() {
    let node = TestNode::new().await;
    let sized = |memory: &str| {
        let mut pod = testing::pod(&["a", "component-a"]);
        for container in &mut pod.spec.as_mut().unwrap().containers {
            container.resources = Some(resources(&format!("requests.memory={memory} limits.memory={memory}")));
        }
        Pod { status: None, ..pod }
    };
    for name in ["a", "component-a"] {
        node.offer(name, Program::waits());
    }
    node.api.put_pod(sized("64Mi"));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    let resize = |memory: &str| {
        let spec = sized(memory).spec;
        node.api.change_pod("web", |pod| pod.spec = spec);
    };
    let reported = |pod: &Pod, memory: &str| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let has = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
            let limits = status.resources.as_ref().and_then(|all| all.limits.as_ref());
            limits.and_then(|limits| limits.get("memory")) == Some(&Quantity(memory.to_owned()))
        };
        statuses.len() == 2 && statuses.iter().all(has)
    };
    let both = |node: &TestNode| (memory_of(node, "a"), memory_of(node, "component-a"));
    resize("128Mi");
    node.until_pod("the new limits are reported", |pod| reported(pod, "128Mi")).await;
    assert_eq!(both(&node), (Some(128 << 20), Some(128 << 20)));
    // No room: the pod goes on as it was, under the next agent too.
    resize("2Gi");
    let told = |pod: &Pod| pod::condition_is_true(pod.status.as_ref(), "PodResizePending");
    node.until_pod("what waits is told", told).await;
    agent.end().await;
    let agent = node.start();
    resize("256Mi");
    node.until_pod("the limits of the next agent are reported", |pod| reported(pod, "256Mi")).await;
    assert_eq!(both(&node), (Some(256 << 20), Some(256 << 20)));
    agent.end().await;
}
