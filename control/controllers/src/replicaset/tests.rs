use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSetSpec,
        core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus, PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time},
};

use super::*;
use crate::{action::testing::describe, ranking::DELETION_COST};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn labels(app: &str) -> Option<std::collections::BTreeMap<String, String>> {
    Some([("app".to_owned(), app.to_owned())].into())
}

fn set(replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some("set".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: labels("web"), ..LabelSelector::default() },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: labels("web"), ..ObjectMeta::default() }),
                ..PodTemplateSpec::default()
            }),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

/// `name:word:word…`, the words in any order: pending, ready, failed, deleting, orphan, other (labels), nX (node), rN
/// (restarts), cN (deletion cost), aN (age in seconds).
fn pod(text: &str) -> Pod {
    let mut words = text.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let has = |word| words.contains(&word);
    let number = |prefix: &str| words.iter().find_map(|word| word.strip_prefix(prefix)?.parse::<i64>().ok());
    let since = at(NOW - number("a").unwrap_or(100));
    let phase = if has("failed") {
        "Failed"
    } else if has("ready") || has("running") {
        "Running"
    } else {
        "Pending"
    };
    let condition = PodCondition {
        type_: "Ready".into(),
        status: if has("ready") { "True" } else { "False" }.into(),
        last_transition_time: Some(since.clone()),
        ..PodCondition::default()
    };
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            resource_version: Some("1".into()),
            labels: labels(if has("other") { "other" } else { "web" }),
            creation_timestamp: Some(since),
            deletion_timestamp: has("deleting").then(|| at(NOW)),
            owner_references: (!has("orphan")).then(|| vec![object::controller_reference(&set(0))]),
            annotations: number("c").map(|cost| [(DELETION_COST.to_owned(), cost.to_string())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: words.iter().find(|word| word.starts_with('n')).map(ToString::to_string),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.into()),
            conditions: Some(vec![condition]),
            container_statuses: number("r").map(|restarts| {
                vec![ContainerStatus { restart_count: i32::try_from(restarts).unwrap(), ..ContainerStatus::default() }]
            }),
            ..PodStatus::default()
        }),
    }
}

fn view(set: ReplicaSet, pods: &str) -> View<ReplicaSet> {
    let pods: Vec<Arc<Pod>> = pods.split_whitespace().map(|text| Arc::new(pod(text))).collect();
    let mut related = HashMap::new();
    for node in pods.iter().filter_map(|pod| pod::node(pod)) {
        *related.entry(node.to_owned()).or_default() += 1;
    }
    let (owned, orphans) = pods.into_iter().partition(|pod| object::controller_of(&pod.metadata).is_some());
    View { set: Arc::new(set), owned, orphans, related, failure: None }
}

fn show<P: Replicating>(view: &View<P>) -> String {
    describe(&plan(view, at(NOW).0), |action| match action.object::<ReplicaSet>() {
        Some(ReplicaSet { status: Some(status), .. }) => format!(
            "{}/{}/{}{}",
            status.available_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.replicas,
            status
                .conditions
                .iter()
                .flatten()
                .map(|one| format!(" {}={}", one.type_, one.message.clone().unwrap()))
                .collect::<String>()
        ),
        _ => String::new(),
    })
}

fn check(replicas: i32, pods: &str, expect: Expect) {
    expect.assert_eq(&show(&view(set(replicas), pods)));
}

#[test]
fn creates_what_is_missing() {
    check(
        3,
        "a:ready b:pending",
        expect![[r#"
        create Pod default/
        status ReplicaSet default/web 1/1/2
    "#]],
    );
}

#[test]
fn pods_that_end_are_replaced() {
    check(
        2,
        "a:ready b:failed c:deleting",
        expect![[r#"
        create Pod default/
        status ReplicaSet default/web 1/1/1
    "#]],
    );
}

#[test]
fn what_serves_least_is_deleted_first() {
    check(
        1,
        "a:ready:n1 b:pending c:running:n1 d:ready:n2:c-5",
        expect![[r#"
        delete Pod default/b
        delete Pod default/c
        delete Pod default/d
        status ReplicaSet default/web 2/2/4
    "#]],
    );
}

#[test]
fn of_equals_the_crowded_node_and_the_young_lose_first() {
    check(
        2,
        "a:ready:n1 b:ready:n2 c:ready:n2",
        expect![[r#"
        delete Pod default/b
        status ReplicaSet default/web 3/3/3
    "#]],
    );
    check(
        1,
        "a:ready:n1:a5 b:ready:n2:a5000",
        expect![[r#"
        delete Pod default/a
        status ReplicaSet default/web 2/2/2
    "#]],
    );
    check(
        1,
        "a:ready:n1:r1 b:ready:n2:r7",
        expect![[r#"
        delete Pod default/b
        status ReplicaSet default/web 2/2/2
    "#]],
    );
}

#[test]
fn adopts_and_releases_by_label() {
    check(
        2,
        "a:ready:orphan b:ready:other c:ready:orphan:other",
        expect![[r#"
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":"1","ownerReferences":[]}}
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":"1","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"set"}]}}
        create Pod default/
        status ReplicaSet default/web 1/1/1
    "#]],
    );
}

#[test]
fn a_set_that_is_being_deleted_only_counts() {
    let mut set = set(3);
    set.metadata.deletion_timestamp = Some(at(NOW));
    expect![[r#"
        status ReplicaSet default/web 1/1/1
    "#]]
    .assert_eq(&show(&view(set, "a:ready b:orphan")));
}

#[test]
fn available_is_ready_for_long_enough() {
    let mut set = set(2);
    set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    expect![[r#"
        status ReplicaSet default/web 1/2/2
        again in 20s
    "#]]
    .assert_eq(&show(&view(set, "a:ready:a10 b:ready:a31")));
}

#[test]
fn a_failure_becomes_a_condition() {
    let mut view = view(set(1), "");
    view.failure = Some(Failure { reason: "FailedCreate", message: "no quota".into() });
    expect![[r#"
        create Pod default/
        status ReplicaSet default/web 0/0/0 ReplicaFailure=no quota
    "#]]
    .assert_eq(&show(&view));
}

#[test]
fn a_plan_is_bounded_and_converges() {
    let plan_of = |count: usize| {
        let pods: Vec<String> = (0..count).map(|index| format!("p{index}:ready")).collect();
        plan(&view(set(600), &pods.join(" ")), at(NOW).0)
    };
    assert_eq!(plan_of(0).actions.len(), BURST + 1);
    let mut done = view(set(600), &(0..600).map(|index| format!("p{index}:ready")).collect::<Vec<_>>().join(" "));
    let status = plan(&done, at(NOW).0).actions.pop().unwrap();
    done.set = Arc::new(status.object::<ReplicaSet>().unwrap().clone());
    assert!(plan(&done, at(NOW).0).actions.is_empty(), "nothing is left to do");
}

#[test]
fn a_replication_controller_says_the_same_in_its_own_words() {
    let spec =
        json(r#"{"replicas": 2, "selector": {"app": "web"}, "template": {"metadata": {"labels": {"app": "web"}}}}"#);
    let mut controller = ReplicationController { metadata: set(0).metadata, spec: Some(spec), status: None };
    let View { owned, orphans, related, .. } = view(set(2), "a:ready");
    let seen = |controller: &ReplicationController| View {
        set: Arc::new(controller.clone()),
        owned: Vec::new(),
        orphans: orphans.clone(),
        related: related.clone(),
        failure: Some(Failure { reason: "FailedCreate", message: "no".into() }),
    };
    let made = plan(&seen(&controller), at(NOW).0);
    assert_eq!(made.actions.iter().filter(|action| matches!(action, Action::Create { .. })).count(), 2);
    let mut status =
        controller.with_status(status(&seen(&controller), &controller.wanted(), &[&owned[0]], at(NOW).0).0);
    assert_eq!(status.status.as_ref().unwrap().ready_replicas, Some(1));
    assert_eq!(status.status.as_ref().unwrap().conditions.as_ref().unwrap()[0].reason.as_deref(), Some("FailedCreate"));
    assert_eq!(status.with_status(status.status().unwrap()), status);
    controller.spec = None;
    status.spec = None;
    assert!(controller.selector().is_none(), "who selects nothing has no pods");
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}
