//! The predicates: what makes a node impossible for a pod. One file each, named as in Kubernetes.

mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod taint_toleration;

use std::{fmt, sync::Arc};

use crate::{
    snapshot::{NodeInfo, Placed, PodInfo, Snapshot},
    storage::Needs,
};

pub(crate) use node_affinity::matches as term_matches;
pub(crate) use pod_topology_spread::{Nodes, count as count_spread, has_keys};

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Unschedulable,
    NodeName,
    Taint { key: String, value: String },
    Affinity,
    Ports,
    TooManyPods,
    Insufficient(Arc<str>),
    TopologySpread,
    TopologyLabel,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
    VolumeAffinity,
    VolumeMissing,
    NoVolume,
    ExclusiveClaim,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unschedulable => formatter.write_str("node(s) were unschedulable"),
            Reason::NodeName => formatter.write_str("node(s) didn't match the requested node name"),
            Reason::Taint { key, value } => write!(formatter, "node(s) had untolerated taint {{{key}: {value}}}"),
            Reason::Affinity => formatter.write_str("node(s) didn't match Pod's node affinity/selector"),
            Reason::Ports => formatter.write_str("node(s) didn't have free ports for the requested pod ports"),
            Reason::TooManyPods => formatter.write_str("Too many pods"),
            Reason::Insufficient(resource) => write!(formatter, "Insufficient {resource}"),
            Reason::TopologySpread => formatter.write_str("node(s) didn't match pod topology spread constraints"),
            Reason::TopologyLabel => {
                formatter.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Reason::PodAffinity => formatter.write_str("node(s) didn't match pod affinity rules"),
            Reason::PodAntiAffinity => formatter.write_str("node(s) didn't match pod anti-affinity rules"),
            Reason::ExistingAntiAffinity => {
                formatter.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Reason::VolumeAffinity => formatter.write_str("node(s) had volume node affinity conflict"),
            Reason::VolumeMissing => {
                formatter.write_str("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
            }
            Reason::NoVolume => formatter.write_str("node(s) didn't find available persistent volumes to bind"),
            Reason::ExclusiveClaim => formatter.write_str(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ),
        }
    }
}

impl Reason {
    /// Whether another pod that goes may make the node possible.
    fn is_resolvable(&self) -> bool {
        match self {
            Reason::Ports
            | Reason::TooManyPods
            | Reason::Insufficient(_)
            | Reason::TopologySpread
            | Reason::PodAntiAffinity
            | Reason::ExistingAntiAffinity
            | Reason::ExclusiveClaim => true,
            Reason::Unschedulable
            | Reason::NodeName
            | Reason::Taint { .. }
            | Reason::Affinity
            | Reason::TopologyLabel
            | Reason::PodAffinity
            | Reason::VolumeAffinity
            | Reason::VolumeMissing
            | Reason::NoVolume => false,
        }
    }
}

/// A pod to be placed, with what is the same for all nodes and so is worked out once.
#[derive(Clone, Debug)]
pub struct Cycle<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    affinity: inter_pod_affinity::Domains<'a>,
    spread: Vec<pod_topology_spread::Spread<'a>>,
    volumes: Needs<'a>,
}

impl<'a> Cycle<'a> {
    pub fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Cycle<'a> {
        Cycle {
            pod,
            snapshot,
            affinity: inter_pod_affinity::Domains::of(pod, snapshot),
            spread: pod_topology_spread::Spread::of(pod, snapshot),
            volumes: Needs::of(pod, snapshot),
        }
    }

    /// Why the node cannot take the pod; nothing when it can, with and without the pods that room is being made for.
    pub fn reasons(&self, filters: &[Filter], node: &NodeInfo) -> Vec<Reason> {
        let kept_for = |other: &&Placed| other.priority >= self.pod.priority && other.uid != self.pod.uid;
        let mut nominated = self.snapshot.nominations.on(&node.name).filter(kept_for).peekable();
        if nominated.peek().is_some()
            && let Some(known) = self.snapshot.node(&node.name)
        {
            let mut trial = Trial { cycle: self.clone(), node: node.clone(), known };
            nominated.for_each(|other| trial.place(other));
            let reasons = trial.cycle.check(filters, &trial.node);
            if !reasons.is_empty() {
                return reasons;
            }
        }
        self.check(filters, node)
    }

    fn check(&self, filters: &[Filter], node: &NodeInfo) -> Vec<Reason> {
        let failing = filters.iter().map(|filter| (filter.check)(self, node)).find(|reasons| !reasons.is_empty());
        failing.unwrap_or_default()
    }

    /// Whether the node might take the pod if other pods went.
    pub(crate) fn may_be_helped(&self, node: &NodeInfo, reasons: &[Reason]) -> bool {
        let lacks_room = reasons.iter().any(|reason| matches!(reason, Reason::Insufficient(_)));
        reasons.iter().all(Reason::is_resolvable) && (!lacks_room || node_resources_fit::fits_alone(self.pod, node))
    }

    /// What would be if pods came to the node or went.
    pub(crate) fn trial(&self, node: &'a NodeInfo) -> Trial<'a> {
        Trial { cycle: self.clone(), node: node.clone(), known: node }
    }

    /// Why the pod can go nowhere, whatever the node.
    pub fn refusal(&self) -> Option<&str> {
        self.volumes.refusal.as_deref()
    }
}

/// A node with other pods than it has.
#[derive(Debug)]
pub(crate) struct Trial<'a> {
    cycle: Cycle<'a>,
    node: NodeInfo,
    known: &'a NodeInfo,
}

impl<'a> Trial<'a> {
    pub(crate) fn place(&mut self, other: &'a Placed) {
        self.node.place(other);
        self.cycle.volumes.place(other);
        self.adjust(other, 1);
    }

    pub(crate) fn displace(&mut self, other: &'a Placed) {
        self.node.displace(other);
        self.cycle.volumes.displace(other);
        self.adjust(other, -1);
    }

    fn adjust(&mut self, other: &'a Placed, change: i64) {
        let Cycle { pod, snapshot, affinity, spread, .. } = &mut self.cycle;
        affinity.adjust(pod, snapshot, other, self.known, change);
        pod_topology_spread::adjust(spread, pod, other, self.known, change);
    }

    pub(crate) fn reasons(&self, filters: &[Filter]) -> Vec<Reason> {
        self.cycle.reasons(filters, &self.node)
    }
}

/// A predicate. An empty list means that the node can take the pod.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    pub name: &'static str,
    pub check: fn(&Cycle<'_>, &NodeInfo) -> Vec<Reason>,
}

/// All predicates; the cheap ones, and those that time does not change, first.
pub const ALL: &[Filter] = &[
    Filter { name: "NodeUnschedulable", check: |cycle, node| node_unschedulable::check(cycle.pod, node) },
    Filter { name: "NodeName", check: |cycle, node| node_name::check(cycle.pod, node) },
    Filter { name: "TaintToleration", check: |cycle, node| taint_toleration::check(cycle.pod, node) },
    Filter { name: "NodeAffinity", check: |cycle, node| node_affinity::check(cycle.pod, node) },
    Filter { name: "NodePorts", check: |cycle, node| node_ports::check(cycle.pod, node) },
    Filter { name: "NodeResourcesFit", check: |cycle, node| node_resources_fit::check(cycle.pod, node) },
    Filter { name: "VolumeRestrictions", check: |cycle, _| cycle.volumes.restrict() },
    Filter { name: "VolumeBinding", check: |cycle, node| cycle.volumes.check(node) },
    Filter { name: "PodTopologySpread", check: |cycle, node| pod_topology_spread::check(&cycle.spread, node) },
    Filter { name: "InterPodAffinity", check: |cycle, node| cycle.affinity.check(node) },
];

fn unless(fits: bool, reason: Reason) -> Vec<Reason> {
    if fits { Vec::new() } else { vec![reason] }
}

#[cfg(test)]
mod tests;
