//! Whether a daemon belongs on a node, and what binds it there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Taint, Toleration,
};
use tandem_client::{node_selector, tolerations::tolerated};

use crate::{object, pod};

const NAME_FIELD: &str = "metadata.name";
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";
/// What every daemon puts up with: it is often there to mend it.
///
/// <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#taints-and-tolerations>
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", NO_EXECUTE),
    ("node.kubernetes.io/unreachable", NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];
const NO_NETWORK: &str = "node.kubernetes.io/network-unavailable";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// A daemon is wanted here.
    pub(super) runs: bool,
    /// One that is here already may stay.
    pub(super) stays: bool,
}

/// Labels, taints, and whether it is cordoned.
type Traits<'a> = (Option<&'a BTreeMap<String, String>>, Option<&'a Vec<Taint>>, Option<bool>);

/// What of a node decides; other changes of it are no news.
pub(super) fn traits(node: &Node) -> Traits<'_> {
    let spec = node.spec.as_ref();
    (
        node.metadata.labels.as_ref(),
        spec.and_then(|spec| spec.taints.as_ref()),
        spec.and_then(|spec| spec.unschedulable),
    )
}

pub(super) fn fit(template: &PodTemplateSpec, node: &Node) -> Fit {
    let mut spec = template.spec.clone().unwrap_or_default();
    let name = object::name(&node.metadata);
    let elsewhere = spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name);
    if elsewhere || !is_selected(&spec, node) {
        return Fit { runs: false, stays: false };
    }
    add_tolerations(&mut spec);
    let tolerations = spec.tolerations.unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let bad: Vec<&Taint> = taints.iter().filter(|taint| !tolerated(&tolerations, taint)).collect();
    let has = |effect: &str| bad.iter().any(|taint| taint.effect == effect);
    Fit { runs: !has(NO_SCHEDULE) && !has(NO_EXECUTE), stays: !has(NO_EXECUTE) }
}

fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let required = spec.affinity.as_ref().and_then(|affinity| {
        affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    });
    let name = object::name(&node.metadata);
    spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| node_selector::matches(term, name, labels))
        })
}

/// The node that a pod is on, or may only go to.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    pod::node(pod).or_else(|| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        let field = fields.find(|field| field.key == NAME_FIELD && field.operator == "In")?;
        field.values.as_ref()?.first().map(String::as_str)
    })
}

/// Adds what holds the pod to its node, beside what its template asks of nodes.
pub(super) fn bind(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
    add_tolerations(spec);
}

fn add_tolerations(spec: &mut PodSpec) {
    let network = spec.host_network.unwrap_or(false).then_some((NO_NETWORK, NO_SCHEDULE));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            value: None,
            toleration_seconds: None,
        };
        let same = |own: &Toleration| own.key == toleration.key && own.effect == toleration.effect;
        match tolerations.iter_mut().find(|own| same(own)) {
            Some(own) => *own = toleration,
            None => tolerations.push(toleration),
        }
    }
}
