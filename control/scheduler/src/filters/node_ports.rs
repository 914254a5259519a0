use super::{Reason, unless};
use crate::snapshot::{NodeInfo, PodInfo};

/// No two pods of a node take the same port of it.
pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let is_free = |wanted| !node.ports.iter().any(|taken| taken.conflicts(wanted));
    unless(pod.ports.iter().all(is_free), Reason::Ports)
}
