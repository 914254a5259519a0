//! The scheduler: gives every pod a node.
//!
//! ```text
//!  nodes, pods, namespaces, storage ─────> Snapshot ─┐
//!                                                   ├─ schedule(pod, snapshot) ─> node ─> assume ─> bind ─> API
//!  pods without a node ──────────────────> Queue ───┘         (pure)           └> Unschedulable ─> preempt (pure)
//!                                                                                 └> victims, condition, event, wait
//! ```
//! `schedule` and `preempt` are pure functions: filters say which nodes are possible, scores which is best, and
//! preemption which pods have to go for one of higher priority. One task owns the queue and the snapshot; only `bind`
//! writes. This crate never touches the store or the API server's inside, and schedules
//! only while it leads.

mod bind;
pub mod filters;
mod kept;
mod metrics;
mod owners;
mod preemption;
mod profile;
mod quantity;
mod queue;
mod run;
pub mod scores;
pub mod snapshot;
mod storage;

use std::{collections::BTreeMap, fmt};

use filters::{Cycle, Reason};
pub use metrics::Metrics;
pub use preemption::{Preemption, Verdict, Victim, preempt};
pub use profile::{Profile, read as read_profiles};
pub use run::{Context, run};
use scores::Preferences;
pub use snapshot::{HostPort, NodeInfo, PodInfo, Resources, Snapshot};

/// The `schedulerName` of the pods that name none.
pub const PROFILE: &str = "default-scheduler";

/// The name of a node.
pub type NodeName = String;

/// No node can take the pod, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    pub reasons: BTreeMap<Reason, usize>,
    /// What holds whatever the node.
    pub refusal: Option<String>,
    /// The nodes that might take the pod if others went.
    pub(crate) resolvable: Vec<NodeName>,
    /// Why no other pod is to go for it.
    pub preemption: Option<String>,
}

impl fmt::Display for Unschedulable {
    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {key: value}.`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return formatter.write_str("no nodes available to schedule pods");
        }
        let why = self.refusal.clone().unwrap_or_else(|| histogram(&self.reasons));
        write!(formatter, "0/{} nodes are available: {why}.", self.nodes)?;
        self.preemption.iter().try_for_each(|why| write!(formatter, " preemption: {why}"))
    }
}

/// `1 Insufficient cpu, 2 Too many pods`.
fn histogram<R: fmt::Display>(reasons: &BTreeMap<R, usize>) -> String {
    let mut reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    reasons.join(", ")
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
    // Where room was made for it, it goes.
    let nominated = snapshot.nominations.of(&pod.uid).and_then(|name| snapshot.node(name));
    if let Some(node) = nominated.filter(|node| cycle.reasons(profile.filters, node).is_empty()) {
        return Ok(node.name.clone());
    }
    for node in nodes[begin..].iter().chain(&nodes[..begin]) {
        let reasons = cycle.reasons(profile.filters, node);
        if reasons.is_empty() {
            candidates.push((node, 0));
        } else if candidates.is_empty() {
            if cycle.may_be_helped(node, &reasons) {
                refused.resolvable.push(node.name.clone());
            }
            reasons.into_iter().for_each(|reason| *refused.reasons.entry(reason).or_default() += 1);
        }
        if candidates.len() >= profile.enough {
            break;
        }
    }
    if candidates.len() > 1 {
        let defaults = if pod.topology_spread.is_empty() { profile.spread(pod, snapshot) } else { Vec::new() };
        let preferences = Preferences::new(pod, snapshot, &candidates, profile, &defaults);
        profile.scores.iter().for_each(|score| score.add(&preferences, &mut candidates));
    }
    let best = candidates.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best });
    best.map(|(node, _)| node.name.clone()).ok_or(refused)
}

#[cfg(test)]
mod tests;
