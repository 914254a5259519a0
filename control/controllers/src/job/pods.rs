//! Which pods come and go, and what a new one looks like.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::{
    FINALIZER, Indexes, Round,
    indexes::{FAILURES, Failures, IGNORED, INDEX, index},
};
use crate::{object, pod, ranking};

/// Pods that one plan creates or deletes; the next plan goes on from there.
const BURST: usize = 500;
/// The wait after the first failure; it doubles with each further one since the last success.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Hostnames are no longer than a DNS label.
const HOSTNAME_MAX: usize = 63;

#[derive(Default)]
pub(super) struct Steps<'a> {
    pub(super) remove: Vec<&'a Arc<Pod>>,
    /// One entry a pod, with its index in an Indexed Job.
    pub(super) create: Vec<Option<i32>>,
    pub(super) wait: Option<Duration>,
}

pub(super) fn manage<'a>(round: &Round<'a>, succeeded: usize, indexes: Option<&Indexes>) -> Steps<'a> {
    let active = round.active();
    if round.is_suspended() {
        return Steps { remove: active.into_iter().take(BURST).collect(), ..Steps::default() };
    }
    let wanted = wanted(round, active.len(), succeeded, indexes);
    let remove = surplus(round, active.clone(), wanted);
    if !remove.is_empty() {
        return Steps { remove, ..Steps::default() };
    }
    let waiting = if round.replaces_only_failed() { round.terminating() } else { 0 };
    let missing = wanted.saturating_sub(active.len() + waiting).min(BURST);
    if missing == 0 {
        return Steps::default();
    }
    match indexes {
        Some(indexes) if indexes.has_limit_each() => due_indexes(round, indexes, missing),
        _ => {
            let wait = backoff(round);
            if !wait.is_zero() {
                return Steps { wait: Some(wait), ..Steps::default() };
            }
            let create = match indexes {
                Some(indexes) => indexes.pending(round).take(missing).map(Some).collect(),
                None => vec![None; missing],
            };
            Steps { create, ..Steps::default() }
        }
    }
}

fn wanted(round: &Round<'_>, active: usize, succeeded: usize, indexes: Option<&Indexes>) -> usize {
    let parallelism = usize::try_from(round.parallelism()).unwrap_or(0);
    match round.completions() {
        // As soon as one has succeeded, no others are started.
        None if succeeded > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let over = succeeded + indexes.map_or(0, Indexes::failed);
            usize::try_from(completions).unwrap_or(0).saturating_sub(over).min(parallelism)
        }
    }
}

/// First those whose index is taken, done or not the Job's, then those that have done least.
fn surplus<'a>(round: &Round<'a>, mut active: Vec<&'a Arc<Pod>>, wanted: usize) -> Vec<&'a Arc<Pod>> {
    ranking::rank(&mut active, &std::collections::HashMap::new(), round.now);
    let least = active.len().saturating_sub(wanted);
    let (mut remove, mut rest) = (Vec::new(), Vec::new());
    if round.is_indexed() {
        let mut taken = BTreeSet::new();
        for pod in active.into_iter().rev() {
            match index(round, pod) {
                Some(index) if taken.insert(index) => rest.insert(0, pod),
                _ => remove.push(pod),
            }
        }
    } else {
        rest = active;
    }
    let more = least.saturating_sub(remove.len());
    remove.extend(rest.into_iter().take(more));
    remove.truncate(BURST);
    remove
}

/// Each index waits for itself. Once there are enough no others are looked at: there is no room for them.
fn due_indexes<'a>(round: &Round<'a>, indexes: &Indexes, missing: usize) -> Steps<'a> {
    let mut steps = Steps::default();
    for index in indexes.pending(round) {
        if steps.create.len() == missing {
            break;
        }
        let failures = indexes.failures(index).unwrap_or_default();
        let wait = wait(failures.counted + failures.ignored, failures.ended, round.now);
        if !wait.is_zero() {
            steps.wait = Some(steps.wait.map_or(wait, |other| other.min(wait)));
        } else {
            steps.create.push(Some(index));
        }
    }
    steps
}

/// How long no pod is made, because of the failures since the last success.
///
/// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-backoff-failure-policy>
fn backoff(round: &Round<'_>) -> Duration {
    let succeeded = round.pods.iter().filter(|pod| pod::phase(pod) == "Succeeded").map(|pod| pod::ended(pod)).max();
    let failed = round.pods.iter().filter(|pod| round.is_failed(pod)).map(|pod| pod::ended(pod));
    let since: Vec<Timestamp> = failed.filter(|ended| succeeded.is_none_or(|success| *ended > success)).collect();
    let Some(last) = since.iter().max() else { return Duration::ZERO };
    wait(i32::try_from(since.len()).unwrap_or(i32::MAX), *last, round.now)
}

fn wait(failures: i32, last: Timestamp, now: Timestamp) -> Duration {
    let Ok(doublings) = u32::try_from(failures - 1) else { return Duration::ZERO };
    let delay = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(BACKOFF_MAX);
    object::until(object::after(last, i64::try_from(delay.as_secs()).unwrap_or(i64::MAX)), now)
}

/// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode>
pub(super) fn pod(round: &Round<'_>, index: Option<i32>, failures: Option<Failures>) -> Pod {
    let (meta, template) = (&round.job.metadata, &round.spec.template);
    let name = object::name(meta);
    let prefix = index.map_or_else(|| name.to_owned(), |index| format!("{name}-{index}"));
    let owner = object::controller_reference(round.job);
    let mut pod = pod::from_template(template, object::namespace(meta), &prefix, owner);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let Some(index) = index else { return pod };
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(failures) = failures {
        annotations.insert(FAILURES.to_owned(), failures.counted.to_string());
        if failures.ignored > 0 {
            annotations.insert(IGNORED.to_owned(), failures.ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    if prefix.len() <= HOSTNAME_MAX {
        spec.hostname = Some(prefix);
    }
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(tell_index);
    pod
}

fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..Default::default() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    env.push(EnvVar { name: INDEX_VARIABLE.to_owned(), value_from: Some(source), value: None });
}
