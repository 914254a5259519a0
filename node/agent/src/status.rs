//! What a pod's status says: derived from what is observed, keeping of the last status only what cannot be observed.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use tandem_runtime::{Container, State};

use crate::{
    life::{self, Life, Outcome},
    observed::{Kind, Observed, Probes, Subject, Verdict, seconds},
    pod::{self, Part},
    resize::{self, Change},
    resources,
};

/// A failed pull is shown as the error for a moment, then as the back-off that it leads to.
pub(crate) const PULL_ERROR_SHOWN_SECONDS: i64 = 2;

/// The container runs and its startup probe, if it has one, is through.
pub(crate) fn has_started(spec: &Spec, container: &Container, seen: &Observed, probes: &Probes) -> bool {
    let is_probed = spec.startup_probe.is_none() || probes.of(&container.id).startup == Some(Verdict::Success);
    is_probed && !seen.is_starting(spec)
}

fn is_ready(spec: &Spec, container: &Container, seen: &Observed, probes: &Probes) -> bool {
    let probed = spec.readiness_probe.is_none() || probes.of(&container.id).readiness == Some(Verdict::Success);
    probed && has_started(spec, container, seen, probes)
}

pub(crate) fn pod_status(pod: &Pod, seen: &Observed, probes: &Probes, now: Timestamp) -> PodStatus {
    let reporter = Reporter { pod, seen, probes, now, outcome: life::outcome(pod, seen, now) };
    let last = pod.status.clone().unwrap_or_default();
    let init = reporter.statuses(|part| part != Part::Main);
    let main = reporter.statuses(|part| part == Part::Main);
    let ephemeral: Vec<_> = pod::ephemeral(pod).map(|spec| reporter.status(Part::Ephemeral, &spec)).collect();
    let phase = reporter.phase(&init, &main);
    let conditions = reporter.conditions(phase, &init, &main);
    let (reason, message) = reporter.reason(phase, &last);
    let address = seen.address().map(|address| address.to_string()).or(last.pod_ip);
    let host = seen.node.address.to_string();
    PodStatus {
        conditions: Some(conditions),
        container_statuses: Some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: Some(host.clone()),
        host_ips: Some(vec![HostIP { ip: host }]),
        init_container_statuses: (!init.is_empty()).then_some(init),
        message,
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ips: address.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: address,
        qos_class: Some(last.qos_class.unwrap_or_else(|| resources::qos_class(pod).name().to_owned())),
        reason,
        start_time: Some(last.start_time.unwrap_or(whole(now))),
        ..PodStatus::default()
    }
}

struct Reporter<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    probes: &'a Probes,
    now: Timestamp,
    outcome: Option<Outcome>,
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

impl Reporter<'_> {
    fn statuses(&self, wanted: impl Fn(Part) -> bool) -> Vec<ContainerStatus> {
        let chosen = pod::containers(self.pod).filter(|(part, _)| wanted(*part));
        chosen.map(|(part, spec)| self.status(part, spec)).collect()
    }

    fn status(&self, part: Part, spec: &Spec) -> ContainerStatus {
        let last = pod::last_status(self.pod, part, &spec.name);
        let life = life::life(self.pod, part, spec, self.seen);
        let latest = self.seen.latest(&spec.name);
        let (state, last_state) = self.states(part, spec, &life);
        let running = match life {
            Life::Running(container) => Some(container),
            Life::Absent | Life::Created(_) | Life::Ended(_) | Life::Lost { .. } => None,
        };
        let completed_init =
            part == Part::Init && state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0);
        let restart_count = match (latest, last) {
            (Some(container), _) => i32::try_from(container.attempt).unwrap_or(i32::MAX),
            (None, Some(last)) => last.restart_count,
            (None, None) => 0,
        };
        ContainerStatus {
            container_id: latest
                .filter(|container| container.state != State::Created)
                .map(|container| self.seen.status_id(&container.id))
                .or_else(|| last.and_then(|last| last.container_id.clone())),
            image: spec.image.clone().unwrap_or_default(),
            image_id: latest
                .map(|container| container.image_digest.clone())
                .or_else(|| last.map(|last| last.image_id.clone()))
                .unwrap_or_default(),
            name: spec.name.clone(),
            ready: match part {
                Part::Init => completed_init,
                Part::Ephemeral => false,
                Part::Sidecar | Part::Main => {
                    running.is_some_and(|container| is_ready(spec, container, self.seen, self.probes))
                }
            },
            restart_count,
            started: match part {
                Part::Ephemeral => None,
                _ => Some(running.is_some_and(|container| has_started(spec, container, self.seen, self.probes))),
            },
            last_state: last_state
                .or_else(|| last.and_then(|last| last.last_state.clone()))
                .or(Some(ContainerState::default())),
            resources: self.resources(part, spec, running),
            allocated_resources: spec
                .resources
                .as_ref()
                .and_then(|all| all.requests.clone())
                .filter(|_| part != Part::Ephemeral),
            state: Some(state),
            ..ContainerStatus::default()
        }
    }

    /// What the container has where it runs, else what it will be started with.
    fn resources(&self, part: Part, spec: &Spec, running: Option<&Container>) -> Option<ResourceRequirements> {
        if part == Part::Ephemeral {
            return None;
        }
        let allotted = spec.resources.clone().unwrap_or_default();
        let applied = running.and_then(|container| resize::applied(self.pod, part, container, self.seen));
        Some(match applied {
            Some(applied) if !resize::same(Some(&applied), Some(&allotted)) => applied,
            _ => allotted,
        })
    }

    /// Whether the pod gets what it asks for, while it does not have it.
    fn resizing(&self) -> impl Iterator<Item = PodCondition> {
        let pending = self
            .seen
            .resize
            .as_ref()
            .map(|pending| self.present("PodResizePending", Some(pending.reason), Some(pending.message.clone())));
        let differs = |(part, spec): (Part, &Spec)| match life::life(self.pod, part, spec, self.seen) {
            Life::Running(container) => resize::change(self.pod, part, spec, container, self.seen) != Change::None,
            Life::Absent | Life::Created(_) | Life::Ended(_) | Life::Lost { .. } => false,
        };
        let under_way = self.outcome.is_none() && pod::containers(self.pod).any(differs);
        let trouble = self.seen.troubles.get(&Subject::Resources);
        let progress = under_way.then(|| {
            let (reason, message) =
                (trouble.map(|trouble| trouble.reason), trouble.map(|trouble| trouble.message.clone()));
            self.present("PodResizeInProgress", reason, message)
        });
        pending.into_iter().chain(progress)
    }

    /// A condition that is only there while it is true.
    fn present(&self, kind: &str, reason: Option<&str>, message: Option<String>) -> PodCondition {
        PodCondition { reason: reason.map(str::to_owned), message, ..self.condition(kind, None) }
    }

    /// The state that a container is shown in, and the one before it.
    fn states(&self, part: Part, spec: &Spec, life: &Life<'_>) -> (ContainerState, Option<ContainerState>) {
        let instances = self.seen.instances(&spec.name);
        let previous = instances.len().checked_sub(2).and_then(|index| instances.get(index));
        let before = previous.and_then(|container| self.terminated(container));
        match life {
            Life::Absent => (self.waiting_to_start(spec), None),
            Life::Created(_) => (self.waiting_to_start(spec), before),
            Life::Running(_) if self.seen.is_starting(spec) => (self.waiting_to_start(spec), before),
            Life::Running(container) => {
                let State::Running { started } = container.state else { return (ContainerState::default(), before) };
                let running = ContainerStateRunning { started_at: Some(whole(started)) };
                (ContainerState { running: Some(running), ..ContainerState::default() }, before)
            }
            Life::Ended(ended) => {
                let terminated = self.terminated(ended.container).unwrap_or_default();
                let restarts = ended.restarts && self.outcome.is_none() && !pod::deleted(self.pod);
                match self.trouble(spec).filter(|_| restarts) {
                    Some(state) => (state, Some(terminated)),
                    None if restarts && self.now < ended.crash_loop.ready_at => {
                        let message = format!(
                            "back-off {} restarting failed container={} pod={}",
                            duration(ended.crash_loop.seconds),
                            spec.name,
                            pod::full_name(self.pod)
                        );
                        (waiting("CrashLoopBackOff", Some(message)), Some(terminated))
                    }
                    None => (terminated, before),
                }
            }
            Life::Lost { restarts, .. } => {
                let last = pod::last_status(self.pod, part, &spec.name);
                let lost = lost(last);
                if *restarts && self.outcome.is_none() {
                    (self.trouble(spec).unwrap_or_else(|| self.waiting_to_start(spec)), Some(lost))
                } else {
                    (lost, None)
                }
            }
        }
    }

    /// An init container that still holds back the ones after it.
    fn is_incomplete(&self, status: &ContainerStatus) -> bool {
        match pod::container(self.pod, &status.name) {
            Some((Part::Sidecar, _)) => status.started != Some(true),
            Some((Part::Init | Part::Main | Part::Ephemeral, _)) | None => !status.ready,
        }
    }

    /// What keeps the container from starting, if something failed.
    fn trouble(&self, spec: &Spec) -> Option<ContainerState> {
        let trouble = self.seen.troubles.get(&Subject::Container(spec.name.clone()))?;
        let image = spec.image.as_deref().unwrap_or_default();
        let shown = self.now.duration_since(trouble.at);
        if trouble.reason == "ErrImagePull" && shown >= seconds(PULL_ERROR_SHOWN_SECONDS) {
            let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", trouble.message);
            return Some(waiting("ImagePullBackOff", Some(message)));
        }
        Some(waiting(trouble.reason, Some(trouble.message.clone())))
    }

    fn waiting_to_start(&self, spec: &Spec) -> ContainerState {
        if let Some(state) = self.trouble(spec) {
            return state;
        }
        let troubles = &self.seen.troubles;
        let held_up = [Subject::Volumes, Subject::Sandbox(Kind::Container), Subject::Sandbox(Kind::Component)]
            .iter()
            .find_map(|subject| troubles.get(subject))
            .map(|trouble| trouble.message.clone());
        let initializes = pod::containers(self.pod).any(|(part, _)| matches!(part, Part::Init | Part::Sidecar));
        waiting(if initializes { "PodInitializing" } else { "ContainerCreating" }, held_up)
    }

    fn terminated(&self, container: &Container) -> Option<ContainerState> {
        let State::Exited { started, finished, code, reason, message } = &container.state else { return None };
        let left = self.seen.messages.get(&container.id).cloned();
        let terminated = ContainerStateTerminated {
            container_id: Some(self.seen.status_id(&container.id)),
            exit_code: *code,
            finished_at: Some(whole(*finished)),
            message: left.or_else(|| (!message.is_empty()).then(|| message.clone())),
            reason: Some(reason.clone()),
            signal: None,
            started_at: started.map(whole),
        };
        Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() })
    }

    /// The phase by Kubernetes' rules; a container that waits to be restarted counts as one that ended.
    fn phase(&self, init: &[ContainerStatus], main: &[ContainerStatus]) -> &'static str {
        match self.outcome {
            // Whoever replaces the pod must not run beside what is left of it.
            Some(_) if self.seen.running().next().is_some() => match pod::phase(self.pod) {
                "Pending" => return "Pending",
                "Succeeded" => return "Succeeded",
                "Failed" => return "Failed",
                _ => return "Running",
            },
            Some(Outcome::Succeeded) => return "Succeeded",
            Some(Outcome::Failed | Outcome::DeadlineExceeded) => return "Failed",
            None => {}
        }
        let state = |status: &ContainerStatus| status.state.clone().unwrap_or_default();
        let before = |status: &ContainerStatus| status.last_state.clone().unwrap_or_default();
        let began = main.iter().any(|status| status.container_id.is_some());
        let initializing = init.iter().any(|status| self.is_incomplete(status));
        let waits = |status: &ContainerStatus| state(status).waiting.is_some() && before(status).terminated.is_none();
        if (initializing && !began) || main.is_empty() || main.iter().any(waits) {
            return "Pending";
        }
        let all_ended = main.iter().all(|status| state(status).terminated.is_some());
        if all_ended && (pod::deleted(self.pod) || self.seen.gone) {
            let code = |status: &ContainerStatus| state(status).terminated.map_or(0, |ended| ended.exit_code);
            return if main.iter().all(|status| code(status) == 0) { "Succeeded" } else { "Failed" };
        }
        "Running"
    }

    fn reason(&self, phase: &str, last: &PodStatus) -> (Option<String>, Option<String>) {
        if self.outcome == Some(Outcome::DeadlineExceeded) && phase == "Failed" {
            let message = "Pod was active on the node longer than the specified deadline";
            return (Some("DeadlineExceeded".to_owned()), Some(message.to_owned()));
        }
        if phase == "Failed" { (last.reason.clone(), last.message.clone()) } else { (None, None) }
    }

    fn conditions(&self, phase: &str, init: &[ContainerStatus], main: &[ContainerStatus]) -> Vec<PodCondition> {
        // A pod that is being ended serves nobody any more, though its phase waits for the last container.
        let ended = match (phase, self.outcome) {
            ("Succeeded", _) | (_, Some(Outcome::Succeeded)) => Some("PodCompleted"),
            ("Failed", _) | (_, Some(Outcome::Failed | Outcome::DeadlineExceeded)) => Some("PodFailed"),
            _ => None,
        };
        let sandbox = self.seen.primary_sandbox().is_some_and(|sandbox| sandbox.address.is_some());
        let initialized = || {
            let incomplete: Vec<&str> =
                init.iter().filter(|status| self.is_incomplete(status)).map(|status| status.name.as_str()).collect();
            let began = main.iter().any(|status| status.container_id.is_some());
            (!incomplete.is_empty() && !began)
                .then(|| format!("containers with incomplete status: [{}]", incomplete.join(" ")))
        };
        let sidecars = init
            .iter()
            .filter(|status| pod::container(self.pod, &status.name).map(|(part, _)| part) == Some(Part::Sidecar));
        let unready: Vec<&str> =
            sidecars.chain(main).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let not_ready =
            || (!unready.is_empty()).then(|| format!("containers with unready status: [{}]", unready.join(" ")));
        let gates = self.unmet_gates();
        let mut ready = match ended {
            Some(reason) => Some((reason, None)),
            None => not_ready().map(|message| ("ContainersNotReady", Some(message))),
        };
        if ready.is_none() && !gates.is_empty() {
            let message =
                format!("corresponding condition of pod readiness gate \"{}\" does not exist.", gates.join("\", \""));
            ready = Some(("ReadinessGatesNotReady", Some(message)));
        }
        let containers_ready = match ended {
            Some(reason) => Some((reason, None)),
            None => not_ready().map(|message| ("ContainersNotReady", Some(message))),
        };
        let initialized = match ended {
            Some("PodCompleted") | None => initialized().map(|message| ("ContainersNotInitialized", Some(message))),
            Some(_) => None,
        };
        let own = [
            self.condition("PodReadyToStartContainers", if sandbox { None } else { Some(("", None)) }),
            self.condition("Initialized", initialized),
            self.condition("Ready", ready),
            self.condition("ContainersReady", containers_ready),
            self.condition("PodScheduled", None),
        ];
        own.into_iter().chain(self.resizing()).collect()
    }

    fn unmet_gates(&self) -> Vec<String> {
        let gates = pod::spec(self.pod).and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let unmet = |kind: &&String| !pod::condition_is_true(self.pod.status.as_ref(), kind);
        gates.iter().map(|gate| &gate.condition_type).filter(unmet).cloned().collect()
    }

    /// A condition that is true unless something speaks against it; its time moves only when its status changes.
    fn condition(&self, kind: &str, against: Option<(&str, Option<String>)>) -> PodCondition {
        let status = if against.is_none() { "True" } else { "False" };
        let conditions = self.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let last = conditions.iter().find(|condition| condition.type_ == kind && condition.status == status);
        let since = last.and_then(|condition| condition.last_transition_time.clone());
        let (reason, message) = against.map_or((None, None), |(reason, message)| (Some(reason.to_owned()), message));
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            last_transition_time: Some(since.unwrap_or(whole(self.now))),
            observed_generation: self.pod.metadata.generation,
            reason: reason.filter(|reason| !reason.is_empty()),
            message,
            ..PodCondition::default()
        }
    }
}

/// A time as the API keeps it: in whole seconds, so that a status read back is the one that was written.
fn whole(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// What is shown for a container of which the runtime knows nothing any more.
fn lost(last: Option<&ContainerStatus>) -> ContainerState {
    let state = last.and_then(|last| last.state.clone()).unwrap_or_default();
    if state.terminated.is_some() {
        return state;
    }
    let terminated = ContainerStateTerminated {
        container_id: last.and_then(|last| last.container_id.clone()),
        exit_code: life::LOST_EXIT_CODE,
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        reason: Some("ContainerStatusUnknown".to_owned()),
        started_at: state.running.and_then(|running| running.started_at),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn duration(count: i64) -> String {
    let (minutes, rest) = (count / 60, count % 60);
    if minutes > 0 { format!("{minutes}m{rest}s") } else { format!("{rest}s") }
}

#[cfg(test)]
mod tests;
