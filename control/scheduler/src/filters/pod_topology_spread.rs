use std::collections::HashMap;

use super::{Reason, node_affinity, taint_toleration};
use crate::snapshot::{NodeInfo, Placed, PodInfo, Snapshot, SpreadConstraint};

/// A constraint that must hold, with the pods that it counts in each domain.
#[derive(Clone, Debug)]
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
        if constraints.is_empty() {
            return Vec::new();
        }
        let mut counts = count(pod, snapshot, &constraints, Nodes::WithAllKeys);
        for node in snapshot.nodes().iter().filter(|node| has_keys(node, &constraints)) {
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                if let Some(value) = node.labels.get(&constraint.topology_key)
                    && includes(constraint, pod, node)
                {
                    counts.entry(value.as_str()).or_default();
                }
            }
        }
        let spread = |(constraint, counts): (&'a SpreadConstraint, HashMap<&'a str, i64>)| {
            let own = i64::from(constraint.selects(&pod.labels));
            let mut spread = Spread { constraint, least: 0, own, counts };
            spread.find_least();
            spread
        };
        constraints.into_iter().zip(counts).map(spread).collect()
    }

    fn find_least(&mut self) {
        let enough = self.counts.len() >= self.constraint.min_domains;
        self.least = if enough { self.counts.values().copied().min().unwrap_or(0) } else { 0 };
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

/// As if there were one such pod more, or less, on the node.
pub(super) fn adjust<'a>(spread: &mut [Spread<'a>], pod: &PodInfo, other: &Placed, node: &'a NodeInfo, change: i64) {
    if other.namespace != pod.namespace || other.terminating {
        return;
    }
    if !spread.iter().all(|spread| node.labels.contains_key(&spread.constraint.topology_key)) {
        return;
    }
    for spread in spread {
        let constraint = spread.constraint;
        if let Some(value) = node.labels.get(&constraint.topology_key)
            && constraint.counts(&other.labels)
            && includes(constraint, pod, node)
        {
            *spread.counts.entry(value.as_str()).or_default() += change;
            spread.find_least();
        }
    }
}

/// Which nodes are in domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// Those that have the keys of all constraints.
    WithAllKeys,
    /// For each constraint those that have its key.
    WithItsKey,
}

/// For each constraint the pods that it counts, by domain; domains without any may be left out.
pub(crate) fn count<'a>(
    pod: &PodInfo,
    snapshot: &'a Snapshot,
    constraints: &[&SpreadConstraint],
    nodes: Nodes,
) -> Vec<HashMap<&'a str, i64>> {
    let mut counts = vec![HashMap::new(); constraints.len()];
    if constraints.is_empty() {
        return counts;
    }
    for (group, on) in snapshot.groups() {
        if group.namespace != pod.namespace || group.terminating {
            continue;
        }
        let counting: Vec<bool> = constraints.iter().map(|constraint| constraint.counts(&group.labels)).collect();
        if !counting.contains(&true) {
            continue;
        }
        for (node, pods) in on {
            if nodes == Nodes::WithAllKeys && !has_keys(node, constraints) {
                continue;
            }
            for ((constraint, counts), counts_them) in constraints.iter().zip(&mut counts).zip(&counting) {
                if let Some(value) = node.labels.get(&constraint.topology_key)
                    && *counts_them
                    && includes(constraint, pod, node)
                {
                    *counts.entry(value.as_str()).or_default() += pods;
                }
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
