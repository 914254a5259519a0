use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        batch::v1::{
            PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
            SuccessPolicyRule,
        },
        core::v1::{
            Container, ContainerState, ContainerStateTerminated, ContainerStatus, PodCondition, PodSpec, PodStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time},
};

use super::*;
use crate::action::testing::describe;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn job(change: impl FnOnce(&mut JobSpec)) -> Job {
    let labels = [("job".to_owned(), "sum".to_owned())];
    let mut spec = JobSpec {
        parallelism: Some(1),
        completions: Some(1),
        selector: Some(LabelSelector { match_labels: Some(labels.into()), ..LabelSelector::default() }),
        ..JobSpec::default()
    };
    let container = Container { name: "main".into(), ..Container::default() };
    spec.template.spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
    change(&mut spec);
    let metadata = ObjectMeta {
        name: Some("sum".into()),
        namespace: Some("default".into()),
        uid: Some("job".into()),
        ..ObjectMeta::default()
    };
    Job { metadata, spec: Some(spec), status: None }
}

fn indexed(completions: i32, parallelism: i32) -> Job {
    job(|spec| {
        spec.completion_mode = Some("Indexed".into());
        spec.completions = Some(completions);
        spec.parallelism = Some(parallelism);
    })
}

/// `name:word…`: running, ready, failed, succeeded, deleting, free (of the finalizer), orphan, iN (index), xN (exit
/// code), fN (failures of its index before), aN (seconds since it ended), rN (restarts), disrupted.
fn pod(text: &str) -> Arc<Pod> {
    let mut words = text.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let has = |word| words.contains(&word);
    let number = |prefix: &str| words.iter().find_map(|word| word.strip_prefix(prefix)?.parse::<i32>().ok());
    let phase = match () {
        () if has("failed") => "Failed",
        () if has("succeeded") => "Succeeded",
        () if has("running") || has("ready") => "Running",
        () => "Pending",
    };
    let ended = at(NOW - i64::from(number("a").unwrap_or(1_000)));
    let terminated = matches!(phase, "Failed" | "Succeeded").then(|| ContainerStateTerminated {
        exit_code: number("x").unwrap_or(0),
        finished_at: Some(ended.clone()),
        ..ContainerStateTerminated::default()
    });
    let container = ContainerStatus {
        name: "main".into(),
        restart_count: number("r").unwrap_or(0),
        state: Some(ContainerState { terminated, ..ContainerState::default() }),
        ..ContainerStatus::default()
    };
    let condition = |kind: &str, on: bool| PodCondition {
        type_: kind.into(),
        status: if on { "True" } else { "False" }.into(),
        ..PodCondition::default()
    };
    let mut annotations = std::collections::BTreeMap::new();
    annotations.extend(number("i").map(|index| (indexes::INDEX.to_owned(), index.to_string())));
    annotations.extend(number("f").map(|failures| (indexes::FAILURES.to_owned(), failures.to_string())));
    let mut owner = object::controller_reference(&job(|_| ()));
    if has("left") {
        owner.uid = "before".into();
    }
    Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            labels: Some([("job".to_owned(), "sum".to_owned())].into()),
            annotations: Some(annotations),
            creation_timestamp: Some(at(NOW - 2_000)),
            deletion_timestamp: has("deleting").then(|| at(NOW - 1_000)),
            finalizers: (!has("free")).then(|| vec![FINALIZER.to_owned()]),
            owner_references: (!has("orphan")).then(|| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(PodStatus {
            phase: Some(phase.into()),
            conditions: Some(vec![condition("Ready", has("ready")), condition("DisruptionTarget", has("disrupted"))]),
            container_statuses: Some(vec![container]),
            ..PodStatus::default()
        }),
    })
}

fn view(job: Job, pods: &str) -> View {
    let pods = pods.split_whitespace().map(pod);
    let (leftovers, pods): (Vec<_>, Vec<_>) =
        pods.partition(|pod| object::controller_of(&pod.metadata).is_some_and(|owner| owner.uid == "before"));
    let (owned, orphans) = pods.into_iter().partition(|pod| object::controller_of(&pod.metadata).is_some());
    View { job: Arc::new(job), owned, orphans, leftovers }
}

fn show_status(status: &JobStatus) -> String {
    let number = |name: &str, value: Option<i32>| value.map(|value| format!("{name}={value} ")).unwrap_or_default();
    let text =
        |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={value} ")).unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let uids = |name: &str, uids: Option<Vec<String>>| uids.map(|uids| format!("{name}={uids:?} ")).unwrap_or_default();
    let conditions = status
        .conditions
        .iter()
        .flatten()
        .map(|one| format!("{}={}/{} ", one.type_, one.status, one.reason.clone().unwrap()));
    [
        number("active", status.active),
        number("ready", status.ready.filter(|ready| *ready > 0)),
        number("terminating", status.terminating.filter(|number| *number > 0)),
        number("succeeded", status.succeeded),
        number("failed", status.failed),
        text("done", &status.completed_indexes),
        text("lost", &status.failed_indexes),
        uids("+succeeded", uncounted.succeeded),
        uids("+failed", uncounted.failed),
        conditions.collect(),
    ]
    .concat()
    .trim_end()
    .to_owned()
}

fn detail(action: &Action) -> String {
    if let Some(pod) = action.object::<Pod>() {
        let failures = object::annotation(&pod.metadata, indexes::FAILURES).map(|it| format!(" failures={it}"));
        return pod.metadata.generate_name.clone().unwrap() + &failures.unwrap_or_default();
    }
    action.object::<Job>().and_then(|job| job.status.as_ref()).map(show_status).unwrap_or_default()
}

fn check(job: Job, pods: &str, expect: Expect) {
    expect.assert_eq(&describe(&plan(&view(job, pods), at(NOW).0), detail));
}

fn with_status(mut job: Job, change: impl FnOnce(&mut JobStatus)) -> Job {
    change(job.status.get_or_insert_default());
    job
}

#[test]
fn as_many_run_at_a_time_as_may_and_no_more_than_are_needed() {
    let parallel = |completions, parallelism| {
        job(|spec| {
            spec.completions = completions;
            spec.parallelism = Some(parallelism);
        })
    };
    check(
        parallel(Some(5), 2),
        "a:running",
        expect![[r#"
        create Pod default/ sum-
        status Job default/sum active=1
    "#]],
    );
    check(
        parallel(Some(2), 3),
        "a:succeeded b:running c:running",
        expect![[r#"
        delete Pod default/b
        status Job default/sum active=1 terminating=1 +succeeded=["a"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        parallel(None, 2),
        "",
        expect![[r#"
        create Pod default/ sum-
        create Pod default/ sum-
        status Job default/sum
    "#]],
    );
    check(
        parallel(None, 2),
        "a:succeeded b:running",
        expect![[r#"
        status Job default/sum active=1 +succeeded=["a"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
}

#[test]
fn a_pod_that_ended_is_counted_in_three_steps() {
    check(
        job(|_| ()),
        "a:succeeded",
        expect![[r#"
        status Job default/sum +succeeded=["a"] SuccessCriteriaMet=True/CompletionsReached
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    let waiting = |status: &mut JobStatus| {
        status.start_time = Some(at(NOW));
        status.uncounted_terminated_pods.get_or_insert_default().succeeded = Some(vec!["a".into()]);
        status.conditions = Some(vec![verdict::completed(at(NOW).0)]);
    };
    check(
        with_status(job(|_| ()), waiting),
        "a:succeeded",
        expect![[r#"
        status Job default/sum +succeeded=["a"] SuccessCriteriaMet=True/CompletionsReached
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        with_status(job(|_| ()), waiting),
        "a:succeeded:free",
        expect![[r#"
        status Job default/sum succeeded=1 SuccessCriteriaMet=True/CompletionsReached Complete=True/CompletionsReached
        event Normal Completed: Job completed
    "#]],
    );
    check(
        with_status(job(|_| ()), waiting),
        "",
        expect![[r#"
        status Job default/sum succeeded=1 SuccessCriteriaMet=True/CompletionsReached Complete=True/CompletionsReached
        event Normal Completed: Job completed
    "#]],
    );
}

#[test]
fn failures_are_retried_ever_later_until_there_are_too_many() {
    check(
        job(|_| ()),
        "a:failed:a4",
        expect![[r#"
        status Job default/sum +failed=["a"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
        again in 6s
    "#]],
    );
    check(
        job(|_| ()),
        "a:failed:a15",
        expect![[r#"
        create Pod default/ sum-
        status Job default/sum +failed=["a"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        job(|_| ()),
        "a:failed:a100 b:failed:a15",
        expect![[r#"
        status Job default/sum +failed=["a", "b"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":null,"finalizers":[]}}
        again in 5s
    "#]],
    );
    check(
        job(|spec| spec.backoff_limit = Some(1)),
        "a:failed b:failed c:ready",
        expect![[r#"
        delete Pod default/c
        status Job default/sum terminating=1 +failed=["a", "b"] FailureTarget=True/BackoffLimitExceeded
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    let restarts = job(|spec| {
        spec.backoff_limit = Some(3);
        spec.template.spec.as_mut().unwrap().restart_policy = Some("OnFailure".into());
    });
    check(
        restarts,
        "a:running:r3",
        expect![[r#"
        delete Pod default/a
        status Job default/sum terminating=1 FailureTarget=True/BackoffLimitExceeded
    "#]],
    );
}

#[test]
fn a_failed_job_ends_when_its_pods_have() {
    let failed = |status: &mut JobStatus| {
        status.start_time = Some(at(NOW));
        let condition = verdict::condition("FailureTarget", "True", "DeadlineExceeded", "late", at(NOW).0);
        status.conditions = Some(vec![condition]);
    };
    check(
        with_status(job(|_| ()), failed),
        "a:running",
        expect![[r#"
        delete Pod default/a
        status Job default/sum terminating=1 FailureTarget=True/DeadlineExceeded
    "#]],
    );
    check(
        with_status(job(|_| ()), failed),
        "a:running:deleting",
        expect![[r#"
        status Job default/sum terminating=1 +failed=["a"] FailureTarget=True/DeadlineExceeded
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        with_status(job(|_| ()), failed),
        "a:running:deleting:free",
        expect![[r#"
        status Job default/sum terminating=1 FailureTarget=True/DeadlineExceeded
    "#]],
    );
    check(
        with_status(job(|_| ()), failed),
        "",
        expect![[r#"
        status Job default/sum FailureTarget=True/DeadlineExceeded Failed=True/DeadlineExceeded
        event Warning DeadlineExceeded: late
    "#]],
    );
}

#[test]
fn a_deadline_ends_what_still_runs() {
    let deadline = |started| {
        with_status(job(|spec| spec.active_deadline_seconds = Some(60)), |status| status.start_time = Some(at(started)))
    };
    check(
        deadline(NOW - 10),
        "a:ready",
        expect![[r#"
        status Job default/sum active=1 ready=1
        again in 50s
    "#]],
    );
    check(
        deadline(NOW - 60),
        "a:ready",
        expect![[r#"
        delete Pod default/a
        status Job default/sum terminating=1 FailureTarget=True/DeadlineExceeded
    "#]],
    );
}

#[test]
fn indexes_are_each_done_once() {
    check(
        indexed(4, 2),
        "a:succeeded:i0 b:failed:i1:a100 c:running:i3",
        expect![[r#"
        create Pod default/ sum-1-
        status Job default/sum active=1 succeeded=1 done=0 +failed=["b"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        indexed(2, 3),
        "a:running:i0 b:running:i0 c:running:i7",
        expect![[r#"
        delete Pod default/c
        delete Pod default/a
        status Job default/sum active=1 terminating=2
    "#]],
    );
    let half = with_status(indexed(3, 3), |status| {
        status.completed_indexes = Some("0,1".into());
        status.start_time = Some(at(NOW));
    });
    check(
        half,
        "c:succeeded:i2",
        expect![[r#"
        status Job default/sum succeeded=3 done=0-2 SuccessCriteriaMet=True/CompletionsReached
        patch Pod default/c {"metadata":{"uid":"c","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
}

#[test]
fn each_index_may_have_a_limit_of_its_own() {
    let limited = || {
        let mut job = indexed(3, 3);
        job.spec.as_mut().unwrap().backoff_limit_per_index = Some(1);
        job
    };
    check(
        limited(),
        "a:failed:i0:a100 b:failed:i1:f1:a100 c:running:i2",
        expect![[r#"
        create Pod default/ sum-0- failures=1
        status Job default/sum active=1 lost=1 +failed=["b"]
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        limited(),
        "a:failed:i0:a3 c:running:i2 d:running:i1",
        expect![[r#"
        status Job default/sum active=2 lost=
        again in 7s
    "#]],
    );
    check(
        limited(),
        "a:failed:i0:a100 b:running:i0:f1 c:running:i1 d:running:i2",
        expect![[r#"
        status Job default/sum active=3 lost= +failed=["a"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    let last = with_status(limited(), |status| {
        status.completed_indexes = Some("0,1".into());
        status.failed_indexes = Some("2".into());
        status.start_time = Some(at(NOW));
    });
    check(
        last,
        "",
        expect![[r#"
        status Job default/sum succeeded=2 done=0,1 lost=2 FailureTarget=True/FailedIndexes Failed=True/FailedIndexes
        event Warning FailedIndexes: Job has failed indexes
    "#]],
    );
}

#[test]
fn a_policy_says_what_a_failure_means() {
    let rule = |action: &str, code| PodFailurePolicyRule {
        action: action.into(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            operator: "In".into(),
            values: vec![code],
            ..PodFailurePolicyOnExitCodesRequirement::default()
        }),
        on_pod_conditions: None,
    };
    let with_policy = || {
        job(|spec| {
            spec.backoff_limit = Some(0);
            let rules = vec![rule("FailJob", 42), rule("Ignore", 7)];
            spec.pod_failure_policy = Some(PodFailurePolicy { rules });
        })
    };
    check(
        with_policy(),
        "a:failed:x42 b:running",
        expect![[r#"
        delete Pod default/b
        status Job default/sum terminating=1 +failed=["a"] FailureTarget=True/PodFailurePolicy
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        with_policy(),
        "a:failed:x7:a100",
        expect![[r#"
        create Pod default/ sum-
        status Job default/sum
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        with_policy(),
        "a:failed:x1",
        expect![[r#"
        status Job default/sum +failed=["a"] FailureTarget=True/BackoffLimitExceeded
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
}

#[test]
fn a_success_policy_ends_it_early() {
    let mut job = indexed(5, 5);
    let rule = SuccessPolicyRule { succeeded_indexes: Some("1-3".into()), succeeded_count: Some(1) };
    job.spec.as_mut().unwrap().success_policy = Some(SuccessPolicy { rules: vec![rule] });
    check(
        job,
        "a:running:i0 b:succeeded:i2",
        expect![[r#"
        delete Pod default/a
        status Job default/sum terminating=1 succeeded=1 done=2 SuccessCriteriaMet=True/SuccessPolicy
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
}

#[test]
fn as_many_indexes_as_there_can_be_cost_no_more_than_a_few() {
    let (completions, all) = (i32::MAX, Some("0-2147483647".to_owned()));
    let mut huge = indexed(completions, 2);
    let rule = SuccessPolicyRule { succeeded_indexes: all.clone(), succeeded_count: None };
    huge.spec.as_mut().unwrap().success_policy = Some(SuccessPolicy { rules: vec![rule] });
    check(
        with_status(huge, |status| status.completed_indexes = Some("0-1999999999".into())),
        "a:running:i2000000000",
        expect![[r#"
        create Pod default/ sum-2000000001-
        status Job default/sum active=1 succeeded=2000000000 done=0-1999999999
    "#]],
    );
    let mut limited = indexed(completions, 2);
    limited.spec.as_mut().unwrap().backoff_limit_per_index = Some(1);
    check(
        with_status(limited, |status| status.failed_indexes = all),
        "a:succeeded:i0",
        expect![[r#"
        status Job default/sum succeeded=1 done=0 lost=0-2147483646 FailureTarget=True/FailedIndexes
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
}

#[test]
fn a_suspended_job_has_no_pods() {
    let suspended = || job(|spec| spec.suspend = Some(true));
    check(
        suspended(),
        "a:ready",
        expect![[r#"
        delete Pod default/a
        status Job default/sum terminating=1 Suspended=True/JobSuspended
        event Normal Suspended: Job suspended
    "#]],
    );
    let resumed = with_status(job(|_| ()), |status| {
        status.conditions = Some(vec![verdict::condition(SUSPENDED, "True", "JobSuspended", "Job suspended", at(1).0)]);
    });
    check(
        resumed,
        "",
        expect![[r#"
        create Pod default/ sum-
        status Job default/sum Suspended=False/JobResumed
        event Normal Resumed: Job resumed
    "#]],
    );
}

#[test]
fn pods_are_replaced_when_they_go_or_when_they_are_gone() {
    check(
        job(|_| ()),
        "a:running:deleting",
        expect![[r#"
        create Pod default/ sum-
        status Job default/sum terminating=1 +failed=["a"]
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    check(
        job(|spec| spec.pod_replacement_policy = Some("Failed".into())),
        "a:running:deleting",
        expect![[r#"
        status Job default/sum terminating=1
    "#]],
    );
}

#[test]
fn what_an_earlier_job_left_is_let_go() {
    check(
        job(|_| ()),
        "a:succeeded:left b:running:orphan",
        expect![[r#"
        patch Pod default/b {"metadata":{"uid":"b","resourceVersion":null,"ownerReferences":[{"apiVersion":"batch/v1","blockOwnerDeletion":true,"controller":true,"kind":"Job","name":"sum","uid":"job"}]}}
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
    let ended = with_status(job(|_| ()), |status| {
        status.conditions = Some(vec![verdict::condition("Complete", "True", "CompletionsReached", "", at(NOW).0)]);
    });
    check(
        ended,
        "a:succeeded b:succeeded:free",
        expect![[r#"
        patch Pod default/a {"metadata":{"uid":"a","resourceVersion":null,"finalizers":[]}}
    "#]],
    );
}

#[test]
fn a_pod_knows_its_index() {
    let job = indexed(3, 3);
    let round = Round { job: &job, spec: job.spec.as_ref().unwrap(), pods: Vec::new(), now: at(NOW).0 };
    let pod = pods::pod(&round, Some(2), None);
    let spec = pod.spec.unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("sum-2"));
    expect![[r#"[{"annotations":{"batch.kubernetes.io/job-completion-index":"2"},"finalizers":["batch.kubernetes.io/job-tracking"],"generateName":"sum-2-","labels":{"batch.kubernetes.io/job-completion-index":"2"},"namespace":"default","ownerReferences":[{"apiVersion":"batch/v1","blockOwnerDeletion":true,"controller":true,"kind":"Job","name":"sum","uid":"job"}]},[{"name":"JOB_COMPLETION_INDEX","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['batch.kubernetes.io/job-completion-index']"}}}]]"#]].assert_eq(&serde_json::to_string(&(&pod.metadata, &spec.containers[0].env)).unwrap());
}
