//! The predicates: what makes a node impossible for a pod. One file each, named as in Kubernetes.

mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod taint_toleration;

use std::{fmt, sync::Arc};

use crate::snapshot::{NodeInfo, PodInfo};

pub(crate) use node_affinity::matches as term_matches;

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
        }
    }
}

/// A predicate. An empty list means that the node can take the pod.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    pub name: &'static str,
    pub check: fn(&PodInfo, &NodeInfo) -> Vec<Reason>,
}

/// All predicates; the cheap ones, and those that time does not change, first.
pub const ALL: &[Filter] = &[
    Filter { name: "NodeUnschedulable", check: node_unschedulable::check },
    Filter { name: "NodeName", check: node_name::check },
    Filter { name: "TaintToleration", check: taint_toleration::check },
    Filter { name: "NodeAffinity", check: node_affinity::check },
    Filter { name: "NodePorts", check: node_ports::check },
    Filter { name: "NodeResourcesFit", check: node_resources_fit::check },
];

fn unless(fits: bool, reason: Reason) -> Vec<Reason> {
    if fits { Vec::new() } else { vec![reason] }
}

#[cfg(test)]
mod tests;
