//! The preferences: which of the possible nodes is best. One file each, named as in Kubernetes.

mod balanced_allocation;
mod least_allocated;
mod node_affinity;
mod taint_toleration;

use crate::snapshot::{NodeInfo, PodInfo};

/// The best that a node can get from one score, before its weight.
pub const MAX: i64 = 100;

/// How raw scores become comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// They are between 0 and `MAX` already.
    None,
    /// The highest raw score becomes `MAX`.
    Up,
    /// The highest raw score becomes 0, and 0 becomes `MAX`.
    Down,
}

#[derive(Clone, Copy, Debug)]
pub struct Score {
    pub name: &'static str,
    pub weight: i64,
    pub score: fn(&PodInfo, &NodeInfo) -> i64,
    pub scale: Scale,
}

/// All scores, with Kubernetes' weights.
pub const ALL: &[Score] = &[
    Score { name: "TaintToleration", weight: 3, score: taint_toleration::score, scale: Scale::Down },
    Score { name: "NodeAffinity", weight: 2, score: node_affinity::score, scale: Scale::Up },
    Score { name: "LeastAllocated", weight: 1, score: least_allocated::score, scale: Scale::None },
    Score { name: "BalancedAllocation", weight: 1, score: balanced_allocation::score, scale: Scale::None },
];

impl Score {
    /// Adds what each candidate gets for this score.
    pub(crate) fn add(&self, pod: &PodInfo, candidates: &mut [(&NodeInfo, i64)]) {
        if self.scale == Scale::None {
            for (node, total) in candidates {
                *total += self.weight * (self.score)(pod, node);
            }
            return;
        }
        let raw: Vec<i64> = candidates.iter().map(|(node, _)| (self.score)(pod, node)).collect();
        let highest = raw.iter().copied().max().unwrap_or(0);
        for ((_, total), raw) in candidates.iter_mut().zip(raw) {
            let share = if highest == 0 { 0 } else { MAX * raw / highest };
            *total += self.weight * if self.scale == Scale::Up { share } else { MAX - share };
        }
    }
}

/// The part of a resource that is used with the pod on the node; all of it when there is none.
fn used(has: i64, used: i64, wants: i64) -> f64 {
    if has <= 0 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss, reason = "a share needs no more than 52 bits")]
    let share = (used + wants) as f64 / has as f64;
    share.clamp(0.0, 1.0)
}

#[allow(clippy::cast_possible_truncation, reason = "between 0 and MAX")]
fn points(share: f64) -> i64 {
    (share * 100.0) as i64
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm, Taint};

    use super::*;
    use crate::snapshot::Resources;

    fn node(cpu: i64, memory: i64) -> NodeInfo {
        NodeInfo {
            allocatable: Resources { milli_cpu: 1000, memory: 1000, pods: 10, ..Resources::default() },
            presumed: Resources { milli_cpu: cpu, memory, ..Resources::default() },
            ..NodeInfo::default()
        }
    }

    fn pod() -> PodInfo {
        PodInfo { presumed: Resources { milli_cpu: 100, memory: 100, ..Resources::default() }, ..PodInfo::default() }
    }

    fn totals(name: &str, pod: &PodInfo, nodes: &[NodeInfo]) -> Vec<i64> {
        let score = ALL.iter().find(|score| score.name == name).unwrap();
        let mut candidates: Vec<(&NodeInfo, i64)> = nodes.iter().map(|node| (node, 0)).collect();
        score.add(pod, &mut candidates);
        candidates.iter().map(|(_, total)| *total).collect()
    }

    #[test]
    fn empty_nodes_are_liked() {
        assert_eq!(totals("LeastAllocated", &pod(), &[node(0, 0), node(400, 0), node(900, 900)]), [90, 70, 0]);
    }

    #[test]
    fn even_use_is_liked() {
        assert_eq!(totals("BalancedAllocation", &pod(), &[node(0, 0), node(400, 0), node(0, 800)]), [100, 80, 60]);
    }

    #[test]
    fn soft_taints_are_disliked() {
        let taint = || Taint { key: "k".into(), effect: "PreferNoSchedule".into(), ..Taint::default() };
        let tainted = |count: usize| NodeInfo { taints: vec![taint(); count], ..node(0, 0) };
        assert_eq!(totals("TaintToleration", &pod(), &[tainted(0), tainted(1), tainted(2)]), [300, 150, 0]);
    }

    #[test]
    fn preferred_terms_add_up() {
        let requirement = NodeSelectorRequirement { key: "ssd".into(), operator: "Exists".into(), values: None };
        let preference = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
        let pod = PodInfo { preferred: vec![PreferredSchedulingTerm { weight: 7, preference }], ..pod() };
        let mut liked = node(0, 0);
        liked.labels.insert("ssd".into(), String::new());
        assert_eq!(totals("NodeAffinity", &pod, &[node(0, 0), liked]), [0, 200]);
    }
}
