use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        apps::v1::{
            RollingUpdateStatefulSetStrategy, StatefulSetOrdinals, StatefulSetPersistentVolumeClaimRetentionPolicy,
            StatefulSetUpdateStrategy,
        },
        core::v1::{Container, PodCondition, PodSpec, PodStatus, PodTemplateSpec},
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

fn labels() -> Option<std::collections::BTreeMap<String, String>> {
    Some([("app".to_owned(), "db".to_owned())].into())
}

fn template(image: &str) -> PodTemplateSpec {
    let container = Container { name: "db".into(), image: Some(image.into()), ..Container::default() };
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: labels(), ..ObjectMeta::default() }),
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
    }
}

fn set(replicas: i32, change: impl FnOnce(&mut StatefulSetSpec)) -> StatefulSet {
    let mut spec = StatefulSetSpec {
        replicas: Some(replicas),
        service_name: Some("dbs".into()),
        selector: LabelSelector { match_labels: labels(), ..LabelSelector::default() },
        revision_history_limit: Some(10),
        template: template("db:2"),
        ..StatefulSetSpec::default()
    };
    change(&mut spec);
    let metadata = ObjectMeta {
        name: Some("db".into()),
        namespace: Some("default".into()),
        uid: Some("set".into()),
        ..ObjectMeta::default()
    };
    StatefulSet { metadata, spec: Some(spec), status: None }
}

fn rolling(partition: i32, unavailable: i32) -> impl FnOnce(&mut StatefulSetSpec) {
    move |spec| {
        let rolling_update = RollingUpdateStatefulSetStrategy {
            partition: Some(partition),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        };
        spec.update_strategy = Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(rolling_update),
        });
    }
}

fn parallel(spec: &mut StatefulSetSpec) {
    spec.pod_management_policy = Some("Parallel".into());
}

fn revision(set: &StatefulSet, image: &str, number: i64) -> ControllerRevision {
    let template = template(image);
    let line = Line { parent: set, template: &template, collisions: 0, hash_label: HASH };
    match History::of(&[], &template).gap(&line, false) {
        Some(Gap::Write(write)) => {
            ControllerRevision { revision: number, ..write.object::<ControllerRevision>().unwrap().clone() }
        }
        _ => unreachable!("there is no revision yet"),
    }
}

/// `ORDINAL:word…`: ready, old (revision), failed, deleting.
fn pod(text: &str) -> Arc<Pod> {
    let mut words = text.split(':');
    let name = format!("db-{}", words.next().unwrap());
    let words: Vec<&str> = words.collect();
    let has = |word| words.contains(&word);
    let owner = set(0, |_| ());
    let of = revision(&owner, if has("old") { "db:1" } else { "db:2" }, 0);
    let mut labels = labels().unwrap();
    labels.insert(REVISION_HASH.into(), object::name(&of.metadata).into());
    let ready = PodCondition {
        type_: "Ready".into(),
        status: if has("ready") { "True" } else { "False" }.into(),
        last_transition_time: Some(at(NOW - 100)),
        ..PodCondition::default()
    };
    Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some("default".into()),
            uid: Some(name),
            labels: Some(labels),
            deletion_timestamp: has("deleting").then(|| at(NOW)),
            owner_references: Some(vec![object::controller_reference(&owner)]),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(PodStatus {
            phase: Some(if has("failed") { "Failed" } else { "Running" }.into()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        }),
    })
}

fn view(mut set: StatefulSet, pods: &str) -> View {
    let revisions = [revision(&set, "db:1", 1), revision(&set, "db:2", 2)];
    let before = if pods.contains("old") { &revisions[0] } else { &revisions[1] };
    set.status.get_or_insert_default().current_revision.clone_from(&before.metadata.name);
    View {
        set: Arc::new(set),
        pods: pods.split_whitespace().map(pod).collect(),
        orphans: Vec::new(),
        revisions: revisions.map(Arc::new).into(),
        free_revisions: Vec::new(),
        claims: Vec::new(),
        taken: true,
    }
}

fn detail(action: &Action) -> String {
    let image = |pod: &Pod| {
        pod.spec.as_ref().and_then(|spec| spec.containers.first()).and_then(|one| one.image.clone()).unwrap_or_default()
    };
    if let Some(pod) = action.object::<Pod>() {
        return image(pod);
    }
    let Some(status) = action.object::<StatefulSet>().and_then(|set| set.status.as_ref()) else { return String::new() };
    format!(
        "replicas={} ready={} available={} current={} updated={} {}",
        status.replicas,
        status.ready_replicas.unwrap_or(0),
        status.available_replicas.unwrap_or(0),
        status.current_replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
        if status.current_revision == status.update_revision { "done" } else { "updating" },
    )
}

fn check(set: StatefulSet, pods: &str, expect: Expect) {
    expect.assert_eq(&describe(&plan(&view(set, pods), at(NOW).0), detail));
}

#[test]
fn pods_come_one_after_the_other() {
    check(
        set(3, |_| ()),
        "",
        expect![[r#"
        create Pod default/db-0 db:2
        status StatefulSet default/db replicas=0 ready=0 available=0 current=0 updated=0 done
    "#]],
    );
    check(
        set(3, |_| ()),
        "0",
        expect![[r#"
        status StatefulSet default/db replicas=1 ready=0 available=0 current=1 updated=1 done
    "#]],
    );
    check(
        set(3, |_| ()),
        "0:ready",
        expect![[r#"
        create Pod default/db-1 db:2
        status StatefulSet default/db replicas=1 ready=1 available=1 current=1 updated=1 done
    "#]],
    );
    check(
        set(3, |_| ()),
        "0:ready 1:failed",
        expect![[r#"
        event Warning RecreatingFailedPod: StatefulSet default/db is recreating failed Pod db-1
        delete Pod default/db-1
        status StatefulSet default/db replicas=2 ready=1 available=1 current=2 updated=2 done
    "#]],
    );
    check(
        set(3, |_| ()),
        "0:ready 1:deleting",
        expect![[r#"
        status StatefulSet default/db replicas=2 ready=1 available=1 current=1 updated=1 done
    "#]],
    );
    check(
        set(3, parallel),
        "1",
        expect![[r#"
        create Pod default/db-0 db:2
        create Pod default/db-2 db:2
        status StatefulSet default/db replicas=1 ready=0 available=0 current=1 updated=1 done
    "#]],
    );
    let from_five = set(2, |spec| spec.ordinals = Some(StatefulSetOrdinals { start: Some(5) }));
    check(
        from_five,
        "5:ready 0:ready",
        expect![[r#"
        create Pod default/db-6 db:2
        status StatefulSet default/db replicas=2 ready=2 available=2 current=2 updated=2 done
    "#]],
    );
}

#[test]
fn as_many_replicas_as_there_can_be_cost_no_more_than_a_few() {
    let from_the_last =
        |spec: &mut StatefulSetSpec| spec.ordinals = Some(StatefulSetOrdinals { start: Some(i32::MAX) });
    check(
        set(i32::MAX, from_the_last),
        "0:ready",
        expect![[r#"
        delete Pod default/db-0
        status StatefulSet default/db replicas=1 ready=1 available=1 current=1 updated=1 done
    "#]],
    );
    check(
        set(i32::MAX, |_| ()),
        "0:ready 2147483646:ready",
        expect![[r#"
        create Pod default/db-1 db:2
        status StatefulSet default/db replicas=2 ready=2 available=2 current=2 updated=2 done
    "#]],
    );
    let created = plan(&view(set(i32::MAX, parallel), "7:ready"), at(NOW).0).actions;
    assert_eq!(created.iter().filter(|action| action.object::<Pod>().is_some()).count(), BURST);
}

#[test]
fn pods_go_from_the_last() {
    check(
        set(1, |_| ()),
        "0:ready 1:ready 2:ready",
        expect![[r#"
        delete Pod default/db-2
        status StatefulSet default/db replicas=3 ready=3 available=3 current=3 updated=3 done
    "#]],
    );
    check(
        set(1, |_| ()),
        "0:ready 1:ready 2:deleting",
        expect![[r#"
        status StatefulSet default/db replicas=3 ready=2 available=2 current=2 updated=2 done
    "#]],
    );
    check(
        set(1, |_| ()),
        "0:ready 1 2:ready",
        expect![[r#"
        delete Pod default/db-2
        status StatefulSet default/db replicas=3 ready=2 available=2 current=3 updated=3 done
    "#]],
    );
    check(
        set(1, |_| ()),
        "0 1:ready",
        expect![[r#"
        status StatefulSet default/db replicas=2 ready=1 available=1 current=2 updated=2 done
    "#]],
    );
    check(
        set(1, parallel),
        "0:ready 1:ready 2:ready",
        expect![[r#"
        delete Pod default/db-2
        delete Pod default/db-1
        status StatefulSet default/db replicas=3 ready=3 available=3 current=3 updated=3 done
    "#]],
    );
}

#[test]
fn an_update_goes_from_the_last_to_the_partition() {
    check(
        set(3, rolling(0, 1)),
        "0:old:ready 1:old:ready 2:old:ready",
        expect![[r#"
        delete Pod default/db-2
        status StatefulSet default/db replicas=3 ready=3 available=3 current=3 updated=0 updating
    "#]],
    );
    check(
        set(3, rolling(0, 1)),
        "0:old:ready 1:old:ready 2",
        expect![[r#"
        status StatefulSet default/db replicas=3 ready=2 available=2 current=2 updated=1 updating
    "#]],
    );
    check(
        set(3, rolling(0, 1)),
        "0:old:ready 1:old:ready 2:ready",
        expect![[r#"
        delete Pod default/db-1
        status StatefulSet default/db replicas=3 ready=3 available=3 current=2 updated=1 updating
    "#]],
    );
    check(
        set(3, rolling(0, 1)),
        "0:ready 1:ready 2:ready",
        expect![[r#"
        status StatefulSet default/db replicas=3 ready=3 available=3 current=3 updated=3 done
    "#]],
    );
    check(
        set(3, rolling(2, 1)),
        "0:old:ready 1:old:ready 2:ready",
        expect![[r#"
        status StatefulSet default/db replicas=3 ready=3 available=3 current=2 updated=1 updating
    "#]],
    );
    check(
        set(3, rolling(2, 1)),
        "0:old:ready 2:ready",
        expect![[r#"
        create Pod default/db-1 db:1
        status StatefulSet default/db replicas=2 ready=2 available=2 current=1 updated=1 updating
    "#]],
    );
    check(
        set(3, rolling(0, 2)),
        "0:old:ready 1:old:ready 2:old:ready",
        expect![[r#"
        delete Pod default/db-2
        delete Pod default/db-1
        status StatefulSet default/db replicas=3 ready=3 available=3 current=3 updated=0 updating
    "#]],
    );
    let on_delete = set(1, |spec| {
        spec.update_strategy = Some(StatefulSetUpdateStrategy { type_: Some("OnDelete".into()), rolling_update: None });
    });
    check(
        on_delete,
        "0:old:ready",
        expect![[r#"
        status StatefulSet default/db replicas=1 ready=1 available=1 current=1 updated=0 updating
    "#]],
    );
}

#[test]
fn available_is_ready_for_long_enough() {
    check(
        set(2, |spec| spec.min_ready_seconds = Some(130)),
        "0:ready",
        expect![[r#"
        status StatefulSet default/db replicas=1 ready=1 available=0 current=1 updated=1 done
        again in 30s
    "#]],
    );
}

fn claim(ordinal: i32) -> PersistentVolumeClaim {
    let metadata = ObjectMeta {
        name: Some(format!("data-db-{ordinal}")),
        namespace: Some("default".into()),
        uid: Some(format!("claim-{ordinal}")),
        ..ObjectMeta::default()
    };
    PersistentVolumeClaim { metadata, ..PersistentVolumeClaim::default() }
}

fn with_claims(replicas: i32, policy: Option<(&str, &str)>) -> StatefulSet {
    set(replicas, |spec| {
        let metadata = ObjectMeta { name: Some("data".into()), ..ObjectMeta::default() };
        spec.volume_claim_templates =
            Some(vec![PersistentVolumeClaim { metadata, ..PersistentVolumeClaim::default() }]);
        spec.persistent_volume_claim_retention_policy =
            policy.map(|(deleted, scaled)| StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(deleted.into()),
                when_scaled: Some(scaled.into()),
            });
    })
}

#[test]
fn claims_come_before_their_pods_and_go_as_the_policy_says() {
    check(
        with_claims(1, None),
        "",
        expect![[r#"
        create PersistentVolumeClaim default/data-db-0
        create Pod default/db-0 db:2
        status StatefulSet default/db replicas=0 ready=0 available=0 current=0 updated=0 done
    "#]],
    );
    let there = |replicas, policy: Option<(&str, &str)>, pods: &str, expect: Expect| {
        let mut view = view(with_claims(replicas, policy), pods);
        view.claims = vec![Arc::new(claim(0)), Arc::new(claim(1))];
        expect.assert_eq(&describe(&plan(&view, at(NOW).0), detail));
    };
    there(
        2,
        None,
        "0:ready",
        expect![[r#"
        create Pod default/db-1 db:2
        status StatefulSet default/db replicas=1 ready=1 available=1 current=1 updated=1 done
    "#]],
    );
    there(
        1,
        Some(("Delete", "Delete")),
        "0:ready 1:ready",
        expect![[r#"
        patch PersistentVolumeClaim default/data-db-0 {"metadata":{"uid":"claim-0","resourceVersion":null,"ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"StatefulSet","name":"db","uid":"set"}]}}
        patch PersistentVolumeClaim default/data-db-1 {"metadata":{"uid":"claim-1","resourceVersion":null,"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"db-1","uid":"db-1"}]}}
        delete Pod default/db-1
        status StatefulSet default/db replicas=2 ready=2 available=2 current=2 updated=2 done
    "#]],
    );
    // The pod that took its claim along is gone: the collector has the word now.
    there(
        1,
        Some(("Delete", "Delete")),
        "0:ready",
        expect![[r#"
        patch PersistentVolumeClaim default/data-db-0 {"metadata":{"uid":"claim-0","resourceVersion":null,"ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"StatefulSet","name":"db","uid":"set"}]}}
        status StatefulSet default/db replicas=1 ready=1 available=1 current=1 updated=1 done
    "#]],
    );
}

#[test]
fn a_pod_keeps_its_name_and_its_volume() {
    let view = view(with_claims(1, None), "");
    let plan = plan(&view, at(NOW).0);
    let pod = plan.actions.iter().find_map(|action| action.object::<Pod>()).unwrap();
    expect![[r#"{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"db-","labels":{"app":"db","apps.kubernetes.io/pod-index":"0","controller-revision-hash":"db-5b4bfcc86f","statefulset.kubernetes.io/pod-name":"db-0"},"name":"db-0","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"StatefulSet","name":"db","uid":"set"}]},"spec":{"containers":[{"image":"db:2","name":"db"}],"hostname":"db-0","subdomain":"dbs","volumes":[{"name":"data","persistentVolumeClaim":{"claimName":"data-db-0","readOnly":false}}]}}"#]].assert_eq(&serde_json::to_string(&pod).unwrap());
}
