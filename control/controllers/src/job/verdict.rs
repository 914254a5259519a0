//! When a Job is over: first a criterion, then, when all its pods have ended, the end itself.
//!
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-apps/3998-job-success-completion-policy>

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use tandem_client::events::{self, Note, Severity};

use super::{Indexes, Round, Tally, policy};
use crate::{object, pod};

pub(super) const SUCCESS: &str = "SuccessCriteriaMet";
const FAILURE: &str = "FailureTarget";

pub(super) fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(object::time(now)),
        last_transition_time: Some(object::time(now)),
    }
}

pub(super) fn existing(status: &JobStatus) -> Option<JobCondition> {
    super::condition(status, SUCCESS).or_else(|| super::condition(status, FAILURE)).cloned()
}

pub(super) fn is_failure(criterion: &JobCondition) -> bool {
    criterion.type_ == FAILURE
}

/// What ends the Job before it has all its completions, the first in Kubernetes' order.
pub(super) fn reached(round: &Round<'_>, tally: &Tally, indexes: Option<&Indexes>) -> Option<JobCondition> {
    let (spec, now) = (round.spec, round.now);
    let failed = |reason: &str, message: &str| Some(condition(FAILURE, "True", reason, message, now));
    if let Some(message) = policy::fails_job(round) {
        return failed("PodFailurePolicy", &message);
    }
    let limit = usize::try_from(spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
    if tally.failed() > limit || restarted_too_often(round, limit) {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline_in(round, &tally.status).is_some_and(|left| left.is_zero()) {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let indexes = indexes?;
    if spec.backoff_limit_per_index.is_some() {
        let max = spec.max_failed_indexes.and_then(|max| usize::try_from(max).ok());
        if max.is_some_and(|max| indexes.failed() > max) {
            return failed(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            );
        }
        let completions = round.completions().and_then(|completions| usize::try_from(completions).ok()).unwrap_or(0);
        if indexes.failed() > 0 && indexes.failed() + indexes.succeeded() >= completions {
            return failed("FailedIndexes", "Job has failed indexes");
        }
    }
    let rule = indexes.matched_success_rule(spec)?;
    Some(condition(SUCCESS, "True", "SuccessPolicy", &format!("Matched rules at index {rule}"), now))
}

/// Containers that the node restarts in place count against the limit, too.
fn restarted_too_often(round: &Round<'_>, limit: usize) -> bool {
    let policy = round.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = round.pods.iter().filter(|pod| matches!(pod::phase(pod), "Running" | "Pending"));
    let restarts: i64 = running
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
        .map(|container| i64::from(container.restart_count))
        .sum();
    let restarts = usize::try_from(restarts).unwrap_or(0);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// How long the Job may still run.
pub(super) fn deadline_in(round: &Round<'_>, status: &JobStatus) -> Option<Duration> {
    let seconds = round.spec.active_deadline_seconds.filter(|_| !round.is_suspended())?;
    let started = status.start_time.as_ref()?.0;
    Some(object::until(object::after(started, seconds), round.now))
}

/// Without a number of completions one success is enough, and the others may end.
pub(super) fn is_complete(round: &Round<'_>, succeeded: usize) -> bool {
    let idle = round.active().is_empty();
    match round.completions() {
        None => succeeded > 0 && idle,
        Some(wanted) => succeeded >= usize::try_from(wanted).unwrap_or(0) && idle,
    }
}

pub(super) fn completed(now: Timestamp) -> JobCondition {
    condition(SUCCESS, "True", "CompletionsReached", "Reached expected number of succeeded pods", now)
}

pub(super) fn enter(status: &mut JobStatus, criterion: &JobCondition) {
    if super::condition(status, &criterion.type_).is_none() {
        status.conditions.get_or_insert_default().push(criterion.clone());
    }
}

pub(super) fn finish(job: &Job, status: &mut JobStatus, criterion: &JobCondition, now: Timestamp) -> Note {
    let (reason, message) =
        (criterion.reason.clone().unwrap_or_default(), criterion.message.clone().unwrap_or_default());
    let kind = if is_failure(criterion) { "Failed" } else { "Complete" };
    status.conditions.get_or_insert_default().push(condition(kind, "True", &reason, &message, now));
    if kind == "Failed" {
        return Note::new(events::reference(job), Severity::Warning, &reason, message);
    }
    status.completion_time = Some(object::time(now));
    Note::new(events::reference(job), Severity::Normal, "Completed", "Job completed")
}
