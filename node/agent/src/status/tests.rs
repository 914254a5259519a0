use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::{Lifecycle, LifecycleHandler, Probe};

use super::*;
use crate::{
    observed::{Busy, ProbeState, Trouble},
    testing::*,
};

fn state(state: &ContainerState) -> String {
    if let Some(waiting) = &state.waiting {
        let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        return format!("waiting {}{message}", waiting.reason.as_deref().unwrap_or_default());
    }
    if let Some(ended) = &state.terminated {
        let message = ended.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        return format!("terminated {} {}{message}", ended.exit_code, ended.reason.as_deref().unwrap_or_default());
    }
    if state.running.is_some() { "running".to_owned() } else { "-".to_owned() }
}

fn text(status: &PodStatus) -> String {
    let mut lines = vec![format!(
        "{} {} ip {} {}",
        status.phase.as_deref().unwrap_or_default(),
        status.reason.as_deref().unwrap_or("-"),
        status.pod_ip.as_deref().unwrap_or("-"),
        status.qos_class.as_deref().unwrap_or_default(),
    )];
    for condition in status.conditions.iter().flatten().filter(|condition| condition.type_ != "PodScheduled") {
        let since = condition.last_transition_time.as_ref().unwrap().0.duration_since(at(0)).as_secs();
        let reason = condition.reason.as_deref().unwrap_or_default();
        let message = condition.message.as_deref().unwrap_or_default();
        lines.push(
            format!("{} {} since {since} {reason} {message}", condition.type_, condition.status).trim_end().to_owned(),
        );
    }
    for list in [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses] {
        for container in list.iter().flatten() {
            let last = container.last_state.as_ref().map(state).unwrap_or_default();
            let flags = (container.ready, container.started.unwrap_or(false));
            lines.push(format!(
                "{} {} restarts {} (ready, started) {flags:?} last {last} id {}",
                container.name,
                state(container.state.as_ref().unwrap()),
                container.restart_count,
                container.container_id.as_deref().unwrap_or("-"),
            ));
        }
    }
    lines.join("\n")
}

fn check(pod: &Pod, seen: &Observed, probes: &Probes, now: i64, wanted: Expect) {
    wanted.assert_eq(&text(&pod_status(pod, seen, probes, at(now))));
}

fn with(pod: &Pod, containers: Vec<Container>) -> Observed {
    Observed { sandboxes: vec![sandbox(Kind::Container, 0, true, containers)], ..prepared(pod) }
}

#[test]
fn a_new_pod_is_pending() {
    let pod = pod(&["a"]);
    check(
        &pod,
        &prepared(&pod),
        &Probes::default(),
        1,
        expect![[r#"
        Pending - ip - BestEffort
        PodReadyToStartContainers False since 1
        Initialized True since 1
        Ready False since 1 ContainersNotReady containers with unready status: [a]
        ContainersReady False since 1 ContainersNotReady containers with unready status: [a]
        a waiting ContainerCreating restarts 0 (ready, started) (false, false) last - id -"#]],
    );
}

#[test]
fn a_running_pod_without_probes_is_ready_and_keeps_its_times() {
    let pod = served(pod(&["a"]));
    check(
        &pod,
        &with(&pod, vec![running("a", 0, 1)]),
        &Probes::default(),
        9,
        expect![[r#"
        Running - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers True since 9
        Initialized True since 9
        Ready True since 0
        ContainersReady True since 9
        a running restarts 0 (ready, started) (true, true) last - id containerd://a-0"#]],
    );
}

#[test]
fn a_container_is_not_running_before_its_post_start_has_ended() {
    let pod = served(with_spec(pod(&["a"]), |spec| {
        let lifecycle = Lifecycle { post_start: Some(LifecycleHandler::default()), ..Lifecycle::default() };
        spec.containers[0].lifecycle = Some(lifecycle);
    }));
    let mut seen = with(&pod, vec![running("a", 0, 1)]);
    seen.busy.insert(Subject::Container("a".to_owned()), Busy::Preparing);
    check(
        &pod,
        &seen,
        &Probes::default(),
        9,
        expect![[r#"
            Pending - ip 10.128.0.7 BestEffort
            PodReadyToStartContainers True since 9
            Initialized True since 9
            Ready False since 9 ContainersNotReady containers with unready status: [a]
            ContainersReady False since 9 ContainersNotReady containers with unready status: [a]
            a waiting ContainerCreating restarts 0 (ready, started) (false, false) last - id containerd://a-0"#]],
    );
    seen.busy.clear();
    let status = pod_status(&pod, &seen, &Probes::default(), at(9));
    assert!(status.container_statuses.unwrap()[0].ready);
}

#[test]
fn probes_decide_about_started_and_ready() {
    let pod = with_spec(pod(&["a"]), |spec| {
        spec.containers[0].startup_probe = Some(Probe::default());
        spec.containers[0].readiness_probe = Some(Probe::default());
    });
    let seen = with(&pod, vec![running("a", 0, 1)]);
    let flags = |state: ProbeState| {
        let probes = Probes([(seen.latest("a").unwrap().id.clone(), state)].into());
        let status = pod_status(&pod, &seen, &probes, at(5));
        let container = &status.container_statuses.unwrap()[0];
        (container.started.unwrap(), container.ready)
    };
    assert_eq!(flags(ProbeState::default()), (false, false));
    let started = ProbeState { startup: Some(Verdict::Success), ..ProbeState::default() };
    assert_eq!(flags(started.clone()), (true, false));
    assert_eq!(flags(ProbeState { readiness: Some(Verdict::Success), ..started }), (true, true));
}

#[test]
fn a_crash_loop_shows_the_back_off_and_the_last_end() {
    let pod = pod(&["a"]);
    let mut seen = with(&pod, vec![exited("a", 0, 0, 1, 1), carrying(exited("a", 3, 1, 6, 2), 80)]);
    seen.messages.insert(seen.latest("a").unwrap().id.clone(), "out of luck".to_owned());
    check(
        &pod,
        &seen,
        &Probes::default(),
        10,
        expect![[r#"
        Running - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers True since 10
        Initialized True since 10
        Ready False since 10 ContainersNotReady containers with unready status: [a]
        ContainersReady False since 10 ContainersNotReady containers with unready status: [a]
        a waiting CrashLoopBackOff: back-off 1m20s restarting failed container=a pod=web_default(uid-1) restarts 3 (ready, started) (false, false) last terminated 2 Error: out of luck id containerd://a-3"#]],
    );
    check(
        &pod,
        &seen,
        &Probes::default(),
        86,
        expect![[r#"
        Running - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers True since 86
        Initialized True since 86
        Ready False since 86 ContainersNotReady containers with unready status: [a]
        ContainersReady False since 86 ContainersNotReady containers with unready status: [a]
        a terminated 2 Error: out of luck restarts 3 (ready, started) (false, false) last terminated 1 Error id containerd://a-3"#]],
    );
}

#[test]
fn a_failed_pull_is_an_error_then_a_back_off() {
    let pod = pod(&["a"]);
    let mut seen = with(&pod, Vec::new());
    let trouble = Trouble { reason: "ErrImagePull", message: "not found".to_owned(), at: at(5), count: 1 };
    seen.troubles.insert(Subject::Container("a".to_owned()), trouble);
    let shown = |now| {
        let status = pod_status(&pod, &seen, &Probes::default(), at(now));
        state(status.container_statuses.unwrap()[0].state.as_ref().unwrap())
    };
    expect!["waiting ErrImagePull: not found"].assert_eq(&shown(6));
    expect![[r#"waiting ImagePullBackOff: Back-off pulling image "image/a:1": ErrImagePull: not found"#]]
        .assert_eq(&shown(7));
}

#[test]
fn what_holds_up_the_sandbox_is_told() {
    let pod = pod(&["a"]);
    let mut seen = prepared(&pod);
    let message = "MountVolume.SetUp failed for volume \"v\" : configmap \"c\" not found".to_owned();
    seen.troubles.insert(Subject::Volumes, Trouble { reason: "FailedMount", message, at: at(0), count: 1 });
    let status = pod_status(&pod, &seen, &Probes::default(), at(1));
    expect![[r#"waiting ContainerCreating: MountVolume.SetUp failed for volume "v" : configmap "c" not found"#]]
        .assert_eq(&state(status.container_statuses.unwrap()[0].state.as_ref().unwrap()));
}

#[test]
fn init_containers_hold_back_the_others() {
    let pod = with_spec(pod(&["main"]), |pod| pod.init_containers = Some(vec![spec("one"), spec("two")]));
    check(
        &pod,
        &with(&pod, vec![exited("one", 0, 0, 1, 0), running("two", 0, 1)]),
        &Probes::default(),
        2,
        expect![[r#"
        Pending - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers True since 2
        Initialized False since 2 ContainersNotInitialized containers with incomplete status: [two]
        Ready False since 2 ContainersNotReady containers with unready status: [main]
        ContainersReady False since 2 ContainersNotReady containers with unready status: [main]
        one terminated 0 Completed restarts 0 (ready, started) (true, false) last - id containerd://one-0
        two running restarts 0 (ready, started) (false, true) last - id containerd://two-0
        main waiting PodInitializing restarts 0 (ready, started) (false, false) last - id -"#]],
    );
}

#[test]
fn ended_pods_say_how() {
    let never = |names: &[&str]| with_spec(pod(names), |spec| spec.restart_policy = Some("Never".to_owned()));
    let pod = never(&["a", "b"]);
    let ended = |code| with(&pod, vec![exited("a", 0, 0, 1, 0), exited("b", 0, 0, 2, code)]);
    check(
        &pod,
        &ended(0),
        &Probes::default(),
        3,
        expect![[r#"
        Succeeded - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers True since 3
        Initialized True since 3
        Ready False since 3 PodCompleted
        ContainersReady False since 3 PodCompleted
        a terminated 0 Completed restarts 0 (ready, started) (false, false) last - id containerd://a-0
        b terminated 0 Completed restarts 0 (ready, started) (false, false) last - id containerd://b-0"#]],
    );
    let failed = pod_status(&pod, &ended(3), &Probes::default(), at(3));
    assert_eq!(failed.phase.as_deref(), Some("Failed"));
    let late = with_spec(super::tests::pod_with_deadline(), |_| {});
    let seen = |container: Container| {
        let status = pod_status(&late, &with(&late, vec![container]), &Probes::default(), at(60));
        (status.phase.unwrap_or_default(), status.reason.unwrap_or_default())
    };
    assert_eq!(seen(exited("a", 0, 1, 60, 137)), ("Failed".to_owned(), "DeadlineExceeded".to_owned()));
    assert_eq!(seen(running("a", 0, 1)).1, "", "not before nothing of it runs any more");
    assert_ne!(seen(running("a", 0, 1)).0, "Failed");
    let ending = pod_status(&late, &with(&late, vec![running("a", 0, 1)]), &Probes::default(), at(60));
    let ready = ending.conditions.unwrap().into_iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("PodFailed")));
}

fn pod_with_deadline() -> Pod {
    with_spec(pod(&["a"]), |spec| spec.active_deadline_seconds = Some(60))
}

#[test]
fn out_of_memory_keeps_its_name() {
    let pod = with_spec(pod(&["a"]), |spec| spec.restart_policy = Some("Never".to_owned()));
    let mut container = exited("a", 0, 0, 1, 137);
    if let State::Exited { reason, .. } = &mut container.state {
        *reason = "OOMKilled".to_owned();
    }
    let status = pod_status(&pod, &with(&pod, vec![container]), &Probes::default(), at(2));
    expect!["terminated 137 OOMKilled"]
        .assert_eq(&state(status.container_statuses.unwrap()[0].state.as_ref().unwrap()));
}

#[test]
fn a_vanished_container_is_unknown_and_keeps_its_count() {
    let mut pod = with_spec(pod(&["a"]), |spec| spec.restart_policy = Some("Never".to_owned()));
    let before = pod_status(&pod, &with(&pod, vec![running("a", 3, 0)]), &Probes::default(), at(1));
    pod.status = Some(before);
    check(
        &pod,
        &prepared(&pod),
        &Probes::default(),
        2,
        expect![[r#"
        Failed - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers False since 2
        Initialized True since 1
        Ready False since 2 PodFailed
        ContainersReady False since 2 PodFailed
        a terminated 137 ContainerStatusUnknown: The container could not be located when the pod was terminated restarts 3 (ready, started) (false, false) last - id containerd://a-3"#]],
    );
}

#[test]
fn ephemeral_containers_have_statuses_and_no_say() {
    let pod =
        with_spec(pod(&["a"]), |spec| spec.ephemeral_containers = Some(vec![added("one", ""), added("two", "a")]));
    let mut seen = with(&pod, vec![running("a", 0, 1), exited("one", 0, 2, 3, 7)]);
    let message = "no sandbox".to_owned();
    let trouble = Trouble { reason: "CreateContainerError", message, at: at(3), count: 1 };
    seen.troubles.insert(Subject::Container("two".to_owned()), trouble);
    check(
        &pod,
        &seen,
        &Probes::default(),
        4,
        expect![[r#"
        Running - ip 10.128.0.7 BestEffort
        PodReadyToStartContainers True since 4
        Initialized True since 4
        Ready True since 4
        ContainersReady True since 4
        a running restarts 0 (ready, started) (true, true) last - id containerd://a-0
        one terminated 7 Error restarts 0 (ready, started) (false, false) last - id containerd://one-0
        two waiting CreateContainerError: no sandbox restarts 0 (ready, started) (false, false) last - id -"#]],
    );
}
