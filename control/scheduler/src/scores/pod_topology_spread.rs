use std::collections::{HashMap, HashSet};

use crate::{
    filters::{Nodes, count_spread, has_keys},
    snapshot::{NodeInfo, PodInfo, Snapshot, SpreadConstraint},
};

/// The constraints that should hold, each with the pods that it counts in each domain and its weight.
#[derive(Debug)]
pub(super) struct Spread<'a> {
    constraints: Vec<&'a SpreadConstraint>,
    counts: Vec<HashMap<&'a str, i64>>,
    weights: Vec<f64>,
    nodes: Nodes,
}

impl<'a> Spread<'a> {
    pub(super) fn of(
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        candidates: &[(&NodeInfo, i64)],
        defaults: &'a [SpreadConstraint],
    ) -> Spread<'a> {
        // Where nobody asked for domains, a cluster without zones is spread by what it has.
        let (all, nodes) = match &*pod.topology_spread {
            [] => (defaults, Nodes::WithItsKey),
            own => (own, Nodes::WithAllKeys),
        };
        let constraints: Vec<&SpreadConstraint> = all.iter().filter(|constraint| !constraint.is_required).collect();
        let counts = count_spread(pod, snapshot, &constraints, nodes);
        let weight = |constraint: &&SpreadConstraint| {
            let there =
                candidates.iter().filter(|(node, _)| nodes == Nodes::WithItsKey || has_keys(node, &constraints));
            let domains: HashSet<&String> =
                there.filter_map(|(node, _)| node.labels.get(&constraint.topology_key)).collect();
            weight_of(domains.len())
        };
        let weights = constraints.iter().map(weight).collect();
        Spread { constraints, counts, weights, nodes }
    }

    /// How many pods of its kind the node's domains have; below zero when it lacks a key.
    pub(super) fn score(&self, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for ((constraint, counts), weight) in self.constraints.iter().zip(&self.counts).zip(&self.weights) {
            let Some(value) = node.labels.get(&constraint.topology_key) else {
                if self.nodes == Nodes::WithItsKey {
                    continue;
                }
                return -1;
            };
            let there = counts.get(value.as_str()).copied().unwrap_or(0);
            score += share(there, *weight, constraint.max_skew);
        }
        rounded(score)
    }
}

/// Domains of a key with many of them have few pods each, and would count for little otherwise.
#[allow(clippy::cast_precision_loss, reason = "nobody has 2^52 domains")]
fn weight_of(domains: usize) -> f64 {
    ((domains + 2) as f64).ln()
}

/// A larger skew that is allowed makes differences of the counts weigh less.
#[allow(clippy::cast_precision_loss, reason = "nobody has 2^52 pods")]
fn share(pods: i64, weight: f64, max_skew: i64) -> f64 {
    pods as f64 * weight + (max_skew - 1) as f64
}

#[allow(clippy::cast_possible_truncation, reason = "as many as pods, times a logarithm")]
fn rounded(score: f64) -> i64 {
    score.round() as i64
}
