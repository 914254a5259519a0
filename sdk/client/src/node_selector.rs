//! Whether a node is one that a term selects: the one rule that the scheduler and DaemonSets share.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// A term matches when all its requirements do; an empty one matches nothing.
///
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#node-affinity>
pub fn matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let by_label = term.match_expressions.as_deref().unwrap_or_default();
    let by_field = term.match_fields.as_deref().unwrap_or_default();
    if by_label.is_empty() && by_field.is_empty() {
        return false;
    }
    let fields = || BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
    by_label.iter().all(|requirement| holds(requirement, labels))
        && (by_field.is_empty() || by_field.iter().all(|requirement| holds(requirement, &fields())))
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
