//! CronJob: a Job at each time of a schedule.
//!
//! A Job is named after the minute that it is for, so that none is made twice, whatever is lost between its creation
//! and the status that tells of it: <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>.

mod schedule;

use std::{sync::Arc, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::PropagationPolicy;
use tandem_client::events::{self, Note, Severity};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Report},
    job, object,
    ownership::controller_key,
};
use schedule::{Due, Schedule};

/// The time that a Job was made for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A wake-up comes this much after the time it is for, never before.
const MARGIN: Duration = Duration::from_millis(100);
/// More times than this are only missed when clocks jump or nobody led for long: worth telling.
const MANY_MISSED: i64 = 100;

pub(crate) struct CronJobs;

#[derive(Debug)]
pub(crate) struct View {
    cron: Arc<CronJob>,
    jobs: Vec<Arc<Job>>,
}

impl Controller for CronJobs {
    type Parent = CronJob;
    type View = View;

    const NAME: &'static str = "cronjob";
    const READS: &'static [&'static str] = &["CronJob", "Job"];

    fn store(cache: &Cache) -> &Store<CronJob> {
        &cache.cron_jobs
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::CronJob(delta) => vec![delta.key()],
            Change::Job(delta) => {
                let mut keys: Vec<Key> =
                    delta.versions().filter_map(|job| controller_key::<CronJob, Job>(job)).collect();
                keys.dedup();
                keys
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, cron: Arc<CronJob>) -> Result<View, Error> {
        let jobs = input.cache.jobs.controlled_by(object::uid(&cron.metadata));
        Ok(View { cron, jobs })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let cron = &*view.cron;
    let spec = &cron.spec;
    let mut plan = Plan::default();
    let (mut status, mut notes) = status(view);
    let mut start = None;
    if !object::is_deleting(&cron.metadata) {
        plan.actions.extend(beyond_history(view, spec));
        if !spec.suspend.unwrap_or(false) {
            match times(cron, spec) {
                Ok((zone, schedule)) => {
                    let since = since(cron, spec, &status, now);
                    let due = since.and_then(|since| schedule.due(since, now));
                    start = due.and_then(|due| start_at(view, spec, &due, &mut notes)).map(|at| (at, zone));
                    if let Some(next) = schedule.next(now) {
                        plan.requeue_after(object::until(next, now).saturating_add(MARGIN));
                    }
                }
                Err((reason, message)) => notes.push(note(cron, Severity::Warning, reason, message)),
            }
        }
    }
    let job = start.map(|(at, zone)| (at, new_job(cron, spec, at, &zone)));
    if let Some((at, _)) = &job {
        status.last_schedule_time = Some(object::time(*at));
    }
    let is_made = |job: &Job| view.jobs.iter().any(|made| made.metadata.name == job.metadata.name);
    match job.filter(|(_, job)| !is_made(job)) {
        Some((_, job)) => {
            plan.actions.extend(replaced(view, spec, &mut status));
            plan.actions.push(Action::Create { object: Box::new(job), report: Some(report(cron)) });
            // Only a Job that was made is told of; a status alone would be written after a failure, too.
            let object = Box::new(CronJob { status: Some(status), ..cron.clone() });
            plan.actions.push(Action::Put { subresource: "status", object });
        }
        None if cron.status.as_ref() != Some(&status) => {
            plan.actions.push(Action::set_status(CronJob { status: Some(status), ..cron.clone() }));
        }
        None => {}
    }
    plan.actions.extend(notes.into_iter().map(Action::Event));
    plan
}

/// What the Jobs say: who runs, when one was last made, when one last succeeded.
fn status(view: &View) -> (CronJobStatus, Vec<Note>) {
    let cron = &*view.cron;
    let mut status = cron.status.clone().unwrap_or_default();
    let mut notes = Vec::new();
    for known in status.active.iter().flatten() {
        let name = known.name.clone().unwrap_or_default();
        match view.jobs.iter().find(|job| job.metadata.uid == known.uid) {
            None => notes.push(note(cron, Severity::Normal, "MissingJob", format!("Active job went missing: {name}"))),
            Some(job) => {
                if let Some(condition) = job::finished(job) {
                    let message = format!("Saw completed job: {name}, condition: {}", condition.type_);
                    notes.push(note(cron, Severity::Normal, "SawCompletedJob", message));
                }
            }
        }
    }
    let active: Vec<ObjectReference> = running(view).map(|job| reference(job)).collect();
    status.active = (!active.is_empty()).then_some(active);
    let made = view.jobs.iter().filter_map(|job| scheduled(job)).max().map(object::time);
    status.last_schedule_time = status.last_schedule_time.max(made);
    let succeeded = view.jobs.iter().filter_map(|job| job.status.as_ref()?.completion_time.clone()).max();
    status.last_successful_time = status.last_successful_time.max(succeeded);
    (status, notes)
}

/// The Jobs that it made and that have not ended. One that a person made from its template is not among them.
fn running(view: &View) -> impl Iterator<Item = &Arc<Job>> {
    view.jobs.iter().filter(|job| scheduled(job).is_some() && job::finished(job).is_none())
}

fn scheduled(job: &Job) -> Option<Timestamp> {
    object::annotation(&job.metadata, SCHEDULED)?.parse().ok()
}

fn reference(job: &Job) -> ObjectReference {
    let ObjectReference { api_version, kind, name, namespace, uid, resource_version, .. } = events::reference(job);
    ObjectReference { api_version, kind, name, namespace, uid, resource_version, field_path: None }
}

/// The clock and the times of it, or the Event that says why there are none.
fn times(cron: &CronJob, spec: &CronJobSpec) -> Result<(TimeZone, Schedule), (&'static str, String)> {
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => {
            TimeZone::get(name).map_err(|error| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}")))?
        }
    };
    let schedule = Schedule::parse(&spec.schedule, &zone).map_err(|error| {
        let name = object::name(&cron.metadata);
        ("UnparseableSchedule", format!("unparseable schedule: {:?} of {name}: {error}", spec.schedule))
    })?;
    Ok((zone, schedule))
}

/// From when on a time can be due: nothing from before the last one, and nothing that is too late by now.
fn since(cron: &CronJob, spec: &CronJobSpec, status: &CronJobStatus, now: Timestamp) -> Option<Timestamp> {
    let created = cron.metadata.creation_timestamp.as_ref();
    let since = status.last_schedule_time.as_ref().or(created)?.0;
    let deadline = spec.starting_deadline_seconds.map(|seconds| object::after(now, -seconds));
    Some(deadline.map_or(since, |deadline| deadline.max(since)))
}

fn start_at(view: &View, spec: &CronJobSpec, due: &Due, notes: &mut Vec<Note>) -> Option<Timestamp> {
    let cron = &*view.cron;
    if due.missed > MANY_MISSED {
        let message = format!(
            "too many missed start times: {}. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
            due.missed
        );
        notes.push(note(cron, Severity::Warning, "TooManyMissedTimes", message));
    }
    if spec.concurrency_policy.as_deref() == Some("Forbid") && running(view).next().is_some() {
        let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
        notes.push(note(cron, Severity::Normal, "JobAlreadyActive", message.to_owned()));
        return None;
    }
    Some(due.at)
}

fn replaced(view: &View, spec: &CronJobSpec, status: &mut CronJobStatus) -> Vec<Action> {
    if spec.concurrency_policy.as_deref() != Some("Replace") {
        return Vec::new();
    }
    status.active = None;
    running(view).filter(|job| !object::is_deleting(&job.metadata)).map(|job| delete(&view.cron, job)).collect()
}

/// Ended Jobs beyond the history that the user wants to keep, the oldest first.
fn beyond_history(view: &View, spec: &CronJobSpec) -> Vec<Action> {
    let limits = [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    let mut actions = Vec::new();
    for (kind, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let ended = |job: &&Arc<Job>| job::finished(job).is_some_and(|condition| condition.type_ == kind);
        let mut jobs: Vec<&Arc<Job>> =
            view.jobs.iter().filter(ended).filter(|job| !object::is_deleting(&job.metadata)).collect();
        jobs.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.clone());
            (started, job.metadata.name.clone())
        });
        let surplus = jobs.len().saturating_sub(limit);
        actions.extend(jobs.into_iter().take(surplus).map(|job| delete(&view.cron, job)));
    }
    actions
}

fn delete(cron: &CronJob, job: &Job) -> Action {
    let propagation = Some(PropagationPolicy::Background);
    Action::Delete(Deletion { propagation, report: Some(report(cron)), ..Deletion::of(job) })
}

fn report(cron: &CronJob) -> Report {
    Report { regarding: events::reference(cron), noun: "job" }
}

fn note(cron: &CronJob, severity: Severity, reason: &str, message: String) -> Note {
    Note::new(events::reference(cron), severity, reason, message)
}

fn new_job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp, zone: &TimeZone) -> Job {
    const MINUTE: i64 = 60;
    let template = &spec.job_template;
    let from = template.metadata.clone().unwrap_or_default();
    let mut annotations = from.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), local(at, zone));
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", object::name(&cron.metadata), at.as_second() / MINUTE)),
            namespace: cron.metadata.namespace.clone(),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![object::controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// RFC 3339 in the time zone of the schedule.
fn local(at: Timestamp, zone: &TimeZone) -> String {
    let there = at.to_zoned(zone.clone());
    let format = if there.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    there.strftime(format).to_string()
}

#[cfg(test)]
mod tests;
