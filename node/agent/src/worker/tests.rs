use k8s_openapi::api::core::v1::{
    ConfigMapEnvSource, EmptyDirVolumeSource, EnvFromSource, EphemeralContainer, Probe, Volume, VolumeMount,
};
use tandem_runtime::{Act, ContainerId, ExecOutput, Network, Program, Runtime, Sandbox};

use super::*;
use crate::testing::{
    node::{TestNode, is_ready, restarts, state, waiting},
    pod, with_spec,
};

/// A pod as the API gives it, without the status that pure tests begin with.
fn fresh(names: &[&str]) -> Pod {
    Pod { status: None, ..pod(names) }
}

async fn node() -> TestNode {
    let node = TestNode::new().await;
    for name in ["a", "b", "component-a"] {
        node.offer(name, Program::waits());
    }
    node
}

fn container(node: &TestNode, name: &str) -> ContainerId {
    let all = node.sandboxes();
    let mut mine: Vec<_> = all.iter().flat_map(|sandbox| &sandbox.containers).filter(|c| c.name == name).collect();
    mine.sort_by_key(|container| container.attempt);
    mine.last().unwrap().id.clone()
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let node = node().await;
    node.api.put_pod(with_spec(fresh(&["a", "b"]), |spec| spec.termination_grace_period_seconds = Some(1)));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    let status = node.api.pod("web").unwrap().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.is_some_and(|ip| ip.starts_with("10.200.")));
    let ids: Vec<_> = status.container_statuses.unwrap().into_iter().map(|c| c.container_id.unwrap()).collect();
    assert!(ids.iter().all(|id| id.starts_with("containerd://")), "{ids:?}");
    assert_eq!(agent.pods.all().len(), 1);

    node.api.ask_to_delete("web", 1);
    node.until("no pod", |node| node.api.pod("web").is_none() && node.sandboxes().is_empty()).await;
    node.until("no folder", |_| !agent.context.directories.pod("uid-1").exists()).await;
    let events = node.api.events();
    for wanted in ["Created: Container created", "Started: Container started", "Killing: Stopping container a"] {
        assert!(events.iter().any(|event| event == wanted), "{wanted} is not among {events:#?}");
    }
    agent.end().await;
}

#[tokio::test]
async fn a_container_that_ends_is_restarted_in_place_and_backs_off() {
    let node = node().await;
    node.api.put_pod(fresh(&["a"]));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    let sandbox = node.sandboxes()[0].id.clone();
    node.containers.exit_with(&container(&node, "a"), 137, "OOMKilled", "");
    node.until_pod("the first restart", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    let pod = node.api.pod("web").unwrap();
    let last = pod.status.unwrap().container_statuses.unwrap()[0].last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("OOMKilled")));
    assert_eq!(node.sandboxes()[0].id, sandbox);
    node.containers.exit(&container(&node, "a"), 1);
    node.until_pod("the back-off", |pod| waiting(pod) == "CrashLoopBackOff").await;
    node.until("its Event", |node| node.api.events().iter().any(|event| event.starts_with("BackOff:"))).await;
    agent.end().await;
}

#[tokio::test]
async fn a_new_agent_finds_everything_and_changes_nothing() {
    let node = node().await;
    let pod = with_spec(fresh(&["a"]), |spec| {
        spec.containers[0].readiness_probe = Some(Probe {
            exec: Some(k8s_openapi::api::core::v1::ExecAction { command: Some(vec!["ready".to_owned()]) }),
            ..Probe::default()
        });
    });
    node.containers.answer_exec(&["ready"], ExecOutput::default());
    node.api.put_pod(pod);
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    agent.end().await;
    let before = (node.api.pod("web").unwrap().status, node.containers.sandboxes());
    let patches = node.api.patches();
    let agent = node.start();
    let mut progress = agent.context.observer.progress();
    for _ in 0..3 {
        let ticket = agent.context.observer.ticket(Kind::Container);
        progress.wait_for(|progress| ticket.is_served(progress)).await.unwrap();
    }
    node.until("the pod to be known", |_| agent.pods.find("default", "web").is_some()).await;
    let deadline = tokio::time::timeout(Duration::from_millis(300), node.api.changes().changed()).await;
    assert!(deadline.is_err(), "the new agent changed something");
    assert_eq!((node.api.pod("web").unwrap().status, node.containers.sandboxes()), before);
    assert_eq!(node.api.patches(), patches);
    agent.end().await;
}

#[tokio::test]
async fn without_an_api_known_pods_run_on() {
    let node = node().await;
    node.api.put_pod(fresh(&["a"]));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    agent.end().await;
    node.api.set_down(true);
    let agent = node.start();
    node.containers.exit(&container(&node, "a"), 1);
    node.until("a restart", |node| node.sandboxes()[0].containers.iter().any(|c| c.attempt == 1)).await;
    node.api.set_down(false);
    node.until_pod("the restart to be told", |pod| restarts(pod) == 1).await;
    agent.end().await;
}

#[tokio::test]
async fn what_the_api_does_not_know_is_removed() {
    let node = node().await;
    node.api.put_pod(with_spec(fresh(&["a"]), |spec| spec.termination_grace_period_seconds = Some(1)));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    agent.end().await;
    node.api.remove_pod("web");
    std::fs::remove_dir_all(node.context().directories.pod("uid-1")).unwrap();
    let agent = node.start();
    node.until("no sandbox", |node| node.sandboxes().is_empty()).await;
    agent.end().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_is_told_with_the_registrys_answer() {
    let node = node().await;
    node.api.put_pod(fresh(&["missing"]));
    let agent = node.start();
    node.until_pod("the error", |pod| waiting(pod) == "ErrImagePull").await;
    let message = state(&node.api.pod("web").unwrap()).waiting.unwrap().message.unwrap();
    assert!(message.contains("docker.io/image/missing:1: not found"), "{message}");
    node.until_pod("the back-off", |pod| waiting(pod) == "ImagePullBackOff").await;
    node.until("the Event", |node| {
        let failed = |event: &String| event.starts_with("Failed: Failed to pull image \"image/missing:1\"");
        node.api.events().iter().any(failed)
    })
    .await;
    agent.end().await;
}

#[tokio::test]
async fn a_missing_config_map_is_waited_for() {
    let node = node().await;
    let pod = with_spec(fresh(&["a"]), |spec| {
        let source = ConfigMapEnvSource { name: "settings".to_owned(), optional: None };
        spec.containers[0].env_from =
            Some(vec![EnvFromSource { config_map_ref: Some(source), ..EnvFromSource::default() }]);
    });
    node.offer("a", Program(vec![Act::PrintEnvironment, Act::Wait]));
    node.api.put_pod(pod);
    let agent = node.start();
    node.until_pod("the error", |pod| waiting(pod) == "CreateContainerConfigError").await;
    assert_eq!(
        state(&node.api.pod("web").unwrap()).waiting.unwrap().message.as_deref(),
        Some("configmap \"settings\" not found")
    );
    node.api.put_config_map("settings", &[("MODE", "fast")]);
    node.until_pod("a ready pod", is_ready).await;
    let log = agent.context.directories.logs(&node.api.pod("web").unwrap()).join("a/0.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("stdout F MODE=fast"));
    agent.end().await;
}

#[tokio::test]
async fn components_alone_get_a_light_address() {
    let node = node().await;
    node.api.put_pod(fresh(&["component-a"]));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    let pod = node.api.pod("web").unwrap();
    assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some("10.128.16.1"));
    assert!(node.containers.sandboxes().is_empty());
    agent.end().await;
}

#[tokio::test]
async fn a_component_beside_a_container_shares_its_network() {
    let node = node().await;
    node.api.put_pod(fresh(&["a", "component-a"]));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    let (host, joined) = (&node.containers.sandboxes()[0], &node.components.sandboxes()[0]);
    assert_eq!((host.address, &host.network_namespace), (joined.address, &joined.network_namespace));
    agent.end().await;
}

#[tokio::test]
async fn a_failed_liveness_probe_restarts_the_container() {
    let node = node().await;
    let command = vec!["alive".to_owned()];
    node.containers.answer_exec(&["alive"], ExecOutput { code: 1, ..ExecOutput::default() });
    node.api.put_pod(with_spec(fresh(&["a"]), |spec| {
        spec.containers[0].liveness_probe = Some(Probe {
            exec: Some(k8s_openapi::api::core::v1::ExecAction { command: Some(command) }),
            period_seconds: Some(1),
            failure_threshold: Some(1),
            ..Probe::default()
        });
    }));
    let agent = node.start();
    node.until_pod("a restart", |pod| restarts(pod) >= 1).await;
    let told = |event: &String| event == "Killing: Container a failed liveness probe, will be restarted";
    node.until("the Event", |node| node.api.events().iter().any(told)).await;
    agent.end().await;
}

#[tokio::test]
async fn a_notice_becomes_an_event_of_the_pod() {
    let node = node().await;
    node.api.put_pod(fresh(&["component-a"]));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    node.components.notify(tandem_runtime::Notice {
        container: container(&node, "component-a"),
        reason: "Trapped".to_owned(),
        message: "unreachable".to_owned(),
        warning: true,
    });
    node.until("the Event", |node| node.api.events().contains(&"Trapped: unreachable".to_owned())).await;
    agent.end().await;
}

#[tokio::test]
async fn an_ephemeral_container_gets_a_volume_that_no_other_mounts() {
    let node = node().await;
    node.offer("debugger", Program::waits());
    node.api.put_pod(with_spec(fresh(&["a"]), |spec| {
        let scratch = EmptyDirVolumeSource::default();
        let volume = Volume { name: "scratch".to_owned(), empty_dir: Some(scratch), ..Volume::default() };
        spec.volumes = Some(vec![volume]);
    }));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    let folder = agent.context.directories.volumes("uid-1").join("scratch");
    assert!(!folder.exists(), "nobody mounts it yet");
    node.api.change_pod("web", |pod| {
        let mount = VolumeMount { name: "scratch".to_owned(), mount_path: "/s".to_owned(), ..VolumeMount::default() };
        let added = EphemeralContainer { volume_mounts: Some(vec![mount]), ..crate::testing::added("debugger", "") };
        pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![added]);
    });
    let runs = |node: &TestNode| {
        let sandboxes = node.sandboxes();
        sandboxes.iter().flat_map(|sandbox| &sandbox.containers).any(|container| container.name == "debugger")
    };
    node.until("the debugger", runs).await;
    assert!(folder.is_dir());
    agent.end().await;
}

/// Takes one step at a time and forgets everything after step `forget`: what is left must still come to its end.
async fn converges(pod: Pod, forget: usize, node: &TestNode) -> (usize, Vec<Sandbox>) {
    let context = node.context();
    let pod = Arc::new(pod);
    let mut seen = Observed::new(context.facts());
    let mut taken = 0;
    loop {
        let list = |kind, sandboxes: Vec<Sandbox>| {
            sandboxes.into_iter().map(move |sandbox| crate::observed::SeenSandbox { kind, sandbox })
        };
        seen.sandboxes = list(Kind::Container, node.containers.list().await.unwrap())
            .chain(list(Kind::Component, node.components.list().await.unwrap()))
            .collect();
        let now = context.clock.now();
        let plan = plan_pod(&pod, &seen, &Probes::default(), now);
        let Some(step) = plan.steps.first() else { return (taken, node.sandboxes()) };
        let job = Job { pod: pod.clone(), seen: Arc::new(seen.clone()) };
        match context.execute(step, &job).await.unwrap() {
            Done::Mounted(_) => seen.volumes_ready = true,
            Done::Resolved(name, kind) => drop(seen.images.insert(name, kind)),
            Done::SandboxStopped(_, id) => drop(seen.stopped.insert(id)),
            Done::Cleaned => seen.cleaned = true,
            Done::Confirmed => seen.gone = true,
            Done::Nothing | Done::Changed(_) | Done::Stopped(..) | Done::Resized(_) => {}
        }
        taken += 1;
        assert!(taken < 50, "no end: {step:?}");
        if taken == forget {
            seen = Observed { gone: seen.gone, ..Observed::new(context.facts()) };
        }
    }
}

#[tokio::test]
async fn an_agent_that_dies_after_any_step_goes_on_from_there() {
    let pod = || {
        with_spec(fresh(&["a", "component-a"]), |spec| {
            spec.init_containers = Some(vec![crate::testing::spec("setup")]);
        })
    };
    let mut forget = 0;
    loop {
        let node = node().await;
        node.offer("setup", Program::exits(0));
        let (taken, sandboxes) = converges(pod(), forget, &node).await;
        let mut running: Vec<String> = sandboxes
            .iter()
            .flat_map(|sandbox| &sandbox.containers)
            .map(|container| format!("{} {}", container.name, container.attempt))
            .collect();
        running.sort();
        assert_eq!(running, ["a 0", "component-a 0", "setup 0"], "forgetting after step {forget}");
        let deleted = Pod { status: None, ..crate::testing::deleted(pod(), 1) };
        let (_, left) = converges(deleted, forget, &node).await;
        assert_eq!(left, [], "forgetting after step {forget}");
        if forget > taken {
            return;
        }
        forget += 1;
    }
}

#[tokio::test]
async fn steps_that_fail_are_tried_again() {
    let node = node().await;
    for operation in ["create_sandbox", "create", "start"] {
        let error = tandem_runtime::Error::Failed { operation, message: "not now".to_owned() };
        node.containers.fail_next(operation, error);
    }
    node.api.put_pod(fresh(&["a"]));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    assert_eq!(restarts(&node.api.pod("web").unwrap()), 0);
    let events = node.api.events();
    let told = |start: &str| events.iter().any(|event| event.starts_with(start));
    assert!(told("FailedCreatePodSandBox: Failed to create pod sandbox: create_sandbox: not now"), "{events:#?}");
    assert!(told("Failed: Error: start: not now"), "{events:#?}");
    agent.end().await;
}

#[tokio::test]
async fn host_network_pods_have_the_nodes_address() {
    let node = node().await;
    node.api.put_pod(with_spec(fresh(&["a"]), |spec| spec.host_network = Some(true)));
    let agent = node.start();
    node.until_pod("a ready pod", is_ready).await;
    assert_eq!(node.api.pod("web").unwrap().status.unwrap().pod_ip.as_deref(), Some("192.0.2.1"));
    agent.end().await;
    let _ = Network::Own;
}
