//! A pod as the scheduler sees it, read from the API's object.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, NodeSelectorTerm, Pod, PodAffinityTerm, PodCondition, PodSpec, PreferredSchedulingTerm, Toleration,
    WeightedPodAffinityTerm,
};
use tandem_api::TRACE_ANNOTATION;
use tandem_client::volumes;

use crate::PROFILE;

use super::{AffinityTerm, Amounts, HostPort, Resources, SpreadConstraint, WeightedTerm, images, terms::Labels};

/// The reason of the condition of pods that make room.
pub(crate) const PREEMPTION: &str = "PreemptionByScheduler";

/// A pod as the scheduler sees it.
#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: Arc<BTreeMap<String, String>>,
    /// It is being deleted, and may still run.
    pub terminating: bool,
    /// It is being deleted because it had to make room.
    pub preempted: bool,
    pub priority: i32,
    /// Whatever its priority, no other pod is to make room for it.
    pub never_preempts: bool,
    /// The node on which room is being made for it.
    pub nominated: Option<String>,
    /// The name of the scheduler that it asks for.
    pub scheduler: String,
    pub created: Option<Timestamp>,
    pub started: Option<Timestamp>,
    /// What it asks for, with overhead.
    pub requests: Resources,
    /// The same with defaults for what it does not say; for scores.
    pub presumed: Resources,
    pub node_selector: BTreeMap<String, String>,
    /// Any one of these terms has to match; no terms at all match nothing.
    pub required: Option<Vec<NodeSelectorTerm>>,
    pub preferred: Vec<PreferredSchedulingTerm>,
    /// The pods that must, must not, and should or should not be in its topology domain.
    pub pod_affinity: Arc<[AffinityTerm]>,
    pub pod_anti_affinity: Arc<[AffinityTerm]>,
    pub pod_preferences: Arc<[WeightedTerm]>,
    pub topology_spread: Arc<[SpreadConstraint]>,
    pub tolerations: Vec<Toleration>,
    pub ports: Vec<HostPort>,
    /// The names of its claims.
    pub claims: Arc<[String]>,
    /// The images of its containers, by their full names.
    pub images: Arc<[String]>,
    /// Kind and name of its controller.
    pub owner: Option<(String, String)>,
    /// The node that it names itself, or is bound to.
    pub node_name: Option<String>,
    /// The message of the condition that says why it waits.
    pub waiting_because: Option<String>,
    /// The trace of the request that made it, for the events about it.
    pub trace: Option<String>,
}

impl PodInfo {
    pub fn of(pod: &Pod) -> PodInfo {
        let (meta, none) = (&pod.metadata, PodSpec::default());
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone()).unwrap_or_default();
        let required = affinity.required_during_scheduling_ignored_during_execution;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let labels = meta.labels.clone().unwrap_or_default();
        let spread = spec.topology_spread_constraints.iter().flatten();
        let status = pod.status.as_ref();
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let scheduler = spec.scheduler_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(PROFILE);
        PodInfo {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            terminating: meta.deletion_timestamp.is_some(),
            preempted: meta.deletion_timestamp.is_some() && is_preempted(pod),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            nominated: status.and_then(|it| it.nominated_node_name.clone()).filter(|name| !name.is_empty()),
            scheduler: scheduler.to_owned(),
            started: status.and_then(|it| it.start_time.as_ref()).map(|time| time.0),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            requests: requests(pod, spec, Resources::of),
            presumed: requests(pod, spec, Resources::presumed),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required: required.map(|selector| selector.node_selector_terms),
            preferred: affinity.preferred_during_scheduling_ignored_during_execution.unwrap_or_default(),
            pod_affinity: affinity_terms(spec, &namespace, &labels),
            pod_anti_affinity: anti_affinity_terms(spec, &namespace, &labels),
            pod_preferences: preferences(spec, &namespace, &labels),
            topology_spread: spread.map(|constraint| SpreadConstraint::of(constraint, &labels)).collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            ports: spec.containers.iter().chain(sidecars(spec)).flat_map(host_ports).collect(),
            claims: volumes::claims_of(pod).map(str::to_owned).collect(),
            images: spec.containers.iter().chain(spec.init_containers.iter().flatten()).filter_map(image).collect(),
            owner: owner.map(|owner| (owner.kind.clone(), owner.name.clone())),
            node_name: spec.node_name.clone().filter(|name| !name.is_empty()),
            waiting_because: waiting_because(pod),
            trace: meta.annotations.as_ref().and_then(|all| all.get(TRACE_ANNOTATION)).cloned(),
            namespace,
            labels: Arc::new(labels),
        }
    }

    /// Whether other pods decide where it fits.
    pub(crate) fn minds_others(&self) -> bool {
        let spreads = || self.topology_spread.iter().any(|constraint| constraint.is_required);
        !self.pod_affinity.is_empty() || !self.pod_anti_affinity.is_empty() || spreads()
    }

    pub(crate) fn has_claims(&self) -> bool {
        !self.claims.is_empty()
    }

    /// True when nothing has changed that decides where the pod fits.
    pub(crate) fn fits_like(&self, other: &PodInfo) -> bool {
        self.requests == other.requests
            && self.node_selector == other.node_selector
            && self.required == other.required
            && self.tolerations == other.tolerations
            && self.labels == other.labels
            && self.pod_affinity == other.pod_affinity
            && self.pod_anti_affinity == other.pod_anti_affinity
            && self.topology_spread == other.topology_spread
    }
}

fn terms(terms: Option<&[PodAffinityTerm]>, namespace: &str, labels: &Labels) -> Arc<[AffinityTerm]> {
    terms.unwrap_or_default().iter().map(|term| AffinityTerm::of(term, namespace, labels)).collect()
}

fn affinity_terms(spec: &PodSpec, namespace: &str, labels: &Labels) -> Arc<[AffinityTerm]> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_deref());
    terms(required, namespace, labels)
}

fn anti_affinity_terms(spec: &PodSpec, namespace: &str, labels: &Labels) -> Arc<[AffinityTerm]> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_deref());
    terms(required, namespace, labels)
}

fn preferences(spec: &PodSpec, namespace: &str, labels: &Labels) -> Arc<[WeightedTerm]> {
    let Some(affinity) = &spec.affinity else { return Arc::default() };
    let attracting = affinity.pod_affinity.as_ref();
    let attracting = attracting.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_deref());
    let repelling = affinity.pod_anti_affinity.as_ref();
    let repelling = repelling.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_deref());
    let weighted = |preferred: &WeightedPodAffinityTerm, sign: i64| WeightedTerm {
        weight: sign * i64::from(preferred.weight),
        term: AffinityTerm::of(&preferred.pod_affinity_term, namespace, labels),
    };
    let attracting = attracting.unwrap_or_default().iter().map(|preferred| weighted(preferred, 1));
    attracting.chain(repelling.unwrap_or_default().iter().map(|preferred| weighted(preferred, -1))).collect()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn is_preempted(pod: &Pod) -> bool {
    condition(pod, "DisruptionTarget")
        .is_some_and(|target| target.status == "True" && target.reason.as_deref() == Some(PREEMPTION))
}

fn image(container: &Container) -> Option<String> {
    container.image.as_deref().filter(|image| !image.is_empty()).map(images::full_name)
}

fn waiting_because(pod: &Pod) -> Option<String> {
    let scheduled = condition(pod, "PodScheduled")?;
    (scheduled.reason.as_deref() == Some("Unschedulable")).then(|| scheduled.message.clone()).flatten()
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn sidecars(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().filter(|container| is_sidecar(container))
}

fn host_ports(container: &Container) -> Vec<HostPort> {
    let ports = container.ports.iter().flatten().filter(|port| port.host_port.is_some_and(|port| port > 0));
    ports
        .map(|port| HostPort {
            address: port.host_ip.clone().filter(|address| !matches!(address.as_str(), "" | "0.0.0.0" | "::")),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.host_port.unwrap_or(0),
        })
        .collect()
}

/// What a container asks for, or what its node still holds for it while it is resized, whichever is more. What its node
/// can never give it does not count.
fn held(pod: &Pod, container: &Container, read: fn(Option<&Amounts>) -> Resources) -> Resources {
    let asked = read(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let Some(status) = pod.status.as_ref() else { return asked };
    let lists = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let Some(known) = lists.into_iter().find(|known| known.name == container.name) else { return asked };
    let given = known.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut given = [given, known.allocated_resources.as_ref()].into_iter().flatten();
    let Some(first) = given.next() else { return asked };
    let mut held = read(Some(first));
    given.for_each(|more| held.at_least(&read(Some(more))));
    let is_infeasible = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("Infeasible")
    });
    if !is_infeasible {
        held.at_least(&asked);
    }
    held
}

/// The most that the pod needs at any time: its containers together, or an init container with the sidecars before it.
///
/// <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>
fn requests(pod: &Pod, spec: &PodSpec, read: fn(Option<&Amounts>) -> Resources) -> Resources {
    let of = |container: &Container| held(pod, container, read);
    let mut total = Resources::default();
    spec.containers.iter().for_each(|container| total.add(&of(container)));
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut own = of(container);
        if is_sidecar(container) {
            total.add(&own);
            sidecars.add(&own);
            own = sidecars.clone();
        } else {
            own.add(&sidecars);
        }
        peak.at_least(&own);
    }
    total.at_least(&peak);
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let said = Resources::of(Some(whole));
        if whole.contains_key("cpu") {
            total.milli_cpu = said.milli_cpu;
        }
        if whole.contains_key("memory") {
            total.memory = said.memory;
        }
    }
    total.add(&Resources::of(spec.overhead.as_ref()));
    total.pods = 1;
    total
}
