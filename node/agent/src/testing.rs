//! Pods and observations in few words, for the tests of decisions.

pub(crate) mod api;
pub(crate) mod canned;
pub(crate) mod node;

use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Container as Spec, EphemeralContainer, Pod, PodCondition, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use tandem_runtime::{Container, ContainerId, PodRef, Sandbox, SandboxId, State};

use crate::{
    backoff::BACKOFF_ANNOTATION,
    observed::{ImageKind, Kind, NodeFacts, Observed, SeenSandbox},
    pod,
};

pub(crate) fn at(seconds: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

pub(crate) fn spec(name: &str) -> Spec {
    Spec { name: name.to_owned(), image: Some(format!("image/{name}:1")), ..Spec::default() }
}

/// An ephemeral container; an empty target is none.
pub(crate) fn added(name: &str, target: &str) -> EphemeralContainer {
    EphemeralContainer {
        name: name.to_owned(),
        image: Some(format!("image/{name}:1")),
        target_container_name: Some(target.to_owned()),
        ..EphemeralContainer::default()
    }
}

/// A pod `web` with these main containers, seen by the agent at second 0.
pub(crate) fn pod(names: &[&str]) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some("uid-1".to_owned()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers: names.iter().map(|name| spec(name)).collect(), ..PodSpec::default() }),
        status: Some(PodStatus { start_time: Some(Time(at(0))), ..PodStatus::default() }),
    }
}

pub(crate) fn with_spec(mut pod: Pod, change: impl FnOnce(&mut PodSpec)) -> Pod {
    change(pod.spec.as_mut().unwrap());
    pod
}

pub(crate) fn deleted(mut pod: Pod, grace_seconds: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(Time(at(0)));
    pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
    pod
}

pub(crate) fn served(mut pod: Pod) -> Pod {
    let ready = PodCondition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(Time(at(0))),
        ..PodCondition::default()
    };
    pod.status.get_or_insert_default().conditions = Some(vec![ready]);
    pod
}

/// Volumes are ready and the images are containers.
pub(crate) fn prepared(pod: &Pod) -> Observed {
    let node = NodeFacts {
        address: Ipv4Addr::new(192, 0, 2, 1),
        containers: true,
        container_scheme: "containerd",
        component_scheme: "wasm",
    };
    let mut seen = Observed::new(node);
    seen.volumes_ready = true;
    for (_, spec) in pod::containers(pod) {
        seen.images.insert(spec.name.clone(), ImageKind { kind: Kind::Container, sockets: false });
    }
    seen
}

pub(crate) fn sandbox(kind: Kind, attempt: u32, ready: bool, containers: Vec<Container>) -> SeenSandbox {
    SeenSandbox {
        kind,
        sandbox: Sandbox {
            id: SandboxId(format!("{kind:?}-{attempt}").to_lowercase()),
            pod: PodRef { name: "web".into(), namespace: "default".into(), uid: "uid-1".into(), attempt },
            ready,
            address: ready.then_some(Ipv4Addr::new(10, 128, 0, 7)),
            network_namespace: Some("/run/netns/web".into()),
            created: at(0),
            labels: [].into(),
            annotations: [].into(),
            containers,
        },
    }
}

pub(crate) fn running(name: &str, attempt: u32, since: i64) -> Container {
    Container {
        id: ContainerId(format!("{name}-{attempt}")),
        name: name.to_owned(),
        attempt,
        spec_hash: pod::spec_hash(&spec(name)),
        image: format!("image/{name}:1"),
        image_digest: format!("image/{name}@sha256:00"),
        state: State::Running { started: at(since) },
        created: at(since),
        labels: [].into(),
        annotations: [].into(),
        log_path: "".into(),
    }
}

pub(crate) fn exited(name: &str, attempt: u32, since: i64, until: i64, code: i32) -> Container {
    let reason = if code == 0 { "Completed" } else { "Error" };
    let state = State::Exited {
        started: Some(at(since)),
        finished: at(until),
        code,
        reason: reason.to_owned(),
        message: String::new(),
    };
    Container { state, ..running(name, attempt, since) }
}

pub(crate) fn carrying(mut container: Container, backoff_seconds: i64) -> Container {
    container.annotations.insert(BACKOFF_ANNOTATION.to_owned(), backoff_seconds.to_string());
    container
}
