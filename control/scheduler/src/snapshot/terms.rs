//! Pod affinity terms and topology spread constraints, ready to match.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::{
    api::core::v1::{PodAffinityTerm, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{Expression, Selector, SelectorExt};

pub(crate) type Labels = BTreeMap<String, String>;

/// The labels of each namespace.
pub(crate) type Namespaces = HashMap<String, Labels>;

/// A selector that is not there matches nothing; neither does one that the API server would refuse.
fn parsed(selector: Option<&LabelSelector>) -> Option<Selector> {
    Selector::try_from(selector?.clone()).ok()
}

/// For each key that the pod has as a label, an expression with the value that it has there.
fn like_own(
    keys: Option<&[String]>,
    labels: &Labels,
    expression: fn(String, BTreeSet<String>) -> Expression,
) -> Vec<Expression> {
    let own = keys.unwrap_or_default().iter().filter_map(|key| labels.get_key_value(key));
    own.map(|(key, value)| expression(key.clone(), BTreeSet::from([value.clone()]))).collect()
}

/// The pods that a pod wants, or does not want, in its topology domain.
#[derive(Clone, Debug, PartialEq)]
pub struct AffinityTerm {
    pub topology_key: String,
    selector: Option<Selector>,
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
}

impl AffinityTerm {
    /// `namespace` and `labels` are those of the pod that has the term.
    pub(crate) fn of(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> AffinityTerm {
        let mut selector = parsed(term.label_selector.as_ref());
        if let Some(selector) = &mut selector {
            selector.extend(like_own(term.match_label_keys.as_deref(), labels, Expression::In));
            selector.extend(like_own(term.mismatch_label_keys.as_deref(), labels, Expression::NotIn));
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        AffinityTerm {
            topology_key: term.topology_key.clone(),
            selector,
            namespaces,
            namespace_selector: parsed(term.namespace_selector.as_ref()),
        }
    }

    /// Whether the term means a pod with these labels in this namespace.
    pub(crate) fn matches(&self, namespace: &str, labels: &Labels, namespaces: &Namespaces) -> bool {
        let matching = self.selector.as_ref().is_some_and(|selector| selector.matches(labels));
        matching && (self.namespaces.iter().any(|name| name == namespace) || self.selects(namespace, namespaces))
    }

    fn selects(&self, namespace: &str, namespaces: &Namespaces) -> bool {
        let Some(selector) = &self.namespace_selector else { return false };
        match namespaces.get(namespace) {
            Some(labels) => selector.matches(labels),
            None => selector.matches(&Labels::new()),
        }
    }
}

/// A preferred term. Its weight is below zero for anti-affinity.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedTerm {
    pub weight: i64,
    pub term: AffinityTerm,
}

/// How evenly the pods that it selects are to be spread over the domains of a topology key.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadConstraint {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: usize,
    /// `DoNotSchedule`; else `ScheduleAnyway`.
    pub is_required: bool,
    /// Whether nodes that the pod's node affinity excludes are no domains.
    pub honors_affinity: bool,
    /// Whether nodes with taints that the pod does not tolerate are no domains.
    pub honors_taints: bool,
    selector: Option<Selector>,
}

impl SpreadConstraint {
    /// `labels` are those of the pod that has the constraint.
    pub(crate) fn of(constraint: &TopologySpreadConstraint, labels: &Labels) -> SpreadConstraint {
        let mut selector = parsed(constraint.label_selector.as_ref());
        if let Some(selector) = &mut selector {
            selector.extend(like_own(constraint.match_label_keys.as_deref(), labels, Expression::In));
        }
        SpreadConstraint {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.and_then(|least| usize::try_from(least).ok()).unwrap_or(1),
            is_required: constraint.when_unsatisfiable != "ScheduleAnyway",
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            selector,
        }
    }

    /// One that should hold for pods that say nothing themselves.
    pub(crate) fn preferred(topology_key: &str, max_skew: i64, selector: Selector) -> SpreadConstraint {
        SpreadConstraint {
            topology_key: topology_key.to_owned(),
            max_skew,
            min_domains: 1,
            is_required: false,
            honors_affinity: true,
            honors_taints: false,
            selector: Some(selector),
        }
    }

    /// Whether a pod with these labels would be one of those that are spread.
    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// Whether a pod that is placed counts. As in Kubernetes, a selector without conditions counts none.
    pub(crate) fn counts(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| !selector.selects_all() && selector.matches(labels))
    }
}

#[cfg(test)]
mod tests;
