use super::{Reason, unless};
use crate::snapshot::{NodeInfo, PodInfo};

/// A pod that names a node runs there or nowhere.
pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    unless(pod.node_name.as_ref().is_none_or(|name| *name == node.name), Reason::NodeName)
}
