use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::Probe;

use super::*;
use crate::{
    observed::{ProbeState, Trouble},
    testing::*,
};

fn text(plan: &PodPlan) -> String {
    let mut lines: Vec<String> = plan.steps.iter().map(line).collect();
    if let Some(wake) = plan.wake {
        lines.push(format!("wake at {}", wake.duration_since(at(0)).as_secs()));
    }
    if plan.done {
        lines.push("done".to_owned());
    }
    lines.join("\n")
}

fn line(step: &Step) -> String {
    match step {
        Step::Mount => "mount".to_owned(),
        Step::Resolve { container } => format!("resolve {container}"),
        Step::CreateSandbox { kind, network, attempt } => format!("create {kind:?} sandbox {attempt} {network:?}"),
        Step::StopSandbox { id, .. } => format!("stop sandbox {id}"),
        Step::RemoveSandbox { id, .. } => format!("remove sandbox {id}"),
        Step::Start { container, sandbox, attempt, backoff_seconds, .. } => {
            format!("start {container} {attempt} in {sandbox}, back-off {backoff_seconds}")
        }
        Step::Refuse { container, message } => format!("refuse {container}: {message}"),
        Step::Stop { id, grace_seconds, why, .. } => format!("stop {id} within {grace_seconds}: {why:?}"),
        Step::Resize { containers } => {
            let names: Vec<&str> = containers.iter().map(|(name, ..)| name.as_str()).collect();
            format!("resize {}", names.join(" "))
        }
        Step::Remove { id, .. } => format!("remove {id}"),
        Step::Cancel(subject) => format!("cancel {subject:?}"),
        Step::Clean => "clean".to_owned(),
        Step::Confirm => "confirm".to_owned(),
    }
}

fn check(pod: &Pod, seen: &Observed, now: i64, wanted: Expect) {
    wanted.assert_eq(&text(&plan_pod(pod, seen, &Probes::default(), at(now))));
}

fn seen_with(pod: &Pod, sandboxes: Vec<crate::observed::SeenSandbox>) -> Observed {
    Observed { sandboxes, ..prepared(pod) }
}

fn in_container_sandbox(pod: &Pod, containers: Vec<Container>) -> Observed {
    seen_with(pod, vec![sandbox(Kind::Container, 0, true, containers)])
}

#[test]
fn a_new_pod_gets_volumes_and_its_images_are_looked_at() {
    let pod = pod(&["a", "b"]);
    let seen = Observed::new(prepared(&pod).node);
    check(
        &pod,
        &seen,
        0,
        expect![[r#"
        mount
        resolve a
        resolve b"#]],
    );
}

#[test]
fn containers_get_a_sandbox_of_their_own() {
    let pod = pod(&["a"]);
    check(&pod, &prepared(&pod), 0, expect!["create Container sandbox 0 Own"]);
    let host = with_spec(pod, |spec| spec.host_network = Some(true));
    check(&host, &prepared(&host), 0, expect!["create Container sandbox 0 Host"]);
}

fn components(pod: &Pod, names: &[&str]) -> Observed {
    let mut seen = prepared(pod);
    for name in names {
        seen.images.insert((*name).to_owned(), ImageKind { kind: Kind::Component, sockets: false });
    }
    seen
}

#[test]
fn components_alone_are_light() {
    let pod = pod(&["a", "b"]);
    check(&pod, &components(&pod, &["a", "b"]), 0, expect!["create Component sandbox 0 Light"]);
}

#[test]
fn a_declared_component_needs_no_look_at_its_image() {
    let pod = with_spec(pod(&["a"]), |spec| spec.runtime_class_name = Some("wasm".to_owned()));
    let mut seen = prepared(&pod);
    seen.images.clear();
    check(&pod, &seen, 0, expect!["create Component sandbox 0 Light"]);
}

#[test]
fn a_component_with_sockets_joins_a_sandbox_where_there_are_containers() {
    let pod = pod(&["a"]);
    let mut seen = components(&pod, &["a"]);
    seen.images.insert("a".to_owned(), ImageKind { kind: Kind::Component, sockets: true });
    check(&pod, &seen, 0, expect!["create Container sandbox 0 Own"]);
    seen.node.containers = false;
    check(&pod, &seen, 0, expect!["create Component sandbox 0 Light"]);
}

#[test]
fn a_component_beside_a_container_joins_its_sandbox() {
    let pod = pod(&["a", "b"]);
    let mut seen = components(&pod, &["b"]);
    check(&pod, &seen, 0, expect!["create Container sandbox 0 Own"]);
    seen.sandboxes = vec![sandbox(Kind::Container, 0, true, Vec::new())];
    check(&pod, &seen, 0, expect![[r#"create Component sandbox 0 Join(SandboxId("container-0"))"#]]);
    let mut joined = sandbox(Kind::Component, 0, true, Vec::new());
    joined.sandbox.annotations.insert(JOINED_ANNOTATION.to_owned(), "container-0".to_owned());
    seen.sandboxes.push(joined);
    check(
        &pod,
        &seen,
        0,
        expect![[r#"
        start a 0 in container-0, back-off 0
        start b 0 in component-0, back-off 0"#]],
    );
}

#[test]
fn components_follow_their_container_sandbox() {
    let pod = pod(&["a", "b"]);
    let mut seen = components(&pod, &["b"]);
    let mut joined = sandbox(Kind::Component, 0, true, vec![running("b", 0, 0)]);
    joined.sandbox.annotations.insert(JOINED_ANNOTATION.to_owned(), "container-0".to_owned());
    seen.sandboxes = vec![sandbox(Kind::Container, 0, false, vec![exited("a", 0, 0, 5, 137)]), joined];
    check(
        &pod,
        &seen,
        6,
        expect![[r#"
        stop sandbox container-0
        stop sandbox component-0"#]],
    );
}

#[test]
fn an_image_that_cannot_be_looked_at_gets_a_container_sandbox() {
    let pod = pod(&["a"]);
    let mut seen = prepared(&pod);
    seen.images.clear();
    let trouble = Trouble { reason: "ErrImagePull", message: "no".to_owned(), at: at(0), count: 1 };
    seen.troubles.insert(Subject::Container("a".to_owned()), trouble);
    check(
        &pod,
        &seen,
        3,
        expect![[r#"
        create Container sandbox 0 Own
        wake at 10"#]],
    );
    check(
        &pod,
        &seen,
        10,
        expect![[r#"
        resolve a
        create Container sandbox 0 Own"#]],
    );
}

#[test]
fn steps_under_way_are_not_begun_again() {
    let pod = pod(&["a"]);
    let mut seen = prepared(&pod);
    seen.busy.insert(Subject::Sandbox(Kind::Container), Busy::Committed);
    check(&pod, &seen, 0, expect![""]);
    let mut seen = in_container_sandbox(&pod, Vec::new());
    seen.busy.insert(Subject::Container("a".to_owned()), Busy::Preparing);
    check(&pod, &seen, 0, expect![""]);
}

#[test]
fn restarts_at_once_then_backs_off_and_forgets_after_ten_minutes() {
    let pod = pod(&["a"]);
    let ended = |container: Container| in_container_sandbox(&pod, vec![container]);
    check(&pod, &ended(exited("a", 0, 0, 5, 1)), 5, expect!["start a 1 in container-0, back-off 10"]);
    let second = ended(carrying(exited("a", 1, 5, 6, 1), 10));
    check(&pod, &second, 7, expect!["wake at 16"]);
    check(&pod, &second, 16, expect!["start a 2 in container-0, back-off 20"]);
    let last = ended(carrying(exited("a", 9, 0, 1, 1), 300));
    check(&pod, &last, 2, expect!["wake at 301"]);
    check(&pod, &last, 301, expect!["start a 10 in container-0, back-off 300"]);
    let long = ended(carrying(exited("a", 9, 0, 601, 1), 300));
    check(&pod, &long, 601, expect!["start a 10 in container-0, back-off 10"]);
}

#[test]
fn policies_decide_what_ends_the_pod() {
    let with = |policy: &str| with_spec(pod(&["a"]), |spec| spec.restart_policy = Some(policy.to_owned()));
    let after = |pod: &Pod, code| in_container_sandbox(pod, vec![exited("a", 0, 0, 5, code)]);
    let on_failure = with("OnFailure");
    check(&on_failure, &after(&on_failure, 0), 5, expect!["stop sandbox container-0"]);
    check(&on_failure, &after(&on_failure, 1), 5, expect!["start a 1 in container-0, back-off 10"]);
    let never = with("Never");
    check(&never, &after(&never, 1), 5, expect!["stop sandbox container-0"]);
    let always = with("Always");
    check(&always, &after(&always, 0), 5, expect!["start a 1 in container-0, back-off 10"]);
}

#[test]
fn an_ended_pod_stays_ended() {
    let mut pod = pod(&["a"]);
    pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    let mut seen = prepared(&pod);
    check(&pod, &seen, 5, expect![""]);
    seen.sandboxes = vec![sandbox(Kind::Container, 0, true, vec![running("a", 0, 0)])];
    check(&pod, &seen, 5, expect!["stop a-0 within 30: Ended"]);
    seen.sandboxes = vec![sandbox(Kind::Container, 0, false, vec![exited("a", 0, 0, 1, 0)])];
    seen.stopped.insert(SandboxId("container-0".to_owned()));
    check(&pod, &seen, 5, expect![""]);
}

#[test]
fn the_active_deadline_ends_the_pod() {
    let pod = with_spec(pod(&["a"]), |spec| spec.active_deadline_seconds = Some(60));
    let seen = in_container_sandbox(&pod, vec![running("a", 0, 1)]);
    check(&pod, &seen, 10, expect!["wake at 60"]);
    check(&pod, &seen, 60, expect!["stop a-0 within 30: Ended"]);
}

fn probed(pod: Pod) -> Pod {
    with_spec(pod, |spec| {
        spec.containers[0].liveness_probe = Some(Probe::default());
        spec.containers[0].startup_probe =
            Some(Probe { termination_grace_period_seconds: Some(3), ..Probe::default() });
    })
}

#[test]
fn failed_probes_stop_and_start_in_place() {
    let pod = probed(pod(&["a"]));
    let seen = in_container_sandbox(&pod, vec![running("a", 0, 0)]);
    let probes = |state: ProbeState| Probes([(ContainerId("a-0".to_owned()), state)].into());
    let live = ProbeState { liveness: Some(Verdict::Failure), ..ProbeState::default() };
    expect!["stop a-0 within 30: Liveness"].assert_eq(&text(&plan_pod(&pod, &seen, &probes(live), at(40))));
    let startup = ProbeState { startup: Some(Verdict::Failure), ..ProbeState::default() };
    expect!["stop a-0 within 3: Startup"].assert_eq(&text(&plan_pod(&pod, &seen, &probes(startup), at(40))));

    let mut after = in_container_sandbox(&pod, vec![carrying(exited("a", 1, 0, 41, 0), 20)]);
    after.killed.insert(ContainerId("a-1".to_owned()));
    check(&pod, &after, 41, expect!["start a 2 in container-0, back-off 40"]);
}

#[test]
fn a_killed_container_restarts_although_it_ended_well() {
    let pod = with_spec(probed(pod(&["a"])), |spec| spec.restart_policy = Some("OnFailure".to_owned()));
    let mut seen = in_container_sandbox(&pod, vec![exited("a", 0, 0, 41, 0)]);
    seen.killed.insert(ContainerId("a-0".to_owned()));
    check(&pod, &seen, 41, expect!["start a 1 in container-0, back-off 10"]);
}

#[test]
fn a_new_image_replaces_the_container() {
    let mut pod = pod(&["a"]);
    let seen = in_container_sandbox(&pod, vec![running("a", 0, 0)]);
    pod.spec.as_mut().unwrap().containers[0].image = Some("image/a:2".to_owned());
    check(&pod, &seen, 10, expect!["stop a-0 within 30: Changed"]);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = with_spec(pod(&["main"]), |pod| {
        let sidecar = Spec { restart_policy: Some("Always".to_owned()), ..spec("side") };
        pod.init_containers = Some(vec![spec("one"), sidecar, spec("two")]);
    });
    let with = |containers| in_container_sandbox(&pod, containers);
    check(&pod, &with(vec![]), 0, expect!["start one 0 in container-0, back-off 0"]);
    check(&pod, &with(vec![running("one", 0, 0)]), 1, expect![""]);
    check(&pod, &with(vec![exited("one", 0, 0, 1, 0)]), 1, expect!["start side 0 in container-0, back-off 0"]);
    let third = vec![exited("one", 0, 0, 1, 0), running("side", 0, 1)];
    check(&pod, &with(third.clone()), 2, expect!["start two 0 in container-0, back-off 0"]);
    let last = [third, vec![exited("two", 0, 2, 3, 0)]].concat();
    check(&pod, &with(last.clone()), 3, expect!["start main 0 in container-0, back-off 0"]);
    let serving = [last, vec![running("main", 0, 3)]].concat();
    check(&pod, &with(serving.clone()), 4, expect![""]);
    check(&deleted(pod.clone(), 5), &with(serving), 4, expect!["stop main-0 within 5: Deleted"]);
    check(&deleted(pod.clone(), 5), &with(vec![running("side", 0, 1)]), 4, expect!["stop side-0 within 5: Deleted"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = with_spec(pod(&["main"]), |pod| {
        pod.init_containers = Some(vec![spec("one")]);
        pod.restart_policy = Some("Never".to_owned());
    });
    let seen = in_container_sandbox(&pod, vec![exited("one", 0, 0, 1, 2)]);
    check(&pod, &seen, 1, expect!["stop sandbox container-0"]);
}

#[test]
fn a_lost_sandbox_is_replaced_and_counts_go_on() {
    let pod = pod(&["a"]);
    let dead = || sandbox(Kind::Container, 0, false, vec![exited("a", 2, 0, 9, 137)]);
    let mut seen = seen_with(&pod, vec![dead()]);
    check(&pod, &seen, 9, expect!["stop sandbox container-0"]);
    seen.stopped.insert(SandboxId("container-0".to_owned()));
    check(&pod, &seen, 9, expect!["create Container sandbox 1 Own"]);
    seen.sandboxes.push(sandbox(Kind::Container, 1, true, Vec::new()));
    check(&pod, &seen, 9, expect!["start a 3 in container-1, back-off 10"]);
    seen.sandboxes[1].sandbox.containers.push(running("a", 3, 9));
    check(&pod, &seen, 9, expect!["remove sandbox container-0"]);
}

#[test]
fn created_and_old_containers_are_cleared_away() {
    let pod = pod(&["a"]);
    let created = Container { state: State::Created, ..running("a", 0, 0) };
    check(&pod, &in_container_sandbox(&pod, vec![created.clone()]), 0, expect!["remove a-0"]);
    let mut starting = in_container_sandbox(&pod, vec![created]);
    starting.busy.insert(Subject::Container("a".to_owned()), Busy::Preparing);
    check(&pod, &starting, 0, expect![""]);
    let many = vec![exited("a", 0, 0, 1, 1), exited("a", 1, 1, 2, 1), running("a", 2, 2)];
    check(&pod, &in_container_sandbox(&pod, many), 3, expect!["remove a-0"]);
}

#[test]
fn failures_wait_for_their_time() {
    let pod = pod(&["a"]);
    let mut seen = in_container_sandbox(&pod, Vec::new());
    let trouble = Trouble { reason: "CreateContainerConfigError", message: "no".to_owned(), at: at(5), count: 2 };
    seen.troubles.insert(Subject::Container("a".to_owned()), trouble);
    check(&pod, &seen, 6, expect!["wake at 7"]);
    check(&pod, &seen, 7, expect!["start a 0 in container-0, back-off 0"]);
}

#[test]
fn a_stop_that_failed_waits_for_its_time() {
    let pod = deleted(pod(&["a"]), 30);
    let mut seen = in_container_sandbox(&pod, vec![running("a", 0, 0)]);
    let trouble = |reason| Trouble { reason, message: "no".to_owned(), at: at(5), count: 2 };
    seen.troubles.insert(Subject::Container("a".to_owned()), trouble(STOP_FAILED));
    check(&pod, &seen, 6, expect!["wake at 7"]);
    check(&pod, &seen, 7, expect!["stop a-0 within 30: Deleted"]);
    seen.troubles.insert(Subject::Container("a".to_owned()), trouble("ErrImagePull"));
    check(&pod, &seen, 6, expect!["stop a-0 within 30: Deleted"]);
    seen.sandboxes[0].sandbox.containers.clear();
    seen.troubles.insert(Subject::Sandbox(Kind::Container), trouble("FailedCreatePodSandBox"));
    check(&pod, &seen, 6, expect!["remove sandbox container-0"]);
}

#[test]
fn deletion_goes_step_by_step_to_its_end() {
    let pod = deleted(served(pod(&["a"])), 30);
    let mut seen = in_container_sandbox(&pod, vec![running("a", 0, 0)]);
    seen.deletion_seen = Some(at(10));
    check(&pod, &seen, 10, expect!["wake at 11"]);
    check(&pod, &seen, 11, expect!["stop a-0 within 30: Deleted"]);
    seen.busy.insert(Subject::Container("a".to_owned()), Busy::Stopping { grace_seconds: 30 });
    check(&pod, &seen, 12, expect![""]);
    check(
        &deleted(pod.clone(), 1),
        &seen,
        12,
        expect![[r#"
        cancel Container("a")
        stop a-0 within 1: Deleted"#]],
    );
    seen.busy.clear();
    seen.sandboxes[0].sandbox.containers = vec![exited("a", 0, 0, 13, 0)];
    check(&pod, &seen, 13, expect!["remove sandbox container-0"]);
    seen.sandboxes.clear();
    check(&pod, &seen, 14, expect!["clean"]);
    seen.cleaned = true;
    check(&pod, &seen, 15, expect!["confirm"]);
    seen.gone = true;
    check(&pod, &seen, 16, expect!["done"]);
}

#[test]
fn deletion_gives_up_a_pull_and_waits_for_a_sandbox_under_way() {
    let pod = deleted(pod(&["a"]), 30);
    let mut seen = prepared(&pod);
    seen.busy.insert(Subject::Container("a".to_owned()), Busy::Preparing);
    check(
        &pod,
        &seen,
        1,
        expect![[r#"
        cancel Container("a")
        clean"#]],
    );
    seen.busy = [(Subject::Sandbox(Kind::Container), Busy::Committed)].into();
    check(&pod, &seen, 1, expect![""]);
}

#[test]
fn a_pod_without_an_object_is_removed_unasked() {
    let pod = with_spec(served(pod(&[])), |_| {});
    let mut seen = in_container_sandbox(&pod, vec![running("stray", 0, 0)]);
    seen.gone = true;
    check(&pod, &seen, 1, expect!["stop stray-0 within 30: Deleted"]);
}

#[test]
fn a_container_that_vanished_is_replaced() {
    let mut pod = pod(&["a"]);
    let last = k8s_openapi::api::core::v1::ContainerStatus {
        name: "a".to_owned(),
        container_id: Some("containerd://a-4".to_owned()),
        restart_count: 4,
        ..Default::default()
    };
    pod.status.as_mut().unwrap().container_statuses = Some(vec![last]);
    check(&pod, &in_container_sandbox(&pod, Vec::new()), 1, expect!["start a 5 in container-0, back-off 0"]);
    let never = with_spec(pod, |spec| spec.restart_policy = Some("Never".to_owned()));
    check(&never, &in_container_sandbox(&never, Vec::new()), 1, expect!["stop sandbox container-0"]);
}

/// The pod with an ephemeral container that targets another.
fn debugged(pod: Pod, target: &str) -> Pod {
    with_spec(pod, |spec| spec.ephemeral_containers = Some(vec![added("debugger", target)]))
}

#[test]
fn an_ephemeral_container_starts_once_beside_what_runs() {
    let pod = debugged(pod(&["a"]), "a");
    let seen = in_container_sandbox(&pod, vec![running("a", 0, 1)]);
    check(&pod, &seen, 2, expect!["resolve debugger"]);
    let resolved = |mut seen: Observed, kind: Kind| {
        seen.images.insert("debugger".to_owned(), ImageKind { kind, sockets: false });
        seen
    };
    let seen = resolved(seen, Kind::Container);
    check(&pod, &seen, 2, expect!["start debugger 0 in container-0, back-off 0"]);
    // It starts before what the pod is made of, whose init containers may be what is looked into.
    let waiting = with_spec(pod.clone(), |spec| spec.init_containers = Some(vec![spec.containers[0].clone()]));
    let waiting = with_spec(waiting, |spec| spec.containers[0].name = "b".to_owned());
    check(
        &waiting,
        &seen,
        2,
        expect![[r#"
        resolve b
        start debugger 0 in container-0, back-off 0"#]],
    );
    for container in [running("debugger", 0, 2), exited("debugger", 0, 2, 3, 1)] {
        let seen = resolved(in_container_sandbox(&pod, vec![running("a", 0, 1), container]), Kind::Container);
        check(&pod, &seen, 4, expect![""]);
    }
}

#[test]
fn an_ephemeral_container_does_not_keep_its_pod() {
    let pod = debugged(with_spec(pod(&["a"]), |spec| spec.restart_policy = Some("Never".to_owned())), "a");
    let seen = in_container_sandbox(&pod, vec![exited("a", 0, 1, 2, 0), running("debugger", 0, 2)]);
    check(&pod, &seen, 3, expect!["stop debugger-0 within 30: Ended"]);
    assert_eq!(life::outcome(&pod, &seen, at(3)), Some(life::Outcome::Succeeded));
}

#[test]
fn what_a_pod_has_no_sandbox_for_is_refused() {
    let pod = debugged(pod(&["a"]), "");
    let light = vec![sandbox(Kind::Component, 0, true, vec![running("a", 0, 1)])];
    let mut seen = Observed { sandboxes: light, ..components(&pod, &["a"]) };
    seen.images.insert("debugger".to_owned(), ImageKind { kind: Kind::Container, sockets: false });
    check(
        &pod,
        &seen,
        2,
        expect![
            "refuse debugger: a container cannot be added to a pod that runs components only: the pod has no sandbox for containers, and its network cannot be given one while it runs"
        ],
    );
    seen.images.insert("debugger".to_owned(), ImageKind { kind: Kind::Component, sockets: false });
    check(&pod, &seen, 2, expect!["start debugger 0 in component-0, back-off 0"]);
}

#[test]
fn a_target_runs_and_has_processes() {
    let pod = pod(&["a", "b"]);
    let seen = in_container_sandbox(&pod, vec![running("a", 2, 1), exited("b", 0, 1, 2, 0)]);
    assert_eq!(target(&seen, Kind::Container, "a"), Ok(ContainerId("a-2".to_owned())));
    assert!(target(&seen, Kind::Component, "a").unwrap_err().contains("no process namespace"));
    for absent in ["b", "c"] {
        assert!(target(&seen, Kind::Container, absent).unwrap_err().contains("does not run"), "{absent}");
    }
}

#[test]
fn rules_start_a_container_anew_whatever_its_policy_says() {
    let rule = |operator: &str, values: &[i32]| k8s_openapi::api::core::v1::ContainerRestartRule {
        action: "Restart".to_owned(),
        exit_codes: Some(k8s_openapi::api::core::v1::ContainerRestartRuleOnExitCodes {
            operator: operator.to_owned(),
            values: Some(values.to_vec()),
        }),
    };
    let table = [
        ("In", [42, 43], 42, true),
        ("In", [42, 43], 1, false),
        ("NotIn", [1, 2], 42, true),
        ("NotIn", [1, 2], 1, false),
        ("NotIn", [1, 2], 0, true),
    ];
    for (operator, values, code, again) in table {
        let pod = with_spec(pod(&["a", "b"]), |spec| {
            spec.containers[0].restart_policy = Some("Never".to_owned());
            spec.containers[0].restart_policy_rules = Some(vec![rule(operator, &values)]);
        });
        let seen = in_container_sandbox(&pod, vec![exited("a", 0, 0, 5, code), running("b", 0, 0)]);
        let plan = text(&plan_pod(&pod, &seen, &Probes::default(), at(10)));
        assert_eq!(plan.contains("start a 1"), again, "{operator} {values:?} {code}: {plan}");
    }
}
