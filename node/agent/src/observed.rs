//! What a decision about a pod may look at: one snapshot of everything that is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, ResourceRequirements};
use tandem_runtime::{Container, ContainerId, Sandbox, SandboxId, State};

use crate::{backoff, resize::Pending};

/// Which of the node's runtimes runs something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Container,
    Component,
}

/// A sandbox of the pod, and the runtime that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenSandbox {
    pub(crate) kind: Kind,
    pub(crate) sandbox: Sandbox,
}

/// What a container's image turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageKind {
    pub(crate) kind: Kind,
    /// A component that opens sockets of its own, and so must not live in the shared namespace.
    pub(crate) sockets: bool,
}

/// What a step works on. At most one step is under way for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subject {
    Volumes,
    Sandbox(Kind),
    Container(String),
    /// An ended container that is cleared away.
    Remains(ContainerId),
    /// The resources of its containers.
    Resources,
    Pod,
}

/// A step that failed: what to tell, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// As in a waiting container: `ErrImagePull`, `CreateContainerConfigError`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
    /// How often in a row.
    pub(crate) count: u32,
}

impl Trouble {
    pub(crate) fn retry_at(&self) -> Timestamp {
        self.at + backoff::retry_delay(self.reason, self.count)
    }
}

/// A step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    /// Making something ready: may be given up when the pod is deleted.
    Preparing,
    /// Stopping a container within so many seconds.
    Stopping { grace_seconds: i64 },
    /// Has to come to its end.
    Committed,
}

/// Facts about the node that decisions need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) address: Ipv4Addr,
    /// The node can run containers, not only components.
    pub(crate) containers: bool,
    /// The schemes of container ids, as in `containerd://…`.
    pub(crate) container_scheme: &'static str,
    pub(crate) component_scheme: &'static str,
}

/// Everything that is known of one pod, from the runtimes and from the steps taken so far.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) node: NodeFacts,
    pub(crate) sandboxes: Vec<SeenSandbox>,
    /// By container name; absent while it has not been found out.
    pub(crate) images: BTreeMap<String, ImageKind>,
    pub(crate) volumes_ready: bool,
    pub(crate) troubles: BTreeMap<Subject, Trouble>,
    pub(crate) busy: BTreeMap<Subject, Busy>,
    /// What ended containers left as their termination message.
    pub(crate) messages: BTreeMap<ContainerId, String>,
    /// Containers that were stopped in order to be started anew, whatever their exit code.
    pub(crate) killed: BTreeSet<ContainerId>,
    /// Sandboxes whose network was given back.
    pub(crate) stopped: BTreeSet<SandboxId>,
    /// What running containers were given since they were made.
    pub(crate) applied: BTreeMap<ContainerId, ResourceRequirements>,
    /// Why the pod does not have the resources that its spec asks for.
    pub(crate) resize: Option<Pending>,
    /// When the agent first saw that the pod is deleted.
    pub(crate) deletion_seen: Option<Timestamp>,
    /// The API has no such pod any more.
    pub(crate) gone: bool,
    /// Volumes, folders and cgroups of the pod are removed.
    pub(crate) cleaned: bool,
}

impl Observed {
    pub(crate) fn new(node: NodeFacts) -> Observed {
        Observed {
            node,
            sandboxes: Vec::new(),
            images: BTreeMap::new(),
            volumes_ready: false,
            troubles: BTreeMap::new(),
            busy: BTreeMap::new(),
            messages: BTreeMap::new(),
            killed: BTreeSet::new(),
            stopped: BTreeSet::new(),
            applied: BTreeMap::new(),
            resize: None,
            deletion_seen: None,
            gone: false,
            cleaned: false,
        }
    }

    /// Every container of this name, the newest last.
    pub(crate) fn instances(&self, name: &str) -> Vec<&Container> {
        let all = self.sandboxes.iter().flat_map(|seen| &seen.sandbox.containers);
        let mut named: Vec<&Container> = all.filter(|container| container.name == name).collect();
        named.sort_by_key(|container| (container.attempt, container.created));
        named
    }

    pub(crate) fn latest(&self, name: &str) -> Option<&Container> {
        self.instances(name).pop()
    }

    /// The usable sandbox of a runtime.
    pub(crate) fn ready_sandbox(&self, kind: Kind) -> Option<&Sandbox> {
        let mine = self.sandboxes.iter().filter(|seen| seen.kind == kind && seen.sandbox.ready);
        mine.map(|seen| &seen.sandbox).max_by_key(|sandbox| sandbox.pod.attempt)
    }

    /// The sandbox that gives the pod its address.
    pub(crate) fn primary_sandbox(&self) -> Option<&Sandbox> {
        self.ready_sandbox(Kind::Container).or_else(|| self.ready_sandbox(Kind::Component))
    }

    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        self.primary_sandbox().and_then(|sandbox| sandbox.address)
    }

    /// Which runtime has this container.
    pub(crate) fn kind_of(&self, id: &ContainerId) -> Option<Kind> {
        let holds = |seen: &&SeenSandbox| seen.sandbox.containers.iter().any(|container| container.id == *id);
        self.sandboxes.iter().find(holds).map(|seen| seen.kind)
    }

    /// What the container's image is, from where it ran before or from what was found out.
    pub(crate) fn image_kind(&self, name: &str) -> Option<ImageKind> {
        self.images.get(name).copied().or_else(|| {
            let kind = self.kind_of(&self.latest(name)?.id)?;
            Some(ImageKind { kind, sockets: false })
        })
    }

    /// The container's id as a pod's status names it.
    pub(crate) fn status_id(&self, id: &ContainerId) -> String {
        let scheme = match self.kind_of(id) {
            Some(Kind::Component) => self.node.component_scheme,
            Some(Kind::Container) | None => self.node.container_scheme,
        };
        format!("{scheme}://{id}")
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Container> {
        let all = self.sandboxes.iter().flat_map(|seen| &seen.sandbox.containers);
        all.filter(|container| matches!(container.state, State::Running { .. }))
    }

    /// Whether the container's `postStart` goes on: it does not count as running before that has ended.
    pub(crate) fn is_starting(&self, spec: &Spec) -> bool {
        let is_hooked = spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        is_hooked && self.busy.get(&Subject::Container(spec.name.clone())) == Some(&Busy::Preparing)
    }

    pub(crate) fn is_busy(&self, subject: &Subject) -> bool {
        self.busy.contains_key(subject)
    }
}

/// What probes say about the containers that run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes(pub(crate) BTreeMap<ContainerId, ProbeState>);

/// `None` where the container has no such probe or it has not decided yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ProbeState {
    pub(crate) startup: Option<Verdict>,
    pub(crate) liveness: Option<Verdict>,
    pub(crate) readiness: Option<Verdict>,
}

/// What a probe decided, after its thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Verdict {
    Success,
    Failure,
}

impl Probes {
    pub(crate) fn of(&self, id: &ContainerId) -> ProbeState {
        self.0.get(id).cloned().unwrap_or_default()
    }
}

/// The earlier of two times of which one may be absent.
pub(crate) fn earlier(first: Option<Timestamp>, second: Timestamp) -> Option<Timestamp> {
    Some(first.map_or(second, |first| first.min(second)))
}

pub(crate) fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}
