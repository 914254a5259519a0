use std::collections::HashMap;

use super::{Reason, node_affinity, taint_toleration};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot, SpreadConstraint};

/// A constraint that must hold, with the pods that it counts in each domain.
#[derive(Debug)]
pub(super) struct Spread<'a> {
    constraint: &'a SpreadConstraint,
    counts: HashMap<&'a str, i64>,
    /// What the emptiest domain has.
    least: i64,
    /// One if the pod is itself counted, else zero.
    own: i64,
}

impl<'a> Spread<'a> {
    pub(super) fn of(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Vec<Spread<'a>> {
        let constraints: Vec<&SpreadConstraint> =
            pod.topology_spread.iter().filter(|constraint| constraint.is_required).collect();
        let counts = count(pod, snapshot, &constraints);
        let spread = |(constraint, counts): (&'a SpreadConstraint, HashMap<&'a str, i64>)| {
            let enough = counts.len() >= constraint.min_domains;
            let least = if enough { counts.values().copied().min().unwrap_or(0) } else { 0 };
            Spread { constraint, least, own: i64::from(constraint.selects(&pod.labels)), counts }
        };
        constraints.into_iter().zip(counts).map(spread).collect()
    }

    /// Whether the domain that the node is in would not be too far ahead of the emptiest; `None` for no domain.
    fn holds(&self, node: &NodeInfo) -> Option<bool> {
        let value = node.labels.get(&self.constraint.topology_key)?;
        let there = self.counts.get(value.as_str()).copied().unwrap_or(0);
        Some(there + self.own - self.least <= self.constraint.max_skew)
    }
}

pub(super) fn check(spread: &[Spread<'_>], node: &NodeInfo) -> Vec<Reason> {
    let broken = spread.iter().map(|spread| spread.holds(node)).find(|holds| *holds != Some(true));
    let reason = |holds: Option<bool>| if holds.is_none() { Reason::TopologyLabel } else { Reason::TopologySpread };
    broken.map(reason).into_iter().collect()
}

/// For each constraint the pods that it counts, by domain. Only nodes with the keys of all of them have domains.
pub(crate) fn count<'a>(
    pod: &PodInfo,
    snapshot: &'a Snapshot,
    constraints: &[&SpreadConstraint],
) -> Vec<HashMap<&'a str, i64>> {
    let mut counts = vec![HashMap::new(); constraints.len()];
    if constraints.is_empty() {
        return counts;
    }
    for node in snapshot.nodes().iter().filter(|node| has_keys(node, constraints)) {
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            if let Some(value) = node.labels.get(&constraint.topology_key)
                && includes(constraint, pod, node)
            {
                let same = snapshot.pods_on(&node.name).filter(|placed| {
                    placed.namespace == pod.namespace && !placed.terminating && constraint.counts(&placed.labels)
                });
                *counts.entry(value.as_str()).or_default() += same.map(|_| 1).sum::<i64>();
            }
        }
    }
    counts
}

pub(crate) fn has_keys(node: &NodeInfo, constraints: &[&SpreadConstraint]) -> bool {
    constraints.iter().all(|constraint| node.labels.contains_key(&constraint.topology_key))
}

/// Whether the node counts for the constraint.
fn includes(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honors_affinity || node_affinity::admits(pod, node))
        && (!constraint.honors_taints || taint_toleration::check(pod, node).is_empty())
}
