//! The scheduler: gives every pod a node.
//!
//! ```text
//!  nodes, pods, namespaces, storage ─────> Snapshot ─┐
//!                                                   ├─ schedule(pod, snapshot) ─> node ─> assume ─> bind ─> API
//!  pods without a node ──────────────────> Queue ───┘         (pure)           └> Unschedulable ─> condition, event, wait
//! ```
//! `schedule` is a pure function: filters say which nodes are possible, scores which is best. One task owns the queue
//! and the snapshot; only `bind` writes. This crate never touches the store or the API server's inside, and schedules
//! only while it leads.

mod bind;
pub mod filters;
mod metrics;
mod quantity;
mod queue;
mod run;
pub mod scores;
pub mod snapshot;
mod storage;

use std::{collections::BTreeMap, fmt};

use filters::{Cycle, Filter, Reason};
pub use metrics::Metrics;
pub use run::{Context, run};
use scores::{Preferences, Score};
pub use snapshot::{HostPort, NodeInfo, PodInfo, Resources, Snapshot};

/// The `schedulerName` of the pods that are ours.
pub const PROFILE: &str = "default-scheduler";

/// Of a large cluster only so many possible nodes are compared: the cost of a pod does not grow with the cluster.
const ENOUGH: usize = 100;

/// What decides.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub filters: &'static [Filter],
    pub scores: &'static [Score],
    /// The number of possible nodes after which no more are looked for.
    pub enough: usize,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile { filters: filters::ALL, scores: scores::ALL, enough: ENOUGH }
    }
}

/// The name of a node.
pub type NodeName = String;

/// No node can take the pod, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    pub reasons: BTreeMap<Reason, usize>,
    /// What holds whatever the node.
    pub refusal: Option<String>,
}

impl fmt::Display for Unschedulable {
    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {key: value}.`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return formatter.write_str("no nodes available to schedule pods");
        }
        if let Some(why) = &self.refusal {
            return write!(formatter, "0/{} nodes are available: {why}.", self.nodes);
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        write!(formatter, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

impl std::error::Error for Unschedulable {}

/// Chooses the pod's node. The same arguments give the same node.
///
/// `turn` grows with each pod: it is where the search begins, so that equal nodes take turns and, in a large cluster,
/// all nodes come to be compared.
pub fn schedule(pod: &PodInfo, snapshot: &Snapshot, profile: &Profile, turn: usize) -> Result<NodeName, Unschedulable> {
    let nodes = snapshot.nodes();
    let begin = if nodes.is_empty() { 0 } else { turn % nodes.len() };
    let mut refused = Unschedulable { nodes: nodes.len(), ..Unschedulable::default() };
    let mut candidates = Vec::with_capacity(profile.enough.min(nodes.len()));
    let cycle = Cycle::new(pod, snapshot);
    if let Some(why) = cycle.refusal() {
        refused.refusal = Some(why.to_owned());
        return Err(refused);
    }
    for node in nodes[begin..].iter().chain(&nodes[..begin]) {
        let failing =
            profile.filters.iter().map(|filter| (filter.check)(&cycle, node)).find(|reasons| !reasons.is_empty());
        match failing {
            None => candidates.push((node, 0)),
            Some(reasons) => {
                reasons.into_iter().for_each(|reason| *refused.reasons.entry(reason).or_default() += 1);
            }
        }
        if candidates.len() >= profile.enough {
            break;
        }
    }
    if candidates.len() > 1 {
        let preferences = Preferences::new(pod, snapshot, &candidates);
        profile.scores.iter().for_each(|score| score.add(&preferences, &mut candidates));
    }
    let best = candidates.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best });
    best.map(|(node, _)| node.name.clone()).ok_or(refused)
}

#[cfg(test)]
mod tests;
