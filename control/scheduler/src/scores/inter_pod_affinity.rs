use std::collections::HashMap;

use crate::snapshot::{AffinityTerm, NodeInfo, PodInfo, Snapshot, WeightedTerm};

/// What the required affinity of a placed pod is worth to one that it wants near itself.
const REQUIRED_WEIGHT: i64 = 1;

/// The weights of the preferences for each value of each topology key.
#[derive(Debug, Default)]
pub(super) struct Weights<'a>(HashMap<&'a str, HashMap<&'a str, i64>>);

impl<'a> Weights<'a> {
    /// The preferences of the pod for those that are placed, and theirs for it.
    pub(super) fn of(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Weights<'a> {
        let mut weights = Weights::default();
        if !pod.pod_preferences.is_empty() {
            for (group, nodes) in snapshot.groups() {
                let means = |it: &&WeightedTerm| snapshot.means(&it.term, &group.namespace, &group.labels);
                let wanted: Vec<&WeightedTerm> = pod.pod_preferences.iter().filter(means).collect();
                if wanted.is_empty() {
                    continue;
                }
                for (node, pods) in nodes {
                    wanted.iter().for_each(|it| weights.add(&it.term, it.weight * pods, Some(node)));
                }
            }
        }
        for placed in snapshot.attracting() {
            let node = snapshot.node_of(placed);
            let means = |term: &AffinityTerm| snapshot.means(term, &pod.namespace, &pod.labels);
            for term in placed.pod_affinity.iter().filter(|term| means(term)) {
                weights.add(term, REQUIRED_WEIGHT, node);
            }
            for preferred in placed.pod_preferences.iter().filter(|preferred| means(&preferred.term)) {
                weights.add(&preferred.term, preferred.weight, node);
            }
        }
        weights
    }

    fn add(&mut self, term: &'a AffinityTerm, weight: i64, node: Option<&'a NodeInfo>) {
        if let Some(value) = node.and_then(|node| node.labels.get(&term.topology_key)) {
            *self.0.entry(&term.topology_key).or_default().entry(value).or_default() += weight;
        }
    }

    /// Adds the weights of the domains that the node is in.
    pub(super) fn score(&self, node: &NodeInfo) -> i64 {
        let of = |(key, values): (&&str, &HashMap<&str, i64>)| values.get(node.labels.get(*key)?.as_str()).copied();
        self.0.iter().filter_map(of).sum()
    }
}
