//! Which pods a controller gives up first when it has too many.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::{object, pod};

/// What a pod's deletion costs, as its user says: cheap ones go first.
pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Puts first what is best deleted: what serves least, then what has been there for the shortest time.
///
/// <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-a-replicaset>
pub(crate) fn rank(pods: &mut [&Arc<Pod>], related: &HashMap<String, usize>, now: Timestamp) {
    pods.sort_by(|one, other| deletion_order(one, other, related, now));
}

fn deletion_order(one: &Pod, other: &Pod, related: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let neighbours = |pod: &Pod| pod::node(pod).and_then(|node| related.get(node)).copied().unwrap_or(0);
    let key = |pod: &Pod| (pod::node(pod).is_some(), phase_rank(pod), pod::is_ready(pod), deletion_cost(pod));
    key(one)
        .cmp(&key(other))
        .then_with(|| neighbours(other).cmp(&neighbours(one)))
        .then_with(|| match (pod::is_ready(one), pod::is_ready(other)) {
            (true, true) => age_rank(pod::ready_since(one), now).cmp(&age_rank(pod::ready_since(other), now)),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(other).cmp(&restarts(one)))
        .then_with(|| {
            let created = |pod: &Pod| age_rank(pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now);
            created(one).cmp(&created(other))
        })
        .then_with(|| one.metadata.uid.cmp(&other.metadata.uid))
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    object::annotation(&pod.metadata, DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Ages are compared by orders of magnitude, so that of pods about as old a random one goes.
fn age_rank(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let seconds = since.map_or(0, |since| now.duration_since(since).as_secs().max(0));
    (seconds + 1).ilog2()
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|container| container.restart_count).max().unwrap_or(0)
}
