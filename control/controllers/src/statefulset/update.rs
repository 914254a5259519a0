//! Rolling updates: from the highest ordinal down to the partition, as many at a time as may be missing.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#rolling-updates>

use super::{Round, delete, is_of};
use crate::{action::Action, object};

pub(super) fn roll(round: &Round<'_>) -> Vec<Action> {
    let Some(partition) = round.partition() else { return Vec::new() };
    let rolling = round.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let of = round.spec.replicas.unwrap_or(1);
    let max = object::share(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), of, true).max(1);
    let first = round.ordinals().start.saturating_add(partition.max(0));
    let (mut missing, mut actions) = (0, Vec::new());
    for pod in round.places.range(first..).rev().map(|(_, pod)| pod) {
        if missing >= max {
            break;
        }
        if !is_of(pod, round.update) && !object::is_deleting(&pod.metadata) {
            actions.push(delete(round.set, pod));
            missing += 1;
        } else if !round.is_available(pod) {
            missing += 1;
        }
    }
    actions
}
