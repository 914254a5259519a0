use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSetUpdateStrategy, RollingUpdateDaemonSet},
        core::v1::{Container, NodeSpec, PodCondition, PodSpec, PodStatus, Taint},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, Time},
        util::intstr::IntOrString,
    },
};

use super::*;
use crate::action::testing::describe;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn labels() -> Option<BTreeMap<String, String>> {
    Some([("app".to_owned(), "log".to_owned())].into())
}

fn set(change: impl FnOnce(&mut DaemonSetSpec)) -> DaemonSet {
    let mut spec = DaemonSetSpec {
        selector: LabelSelector { match_labels: labels(), ..LabelSelector::default() },
        revision_history_limit: Some(10),
        ..DaemonSetSpec::default()
    };
    spec.template.metadata = Some(ObjectMeta { labels: labels(), ..ObjectMeta::default() });
    let container = Container { name: "log".into(), image: Some("log:2".into()), ..Container::default() };
    spec.template.spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
    change(&mut spec);
    let metadata = ObjectMeta {
        name: Some("log".into()),
        namespace: Some("default".into()),
        uid: Some("set".into()),
        ..ObjectMeta::default()
    };
    DaemonSet { metadata, spec: Some(spec), status: None }
}

fn rolling(surge: i32, unavailable: i32) -> impl FnOnce(&mut DaemonSetSpec) {
    move |spec| {
        let rolling_update = RollingUpdateDaemonSet {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        };
        spec.update_strategy =
            Some(DaemonSetUpdateStrategy { type_: Some("RollingUpdate".into()), rolling_update: Some(rolling_update) });
    }
}

/// `name:word…`: gpu (a label), taint=EFFECT.
fn node(text: &str) -> Arc<Node> {
    let mut words = text.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let taint = words.iter().find_map(|word| word.strip_prefix("taint=")).map(|effect| Taint {
        key: "broken".into(),
        effect: effect.into(),
        ..Taint::default()
    });
    Arc::new(Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: words.contains(&"gpu").then(|| [("gpu".to_owned(), "yes".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: taint.map(|taint| vec![taint]), ..NodeSpec::default() }),
        status: None,
    })
}

/// `name@node:word…`: ready, old (revision), failed, deleting, unbound.
fn pod(text: &str) -> Arc<Pod> {
    let (name, rest) = text.split_once('@').unwrap();
    let mut words = rest.split(':');
    let node = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let has = |word| words.contains(&word);
    let set = set(|_| ());
    let spec = spec(&set);
    let hash = line(&set, &spec).name().strip_prefix("log-").unwrap().to_owned();
    let mut labels = labels().unwrap();
    labels.insert(REVISION_HASH.into(), if has("old") { "before".into() } else { hash });
    let ready = PodCondition {
        type_: "Ready".into(),
        status: if has("ready") { "True" } else { "False" }.into(),
        last_transition_time: Some(at(NOW - 100)),
        ..PodCondition::default()
    };
    let mut of = PodSpec::default();
    if has("unbound") {
        fit::bind(&mut of, node);
    } else {
        of.node_name = Some(node.into());
    }
    Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            labels: Some(labels),
            creation_timestamp: Some(at(NOW - 200)),
            deletion_timestamp: has("deleting").then(|| at(NOW)),
            owner_references: Some(vec![object::controller_reference(&set)]),
            ..ObjectMeta::default()
        },
        spec: Some(of),
        status: Some(PodStatus {
            phase: Some(if has("failed") { "Failed" } else { "Running" }.into()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        }),
    })
}

fn view(set: DaemonSet, nodes: &str, pods: &str) -> View {
    let spec = spec(&set);
    let current = match History::of(&[], &spec.template).gap(&line(&set, &spec), false) {
        Some(Gap::Write(write)) => write.object::<ControllerRevision>().unwrap().clone(),
        _ => unreachable!("there is no revision yet"),
    };
    View {
        set: Arc::new(set),
        nodes: nodes.split_whitespace().map(node).collect(),
        pods: pods.split_whitespace().map(pod).collect(),
        orphans: Vec::new(),
        revisions: vec![Arc::new(current)],
        free_revisions: Vec::new(),
        taken: true,
    }
}

fn detail(action: &Action) -> String {
    if let Some(pod) = action.object::<Pod>() {
        return format!("for {}", fit::target(pod).unwrap_or_default());
    }
    if let Some(revision) = action.object::<ControllerRevision>() {
        return format!("number {}", revision.revision);
    }
    let Some(status) = action.object::<DaemonSet>().and_then(|set| set.status.as_ref()) else { return String::new() };
    format!(
        "desired={} current={} ready={} updated={} available={} unavailable={} misplaced={}",
        status.desired_number_scheduled,
        status.current_number_scheduled,
        status.number_ready,
        status.updated_number_scheduled.unwrap_or(0),
        status.number_available.unwrap_or(0),
        status.number_unavailable.unwrap_or(0),
        status.number_misscheduled,
    )
}

fn check(set: DaemonSet, nodes: &str, pods: &str, expect: Expect) {
    expect.assert_eq(&describe(&plan(&view(set, nodes, pods), at(NOW).0), detail));
}

#[test]
fn the_template_gets_a_revision_before_it_gets_pods() {
    let mut none = view(set(|_| ()), "n1", "");
    none.revisions.clear();
    expect![[r#"
        status DaemonSet default/log desired=0 current=0 ready=0 updated=0 available=0 unavailable=0 misplaced=0
    "#]]
    .assert_eq(&describe(&plan(&none, at(NOW).0), detail));
    none.taken = false;
    expect![[r#"
        create ControllerRevision default/log-56c8d9fdf7 number 1
    "#]]
    .assert_eq(&describe(&plan(&none, at(NOW).0), detail));
}

#[test]
fn a_revision_that_comes_back_is_the_newest_again() {
    let mut back = view(set(|_| ()), "", "");
    let later = ControllerRevision {
        metadata: ObjectMeta { name: Some("log-later".into()), ..back.revisions[0].metadata.clone() },
        data: None,
        revision: 2,
    };
    back.revisions.push(Arc::new(later));
    expect![[r#"
        update ControllerRevision default/log-56c8d9fdf7 number 3
    "#]]
    .assert_eq(&describe(&plan(&back, at(NOW).0), detail));
}

#[test]
fn one_pod_runs_on_each_node_that_fits() {
    check(
        set(|_| ()),
        "n1 n2",
        "a@n1:ready",
        expect![[r#"
        create Pod default/ for n2
        status DaemonSet default/log desired=2 current=1 ready=1 updated=1 available=1 unavailable=1 misplaced=0
    "#]],
    );
    check(
        set(|_| ()),
        "n1",
        "a@n1:ready b@n1:ready",
        expect![[r#"
        delete Pod default/b
        status DaemonSet default/log desired=1 current=1 ready=1 updated=1 available=1 unavailable=0 misplaced=0
    "#]],
    );
    check(
        set(|_| ()),
        "n1",
        "a@n1:unbound b@gone:unbound",
        expect![[r#"
        delete Pod default/b
        status DaemonSet default/log desired=1 current=1 ready=0 updated=1 available=0 unavailable=1 misplaced=0
    "#]],
    );
    let gpu = || {
        set(|spec| {
            let only = [("gpu".to_owned(), "yes".to_owned())];
            spec.template.spec.as_mut().unwrap().node_selector = Some(only.into());
        })
    };
    check(
        gpu(),
        "n1 n2:gpu",
        "a@n1:ready",
        expect![[r#"
        create Pod default/ for n2
        delete Pod default/a
        status DaemonSet default/log desired=1 current=0 ready=0 updated=0 available=0 unavailable=1 misplaced=1
    "#]],
    );
}

#[test]
fn taints_keep_new_ones_away_or_drive_old_ones_out() {
    check(
        set(|_| ()),
        "n1:taint=NoSchedule n2:taint=NoSchedule",
        "a@n1:ready",
        expect![[r#"
        status DaemonSet default/log desired=0 current=0 ready=0 updated=0 available=0 unavailable=0 misplaced=1
    "#]],
    );
    check(
        set(|_| ()),
        "n1:taint=NoExecute",
        "a@n1:ready",
        expect![[r#"
        delete Pod default/a
        status DaemonSet default/log desired=0 current=0 ready=0 updated=0 available=0 unavailable=0 misplaced=1
    "#]],
    );
}

#[test]
fn daemons_that_end_are_replaced() {
    check(
        set(|_| ()),
        "n1",
        "a@n1:failed",
        expect![[r#"
        event Warning FailedDaemonPod: Found failed daemon pod default/a on node n1, will try to kill it
        delete Pod default/a
        status DaemonSet default/log desired=1 current=1 ready=0 updated=1 available=0 unavailable=1 misplaced=0
    "#]],
    );
    check(
        set(|_| ()),
        "n1",
        "a@n1:deleting",
        expect![[r#"
        status DaemonSet default/log desired=1 current=1 ready=0 updated=0 available=0 unavailable=1 misplaced=0
    "#]],
    );
}

#[test]
fn an_update_goes_node_by_node() {
    let all = "n1 n2 n3";
    check(
        set(rolling(0, 1)),
        all,
        "a@n1:old:ready b@n2:old:ready c@n3:old:ready",
        expect![[r#"
        delete Pod default/a
        status DaemonSet default/log desired=3 current=3 ready=3 updated=0 available=3 unavailable=0 misplaced=0
    "#]],
    );
    check(
        set(rolling(0, 1)),
        all,
        "a@n1 b@n2:old:ready c@n3:old:ready",
        expect![[r#"
        status DaemonSet default/log desired=3 current=3 ready=2 updated=1 available=2 unavailable=1 misplaced=0
    "#]],
    );
    check(
        set(rolling(0, 1)),
        all,
        "a@n1:ready b@n2:old c@n3:old:ready",
        expect![[r#"
        delete Pod default/b
        status DaemonSet default/log desired=3 current=3 ready=2 updated=1 available=2 unavailable=1 misplaced=0
    "#]],
    );
    let on_delete = set(|spec| {
        spec.update_strategy = Some(DaemonSetUpdateStrategy { type_: Some("OnDelete".into()), rolling_update: None });
    });
    check(
        on_delete,
        "n1",
        "a@n1:old:ready",
        expect![[r#"
        status DaemonSet default/log desired=1 current=1 ready=1 updated=0 available=1 unavailable=0 misplaced=0
    "#]],
    );
}

#[test]
fn with_surge_the_new_one_serves_before_the_old_one_goes() {
    check(
        set(rolling(1, 0)),
        "n1 n2",
        "a@n1:old:ready b@n2:old:ready",
        expect![[r#"
        create Pod default/ for n1
        status DaemonSet default/log desired=2 current=2 ready=2 updated=0 available=2 unavailable=0 misplaced=0
    "#]],
    );
    check(
        set(rolling(1, 0)),
        "n1 n2",
        "a@n1:old:ready b@n1 c@n2:old:ready",
        expect![[r#"
        status DaemonSet default/log desired=2 current=2 ready=2 updated=1 available=2 unavailable=0 misplaced=0
    "#]],
    );
    check(
        set(rolling(1, 0)),
        "n1 n2",
        "a@n1:old:ready b@n1:ready c@n2:old:ready",
        expect![[r#"
        delete Pod default/a
        create Pod default/ for n2
        status DaemonSet default/log desired=2 current=2 ready=2 updated=1 available=2 unavailable=0 misplaced=0
    "#]],
    );
}
