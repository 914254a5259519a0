//! Probes: when they run, and what they decide. What follows from that is the plan's business.
//!
//! ```text
//!  one task a probe ─ attempt ─> Tally (pure: thresholds) ─> Verdict ─> the pod's worker
//! ```

mod attempt;
mod grpc;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, Probe};
use tandem_runtime::{Container, ContainerId, State};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use crate::{
    context::Context,
    observed::{Busy, Observed, ProbeState, Probes, Subject, Verdict},
    pod,
    status::has_started,
};

const PERIOD_SECONDS: i32 = 10;
const TIMEOUT_SECONDS: i32 = 1;
const FAILURES: i32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    fn of(self, spec: &Spec) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => spec.startup_probe.as_ref(),
            ProbeKind::Liveness => spec.liveness_probe.as_ref(),
            ProbeKind::Readiness => spec.readiness_probe.as_ref(),
        }
    }
}

/// Counts results in a row and says when they decide.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    last: Option<bool>,
    count: i32,
}

impl Tally {
    /// The verdict once as many results in a row agree as the probe asks for.
    fn add(&mut self, succeeded: bool, probe: &Probe) -> Option<Verdict> {
        self.count = if self.last == Some(succeeded) { self.count.saturating_add(1) } else { 1 };
        self.last = Some(succeeded);
        let (needed, verdict) = if succeeded {
            (probe.success_threshold.unwrap_or(1), Verdict::Success)
        } else {
            (probe.failure_threshold.unwrap_or(FAILURES), Verdict::Failure)
        };
        (self.count >= needed.max(1)).then_some(verdict)
    }
}

/// A probe that decided something new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    id: ContainerId,
    kind: ProbeKind,
    verdict: Verdict,
}

/// The probes of one pod.
pub(crate) struct ProbeSet {
    context: Arc<Context>,
    states: Probes,
    tasks: JoinSet<()>,
    running: BTreeMap<(ContainerId, ProbeKind), AbortHandle>,
    sender: mpsc::Sender<Decided>,
    decided: mpsc::Receiver<Decided>,
}

/// Decisions that wait for the worker: a probe that finds it full waits, and probes again later.
const DECIDED_MAX: usize = 16;

impl ProbeSet {
    /// `states` is what the agent knew before it was restarted, so that readiness does not flip.
    pub(crate) fn new(context: Arc<Context>, states: Probes) -> ProbeSet {
        let (sender, decided) = mpsc::channel(DECIDED_MAX);
        ProbeSet { context, states, tasks: JoinSet::new(), running: BTreeMap::new(), sender, decided }
    }

    pub(crate) fn states(&self) -> &Probes {
        &self.states
    }

    /// Waits for a decision and takes it.
    pub(crate) async fn next(&mut self) {
        if let Some(decided) = self.decided.recv().await {
            self.take(decided);
        }
    }

    /// Takes the decisions that are there; true if there were any.
    fn take(&mut self, decided: Decided) {
        // A task that is gone may have left a decision about a container that is gone too.
        if !self.running.contains_key(&(decided.id.clone(), decided.kind)) {
            return;
        }
        let state = self.states.0.entry(decided.id).or_default();
        let slot = match decided.kind {
            ProbeKind::Startup => &mut state.startup,
            ProbeKind::Liveness => &mut state.liveness,
            ProbeKind::Readiness => &mut state.readiness,
        };
        *slot = Some(decided.verdict);
    }

    /// Starts the probes of containers that run and ends those of containers that don't.
    pub(crate) fn follow(&mut self, pod: &Arc<Pod>, seen: &Observed) {
        while self.tasks.try_join_next().is_some() {}
        let mut wanted = Vec::new();
        for container in seen.running() {
            // A container that is being stopped is not asked how it is.
            if matches!(seen.busy.get(&Subject::Container(container.name.clone())), Some(Busy::Stopping { .. })) {
                continue;
            }
            let mut probed = pod::containers(pod).map(|(_, spec)| spec);
            let Some(spec) = probed.find(|spec| spec.name == container.name) else { continue };
            if seen.is_starting(spec) {
                continue;
            }
            let started = has_started(spec, container, seen, &self.states);
            let due: &[ProbeKind] =
                if started { &[ProbeKind::Liveness, ProbeKind::Readiness] } else { &[ProbeKind::Startup] };
            let due = due.iter().filter(|kind| kind.of(spec).is_some());
            wanted.extend(due.map(|kind| (container, spec, *kind)));
        }
        let keep = |(id, kind): &(ContainerId, ProbeKind)| {
            wanted.iter().any(|(container, _, wanted)| container.id == *id && wanted == kind)
        };
        self.running.retain(|key, task| {
            let keep = keep(key);
            if !keep {
                task.abort();
            }
            keep
        });
        let lives = |id: &ContainerId| seen.running().any(|container| container.id == *id);
        self.states.0.retain(|id, _| lives(id));
        for (container, spec, kind) in wanted {
            let key = (container.id.clone(), kind);
            if !self.running.contains_key(&key)
                && let Some(task) = self.task(pod, spec, container, kind, seen)
            {
                let handle = self.tasks.spawn(task.run(self.sender.clone()));
                self.running.insert(key, handle);
            }
        }
    }

    fn task(
        &self,
        pod: &Arc<Pod>,
        spec: &Spec,
        container: &Container,
        kind: ProbeKind,
        seen: &Observed,
    ) -> Option<Task> {
        let State::Running { started } = container.state else { return None };
        Some(Task {
            context: self.context.clone(),
            pod: pod.clone(),
            spec: spec.clone(),
            probe: kind.of(spec)?.clone(),
            kind,
            id: container.id.clone(),
            started,
            target: attempt::Target {
                address: seen.address(),
                runtime: self.context.runtimes.get(seen.kind_of(&container.id)?)?.clone(),
                id: container.id.clone(),
            },
            known: self.states.of(&container.id),
        })
    }
}

struct Task {
    context: Arc<Context>,
    pod: Arc<Pod>,
    spec: Spec,
    probe: Probe,
    kind: ProbeKind,
    id: ContainerId,
    started: Timestamp,
    target: attempt::Target,
    known: ProbeState,
}

fn seconds(value: Option<i32>, otherwise: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(otherwise)).unwrap_or(0))
}

impl Task {
    async fn run(self, sender: mpsc::Sender<Decided>) {
        let delay = seconds(self.probe.initial_delay_seconds, 0);
        let ran = self.context.clock.now().duration_since(self.started);
        let ran = Duration::try_from(ran).unwrap_or_default();
        let mut next = Instant::now() + delay.saturating_sub(ran);
        let period = seconds(self.probe.period_seconds, PERIOD_SECONDS).max(Duration::from_secs(1));
        let mut tally = Tally::default();
        let mut last = match self.kind {
            ProbeKind::Startup => self.known.startup,
            ProbeKind::Liveness => self.known.liveness,
            ProbeKind::Readiness => self.known.readiness,
        };
        loop {
            tokio::time::sleep_until(next).await;
            let verdict = self.attempt().await.and_then(|passed| tally.add(passed, &self.probe));
            if let Some(verdict) = verdict.filter(|verdict| Some(*verdict) != last) {
                last = Some(verdict);
                if sender.send(Decided { id: self.id.clone(), kind: self.kind, verdict }).await.is_err() {
                    return;
                }
                // The container is stopped now, or it has started: either way this probe has done its work.
                if self.kind == ProbeKind::Startup || (self.kind == ProbeKind::Liveness && verdict == Verdict::Failure)
                {
                    return;
                }
            }
            next = (next + period).max(Instant::now());
        }
    }

    /// Whether the probe passed; nothing when it could not be made, which says nothing of the container.
    async fn attempt(&self) -> Option<bool> {
        let timeout = seconds(self.probe.timeout_seconds, TIMEOUT_SECONDS).max(Duration::from_secs(1));
        let outcome = attempt::attempt(&self.probe, &self.spec, &self.target, &self.context.http, timeout).await;
        self.context.metrics.probed(self.kind.name(), outcome.is_ok());
        let Err(problem) = outcome else { return Some(true) };
        let (message, passed) = match problem {
            attempt::Problem::Failed(why) => (format!("{} probe failed: {why}", self.kind.name()), Some(false)),
            attempt::Problem::Errored(why) => {
                (format!("{} probe errored and resulted in unknown state: {why}", self.kind.name()), None)
            }
        };
        self.context.events.warning(&self.pod, Some(&self.spec.name), "Unhealthy", message);
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_decide() {
        let probe = Probe { failure_threshold: Some(3), success_threshold: Some(2), ..Probe::default() };
        let mut tally = Tally::default();
        let mut add = |succeeded| tally.add(succeeded, &probe);
        assert_eq!([add(true), add(true)], [None, Some(Verdict::Success)]);
        assert_eq!([add(false), add(false)], [None, None]);
        assert_eq!([add(true), add(false), add(false), add(false)], [None, None, None, Some(Verdict::Failure)]);
        assert_eq!(add(false), Some(Verdict::Failure));
    }
}
