use k8s_openapi::api::core::v1::NodeSelectorTerm;
use tandem_client::node_selector;

use super::{Reason, unless};
use crate::snapshot::{NodeInfo, PodInfo};

pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    unless(admits(pod, node), Reason::Affinity)
}

/// The node has every label of the pod's nodeSelector, and matches a term of its required affinity.
pub(super) fn admits(pod: &PodInfo, node: &NodeInfo) -> bool {
    let has = |label: (&String, &String)| node.labels.get(label.0) == Some(label.1);
    let selected = pod.node_selector.iter().all(has);
    let wanted = || pod.required.as_ref().is_none_or(|terms| terms.iter().any(|term| matches(term, node)));
    selected && wanted()
}

pub(crate) fn matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    node_selector::matches(term, &node.name, &node.labels)
}
