//! What scheduling decides on: nodes with what is used of them, pods with what they ask for.

mod images;
mod nominations;
mod pod;
mod terms;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Taint},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    kept::Kept,
    owners::Owners,
    quantity,
    storage::{Needs, Reservations, Storage},
};
pub(crate) use images::Images;
pub(crate) use nominations::Nominations;
pub(crate) use pod::PREEMPTION;
pub use pod::PodInfo;
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
    /// The sizes of the images that are there, by each of their names.
    pub images: Images,
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
            images: images::of(node),
            ..NodeInfo::default()
        }
    }

    fn is_like(&self, other: &NodeInfo) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.allocatable == other.allocatable
    }

    pub(crate) fn place(&mut self, pod: &Placed) {
        self.requested.add(&pod.requests);
        self.presumed.add(&pod.presumed);
        self.ports.extend(pod.ports.iter().cloned());
    }

    pub(crate) fn displace(&mut self, pod: &Placed) {
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
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Arc<Labels>,
    pub(crate) terminating: bool,
    pub(crate) preempted: bool,
    pub(crate) priority: i32,
    pub(crate) started: Option<Timestamp>,
    pub(crate) pod_affinity: Arc<[AffinityTerm]>,
    pub(crate) pod_anti_affinity: Arc<[AffinityTerm]>,
    pub(crate) pod_preferences: Arc<[WeightedTerm]>,
    pub(crate) claims: Arc<[String]>,
    node: String,
    requests: Resources,
    presumed: Resources,
    ports: Vec<HostPort>,
    /// Decided here and not yet confirmed by the API.
    assumed: bool,
    /// It is being made to give room, which the API may not show yet.
    condemned: bool,
}

impl Placed {
    pub(crate) fn of(pod: &PodInfo, node: &str) -> Placed {
        Placed {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            labels: pod.labels.clone(),
            terminating: pod.terminating,
            preempted: pod.preempted,
            priority: pod.priority,
            started: pod.started,
            pod_affinity: pod.pod_affinity.clone(),
            pod_anti_affinity: pod.pod_anti_affinity.clone(),
            pod_preferences: pod.pod_preferences.clone(),
            claims: pod.claims.clone(),
            node: node.to_owned(),
            requests: pod.requests.clone(),
            presumed: pod.presumed.clone(),
            ports: pod.ports.clone(),
            assumed: false,
            condemned: false,
        }
    }

    fn attracts(&self) -> bool {
        !self.pod_affinity.is_empty() || !self.pod_preferences.is_empty()
    }

    fn group(&self) -> Group {
        Group { namespace: self.namespace.clone(), labels: self.labels.clone(), terminating: self.terminating }
    }
}

/// What affinity and spreading know a pod by. Few groups have many pods: those of one template are in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) namespace: String,
    pub(crate) labels: Arc<Labels>,
    pub(crate) terminating: bool,
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
    /// How many pods of each group each node has.
    groups: HashMap<Group, HashMap<String, i64>>,
    namespaces: Namespaces,
    pub(crate) nominations: Nominations,
    pub(crate) storage: Storage,
    /// The volumes that the claims of assumed pods are about to have.
    pub(crate) reserved: Reservations,
    pub(crate) budgets: Kept<PodDisruptionBudget>,
    pub(crate) owners: Owners,
    /// On how many nodes each image is.
    image_nodes: HashMap<Arc<str>, i64>,
    /// The uids of the placed pods that have required anti-affinity.
    repelling: HashSet<String>,
    /// The uids of the placed pods that have required affinity, or preferences for or against other pods.
    attracting: HashSet<String>,
}

impl Snapshot {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// All placed pods of nodes that are known, each group with the nodes that it is on.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&Group, impl Iterator<Item = (&NodeInfo, i64)>)> {
        self.groups
            .iter()
            .map(|(group, nodes)| (group, nodes.iter().filter_map(|(name, count)| Some((self.node(name)?, *count)))))
    }

    /// What has to be known of the cluster besides pods, nodes and namespaces is.
    pub(crate) fn is_listed(&self) -> bool {
        self.storage.is_listed() && self.budgets.is_listed() && self.owners.is_listed()
    }

    /// What was listed counts no more.
    pub(crate) fn unlist(&mut self) {
        self.storage.unlist();
        self.budgets.unlist();
        self.owners.unlist();
    }

    /// On how many nodes the image is.
    pub(crate) fn nodes_with(&self, image: &str) -> i64 {
        self.image_nodes.get(image).copied().unwrap_or(0)
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

    /// How many other pods that have a node use the claim of this one.
    pub(crate) fn claim_users(&self, pod: &PodInfo, claim: &str) -> usize {
        let others = self.placed.values().filter(|other| other.uid != pod.uid && other.namespace == pod.namespace);
        others.filter(|other| other.claims.iter().any(|name| name == claim)).count()
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
        if let Some(index) = known {
            let old = std::mem::replace(&mut self.nodes[index].images, info.images.clone());
            images::count(&mut self.image_nodes, &old, -1);
        }
        images::count(&mut self.image_nodes, &info.images, 1);
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
        let gone = self.nodes.swap_remove(index);
        images::count(&mut self.image_nodes, &gone.images, -1);
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
        let reserved = self.node(node).map(|info| Needs::of(pod, self).choose(info)).unwrap_or_default();
        self.take(&pod.uid);
        self.nominations.remove(&pod.uid);
        self.reserved.add(&pod.uid, reserved);
        self.insert(Placed { assumed: true, ..Placed::of(pod, node) });
    }

    /// Gives the room back when the binding failed, unless the API has confirmed it meanwhile.
    pub fn forget(&mut self, uid: &str) {
        if self.placed.get(uid).is_some_and(|placed| placed.assumed) {
            self.remove_pod(uid);
        }
    }

    /// Forgets what was decided here and may not have been written: another leader may have decided otherwise.
    pub(crate) fn forget_decisions(&mut self) {
        self.forget_assumed();
        self.nominations = Nominations::default();
        let condemned = self.placed.values().filter(|placed| placed.condemned).map(|placed| placed.uid.clone());
        for uid in condemned.collect::<Vec<String>>() {
            self.spare(&uid);
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
        let condemned = self.placed.get(&pod.uid).is_some_and(|known| known.condemned);
        let mut placed = Placed { condemned, ..Placed::of(pod, node) };
        placed.terminating |= condemned;
        placed.preempted |= condemned;
        self.take(&pod.uid);
        self.nominations.remove(&pod.uid);
        self.insert(placed);
        seen
    }

    /// The pod is being made to give room: it counts as one that ends, whatever the API still shows.
    pub(crate) fn condemn(&mut self, uid: &str) {
        if let Some(placed) = self.take(uid) {
            self.insert(Placed { condemned: true, terminating: true, preempted: true, ..placed });
        }
    }

    /// The pod could not be told to end.
    pub(crate) fn spare(&mut self, uid: &str) {
        if let Some(placed) = self.take(uid) {
            let kept = !placed.condemned && placed.terminating;
            self.insert(Placed { condemned: false, terminating: kept, preempted: kept && placed.preempted, ..placed });
        }
    }

    fn insert(&mut self, placed: Placed) {
        let uid = placed.uid.clone();
        if !placed.pod_anti_affinity.is_empty() {
            self.repelling.insert(uid.clone());
        }
        if placed.attracts() {
            self.attracting.insert(uid.clone());
        }
        if let Some(index) = self.index.get(&placed.node) {
            self.nodes[*index].place(&placed);
        }
        *self.groups.entry(placed.group()).or_default().entry(placed.node.clone()).or_default() += 1;
        self.residents.entry(placed.node.clone()).or_default().insert(uid.clone());
        self.placed.insert(uid, placed);
    }

    /// Says whether that made room.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let was_nominated = self.nominations.remove(uid);
        self.take(uid).is_some() || was_nominated
    }

    fn take(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.placed.remove(uid)?;
        self.repelling.remove(uid);
        self.attracting.remove(uid);
        self.reserved.remove(uid);
        if let Some(index) = self.index.get(&placed.node) {
            self.nodes[*index].displace(&placed);
        }
        let group = placed.group();
        if let Some(nodes) = self.groups.get_mut(&group) {
            if let Some(count) = nodes.get_mut(&placed.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&placed.node);
                }
            }
            if nodes.is_empty() {
                self.groups.remove(&group);
            }
        }
        if let Some(residents) = self.residents.get_mut(&placed.node) {
            residents.remove(uid);
            if residents.is_empty() {
                self.residents.remove(&placed.node);
            }
        }
        Some(placed)
    }
}

#[cfg(test)]
#[path = "snapshot/tests.rs"]
mod tests;
