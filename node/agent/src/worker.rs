//! One pod's worker: observe, plan, begin the steps, report, wait.
//!
//! A wake-up carries no information. What the worker remembers between two rounds is either in the runtimes and on
//! disk too, or only saves time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tandem_runtime::State;
use tokio::{
    sync::watch,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    disk,
    execute::{Done, Job},
    fault::Fault,
    last_words,
    observed::{Busy, Kind, Observed, Probes, Subject, Trouble, earlier, seconds},
    observer::{Progress, Ticket, View},
    plan::{Step, StopReason, plan_pod},
    pod,
    probes::ProbeSet,
    report::{differs, merged},
    resize::{self, Allotted, Need},
    status::{PULL_ERROR_SHOWN_SECONDS, pod_status},
    volumes,
};

/// Volumes made of objects follow them within this time, and half as much again so that pods don't go together.
const REFRESH_SECONDS: i64 = 60;
/// Status patches of one pod: this many at once, then one each `REPORT_PAUSE`.
const REPORTS_AT_ONCE: u32 = 6;
const REPORT_PAUSE: SignedDuration = SignedDuration::from_millis(500);
const REPORT_RETRY_SECONDS_MAX: i64 = 10;
const FUTILE_REPORT_SECONDS_MAX: i64 = 300;

/// What the API, or the cache, wants of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) pod: Arc<Pod>,
    /// The API has no such pod any more.
    pub(crate) gone: bool,
}

/// What a task of the worker came back with.
enum Outcome {
    Step { name: &'static str, result: Result<Done, Fault> },
    Reported { sent: Box<PodStatus>, result: Result<Option<Box<Pod>>, kube::Error> },
}

pub(crate) struct Worker {
    context: Arc<Context>,
    desired: watch::Receiver<Desired>,
    view: watch::Receiver<View>,
    progress: watch::Receiver<Progress>,
    /// Which listing of the runtimes must be there before the next plan.
    needs: Ticket,
    /// The newest object that the API gave, and the status that this worker made last.
    api: Arc<Pod>,
    status: Option<PodStatus>,
    seen: Observed,
    /// The names of the volumes that were made.
    mounted: Option<BTreeSet<String>>,
    /// What the containers were allotted in the last round.
    allotted: Option<Allotted>,
    tasks: JoinSet<Outcome>,
    subjects: HashMap<Id, Option<Subject>>,
    handles: BTreeMap<Subject, AbortHandle>,
    probes: ProbeSet,
    known_probes: Probes,
    reports: Reports,
    refresh_at: Timestamp,
    first_seen: Instant,
    started: bool,
}

/// When the next report may be sent.
struct Reports {
    under_way: bool,
    left: u32,
    refilled: Timestamp,
    failures: u32,
    not_before: Timestamp,
}

impl Worker {
    pub(crate) fn new(context: Arc<Context>, desired: watch::Receiver<Desired>) -> Worker {
        let api = desired.borrow().pod.clone();
        let uid = pod::uid(&api).to_owned();
        let now = context.clock.now();
        // Components alone need not wait for a container runtime that is slow to come up.
        let kinds: &[Kind] =
            if pod::wants_components(&api) { &[Kind::Component] } else { &[Kind::Container, Kind::Component] };
        let known_probes: Probes =
            disk::read_json(&context.directories.probe_cache(&uid)).map(Probes).unwrap_or_default();
        Worker {
            view: context.observer.subscribe(&uid),
            progress: context.observer.progress(),
            needs: context.observer.first(kinds),
            seen: Observed::new(context.facts()),
            probes: ProbeSet::new(context.clone(), known_probes.clone()),
            known_probes,
            reports: Reports { under_way: false, left: REPORTS_AT_ONCE, refilled: now, failures: 0, not_before: now },
            refresh_at: now + seconds(REFRESH_SECONDS + i64::from(uid.bytes().next_back().unwrap_or(0)) % 30),
            first_seen: Instant::now(),
            started: false,
            status: None,
            mounted: None,
            allotted: None,
            tasks: JoinSet::new(),
            subjects: HashMap::new(),
            handles: BTreeMap::new(),
            api,
            desired,
            context,
        }
    }

    /// Works until nothing of the pod is left, or until the agent ends and leaves everything as it is.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> String {
        let uid = pod::uid(&self.api).to_owned();
        loop {
            while let Some(joined) = self.tasks.try_join_next_with_id() {
                self.finish(joined);
            }
            self.take_desired();
            let fresh = self.needs.is_served(&self.progress.borrow_and_update());
            let mut wake = None;
            if fresh {
                match self.round() {
                    Some(next) => wake = next,
                    None => {
                        self.context.observer.unsubscribe(&uid);
                        self.context.room.leave(&uid);
                        return uid;
                    }
                }
            }
            let wake = wake.map(|at| Instant::now() + self.until(at));
            let woken = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return uid,
                changed = self.desired.changed() => if changed.is_err() { return uid },
                changed = self.view.changed() => if changed.is_err() { return uid },
                changed = self.progress.changed(), if !fresh => if changed.is_err() { return uid },
                Some(joined) = self.tasks.join_next_with_id() => self.finish(joined),
                () = self.probes.next() => {}
                () = woken => {}
            }
        }
    }

    fn until(&self, at: Timestamp) -> Duration {
        let left = at.duration_since(self.context.clock.now());
        // A clock that stands still just short of the time must not make this a busy loop.
        Duration::try_from(left).unwrap_or_default().max(Duration::from_millis(1))
    }

    fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        self.seen.gone |= desired.gone;
        if is_newer(&desired.pod, &self.api) {
            if desired.pod.metadata.annotations != self.api.metadata.annotations
                || desired.pod.metadata.labels != self.api.metadata.labels
            {
                self.refresh_at = self.context.clock.now();
            }
            self.api = desired.pod;
        }
    }

    /// One round: everything is read, planned, begun and reported. `None` when nothing is left to do for this pod.
    fn round(&mut self) -> Option<Option<Timestamp>> {
        let now = self.context.clock.now();
        self.seen.sandboxes = self.view.borrow_and_update().to_vec();
        let mut pod = (*self.api).clone();
        pod.status = Some(merged(self.api.status.as_ref(), self.status.as_ref()));
        if pod::deleted(&pod) {
            self.seen.deletion_seen.get_or_insert(now);
        }
        self.read_last_words(&pod);
        let (pod, pending) =
            resize::allot(pod, self.allotted.as_ref(), &self.context.room, Need::of_node(self.context.size));
        self.seen.resize = pending;
        self.allotted = Some(resize::given(&pod));
        let pod = Arc::new(pod);
        self.seen.volumes_ready = self.mounted.as_ref().is_some_and(|made| volumes::are_made(&pod, made));
        self.probes.follow(&pod, &self.seen);
        let plan = plan_pod(&pod, &self.seen, self.probes.states(), now);
        if plan.done {
            return None;
        }
        let mut wake = plan.wake;
        if self.seen.resize.is_some() {
            wake = earlier(wake, now + seconds(resize::RETRY_SECONDS));
        }
        self.begin(plan.steps, &pod);
        let status = pod_status(&pod, &self.seen, self.probes.states(), now);
        self.tell(&pod, &status);
        self.remember(&pod, status);
        if let Some(at) = self.report(now) {
            wake = earlier(wake, at);
        }
        if let Some(at) = self.refresh(&pod, now) {
            wake = earlier(wake, at);
        }
        for trouble in self.seen.troubles.values() {
            let shown = trouble.at + seconds(PULL_ERROR_SHOWN_SECONDS);
            if shown > now {
                wake = earlier(wake, shown);
            }
        }
        Some(wake)
    }

    fn read_last_words(&mut self, pod: &Pod) {
        let ended = self.seen.sandboxes.iter().flat_map(|seen| &seen.sandbox.containers);
        let ended = ended.filter(|container| matches!(container.state, State::Exited { .. }));
        let mut messages = BTreeMap::new();
        for container in ended {
            let known = self.seen.messages.get(&container.id).cloned();
            let message = known.or_else(|| last_words::read(&self.context.directories, pod, container));
            messages.extend(message.map(|message| (container.id.clone(), message)));
        }
        self.seen.messages = messages;
    }

    fn begin(&mut self, steps: Vec<Step>, pod: &Arc<Pod>) {
        if steps.is_empty() {
            return;
        }
        let job = Job { pod: pod.clone(), seen: Arc::new(self.seen.clone()) };
        for step in steps {
            let subject = step.subject();
            if let Step::Cancel(subject) = &step {
                self.cancel(subject);
                continue;
            }
            tracing::debug!(pod = pod::name(pod), namespace = pod::namespace(pod), ?step, "step");
            let (context, job, busy) = (self.context.clone(), job.clone(), step.busy());
            let name = step.name();
            let task = async move { Outcome::Step { name, result: context.execute(&step, &job).await } };
            self.spawn(subject, busy, task);
        }
    }

    fn spawn(&mut self, subject: Subject, busy: Busy, task: impl Future<Output = Outcome> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.subjects.insert(handle.id(), Some(subject.clone()));
        self.seen.busy.insert(subject.clone(), busy);
        self.handles.insert(subject, handle);
    }

    fn cancel(&mut self, subject: &Subject) {
        self.seen.busy.remove(subject);
        if let Some(handle) = self.handles.remove(subject) {
            self.subjects.remove(&handle.id());
            handle.abort();
        }
    }

    fn finish(&mut self, joined: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match joined {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(pod = pod::name(&self.api), %error, "a step of a pod panicked");
                }
                (error.id(), None)
            }
        };
        // A step that was given up may still have come to its end: nobody waits for it any more.
        let Some(subject) = self.subjects.remove(&id) else { return };
        if let Some(subject) = &subject {
            self.seen.busy.remove(subject);
            self.handles.remove(subject);
        }
        match outcome {
            Some(Outcome::Reported { sent, result }) => self.reported(&sent, result),
            Some(Outcome::Step { name, result }) => {
                self.context.metrics.step(name, result.is_ok());
                let Some(subject) = subject else { return };
                match result {
                    Ok(done) => self.done(subject, done),
                    Err(fault) => self.failed(subject, fault),
                }
            }
            None => {
                if let Some(subject) = subject {
                    self.failed(subject, Fault::new("InternalError", "the step did not come to its end"));
                }
            }
        }
    }

    fn done(&mut self, subject: Subject, done: Done) {
        self.seen.troubles.remove(&subject);
        match done {
            Done::Nothing => {}
            Done::Changed(kind) => self.look_again(kind),
            Done::Resolved(name, kind) => drop(self.seen.images.insert(name, kind)),
            Done::Mounted(made) => self.mounted = Some(made),
            Done::SandboxStopped(kind, id) => {
                self.seen.stopped.insert(id);
                self.look_again(kind);
            }
            Done::Stopped(kind, id, why) => {
                use StopReason::{Changed, Liveness, Resized, Startup};
                if matches!(why, Liveness | Startup | Changed | Resized) {
                    self.seen.killed.insert(id);
                }
                self.look_again(kind);
            }
            Done::Resized(given) => self.seen.applied.extend(given),
            Done::Cleaned => self.seen.cleaned = true,
            Done::Confirmed => self.seen.gone = true,
        }
    }

    fn look_again(&mut self, kind: Kind) {
        self.needs = self.needs.and(self.context.observer.ticket(kind));
    }

    fn failed(&mut self, subject: Subject, fault: Fault) {
        tracing::warn!(
            pod = pod::name(&self.api),
            namespace = pod::namespace(&self.api),
            trace = pod::trace(&self.api),
            reason = fault.reason,
            message = fault.message,
            "a step of a pod failed"
        );
        // What a step that failed had made already is found by listing again.
        for kind in [Kind::Container, Kind::Component] {
            self.look_again_after(&subject, kind);
        }
        let count = self.seen.troubles.get(&subject).map_or(1, |trouble| trouble.count.saturating_add(1));
        let at = self.context.clock.now();
        self.seen.troubles.insert(subject, Trouble { reason: fault.reason, message: fault.message, at, count });
    }

    fn look_again_after(&mut self, subject: &Subject, kind: Kind) {
        let concerns = match subject {
            Subject::Sandbox(of) => *of == kind,
            Subject::Container(name) => self.seen.image_kind(name).is_some_and(|image| image.kind == kind),
            Subject::Volumes | Subject::Remains(_) | Subject::Resources | Subject::Pod => false,
        };
        if concerns {
            self.look_again(kind);
        }
    }

    /// Events about what a container came to wait for.
    fn tell(&self, pod: &Pod, status: &PodStatus) {
        let reason = |status: Option<&PodStatus>, name: &str| {
            let status = status?;
            let lists =
                [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
            let found = lists.into_iter().flatten().flatten().find(|container| container.name == name)?;
            found.state.as_ref()?.waiting.as_ref()?.reason.clone()
        };
        for (_, spec) in pod::all_containers(pod) {
            let (before, after) = (reason(self.status.as_ref(), &spec.name), reason(Some(status), &spec.name));
            if before == after {
                continue;
            }
            let name = Some(spec.name.as_str());
            match after.as_deref() {
                Some("CrashLoopBackOff") => {
                    let message =
                        format!("Back-off restarting failed container {} in pod {}", spec.name, pod::full_name(pod));
                    self.context.events.warning(pod, name, "BackOff", message);
                }
                Some("ImagePullBackOff") => {
                    let image = spec.image.as_deref().unwrap_or_default();
                    self.context.events.normal(pod, name, "BackOff", format!("Back-off pulling image \"{image}\""));
                    self.context.events.warning(pod, name, "Failed", "Error: ImagePullBackOff");
                }
                _ => {}
            }
        }
    }

    /// Keeps what the next start of the agent needs, and only when it changed.
    fn remember(&mut self, pod: &Arc<Pod>, status: PodStatus) {
        let directories = &self.context.directories;
        let uid = pod::uid(pod);
        if !self.seen.gone && directories.pod(uid).is_dir() {
            let changed = self.status.as_ref() != Some(&status);
            if changed {
                // As the API wants it, not as it is run.
                let cached = Pod { status: Some(status.clone()), ..(*self.api).clone() };
                write_cache(&directories.pod_cache(uid), &cached);
            }
            if *self.probes.states() != self.known_probes {
                self.known_probes = self.probes.states().clone();
                write_cache(&directories.probe_cache(uid), &self.known_probes.0);
            }
        }
        if !self.started && pod::condition_is_true(Some(&status), "ContainersReady") {
            self.started = true;
            self.context.metrics.pod_started(self.first_seen.elapsed());
        }
        self.status = Some(status);
    }

    /// Sends the status if the API has another; gives the time to look again.
    fn report(&mut self, now: Timestamp) -> Option<Timestamp> {
        let status = self.status.clone()?;
        if self.seen.gone || self.reports.under_way || !differs(self.api.status.as_ref(), &status) {
            return None;
        }
        if let Some(at) = self.reports.take(now) {
            return Some(at);
        }
        self.reports.under_way = true;
        let (context, api) = (self.context.clone(), self.api.clone());
        let task = async move {
            let result = context.report(&api, &status).await.map(|pod| pod.map(Box::new));
            Outcome::Reported { sent: Box::new(status), result }
        };
        let handle = self.tasks.spawn(task);
        self.subjects.insert(handle.id(), None);
        None
    }

    fn reported(&mut self, sent: &PodStatus, result: Result<Option<Box<Pod>>, kube::Error>) {
        self.reports.under_way = false;
        let now = self.context.clock.now();
        match result {
            Ok(Some(pod)) if !differs(pod.status.as_ref(), sent) => {
                self.reports.failures = 0;
                // The watch may have been faster.
                if is_newer(&pod, &self.api) {
                    self.api = Arc::new(*pod);
                }
            }
            // Nothing came of it: the pod is another's or gone, which the watch will tell, or the server keeps
            // something that is not wanted. Asking for it all the time would not help.
            Ok(_) => self.reports.put_off(now, FUTILE_REPORT_SECONDS_MAX),
            Err(error) => {
                self.reports.put_off(now, REPORT_RETRY_SECONDS_MAX);
                tracing::debug!(pod = pod::name(&self.api), %error, "the status of a pod is not reported yet");
            }
        }
    }

    /// Brings volumes made of objects up to date when it is time; gives the next time.
    fn refresh(&mut self, pod: &Arc<Pod>, now: Timestamp) -> Option<Timestamp> {
        let runs =
            self.seen.volumes_ready && !self.seen.gone && !pod::deleted(pod) && self.seen.running().next().is_some();
        if !runs || self.seen.is_busy(&Subject::Volumes) {
            return None;
        }
        if now < self.refresh_at {
            return Some(self.refresh_at);
        }
        self.refresh_at = now + seconds(REFRESH_SECONDS);
        let (context, pod, seen) = (self.context.clone(), pod.clone(), self.seen.clone());
        self.spawn(Subject::Volumes, Busy::Preparing, async move {
            if let Err(why) = context.volumes.refresh(&pod, &context.placement(&seen)).await {
                tracing::warn!(
                    pod = pod::name(&pod),
                    namespace = pod::namespace(&pod),
                    why,
                    "a volume is not up to date"
                );
            }
            Outcome::Step { name: "refresh", result: Ok(Done::Nothing) }
        });
        Some(self.refresh_at)
    }
}

impl Reports {
    /// Waits longer after each time in a row.
    fn put_off(&mut self, now: Timestamp, seconds_max: i64) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + seconds((1_i64 << self.failures.min(16)).min(seconds_max));
    }

    /// Takes one report from the allowance, or says when there will be one.
    fn take(&mut self, now: Timestamp) -> Option<Timestamp> {
        while self.refilled + REPORT_PAUSE <= now && self.left < REPORTS_AT_ONCE {
            self.refilled += REPORT_PAUSE;
            self.left += 1;
        }
        if self.left == REPORTS_AT_ONCE {
            self.refilled = now;
        }
        if now < self.not_before {
            return Some(self.not_before);
        }
        if self.left == 0 {
            return Some(self.refilled + REPORT_PAUSE);
        }
        self.left -= 1;
        None
    }
}

fn write_cache<T: serde::Serialize>(path: &std::path::Path, value: &T) {
    if let Err(error) = disk::write_json(path, value) {
        tracing::warn!(path = %path.display(), %error, "cannot remember a pod");
    }
}

/// Revisions are numbers that only grow; an object without one is as new as any.
fn is_newer(candidate: &Pod, current: &Pod) -> bool {
    let revision = |pod: &Pod| pod.metadata.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    match (revision(candidate), revision(current)) {
        (Some(candidate), Some(current)) => candidate > current,
        _ => true,
    }
}

#[cfg(test)]
mod tests;
