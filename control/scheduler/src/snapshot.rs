//! What scheduling decides on: nodes with what is used of them, pods with what they ask for.

mod terms;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, Namespace, Node, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, PreferredSchedulingTerm, Taint,
        Toleration, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use tandem_api::TRACE_ANNOTATION;
use tandem_client::volumes;

use crate::{quantity, storage::Storage};
pub use terms::{AffinityTerm, SpreadConstraint, WeightedTerm};
use terms::{Labels, Namespaces};

/// What a container that asks for nothing is taken to use, so that such pods spread too.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of the resources that nodes have and pods want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    pub pods: i64,
    pub extended: BTreeMap<Arc<str>, i64>,
}

type Amounts = BTreeMap<String, Quantity>;

impl Resources {
    fn of(amounts: Option<&Amounts>) -> Resources {
        let mut resources = Resources::default();
        for (name, amount) in amounts.into_iter().flatten() {
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity::milli(amount),
                "memory" => resources.memory = quantity::value(amount),
                "ephemeral-storage" => resources.ephemeral_storage = quantity::value(amount),
                "pods" => resources.pods = quantity::value(amount),
                _ => drop(resources.extended.insert(name.as_str().into(), quantity::value(amount))),
            }
        }
        resources
    }

    /// As it is taken for scores: a container that says nothing about CPU or memory counts with a default.
    fn presumed(amounts: Option<&Amounts>) -> Resources {
        let says = |name| amounts.is_some_and(|amounts| amounts.contains_key(name));
        let mut resources = Resources::of(amounts);
        if !says("cpu") {
            resources.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !says("memory") {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    }

    fn combine(&mut self, other: &Resources, with: fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }

    fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    fn at_least(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `None` takes the port on all addresses.
    pub address: Option<String>,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub(crate) fn conflicts(&self, other: &HostPort) -> bool {
        let same_address = self.address.is_none() || other.address.is_none() || self.address == other.address;
        same_address && self.port == other.port && self.protocol == other.protocol
    }
}

/// A pod as the scheduler sees it.
#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: Arc<BTreeMap<String, String>>,
    /// It is being deleted, and may still run.
    pub terminating: bool,
    pub priority: i32,
    pub created: Option<Timestamp>,
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
        PodInfo {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            terminating: meta.deletion_timestamp.is_some(),
            priority: spec.priority.unwrap_or(0),
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

fn waiting_because(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
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

/// A node as the scheduler sees it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// What its pods ask for; `presumed` with defaults for what they do not say.
    pub requested: Resources,
    pub presumed: Resources,
    pub ports: Vec<HostPort>,
}

impl NodeInfo {
    pub fn of(node: &Node) -> NodeInfo {
        let spec = node.spec.clone().unwrap_or_default();
        NodeInfo {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            allocatable: Resources::of(node.status.as_ref().and_then(|status| status.allocatable.as_ref())),
            ..NodeInfo::default()
        }
    }

    fn is_like(&self, other: &NodeInfo) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.allocatable == other.allocatable
    }

    fn place(&mut self, pod: &Placed) {
        self.requested.add(&pod.requests);
        self.presumed.add(&pod.presumed);
        self.ports.extend(pod.ports.iter().cloned());
    }

    fn displace(&mut self, pod: &Placed) {
        self.requested.subtract(&pod.requests);
        self.presumed.subtract(&pod.presumed);
        for port in &pod.ports {
            if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
    }
}

/// A pod that takes room on a node.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) namespace: String,
    pub(crate) labels: Arc<Labels>,
    pub(crate) terminating: bool,
    pub(crate) pod_affinity: Arc<[AffinityTerm]>,
    pub(crate) pod_anti_affinity: Arc<[AffinityTerm]>,
    pub(crate) pod_preferences: Arc<[WeightedTerm]>,
    node: String,
    requests: Resources,
    presumed: Resources,
    ports: Vec<HostPort>,
    claims: Arc<[String]>,
    /// Decided here and not yet confirmed by the API.
    assumed: bool,
}

impl Placed {
    fn of(pod: &PodInfo, node: &str, assumed: bool) -> Placed {
        Placed {
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            terminating: pod.terminating,
            pod_affinity: pod.pod_affinity.clone(),
            pod_anti_affinity: pod.pod_anti_affinity.clone(),
            pod_preferences: pod.pod_preferences.clone(),
            node: node.to_owned(),
            requests: pod.requests.clone(),
            presumed: pod.presumed.clone(),
            ports: pod.ports.clone(),
            claims: pod.claims.clone(),
            assumed,
        }
    }

    fn attracts(&self) -> bool {
        !self.pod_affinity.is_empty() || !self.pod_preferences.is_empty()
    }
}

/// What the API said of a pod on a node, as far as other pods mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Before,
    New,
    /// Its labels or what it has changed, or it began to end.
    Changed,
}

/// All nodes, all pods on them and the labels of all namespaces, kept up to date change by change.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    placed: HashMap<String, Placed>,
    /// The uids of the pods on each node, also of nodes that are not known.
    residents: HashMap<String, HashSet<String>>,
    namespaces: Namespaces,
    pub(crate) storage: Storage,
    /// The uids of the placed pods that have required anti-affinity.
    repelling: HashSet<String>,
    /// The uids of the placed pods that have required affinity, or preferences for or against other pods.
    attracting: HashSet<String>,
}

impl Snapshot {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// All placed pods, also those of nodes that are not known.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Placed> {
        self.placed.values()
    }

    pub(crate) fn pods_on(&self, node: &str) -> impl Iterator<Item = &Placed> {
        self.residents.get(node).into_iter().flatten().filter_map(|uid| self.placed.get(uid))
    }

    /// The placed pods with required anti-affinity.
    pub(crate) fn repelling(&self) -> impl Iterator<Item = &Placed> {
        self.repelling.iter().filter_map(|uid| self.placed.get(uid))
    }

    /// The placed pods with required affinity, or preferences for or against other pods.
    pub(crate) fn attracting(&self) -> impl Iterator<Item = &Placed> {
        self.attracting.iter().filter_map(|uid| self.placed.get(uid))
    }

    pub(crate) fn node_of(&self, placed: &Placed) -> Option<&NodeInfo> {
        self.index.get(&placed.node).map(|index| &self.nodes[*index])
    }

    pub(crate) fn has_node(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|index| &self.nodes[*index])
    }

    /// Whether another pod that has a node uses the claim of this one.
    pub(crate) fn uses_claim(&self, pod: &PodInfo, claim: &str) -> bool {
        let mut others = self.placed.iter().filter(|(uid, other)| **uid != pod.uid && other.namespace == pod.namespace);
        others.any(|(_, other)| other.claims.iter().any(|name| name == claim))
    }

    /// Whether the term means a pod with these labels in this namespace.
    pub(crate) fn means(&self, term: &AffinityTerm, namespace: &str, labels: &Labels) -> bool {
        term.matches(namespace, labels, &self.namespaces)
    }

    /// Whether a waiting pod may fit because another one was placed.
    pub(crate) fn may_follow(&self, waiting: &PodInfo, placed: &PodInfo) -> bool {
        let wants = |term: &AffinityTerm| self.means(term, &placed.namespace, &placed.labels);
        let spreads = |constraint: &SpreadConstraint| constraint.is_required && constraint.counts(&placed.labels);
        waiting.pod_affinity.iter().any(wants)
            || (waiting.namespace == placed.namespace && waiting.topology_spread.iter().any(spreads))
    }

    /// Says whether a pod that fitted nowhere might fit now.
    pub fn set_namespace(&mut self, namespace: &Namespace) -> bool {
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let changed = self.namespaces.get(&name) != Some(&labels);
        if changed {
            self.namespaces.insert(name, labels);
        }
        changed
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    pub fn namespace_names(&self) -> Vec<String> {
        self.namespaces.keys().cloned().collect()
    }

    /// Says whether a pod that fitted nowhere might fit now.
    pub fn set_node(&mut self, node: &Node) -> bool {
        self.add_node(NodeInfo::of(node))
    }

    /// The same for a node that was described otherwise than by the API.
    pub fn add_node(&mut self, mut info: NodeInfo) -> bool {
        let known = self.index.get(&info.name).copied();
        let changed = known.is_none_or(|index| !self.nodes[index].is_like(&info));
        if !changed {
            return false;
        }
        for uid in self.residents.get(&info.name).into_iter().flatten() {
            if let Some(pod) = self.placed.get(uid) {
                info.place(pod);
            }
        }
        match known {
            Some(index) => self.nodes[index] = info,
            None => {
                self.index.insert(info.name.clone(), self.nodes.len());
                self.nodes.push(info);
            }
        }
        true
    }

    /// Says whether there was such a node: pods that other pods kept away may fit when a domain goes.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(index) = self.index.remove(name) else { return false };
        self.nodes.swap_remove(index);
        if let Some(moved) = self.nodes.get(index) {
            self.index.insert(moved.name.clone(), index);
        }
        true
    }

    pub fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Takes room for a pod before the API knows of it, so that the next pod does not get the same room.
    pub fn assume(&mut self, pod: &PodInfo, node: &str) {
        self.place(pod, node, true);
    }

    /// Gives the room back when the binding failed, unless the API has confirmed it meanwhile.
    pub fn forget(&mut self, uid: &str) {
        if self.placed.get(uid).is_some_and(|placed| placed.assumed) {
            self.remove_pod(uid);
        }
    }

    /// Gives back the room of every binding that the API has not confirmed.
    pub fn forget_assumed(&mut self) {
        let assumed: Vec<String> =
            self.placed.iter().filter(|(_, placed)| placed.assumed).map(|(uid, _)| uid.clone()).collect();
        for uid in assumed {
            self.remove_pod(&uid);
        }
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    pub fn placed(&self) -> impl Iterator<Item = &String> {
        self.placed.keys()
    }

    /// A pod that the API says is on a node.
    pub(crate) fn set_pod(&mut self, pod: &PodInfo) -> Seen {
        let Some(node) = &pod.node_name else { return Seen::Before };
        let seen = match self.placed.get(&pod.uid) {
            Some(known) if known.assumed => Seen::New,
            Some(known)
                if known.labels != pod.labels
                    || known.terminating != pod.terminating
                    || known.requests != pod.requests =>
            {
                Seen::Changed
            }
            Some(_) => Seen::Before,
            None => Seen::New,
        };
        self.place(pod, node, false);
        seen
    }

    fn place(&mut self, pod: &PodInfo, node: &str, assumed: bool) {
        self.remove_pod(&pod.uid);
        let placed = Placed::of(pod, node, assumed);
        if !placed.pod_anti_affinity.is_empty() {
            self.repelling.insert(pod.uid.clone());
        }
        if placed.attracts() {
            self.attracting.insert(pod.uid.clone());
        }
        if let Some(index) = self.index.get(node) {
            self.nodes[*index].place(&placed);
        }
        self.residents.entry(node.to_owned()).or_default().insert(pod.uid.clone());
        self.placed.insert(pod.uid.clone(), placed);
    }

    /// Says whether that made room.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(placed) = self.placed.remove(uid) else { return false };
        self.repelling.remove(uid);
        self.attracting.remove(uid);
        if let Some(index) = self.index.get(&placed.node) {
            self.nodes[*index].displace(&placed);
        }
        if let Some(residents) = self.residents.get_mut(&placed.node) {
            residents.remove(uid);
            if residents.is_empty() {
                self.residents.remove(&placed.node);
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "snapshot/tests.rs"]
mod tests;
