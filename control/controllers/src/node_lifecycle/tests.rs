use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus, Toleration};

use super::*;
use crate::{action::testing::describe, testing};

const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Words: ready, failing, unknown, pressure, cordoned; `KEY:EFFECT[:SECONDS AGO]` for taints.
fn node(text: &str) -> Node {
    let has = |word: &str| text.split_whitespace().any(|other| other == word);
    let taints = text.split_whitespace().filter_map(|word| word.split_once(':')).map(|(key, rest)| {
        let (effect, ago) = rest.split_once(':').unwrap_or((rest, ""));
        let time_added = ago.parse::<i64>().ok().map(|ago| Time(at(NOW - ago)));
        let key = key.replace("unreachable", UNREACHABLE);
        Taint { key, effect: effect.into(), value: None, time_added }
    });
    let condition = |kind: &str, status: &str| NodeCondition {
        type_: kind.into(),
        status: status.into(),
        ..NodeCondition::default()
    };
    let ready = [("ready", "True"), ("failing", "False"), ("unknown", "Unknown")].iter().find(|(word, _)| has(word));
    let mut conditions: Vec<NodeCondition> = ready.iter().map(|(_, status)| condition(READY, status)).collect();
    if has("pressure") {
        conditions.push(condition("MemoryPressure", "True"));
    }
    let mut node = Node {
        spec: Some(NodeSpec {
            taints: Some(taints.collect()),
            unschedulable: has("cordoned").then_some(true),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus { conditions: Some(conditions), ..NodeStatus::default() }),
        ..Node::default()
    };
    node.metadata.name = Some("n1".into());
    node
}

fn pod(text: &str) -> Pod {
    let mut pod = testing::pod(text);
    let patience = text.split(':').find_map(|word| word.strip_prefix("patience="));
    pod.spec.as_mut().unwrap().tolerations = patience.map(|seconds| {
        vec![Toleration {
            operator: Some("Exists".into()),
            toleration_seconds: seconds.parse().ok(),
            ..Toleration::default()
        }]
    });
    pod
}

fn check(node_text: &str, silent_for: i64, pods: &str, expect: Expect) {
    check_among(Others::Heard, node_text, silent_for, pods, expect);
}

fn check_among(others: Others, node_text: &str, silent_for: i64, pods: &str, expect: Expect) {
    let pods = pods.split_whitespace().map(|text| Arc::new(pod(text))).collect();
    let (node, heard) = (Arc::new(node(node_text)), at(NOW - silent_for));
    let view = View { node, heard, grace: Duration::from_secs(10), others, turn: Turn::Now, pods };
    expect.assert_eq(&describe(&plan(&view, at(NOW)), |action| {
        if let Some(node) = action.object::<Node>() {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            return conditions
                .map(|one| format!("{}={}/{}", one.type_, one.status, one.reason.clone().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(" ");
        }
        let conditions = action
            .object::<Pod>()
            .into_iter()
            .flat_map(|pod| pod.status.iter())
            .flat_map(|status| status.conditions.iter().flatten());
        conditions.map(|one| format!("{}={}", one.type_, one.status)).collect::<Vec<_>>().join(" ")
    }));
}

#[test]
fn a_node_that_is_well_is_looked_at_again() {
    check(
        "ready",
        3,
        "",
        expect![[r#"
            again in 2.5s
        "#]],
    );
}

#[test]
fn a_silent_node_is_not_ready_and_neither_are_its_pods() {
    check(
        "ready",
        10,
        "a:ready:patience=300 b",
        expect![[r#"
        status Node n1 Ready=Unknown/NodeStatusUnknown MemoryPressure=Unknown/NodeStatusNeverUpdated DiskPressure=Unknown/NodeStatusNeverUpdated PIDPressure=Unknown/NodeStatusNeverUpdated
        event Normal NodeNotReady: Node n1 status is now: NodeNotReady
        status Pod default/a Ready=False
    "#]],
    );
}

#[test]
fn taints_follow_the_conditions() {
    check(
        "unknown",
        11,
        "",
        expect![[r#"
        patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:46:40Z"},{"effect":"NoExecute","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:46:40Z"}]}}
    "#]],
    );
    check(
        "failing pressure gpu:NoSchedule",
        1,
        "",
        expect![[r#"
            patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"gpu"},{"effect":"NoSchedule","key":"node.kubernetes.io/not-ready","timeAdded":"1970-01-01T02:46:40Z"},{"effect":"NoExecute","key":"node.kubernetes.io/not-ready","timeAdded":"1970-01-01T02:46:40Z"},{"effect":"NoSchedule","key":"node.kubernetes.io/memory-pressure","timeAdded":"1970-01-01T02:46:40Z"}]}}
            again in 2.5s
        "#]],
    );
    check(
        "ready cordoned unreachable:NoExecute:5 unreachable:NoSchedule:5",
        1,
        "",
        expect![[r#"
            patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unschedulable","timeAdded":"1970-01-01T02:46:40Z"}]}}
            again in 2.5s
        "#]],
    );
    check(
        "",
        1,
        "",
        expect![[r#"
            patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/not-ready","timeAdded":"1970-01-01T02:46:40Z"}]}}
            again in 2.5s
        "#]],
    );
}

#[test]
fn pods_go_when_their_patience_ends() {
    check(
        "unknown unreachable:NoSchedule:50 unreachable:NoExecute:50",
        60,
        "gone:patience=40 soon:patience=70 stays:patience=ever none leaving:deleting",
        expect![[r#"
            event Normal TaintManagerEviction: Marking for deletion Pod default/gone
            status Pod default/gone Ready=False DisruptionTarget=True
            delete Pod default/gone
            event Normal TaintManagerEviction: Marking for deletion Pod default/none
            status Pod default/none Ready=False DisruptionTarget=True
            delete Pod default/none
            again in 20s
        "#]],
    );
}

#[test]
fn patience_with_a_users_taint_counts_from_when_it_is_seen() {
    check(
        "ready drain:NoExecute",
        1,
        "a:patience=60",
        expect![[r#"
            patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoExecute","key":"drain","timeAdded":"1970-01-01T02:46:40Z"}]}}
            again in 2.5s
        "#]],
    );
}

#[test]
fn a_silent_node_among_silent_ones_is_told_of_but_not_given_up() {
    for others in [Others::Unheard, Others::Down] {
        let mut told = View {
            turn: Turn::Now,
            node: Arc::new(node("ready")),
            heard: at(NOW - 10),
            grace: Duration::from_secs(10),
            others,
            pods: vec![Arc::new(pod("a:ready:patience=0"))],
        };
        let reports = |plan: Plan| plan.actions.iter().filter(|action| matches!(action, Action::SetStatus(_))).count();
        assert_eq!(reports(plan(&told, at(NOW))), 2, "the node and its pod are not ready");
        told.node = Arc::new(node("unknown"));
        assert!(plan(&told, at(NOW)).requeue.is_some());
    }
    check_among(
        Others::Unheard,
        "unknown",
        60,
        "none",
        expect![[r#"
        patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:46:40Z"}]}}
        again in 2.5s
    "#]],
    );
    check_among(
        Others::Down,
        "unknown",
        60,
        "none",
        expect![[r#"
        patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:46:40Z"}]}}
        again in 10s
    "#]],
    );
}

#[test]
fn patience_waits_for_another_node_to_be_heard() {
    let tainted = "unknown unreachable:NoSchedule:50 unreachable:NoExecute:50";
    check_among(
        Others::Unheard,
        tainted,
        60,
        "gone:patience=40",
        expect![[r#"
        again in 2.5s
    "#]],
    );
    check_among(
        Others::Down,
        tainted,
        60,
        "gone:patience=40",
        expect![[r#"
        patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:45:50Z"}]}}
        again in 10s
    "#]],
    );
    check_among(
        Others::Down,
        tainted,
        1,
        "gone:patience=40",
        expect![[r#"
        patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:45:50Z"}]}}
        again in 2.5s
    "#]],
    );
    check_among(
        Others::Down,
        "unknown unreachable:NoSchedule:50",
        60,
        "gone:patience=40",
        expect![[r#"
        again in 10s
    "#]],
    );
    check_among(
        Others::Heard,
        "unknown unreachable:NoSchedule:50",
        60,
        "gone:patience=40",
        expect![[r#"
        patch Node n1 {"metadata":{},"spec":{"taints":[{"effect":"NoSchedule","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:45:50Z"},{"effect":"NoExecute","key":"node.kubernetes.io/unreachable","timeAdded":"1970-01-01T02:46:40Z"}]}}
    "#]],
    );
    check_among(
        Others::Down,
        "unknown unreachable:NoSchedule:50 drain:NoExecute:50",
        60,
        "gone:patience=40",
        expect![[r#"
            event Normal TaintManagerEviction: Marking for deletion Pod default/gone
            status Pod default/gone Ready=False DisruptionTarget=True
            delete Pod default/gone
            again in 10s
        "#]],
    );
}

#[test]
fn others_count_as_heard_when_they_were_after_the_silence() {
    let lifecycle = NodeLifecycle::new(Duration::from_secs(10));
    let cache = Cache::default();
    let named = |name: &str, text: &str| {
        let mut node = node(text);
        node.metadata.name = Some(name.into());
        node
    };
    let others = || lifecycle.others(&cache, "n1", at(100));
    cache.nodes.apply(named("n1", "ready"));
    assert_eq!(others(), Others::Down, "there is no other");
    cache.nodes.apply(named("n2", "ready"));
    assert_eq!(others(), Others::Unheard);
    let beat = |second, now| {
        let mut node = named("n2", "ready");
        node.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].last_heartbeat_time = Some(Time(at(second)));
        lifecycle.heard(&node, None, Told::Newest, at(now));
    };
    beat(1, 99);
    assert_eq!(others(), Others::Unheard, "it may have fallen silent since");
    beat(2, 101);
    assert_eq!(others(), Others::Heard);
    cache.nodes.apply(named("n2", "unknown"));
    assert_eq!(others(), Others::Down);
    cache.nodes.apply(named("n3", "failing"));
    assert_eq!(others(), Others::Down);
}

#[test]
fn a_node_that_comes_or_goes_wakes_those_that_are_not_well() {
    let lifecycle = NodeLifecycle::new(Duration::from_secs(10));
    let cache = Cache::default();
    let named = |name: &str, text: &str| {
        let mut node = node(text);
        node.metadata.name = Some(name.into());
        node
    };
    for (name, text) in [("n1", "ready"), ("n2", "unknown"), ("n3", "ready unreachable:NoExecute:5"), ("n4", "ready")] {
        cache.nodes.apply(named(name, text));
    }
    let woken = |text: &str| {
        let change = Change::Node(cache.nodes.apply(named("n1", text)));
        lifecycle.wakes(&cache, &change).into_iter().map(|key| key.name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(woken("ready cordoned"), "n1");
    assert_eq!(woken("unknown"), "n1 n1 n2 n3");
    assert_eq!(woken("ready"), "n1 n2 n3");
}

#[test]
fn heartbeats_count_by_our_clock() {
    let lifecycle = NodeLifecycle::new(Duration::from_secs(10));
    let mut node = node("ready");
    let mut beat = |second| {
        let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions[0].last_heartbeat_time = Some(Time(at(second)));
        node.clone()
    };
    let mut heard = |second, told, now| lifecycle.heard(&beat(second), None, told, at(now));
    assert_eq!(heard(5, Told::Perhaps, 100), at(100), "a clock that is behind");
    assert_eq!(heard(5, Told::Newest, 107), at(100));
    assert_eq!(heard(6, Told::Newest, 108), at(108));
    assert_eq!(heard(5, Told::Perhaps, 109), at(108), "the cache is behind");
    assert_eq!(heard(6, Told::Newest, 110), at(108));
    assert_eq!(heard(4, Told::Newest, 111), at(111), "its clock was set back");
}

#[test]
fn a_node_waits_for_its_turn_to_be_given_up() {
    for (node_text, turn, executes, again) in [
        ("unknown", Turn::In(Duration::from_secs(4)), false, Some(4)),
        ("unknown", Turn::Never, false, Some(10)),
        ("failing", Turn::In(Duration::from_secs(1)), false, Some(1)),
        ("unknown", Turn::Now, true, None),
        // What has begun goes on.
        ("failing unreachable:NoExecute:5", Turn::Never, true, None),
    ] {
        let silent_for = if node_text == "unknown" { 11 } else { 1 };
        let (node, heard) = (Arc::new(node(node_text)), at(NOW - silent_for));
        let view = View { node, heard, grace: Duration::from_secs(10), others: Others::Heard, turn, pods: Vec::new() };
        let plan = plan(&view, at(NOW));
        let said = describe(&plan, |_| String::new());
        assert_eq!(said.contains(r#""effect":"NoExecute""#), executes, "{node_text} {turn:?}: {said}");
        if let Some(again) = again {
            assert_eq!(plan.requeue, Some(Duration::from_secs(again)), "{node_text} {turn:?}");
        }
    }
}
