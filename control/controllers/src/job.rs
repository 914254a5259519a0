//! Job: pods that run until enough of them have succeeded, or too much has failed.
//!
//! ```text
//!  plan ─┬─ tally: what has ended since, for good (tally.rs) ─> counts
//!        ├─ verdict: policy, backoff limit, deadline, indexes, completions ─> criterion (verdict.rs, policy.rs)
//!        ├─ criterion ─> all pods go             no criterion ─> too many go, missing ones come (pods.rs, indexes.rs)
//!        └─ status; when all pods have ended ─> Complete or Failed
//! ```
//! Pods are held by a finalizer until they are counted, so that none is counted twice or never:
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-apps/2307-job-tracking-without-lingering-pods>.

mod indexes;
mod pods;
mod policy;
mod ranges;
mod tally;
mod verdict;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobSpec, JobStatus},
    core::v1::Pod,
};
use kube::core::Selector;
use tandem_client::events::{self, Note, Severity};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Report},
    object,
    ownership::{self, controller_key},
    pod,
};
use indexes::Indexes;
use tally::{FINALIZER, Tally};

pub(crate) const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const OWN_NAME: &str = "kubernetes.io/job-controller";
const SUSPENDED: &str = "Suspended";

pub(crate) struct Jobs;

#[derive(Debug)]
pub(crate) struct View {
    job: Arc<Job>,
    owned: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    /// Pods that an earlier Job of this name left behind.
    leftovers: Vec<Arc<Pod>>,
}

impl Controller for Jobs {
    type Parent = Job;
    type View = View;

    const NAME: &'static str = "job";
    const READS: &'static [&'static str] = &["Job", "Pod"];

    fn store(cache: &Cache) -> &Store<Job> {
        &cache.jobs
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Job(delta) => vec![delta.key()],
            Change::Pod(delta) => {
                let mut keys = ownership::woken(&cache.jobs, delta, wants);
                let orphan = delta.new.as_ref().filter(|pod| object::controller_of(&pod.metadata).is_none());
                keys.extend(orphan.and_then(|pod| named_job(pod)));
                keys
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, job: Arc<Job>) -> Result<View, Error> {
        let (cache, meta) = (input.cache, &job.metadata);
        let owned = cache.pods.controlled_by(object::uid(meta));
        let orphans = cache.pods.orphans(object::namespace(meta));
        let mut leftovers = leftovers(cache, &Key::of(meta), Some(object::uid(meta)));
        let selector = selector(&job);
        leftovers.retain(|pod| !object::matches(selector.as_ref(), &pod.metadata));
        Ok(View { job, owned, orphans, leftovers })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }

    /// Nobody counts the pods of a Job that is gone: their finalizer would keep them for ever.
    fn absent(&self, cache: &Cache, key: &Key) -> Plan {
        Plan::of(leftovers(cache, key, None).iter().map(tally::release).collect())
    }
}

/// The Job that a pod without a controller says it is from, when something of it is left to do.
fn named_job(pod: &Pod) -> Option<Key> {
    let name = pod.metadata.labels.as_ref()?.get(JOB_NAME)?;
    tally::is_held(pod).then(|| Key::new(object::namespace(&pod.metadata), name))
}

/// Pods of a Job with this name, but another uid, that still have the finalizer.
fn leftovers(cache: &Cache, key: &Key, uid: Option<&str>) -> Vec<Arc<Pod>> {
    let mut pods = cache.pods.in_namespace(&key.namespace);
    pods.retain(|pod| {
        let owner = object::controller_of(&pod.metadata);
        let left = match owner {
            Some(owner) => controller_key::<Job, Pod>(pod).as_ref() == Some(key) && uid != Some(owner.uid.as_str()),
            None => named_job(pod).as_ref() == Some(key),
        };
        left && tally::is_held(pod)
    });
    pods
}

fn wants(parent: &Job, pod: &Pod) -> bool {
    object::matches(selector(parent).as_ref(), &pod.metadata)
}

fn selector(job: &Job) -> Option<Selector> {
    object::own_selector(job.spec.as_ref()?.selector.as_ref()?)
}

pub(crate) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind && condition.status == "True")
}

/// The condition with which a Job has ended.
pub(crate) fn finished(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    condition(status, "Complete").or_else(|| condition(status, "Failed"))
}

/// One Job and what is known of its pods.
struct Round<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: Vec<&'a Arc<Pod>>,
    now: Timestamp,
}

impl<'a> Round<'a> {
    fn completions(&self) -> Option<i32> {
        self.spec.completions
    }

    fn parallelism(&self) -> i32 {
        self.spec.parallelism.unwrap_or(1)
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend.unwrap_or(false)
    }

    /// Pods on their way out are replaced only once they have ended.
    ///
    /// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-replacement-policy>
    fn replaces_only_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    fn is_failed(&self, pod: &Pod) -> bool {
        match pod::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => object::is_deleting(&pod.metadata) && !self.replaces_only_failed(),
        }
    }

    fn active(&self) -> Vec<&'a Arc<Pod>> {
        self.pods.iter().copied().filter(|pod| pod::is_active(pod)).collect()
    }

    fn terminating(&self) -> usize {
        self.pods.iter().filter(|pod| object::is_deleting(&pod.metadata) && !pod::is_terminal(pod)).count()
    }
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let job = &*view.job;
    let Some(spec) = &job.spec else { return Plan::default() };
    if spec.managed_by.as_deref().is_some_and(|manager| manager != OWN_NAME) {
        return Plan::default();
    }
    let claims = ownership::claim(job, selector(job).as_ref(), &view.owned, view.orphans.iter());
    let mut ownership = claims.actions;
    ownership.extend(view.leftovers.iter().map(tally::release));
    if !ownership.is_empty() {
        return Plan::of(ownership);
    }
    if finished(job).is_some() {
        return Plan::of(claims.kept.into_iter().filter(|pod| tally::is_held(pod)).map(tally::release).collect());
    }
    advance(&Round { job, spec, pods: claims.kept, now })
}

fn advance(round: &Round<'_>) -> Plan {
    let (job, now) = (round.job, round.now);
    let mut plan = Plan::default();
    let mut tally = Tally::of(round);
    let indexes = round.is_indexed().then(|| Indexes::of(round));
    let succeeded = indexes.as_ref().map_or(tally.succeeded(), Indexes::succeeded);
    if tally.status.start_time.is_none() && !round.is_suspended() {
        tally.status.start_time = Some(object::time(now));
    }
    let mut criterion = verdict::existing(&tally.status);
    if criterion.is_none() {
        criterion = verdict::reached(round, &tally, indexes.as_ref());
    }
    let mut notes = Vec::new();
    let mut removed = Vec::new();
    if criterion.is_some() {
        removed = round.active();
    } else if !object::is_deleting(&job.metadata) {
        notes.extend(suspend_or_resume(round, &mut tally.status));
        let steps = pods::manage(round, succeeded, indexes.as_ref());
        plan.actions.extend(steps.create.iter().map(|index| create(round, *index, indexes.as_ref())));
        removed = steps.remove;
        if let Some(wait) = steps.wait {
            plan.requeue_after(wait);
        }
        if steps.create.is_empty() && verdict::is_complete(round, succeeded) {
            criterion = Some(verdict::completed(now));
        }
    }
    if let Some(left) = verdict::deadline_in(round, &tally.status).filter(|_| criterion.is_none()) {
        plan.requeue_after(left);
    }
    plan.actions.extend(removed.iter().map(|pod| delete(job, pod)));
    let releases = tally.count(round, &removed, criterion.as_ref(), indexes.as_ref());
    let ready = round
        .active()
        .iter()
        .filter(|pod| pod::is_ready(pod) && !removed.iter().any(|gone| gone.metadata.uid == pod.metadata.uid))
        .count();
    let (active, terminating) = (round.active().len() - removed.len(), round.terminating() + removed.len());
    let mut status = tally.status;
    if let Some(criterion) = &criterion {
        verdict::enter(&mut status, criterion);
        let is_settled = active == 0 && terminating == 0 && releases.is_empty() && !tally::has_uncounted(&status);
        if is_settled && !round.pods.iter().any(|pod| tally::is_held(pod)) {
            notes.push(verdict::finish(job, &mut status, criterion, now));
        }
    }
    status.active = some(active);
    status.ready = Some(count(ready));
    status.terminating = Some(count(terminating));
    if let Some(indexes) = &indexes {
        indexes.write(&mut status);
    }
    if job.status.as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(Job { status: Some(status), ..job.clone() }));
    }
    plan.actions.extend(releases.into_iter().map(tally::release));
    plan.actions.extend(notes.into_iter().map(Action::Event));
    plan
}

/// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#suspending-a-job>
fn suspend_or_resume(round: &Round<'_>, status: &mut JobStatus) -> Option<Note> {
    let before = status.conditions.iter().flatten().find(|condition| condition.type_ == SUSPENDED);
    let was = before.is_some_and(|condition| condition.status == "True");
    let (state, reason, message) = match (round.is_suspended(), was) {
        (true, false) => ("True", "JobSuspended", "Job suspended"),
        (false, true) => ("False", "JobResumed", "Job resumed"),
        _ => return None,
    };
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != SUSPENDED);
    conditions.push(verdict::condition(SUSPENDED, state, reason, message, round.now));
    if state == "False" {
        // The deadline counts from when it runs again.
        status.start_time = Some(object::time(round.now));
    }
    let event = if state == "True" { SUSPENDED } else { "Resumed" };
    Some(Note::new(events::reference(round.job), Severity::Normal, event, message))
}

fn create(round: &Round<'_>, index: Option<i32>, indexes: Option<&Indexes>) -> Action {
    let failures = index.zip(indexes).and_then(|(index, indexes)| indexes.failures(index));
    let pod = pods::pod(round, index, failures);
    Action::Create { object: Box::new(pod), report: Some(report(round.job)) }
}

fn delete(job: &Job, pod: &Pod) -> Action {
    Action::Delete(Deletion { report: Some(report(job)), ..Deletion::of(pod) })
}

fn report(job: &Job) -> Report {
    Report { regarding: events::reference(job), noun: "pod" }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Kubernetes leaves zeros out.
fn some(number: usize) -> Option<i32> {
    (number != 0).then(|| count(number))
}

#[cfg(test)]
mod tests;
