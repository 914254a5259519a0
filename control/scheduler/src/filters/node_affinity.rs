use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::{Reason, unless};
use crate::snapshot::{NodeInfo, PodInfo};

/// The node has every label of the pod's nodeSelector, and matches a term of its required affinity.
pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let has = |label: (&String, &String)| node.labels.get(label.0) == Some(label.1);
    let selected = pod.node_selector.iter().all(has);
    let wanted = || pod.required.as_ref().is_none_or(|terms| terms.iter().any(|term| matches(term, node)));
    unless(selected && wanted(), Reason::Affinity)
}

/// A term matches when all its requirements do; an empty one matches nothing.
pub(crate) fn matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let (labels, fields) = (labels.unwrap_or_default(), fields.unwrap_or_default());
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let known_fields = || BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    labels.iter().all(|requirement| holds(requirement, &node.labels))
        && (fields.is_empty() || fields.iter().all(|requirement| holds(requirement, &known_fields())))
}

fn holds(requirement: &NodeSelectorRequirement, of: &BTreeMap<String, String>) -> bool {
    let own = of.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let compared = |holds: fn(i64, i64) -> bool| {
        let number = own.and_then(|own| own.parse().ok()).zip(values.first().and_then(|value| value.parse().ok()));
        values.len() == 1 && number.is_some_and(|(own, value)| holds(own, value))
    };
    match requirement.operator.as_str() {
        "In" => own.is_some_and(|own| values.contains(own)),
        "NotIn" => own.is_none_or(|own| !values.contains(own)),
        "Exists" => own.is_some(),
        "DoesNotExist" => own.is_none(),
        "Gt" => compared(|own, value| own > value),
        "Lt" => compared(|own, value| own < value),
        _ => false,
    }
}
