//! What has ended, counted exactly once.
//!
//! ```text
//!  pod has ended ─> its uid stands in the status ─> its finalizer is taken off ─> the counter is raised, the uid leaves
//! ```
//! Each arrow is a write of its own, and each plan does what comes next, so a stop between any two loses nothing.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::{
    batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods},
    core::v1::Pod,
};
use serde::Serialize;

use super::{Indexes, Round, indexes, policy, some, verdict};
use crate::{
    action::{Action, Target},
    object, pod,
};

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Uids that the status holds at a time.
const MAX_UNCOUNTED: usize = 500;

pub(super) struct Tally {
    pub(super) status: JobStatus,
    /// Ended pods that the status does not know of yet.
    new_succeeded: usize,
    new_failed: usize,
}

impl Tally {
    /// The status with all pods counted whose finalizer is gone.
    pub(super) fn of(round: &Round<'_>) -> Tally {
        let mut status = round.job.status.clone().unwrap_or_default();
        let held: HashSet<&str> =
            round.pods.iter().filter(|pod| is_held(pod)).map(|pod| object::uid(&pod.metadata)).collect();
        let before = status.uncounted_terminated_pods.take().unwrap_or_default();
        let settle = |uids: Option<Vec<String>>| -> (Vec<String>, usize) {
            let (waiting, counted): (Vec<_>, Vec<_>) =
                uids.unwrap_or_default().into_iter().partition(|uid| held.contains(uid.as_str()));
            (waiting, counted.len())
        };
        let (waiting_succeeded, succeeded) = settle(before.succeeded);
        let (waiting_failed, failed) = settle(before.failed);
        if !round.is_indexed() {
            status.succeeded = some(number(status.succeeded) + succeeded);
        }
        status.failed = some(number(status.failed) + failed);
        let known: HashSet<&String> = waiting_succeeded.iter().chain(&waiting_failed).collect();
        let new: Vec<&Arc<Pod>> = round
            .pods
            .iter()
            .copied()
            .filter(|pod| is_held(pod) && !pod.metadata.uid.as_ref().is_some_and(|uid| known.contains(uid)))
            .collect();
        let new_succeeded = new.iter().filter(|pod| pod::phase(pod) == "Succeeded").count();
        let new_failed = new.iter().filter(|pod| round.is_failed(pod) && is_counted(round, pod)).count();
        let some_uids = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: some_uids(waiting_succeeded),
            failed: some_uids(waiting_failed),
        });
        Tally { status, new_succeeded, new_failed }
    }

    pub(super) fn succeeded(&self) -> usize {
        let waiting = self.status.uncounted_terminated_pods.as_ref().and_then(|it| it.succeeded.as_ref());
        number(self.status.succeeded) + waiting.map_or(0, Vec::len) + self.new_succeeded
    }

    pub(super) fn failed(&self) -> usize {
        let waiting = self.status.uncounted_terminated_pods.as_ref().and_then(|it| it.failed.as_ref());
        number(self.status.failed) + waiting.map_or(0, Vec::len) + self.new_failed
    }

    /// Writes down who has ended, and says whose finalizer can go once that is stored. `removed` are the pods that the
    /// same plan deletes: their turn comes with the next.
    pub(super) fn count<'a>(
        &mut self,
        round: &Round<'a>,
        removed: &[&Arc<Pod>],
        criterion: Option<&JobCondition>,
        indexes: Option<&Indexes>,
    ) -> Vec<&'a Arc<Pod>> {
        let uncounted = self.status.uncounted_terminated_pods.get_or_insert_default();
        let mut releases = Vec::new();
        for pod in round.pods.iter().copied().filter(|pod| is_held(pod)) {
            let uid = object::uid(&pod.metadata);
            if removed.iter().any(|gone| object::uid(&gone.metadata) == uid) {
                continue;
            }
            let known = |uids: &Option<Vec<String>>| uids.iter().flatten().any(|known| known == uid);
            if known(&uncounted.failed) || known(&uncounted.succeeded) {
                releases.push(pod);
                continue;
            }
            let has_failed = round.is_failed(pod);
            if !may_go(round, pod, has_failed, criterion, indexes) {
                continue;
            }
            let held = uncounted.failed.as_ref().map_or(0, Vec::len) + uncounted.succeeded.as_ref().map_or(0, Vec::len);
            if held >= MAX_UNCOUNTED {
                break;
            }
            releases.push(pod);
            if pod::phase(pod) == "Succeeded" {
                // An index is done once, however often it is counted.
                if !round.is_indexed() {
                    uncounted.succeeded.get_or_insert_default().push(uid.to_owned());
                }
            } else if (has_failed || criterion.is_some_and(verdict::is_failure)) && is_counted(round, pod) {
                uncounted.failed.get_or_insert_default().push(uid.to_owned());
            }
        }
        releases
    }
}

fn number(counter: Option<i32>) -> usize {
    counter.and_then(|counter| usize::try_from(counter).ok()).unwrap_or(0)
}

/// A pod that its failure policy ignores, or that has no place in an Indexed Job, is no failure of the Job.
fn is_counted(round: &Round<'_>, pod: &Pod) -> bool {
    let in_range = !round.is_indexed() || indexes::index(round, pod).is_some();
    in_range && policy::matched(round.spec, pod).is_none_or(|matched| matched.action != policy::IGNORE)
}

fn may_go(
    round: &Round<'_>,
    pod: &Pod,
    has_failed: bool,
    criterion: Option<&JobCondition>,
    indexes: Option<&Indexes>,
) -> bool {
    if object::is_deleting(&round.job.metadata) || criterion.is_some() || pod::phase(pod) == "Succeeded" {
        return true;
    }
    // The last failure of an index says how often it has failed: it stays until the next pod carries that on.
    has_failed && !indexes.is_some_and(|indexes| indexes.is_remembered_by(pod))
}

pub(super) fn has_uncounted(status: &JobStatus) -> bool {
    status.uncounted_terminated_pods.as_ref().is_some_and(|it| it.succeeded.is_some() || it.failed.is_some())
}

pub(super) fn is_held(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

#[derive(Debug, Serialize)]
struct Released {
    metadata: ReleasedMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReleasedMeta {
    uid: Option<String>,
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

/// Takes the finalizer off the pod that was seen.
pub(super) fn release(pod: &Arc<Pod>) -> Action {
    let finalizers = pod.metadata.finalizers.iter().flatten().filter(|own| *own != FINALIZER).cloned().collect();
    let (uid, resource_version) = (pod.metadata.uid.clone(), pod.metadata.resource_version.clone());
    Action::patch(Target::of(&**pod), Released { metadata: ReleasedMeta { uid, resource_version, finalizers } })
}
