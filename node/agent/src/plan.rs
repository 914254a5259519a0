//! What to do next for a pod: the one place where its restart policy, its order of start and its end are decided.
//!
//! The plan is made anew from what is observed each time. A step says what to reach, not how far it got, so the
//! agent may die after any step: the next plan goes on from there.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tandem_runtime::{Container, ContainerId, SandboxId, State};

use crate::{
    life::{self, Life},
    observed::{Busy, ImageKind, Kind, Observed, Probes, Subject, Verdict, earlier, seconds},
    pod::{self, Part},
    resize::{self, Change},
};

/// How long a pod that served goes on serving after its deletion is seen: its address leaves the Services meanwhile,
/// so no new connection meets a closed port.
pub(crate) const DRAIN_SECONDS: i64 = 1;
/// Ended containers of one name that are kept: the one whose state is shown, and the one before it.
const REMAINS_MAX: usize = 2;
/// The reasons of steps that failed in ending something.
pub(crate) const STOP_FAILED: &str = "KillContainerError";
pub(crate) const SANDBOX_STOP_FAILED: &str = "FailedKillPod";
pub(crate) const CLEAN_FAILED: &str = "FailedCleanUp";
/// Sandbox annotation: the sandbox whose network this one joined.
pub(crate) const JOINED_ANNOTATION: &str = "tandem.dev/joined-sandbox";

/// What to do now, and when to look again although nothing happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodPlan {
    pub(crate) steps: Vec<Step>,
    pub(crate) wake: Option<Timestamp>,
    /// Nothing of the pod is left on the node.
    pub(crate) done: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Makes the pod's folders, cgroup and volumes.
    Mount,
    /// Finds out what the container's image is.
    Resolve {
        container: String,
    },
    CreateSandbox {
        kind: Kind,
        network: NetworkChoice,
        attempt: u32,
    },
    /// Gives back the network of a sandbox that is not used any more.
    StopSandbox {
        kind: Kind,
        id: SandboxId,
    },
    RemoveSandbox {
        kind: Kind,
        id: SandboxId,
    },
    /// Gets the image, makes the container and starts it.
    Start {
        container: String,
        kind: Kind,
        sandbox: SandboxId,
        attempt: u32,
        backoff_seconds: i64,
    },
    /// Tells why the container is not started.
    Refuse {
        container: String,
        message: String,
    },
    Stop {
        container: String,
        kind: Kind,
        id: ContainerId,
        grace_seconds: i64,
        why: StopReason,
    },
    /// Gives running containers the resources that they are allotted.
    Resize {
        containers: Vec<(String, Kind, ContainerId)>,
    },
    /// Clears away an ended container.
    Remove {
        kind: Kind,
        id: ContainerId,
    },
    /// Gives up a step under way.
    Cancel(Subject),
    /// Removes the pod's volumes, folders and cgroup.
    Clean,
    /// Tells the API that nothing of the pod runs any more.
    Confirm,
}

impl Step {
    pub(crate) fn subject(&self) -> Subject {
        match self {
            Step::Mount | Step::Clean => Subject::Volumes,
            Step::Resolve { container }
            | Step::Start { container, .. }
            | Step::Refuse { container, .. }
            | Step::Stop { container, .. } => Subject::Container(container.clone()),
            Step::CreateSandbox { kind, .. } | Step::StopSandbox { kind, .. } | Step::RemoveSandbox { kind, .. } => {
                Subject::Sandbox(*kind)
            }
            Step::Resize { .. } => Subject::Resources,
            Step::Remove { id, .. } => Subject::Remains(id.clone()),
            Step::Cancel(subject) => subject.clone(),
            Step::Confirm => Subject::Pod,
        }
    }

    /// As metrics name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Mount => "mount",
            Step::Resolve { .. } => "resolve",
            Step::CreateSandbox { .. } => "create_sandbox",
            Step::StopSandbox { .. } => "stop_sandbox",
            Step::RemoveSandbox { .. } => "remove_sandbox",
            Step::Start { .. } => "start_container",
            Step::Refuse { .. } => "refuse_container",
            Step::Stop { .. } => "stop_container",
            Step::Resize { .. } => "resize",
            Step::Remove { .. } => "remove_container",
            Step::Cancel(_) => "cancel",
            Step::Clean => "clean",
            Step::Confirm => "confirm",
        }
    }

    pub(crate) fn busy(&self) -> Busy {
        match self {
            Step::Mount | Step::Resolve { .. } | Step::Start { .. } | Step::Refuse { .. } => Busy::Preparing,
            Step::Stop { grace_seconds, .. } => Busy::Stopping { grace_seconds: *grace_seconds },
            Step::CreateSandbox { .. }
            | Step::StopSandbox { .. }
            | Step::RemoveSandbox { .. }
            | Step::Resize { .. }
            | Step::Remove { .. }
            | Step::Cancel(_)
            | Step::Clean
            | Step::Confirm => Busy::Committed,
        }
    }
}

/// How a new sandbox gets on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkChoice {
    Own,
    Host,
    Light,
    Join(SandboxId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The pod is deleted.
    Deleted,
    /// The pod has come to its end.
    Ended,
    Liveness,
    Startup,
    /// Its image changed.
    Changed,
    /// It cannot be given its new resources while it runs.
    Resized,
}

pub(crate) fn plan_pod(pod: &Pod, seen: &Observed, probes: &Probes, now: Timestamp) -> PodPlan {
    let mut planner = Planner { pod, seen, probes, now, plan: PodPlan::default() };
    if seen.gone || pod::deleted(pod) {
        planner.remove();
    } else if life::outcome(pod, seen, now).is_some() {
        planner.wind_down();
    } else {
        planner.run();
    }
    planner.plan
}

/// The running container whose process namespace an ephemeral one of this runtime is to join.
pub(crate) fn target(seen: &Observed, kind: Kind, name: &str) -> Result<ContainerId, String> {
    let running = seen.latest(name).filter(|container| matches!(container.state, State::Running { .. }));
    let target = running.ok_or_else(|| format!("unable to find target container {name}: it does not run"))?;
    match (seen.kind_of(&target.id), kind) {
        (Some(Kind::Container), Kind::Container) => Ok(target.id.clone()),
        _ => Err(format!("target container {name} has no process namespace to join: components run in none")),
    }
}

struct Planner<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    probes: &'a Probes,
    now: Timestamp,
    plan: PodPlan,
}

impl<'a> Planner<'a> {
    /// Adds a step, unless one is under way for its subject or this one failed and its time has not come again.
    fn step(&mut self, step: Step) {
        let subject = step.subject();
        if let Some(at) = self.held_back(&step) {
            self.wake(at);
        } else if !self.seen.is_busy(&subject) && !self.plan.steps.iter().any(|planned| planned.subject() == subject) {
            self.plan.steps.push(step);
        }
    }

    /// Until when a step that failed is not tried again. What failed in making a thing does not hold back its end.
    fn held_back(&self, step: &Step) -> Option<Timestamp> {
        let trouble = self.seen.troubles.get(&step.subject())?;
        let concerns = match step {
            Step::Stop { .. } => trouble.reason == STOP_FAILED,
            Step::StopSandbox { .. } | Step::RemoveSandbox { .. } => trouble.reason == SANDBOX_STOP_FAILED,
            Step::CreateSandbox { .. } => trouble.reason != SANDBOX_STOP_FAILED,
            Step::Resolve { .. } | Step::Start { .. } | Step::Refuse { .. } => trouble.reason != STOP_FAILED,
            Step::Clean => trouble.reason == CLEAN_FAILED,
            Step::Mount => trouble.reason != CLEAN_FAILED,
            Step::Resize { .. } | Step::Remove { .. } | Step::Confirm | Step::Cancel(_) => true,
        };
        Some(trouble.retry_at()).filter(|at| concerns && *at > self.now)
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake = earlier(self.plan.wake, at);
    }

    fn run(&mut self) {
        if let Some(deadline) = life::deadline(self.pod) {
            self.wake(deadline);
        }
        if !self.seen.volumes_ready {
            self.step(Step::Mount);
        }
        self.resolve_images();
        self.clear_remains();
        self.retire_sandboxes();
        let ready = self.sandboxes();
        if ready && self.seen.volumes_ready {
            self.containers();
            self.ephemeral();
        } else {
            // What runs is looked after even while something else is missing.
            self.tend_running();
        }
        self.resize();
    }

    fn resolve_images(&mut self) {
        let started = |name: &str| self.seen.latest(name).is_some();
        let added = pod::ephemeral(self.pod).filter(|spec| !started(&spec.name));
        let added: Vec<Spec> = added.filter(|_| self.seen.primary_sandbox().is_some()).collect();
        for spec in pod::containers(self.pod).map(|(_, spec)| spec).chain(&added) {
            if self.seen.image_kind(&spec.name).is_some() {
                continue;
            }
            // What the pod says of its components says nothing of what is added to look at them.
            let is_added = added.iter().any(|added| added.name == spec.name);
            if is_added || self.image_kind(&spec.name).is_none() {
                self.step(Step::Resolve { container: spec.name.clone() });
            }
        }
    }

    fn image_kind(&self, name: &str) -> Option<ImageKind> {
        let declared = || {
            let component = pod::wants_components(self.pod);
            component.then_some(ImageKind { kind: Kind::Component, sockets: false })
        };
        self.seen.image_kind(name).or_else(declared)
    }

    /// Keeps the newest ended containers of each name; the others go.
    fn clear_remains(&mut self) {
        for (_, spec) in pod::containers(self.pod) {
            let instances = self.seen.instances(&spec.name);
            let old = instances.len().saturating_sub(REMAINS_MAX);
            for container in instances.into_iter().take(old) {
                if let (State::Exited { .. }, Some(kind)) = (&container.state, self.seen.kind_of(&container.id)) {
                    self.step(Step::Remove { kind, id: container.id.clone() });
                }
            }
        }
    }

    /// Sandboxes that are not usable any more: their network is given back, and they go once nothing in them is
    /// needed to know what happened.
    fn retire_sandboxes(&mut self) {
        let seen = self.seen;
        for candidate in &seen.sandboxes {
            let (kind, sandbox) = (candidate.kind, &candidate.sandbox);
            let current = seen.ready_sandbox(kind).map(|ready| &ready.id);
            if current == Some(&sandbox.id) && !self.joined_elsewhere(kind) {
                continue;
            }
            if sandbox.ready || !seen.stopped.contains(&sandbox.id) {
                self.step(Step::StopSandbox { kind, id: sandbox.id.clone() });
                continue;
            }
            let superseded =
                |container: &Container| seen.latest(&container.name).is_some_and(|latest| latest.id != container.id);
            if current.is_some() && sandbox.containers.iter().all(superseded) {
                self.step(Step::RemoveSandbox { kind, id: sandbox.id.clone() });
            }
        }
    }

    /// The components' sandbox is in the network of a sandbox that is not there any more.
    fn joined_elsewhere(&self, kind: Kind) -> bool {
        let joined = self.seen.ready_sandbox(Kind::Component).and_then(|s| s.annotations.get(JOINED_ANNOTATION));
        let host = self.seen.ready_sandbox(Kind::Container);
        kind == Kind::Component && joined.is_some_and(|joined| host.is_none_or(|host| host.id.0 != *joined))
    }

    /// Makes the sandboxes that the pod's images need; true once they are all there.
    fn sandboxes(&mut self) -> bool {
        let images: Vec<Option<ImageKind>> =
            pod::containers(self.pod).map(|(_, spec)| self.image_kind(&spec.name)).collect();
        let resolving = |name: &str| {
            let subject = Subject::Container(name.to_owned());
            !self.seen.troubles.contains_key(&subject)
        };
        let undecided =
            pod::containers(self.pod).any(|(_, spec)| self.image_kind(&spec.name).is_none() && resolving(&spec.name));
        let has_container_sandbox = self.seen.sandboxes.iter().any(|seen| seen.kind == Kind::Container);
        if undecided && self.seen.sandboxes.is_empty() {
            return false;
        }
        let known = |kind: Kind| images.iter().flatten().any(|image| image.kind == kind);
        let sockets = images.iter().flatten().any(|image| image.sockets);
        let unknown = images.iter().any(Option::is_none);
        let own =
            has_container_sandbox || known(Kind::Container) || (self.seen.node.containers && (sockets || unknown));
        let components = known(Kind::Component) || (unknown && !own);
        let mut ready = true;
        if own {
            let network = if pod::host_network(self.pod) { NetworkChoice::Host } else { NetworkChoice::Own };
            ready &= self.sandbox(Kind::Container, network);
        }
        if components && ready {
            let host = self.seen.ready_sandbox(Kind::Container);
            let network = match host {
                _ if pod::host_network(self.pod) => NetworkChoice::Host,
                Some(host) => NetworkChoice::Join(host.id.clone()),
                None => NetworkChoice::Light,
            };
            ready &= self.sandbox(Kind::Component, network);
        }
        ready
    }

    fn sandbox(&mut self, kind: Kind, network: NetworkChoice) -> bool {
        if self.seen.ready_sandbox(kind).is_some() {
            return !self.joined_elsewhere(kind);
        }
        let old = self.seen.sandboxes.iter().filter(|seen| seen.kind == kind);
        let attempt = old.map(|seen| seen.sandbox.pod.attempt + 1).max().unwrap_or(0);
        let network_given_back = |seen: &crate::observed::SeenSandbox| self.seen.stopped.contains(&seen.sandbox.id);
        if self.seen.sandboxes.iter().filter(|seen| seen.kind == kind).all(network_given_back) {
            self.step(Step::CreateSandbox { kind, network, attempt });
        }
        false
    }

    /// Init containers one after the other, then all others.
    fn containers(&mut self) {
        let mains_began = pod::containers(self.pod)
            .filter(|(part, _)| *part == Part::Main)
            .any(|(_, spec)| self.latest_in_use(&spec.name).is_some());
        for (part, spec) in pod::containers(self.pod) {
            match part {
                Part::Init if mains_began || self.finished(spec) => {}
                Part::Init => {
                    self.ensure(part, spec);
                    return self.tend_running();
                }
                Part::Sidecar => {
                    self.ensure(part, spec);
                    if !mains_began && !self.started(part, spec) {
                        return self.tend_running();
                    }
                }
                Part::Main | Part::Ephemeral => self.ensure(part, spec),
            }
        }
    }

    /// Ephemeral containers start when they are seen, and never again: what they run in is there already.
    fn ephemeral(&mut self) {
        for spec in pod::ephemeral(self.pod) {
            let Life::Absent = life::life(self.pod, Part::Ephemeral, &spec, self.seen) else { continue };
            let Some(image) = self.seen.image_kind(&spec.name) else { continue };
            if self.seen.ready_sandbox(image.kind).is_some() {
                self.start(&spec, 0, 0);
                continue;
            }
            let lacks = match image.kind {
                Kind::Container => {
                    "a container cannot be added to a pod that runs components only: the pod has no sandbox for \
                     containers, and its network cannot be given one while it runs"
                }
                Kind::Component => {
                    "a component cannot be added to a pod that runs containers only: the pod has no sandbox for \
                     components"
                }
            };
            self.step(Step::Refuse { container: spec.name.clone(), message: lacks.to_owned() });
        }
    }

    /// The newest container of this name, if it is in a sandbox that is in use.
    fn latest_in_use(&self, name: &str) -> Option<&'a Container> {
        let latest = self.seen.latest(name)?;
        let holds = |sandbox: &tandem_runtime::Sandbox| sandbox.containers.iter().any(|c| c.id == latest.id);
        let in_use = self.seen.sandboxes.iter().any(|seen| seen.sandbox.ready && holds(&seen.sandbox));
        in_use.then_some(latest)
    }

    fn finished(&self, spec: &Spec) -> bool {
        let ended = self.latest_in_use(&spec.name).map(|container| &container.state);
        matches!(ended, Some(State::Exited { code: 0, .. }))
    }

    fn started(&self, part: Part, spec: &Spec) -> bool {
        match life::life(self.pod, part, spec, self.seen) {
            Life::Running(container) => crate::status::has_started(spec, container, self.seen, self.probes),
            Life::Absent | Life::Created(_) | Life::Ended(_) | Life::Lost { .. } => false,
        }
    }

    fn tend_running(&mut self) {
        for (part, spec) in pod::containers(self.pod) {
            if let Life::Running(container) = life::life(self.pod, part, spec, self.seen) {
                self.tend(part, spec, container);
            }
        }
    }

    /// Brings one container to running, or lets it rest where its policy says so.
    fn ensure(&mut self, part: Part, spec: &Spec) {
        match life::life(self.pod, part, spec, self.seen) {
            Life::Absent => self.start(spec, 0, 0),
            Life::Created(container) => self.clear(container),
            Life::Running(container) => self.tend(part, spec, container),
            Life::Ended(ended) => {
                // An init container that succeeded in a sandbox that is gone has to run again in the new one.
                let again = part == Part::Init && !self.finished(spec);
                if ended.restarts && ended.crash_loop.ready_at > self.now {
                    self.wake(ended.crash_loop.ready_at);
                } else if ended.restarts || again {
                    self.start(spec, ended.container.attempt + 1, ended.crash_loop.next_seconds);
                }
            }
            Life::Lost { container: Some(container), .. } => self.clear(container),
            Life::Lost { container: None, attempt, restarts } => {
                if restarts {
                    self.start(spec, attempt + 1, 0);
                }
            }
        }
    }

    fn clear(&mut self, container: &Container) {
        let subject = Subject::Container(container.name.clone());
        // A container that is being started is a created one for a moment.
        if let (false, Some(kind)) = (self.seen.is_busy(&subject), self.seen.kind_of(&container.id)) {
            self.step(Step::Remove { kind, id: container.id.clone() });
        }
    }

    fn start(&mut self, spec: &Spec, attempt: u32, backoff_seconds: i64) {
        let Some(image) = self.image_kind(&spec.name) else { return };
        let Some(sandbox) = self.seen.ready_sandbox(image.kind) else { return };
        self.step(Step::Start {
            container: spec.name.clone(),
            kind: image.kind,
            sandbox: sandbox.id.clone(),
            attempt,
            backoff_seconds,
        });
    }

    /// Running containers that are to have other resources, and go on meanwhile.
    fn resize(&mut self) {
        let mut containers = Vec::new();
        for (part, spec) in pod::containers(self.pod) {
            let Life::Running(container) = life::life(self.pod, part, spec, self.seen) else { continue };
            let change = resize::change(self.pod, part, spec, container, self.seen);
            if let (Change::InPlace, Some(kind)) = (change, self.seen.kind_of(&container.id)) {
                containers.push((spec.name.clone(), kind, container.id.clone()));
            }
        }
        if !containers.is_empty() {
            self.step(Step::Resize { containers });
        }
    }

    /// Stops a running container that must be started anew.
    fn tend(&mut self, part: Part, spec: &Spec, container: &Container) {
        let probes = self.probes.of(&container.id);
        let startup = spec.startup_probe.is_some() && probes.startup == Some(Verdict::Failure);
        let liveness = spec.liveness_probe.is_some() && probes.liveness == Some(Verdict::Failure);
        let (why, probe) = if container.spec_hash != pod::spec_hash(spec) {
            (StopReason::Changed, None)
        } else if startup {
            (StopReason::Startup, spec.startup_probe.as_ref())
        } else if liveness {
            (StopReason::Liveness, spec.liveness_probe.as_ref())
        } else if resize::change(self.pod, part, spec, container, self.seen) == Change::Restart {
            (StopReason::Resized, None)
        } else {
            return;
        };
        self.stop(container, pod::liveness_grace(probe, self.pod), why);
    }

    fn stop(&mut self, container: &Container, grace_seconds: i64, why: StopReason) {
        let Some(kind) = self.seen.kind_of(&container.id) else { return };
        let (name, id) = (container.name.clone(), container.id.clone());
        let step = Step::Stop { container: name, kind, id, grace_seconds, why };
        let subject = step.subject();
        match self.seen.busy.get(&subject) {
            // A shorter grace than the one under way takes its place; a start under way is not waited for.
            Some(Busy::Stopping { grace_seconds: current }) if grace_seconds >= *current => return,
            Some(Busy::Committed) => return,
            Some(Busy::Stopping { .. } | Busy::Preparing) => self.plan.steps.push(Step::Cancel(subject)),
            None => {}
        }
        match self.held_back(&step) {
            Some(at) => self.wake(at),
            None => self.plan.steps.push(step),
        }
    }

    /// Stops the main containers, then the sidecars; true when nothing runs any more.
    fn stop_all(&mut self, grace_seconds: i64, why: StopReason) -> bool {
        let seen = self.seen;
        let is_sidecar = |container: &Container| {
            pod::container(self.pod, &container.name).map(|(part, _)| part) == Some(Part::Sidecar)
        };
        let (sidecars, others): (Vec<_>, Vec<_>) = seen.running().partition(|container| is_sidecar(container));
        let now = if others.is_empty() { &sidecars } else { &others };
        for container in now {
            self.stop(container, grace_seconds, why);
        }
        sidecars.is_empty() && others.is_empty()
    }

    /// The pod has come to its end: nothing runs, the network is given back, what ended stays to be asked.
    fn wind_down(&mut self) {
        self.cancel_preparations();
        if !self.stop_all(pod::grace_seconds(self.pod), StopReason::Ended) {
            return;
        }
        let seen = self.seen;
        for candidate in seen.sandboxes.iter().rev() {
            if candidate.sandbox.ready || !seen.stopped.contains(&candidate.sandbox.id) {
                self.step(Step::StopSandbox { kind: candidate.kind, id: candidate.sandbox.id.clone() });
            }
        }
    }

    fn cancel_preparations(&mut self) {
        for (subject, busy) in &self.seen.busy {
            if *busy == Busy::Preparing {
                self.plan.steps.push(Step::Cancel(subject.clone()));
            }
        }
    }

    /// The pod is deleted: everything stops, everything goes, and the API is told.
    fn remove(&mut self) {
        let grace = pod::grace_seconds(self.pod).max(1);
        let served = pod::condition_is_true(self.pod.status.as_ref(), "Ready") && !self.seen.gone;
        let drained = self.seen.deletion_seen.map(|since| since + seconds(DRAIN_SECONDS));
        if let Some(drained) = drained.filter(|at| served && grace > DRAIN_SECONDS && *at > self.now) {
            return self.wake(drained);
        }
        self.cancel_preparations();
        if !self.stop_all(grace, StopReason::Deleted) {
            return;
        }
        let seen = self.seen;
        if !seen.sandboxes.is_empty() {
            // Components leave before the sandbox whose network they joined.
            let leaving = [Kind::Component, Kind::Container];
            let kind = leaving.into_iter().find(|kind| seen.sandboxes.iter().any(|seen| seen.kind == *kind));
            for candidate in seen.sandboxes.iter().filter(|seen| Some(seen.kind) == kind) {
                self.step(Step::RemoveSandbox { kind: candidate.kind, id: candidate.sandbox.id.clone() });
            }
        } else if seen.busy.values().any(|busy| *busy != Busy::Preparing) {
            // A sandbox may still come to be: it is looked for again when the step has ended.
        } else if !seen.cleaned {
            self.step(Step::Clean);
        } else if !seen.gone {
            self.step(Step::Confirm);
        } else {
            self.plan.done = true;
        }
    }
}

#[cfg(test)]
mod tests;
