//! Indexed Jobs: which indexes are done, which have failed for good, which have failed so far.
//!
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-apps/3850-backoff-limits-per-index-for-indexed-jobs>

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    batch::v1::{JobSpec, JobStatus},
    core::v1::Pod,
};

use super::{Round, policy, ranges::Ranges, some};
use crate::{object, pod};

pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// How often an index has failed until its last pod ended, and which pod that was.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    pub(super) counted: i32,
    pub(super) ignored: i32,
    pub(super) ended: jiff::Timestamp,
    uid: String,
}

pub(super) struct Indexes {
    succeeded: Ranges,
    /// Only with a limit for each index.
    failed: Option<Ranges>,
    /// The indexes that may run again, by their last failure.
    failures: BTreeMap<i32, Failures>,
}

impl Indexes {
    pub(super) fn of(round: &Round<'_>) -> Indexes {
        let status = round.job.status.clone().unwrap_or_default();
        let below = round.completions().unwrap_or(0);
        let mut succeeded = Ranges::parse(status.completed_indexes.as_deref(), below);
        let done = round.pods.iter().filter(|pod| pod::phase(pod) == "Succeeded");
        done.filter_map(|pod| index(round, pod)).for_each(|index| succeeded.insert(index));
        let Some(limit) = round.spec.backoff_limit_per_index else {
            return Indexes { succeeded, failed: None, failures: BTreeMap::new() };
        };
        let mut failed = Ranges::parse(status.failed_indexes.as_deref(), below);
        let mut failures: BTreeMap<i32, Failures> = BTreeMap::new();
        for pod in round.pods.iter().filter(|pod| round.is_failed(pod)) {
            let Some(index) = index(round, pod).filter(|index| !succeeded.contains(*index)) else { continue };
            let action = policy::matched(round.spec, pod).map(|matched| matched.action);
            let is_ignored = action == Some(policy::IGNORE);
            let of = Failures {
                counted: carried(pod, FAILURES) + i32::from(!is_ignored),
                ignored: carried(pod, IGNORED) + i32::from(is_ignored),
                ended: pod::ended(pod),
                uid: object::uid(&pod.metadata).to_owned(),
            };
            if action == Some(policy::FAIL_INDEX) || of.counted > limit {
                failed.insert(index);
            }
            let last = failures.entry(index).or_insert_with(|| of.clone());
            if (of.counted + of.ignored, of.ended) > (last.counted + last.ignored, last.ended) {
                *last = of;
            }
        }
        // A younger pod carries the count on.
        let running = running(round);
        failures.retain(|index, _| !failed.contains(*index) && !running.contains(index));
        Indexes { succeeded, failed: Some(failed), failures }
    }

    pub(super) fn succeeded(&self) -> usize {
        self.succeeded.len()
    }

    pub(super) fn failed(&self) -> usize {
        self.failed.as_ref().map_or(0, Ranges::len)
    }

    pub(super) fn has_limit_each(&self) -> bool {
        self.failed.is_some()
    }

    pub(super) fn failures(&self, index: i32) -> Option<Failures> {
        self.has_limit_each().then(|| self.failures.get(&index).cloned().unwrap_or_default())
    }

    /// The indexes that are neither over nor at work, the lowest first.
    pub(super) fn pending(&self, round: &Round<'_>) -> impl Iterator<Item = i32> {
        let failed = self.failed.iter().flat_map(Ranges::iter);
        let running = running(round).into_iter().map(|index| (index, index));
        self.succeeded.with(failed.chain(running)).absent(round.completions().unwrap_or(0))
    }

    /// Whether this pod alone knows how often its index has failed.
    pub(super) fn is_remembered_by(&self, pod: &Pod) -> bool {
        self.failures.values().any(|failures| failures.uid == object::uid(&pod.metadata))
    }

    /// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#success-policy>
    pub(super) fn matched_success_rule(&self, spec: &JobSpec) -> Option<usize> {
        let below = spec.completions.unwrap_or(0);
        spec.success_policy.as_ref()?.rules.iter().position(|rule| {
            let count = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
            match rule.succeeded_indexes.as_deref() {
                Some(text) => {
                    let wanted = Ranges::parse(Some(text), below);
                    wanted.common(&self.succeeded) >= count.unwrap_or(wanted.len())
                }
                None => count.is_some_and(|count| self.succeeded.len() >= count),
            }
        })
    }

    pub(super) fn write(&self, status: &mut JobStatus) {
        status.succeeded = some(self.succeeded.len());
        status.completed_indexes = Some(self.succeeded.format()).filter(|text| !text.is_empty());
        status.failed_indexes = self.failed.as_ref().map(Ranges::format);
    }
}

/// The index that a pod works on; none when it has none, or one that the Job no longer has.
pub(super) fn index(round: &Round<'_>, pod: &Pod) -> Option<i32> {
    let index = object::annotation(&pod.metadata, INDEX)?.parse().ok()?;
    (0..round.completions().unwrap_or(0)).contains(&index).then_some(index)
}

/// The indexes at work, and those that were given up too recently to count as failed.
fn running(round: &Round<'_>) -> BTreeSet<i32> {
    let busy = |pod: &Pod| pod::is_active(pod) || (!pod::is_terminal(pod) && round.replaces_only_failed());
    round.pods.iter().filter(|pod| busy(pod)).filter_map(|pod| index(round, pod)).collect()
}

fn carried(pod: &Pod, annotation: &str) -> i32 {
    object::annotation(&pod.metadata, annotation).and_then(|text| text.parse().ok()).unwrap_or(0)
}
