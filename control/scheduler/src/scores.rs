//! The preferences: which of the possible nodes is best. One file each, named as in Kubernetes.

mod balanced_allocation;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_resources_fit;
mod pod_topology_spread;
mod taint_toleration;

use crate::{
    profile::{Fit, Profile},
    snapshot::{NodeInfo, PodInfo, Snapshot, SpreadConstraint},
};

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
    /// The highest raw score becomes `MAX`, and the lowest 0; all are 0 when they are equal.
    Stretch,
    /// The lowest raw score becomes `MAX`, others less by their distance to it; what is below zero becomes 0.
    Reverse,
}

/// A pod and its possible nodes, with what is the same for all of them and so is worked out once.
#[derive(Debug)]
pub struct Preferences<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    fit: &'a Fit,
    affinity: inter_pod_affinity::Weights<'a>,
    spread: pod_topology_spread::Spread<'a>,
}

impl<'a> Preferences<'a> {
    /// `defaults` say how a pod should be spread that says nothing itself.
    pub(crate) fn new(
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        candidates: &[(&NodeInfo, i64)],
        profile: &'a Profile,
        defaults: &'a [SpreadConstraint],
    ) -> Preferences<'a> {
        Preferences {
            pod,
            snapshot,
            fit: &profile.fit,
            affinity: inter_pod_affinity::Weights::of(pod, snapshot),
            spread: pod_topology_spread::Spread::of(pod, snapshot, candidates, defaults),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Score {
    pub name: &'static str,
    pub weight: i64,
    pub score: fn(&Preferences<'_>, &NodeInfo) -> i64,
    pub scale: Scale,
}

/// All scores, with Kubernetes' weights.
pub const ALL: &[Score] = &[
    Score {
        name: "TaintToleration",
        weight: 3,
        score: |preferences, node| taint_toleration::score(preferences.pod, node),
        scale: Scale::Down,
    },
    Score {
        name: "NodeAffinity",
        weight: 2,
        score: |preferences, node| node_affinity::score(preferences.pod, node),
        scale: Scale::Up,
    },
    Score {
        name: "PodTopologySpread",
        weight: 2,
        score: |preferences, node| preferences.spread.score(node),
        scale: Scale::Reverse,
    },
    Score {
        name: "InterPodAffinity",
        weight: 2,
        score: |preferences, node| preferences.affinity.score(node),
        scale: Scale::Stretch,
    },
    Score {
        name: "NodeResourcesFit",
        weight: 1,
        score: |preferences, node| node_resources_fit::score(preferences.pod, node, preferences.fit),
        scale: Scale::None,
    },
    Score {
        name: "NodeResourcesBalancedAllocation",
        weight: 1,
        score: |preferences, node| balanced_allocation::score(preferences.pod, node),
        scale: Scale::None,
    },
    Score {
        name: "ImageLocality",
        weight: 1,
        score: |preferences, node| image_locality::score(preferences.pod, node, preferences.snapshot),
        scale: Scale::None,
    },
];

impl Score {
    /// Adds what each candidate gets for this score.
    pub(crate) fn add(&self, preferences: &Preferences<'_>, candidates: &mut [(&NodeInfo, i64)]) {
        let raw: Vec<i64> = candidates.iter().map(|(node, _)| (self.score)(preferences, node)).collect();
        let span = Span::of(&raw, self.scale);
        for ((_, total), raw) in candidates.iter_mut().zip(raw) {
            *total += self.weight * span.points(raw, self.scale);
        }
    }
}

/// The lowest and the highest raw score of all candidates.
struct Span {
    lowest: i64,
    highest: i64,
}

impl Span {
    fn of(raw: &[i64], scale: Scale) -> Span {
        let counts = |raw: &&i64| scale != Scale::Reverse || **raw >= 0;
        let lowest = raw.iter().filter(counts).min().copied().unwrap_or(0);
        Span { lowest, highest: raw.iter().filter(counts).max().copied().unwrap_or(0) }
    }

    fn points(&self, raw: i64, scale: Scale) -> i64 {
        let share = |part: i64, whole: i64| if whole == 0 { 0 } else { MAX * part / whole };
        match scale {
            Scale::None => raw,
            Scale::Up => share(raw, self.highest),
            Scale::Down => MAX - share(raw, self.highest),
            Scale::Stretch => share(raw - self.lowest, self.highest - self.lowest),
            Scale::Reverse if raw < 0 => 0,
            Scale::Reverse if self.highest == 0 => MAX,
            Scale::Reverse => share(self.highest + self.lowest - raw, self.highest),
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
        let mut snapshot = Snapshot::default();
        nodes.iter().enumerate().for_each(|(index, node)| {
            snapshot.add_node(NodeInfo { name: format!("n{index}"), ..node.clone() });
        });
        let profile = Profile::default();
        let preferences = Preferences::new(pod, &snapshot, &candidates, &profile, &[]);
        score.add(&preferences, &mut candidates);
        candidates.iter().map(|(_, total)| *total).collect()
    }

    #[test]
    fn empty_nodes_are_liked() {
        assert_eq!(totals("NodeResourcesFit", &pod(), &[node(0, 0), node(400, 0), node(900, 900)]), [90, 70, 0]);
    }

    #[test]
    fn even_use_is_liked() {
        assert_eq!(
            totals("NodeResourcesBalancedAllocation", &pod(), &[node(0, 0), node(400, 0), node(0, 800)]),
            [100, 80, 60]
        );
    }

    #[test]
    fn nodes_with_large_images_are_liked() {
        let with = |images: &[(&str, i64)]| NodeInfo {
            images: std::sync::Arc::new(images.iter().map(|(name, size)| ((*name).into(), size << 20)).collect()),
            ..node(0, 0)
        };
        let pod = PodInfo { images: ["a".to_owned()].into(), ..pod() };
        let totals = |nodes: &[NodeInfo]| totals("ImageLocality", &pod, nodes);
        assert_eq!(totals(&[with(&[]), with(&[("b", 900)]), with(&[("a", 20)])]), [0, 0, 0]);
        // One of two nodes has it: half of its size counts.
        assert_eq!(totals(&[with(&[]), with(&[("a", 1000)])]), [0, 48]);
        assert_eq!(totals(&[with(&[("a", 1000)]), with(&[("a", 3000)])]), [100, 100]);
    }

    #[test]
    fn soft_taints_are_disliked() {
        let taint = || Taint { key: "k".into(), effect: "PreferNoSchedule".into(), ..Taint::default() };
        let tainted = |count: usize| NodeInfo { taints: vec![taint(); count], ..node(0, 0) };
        assert_eq!(totals("TaintToleration", &pod(), &[tainted(0), tainted(1), tainted(2)]), [300, 150, 0]);
    }

    #[test]
    fn raw_scores_become_comparable() {
        for (scale, raw, points) in [
            (Scale::None, &[0, 7][..], &[0, 7][..]),
            (Scale::Up, &[0, 1, 4], &[0, 25, 100]),
            (Scale::Up, &[0, 0], &[0, 0]),
            (Scale::Down, &[0, 1, 4], &[100, 75, 0]),
            (Scale::Stretch, &[-50, 0, 150], &[0, 25, 100]),
            (Scale::Stretch, &[3, 3], &[0, 0]),
            (Scale::Reverse, &[2, 4, 8, -1], &[100, 75, 25, 0]),
            (Scale::Reverse, &[0, 0], &[100, 100]),
            (Scale::Reverse, &[-1, -1], &[0, 0]),
            (Scale::Reverse, &[], &[]),
        ] {
            let span = Span::of(raw, scale);
            let all: Vec<i64> = raw.iter().map(|raw| span.points(*raw, scale)).collect();
            assert_eq!(all, points, "{scale:?} {raw:?}");
        }
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
