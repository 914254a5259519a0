use std::collections::{BTreeMap, HashMap};

use super::Reason;
use crate::snapshot::{AffinityTerm, NodeInfo, Placed, PodInfo, Snapshot};

/// A topology key with one of its values.
type Domain<'a> = (&'a str, &'a str);

/// How many pods make a domain what it is; none are not kept.
type Counts<'a> = HashMap<Domain<'a>, i64>;

fn count<'a>(counts: &mut Counts<'a>, domain: Domain<'a>, change: i64) {
    let there = counts.entry(domain).or_default();
    *there += change;
    if *there <= 0 {
        counts.remove(&domain);
    }
}

/// Where required affinity and anti-affinity draw the pod to and keep it away from.
#[derive(Clone, Debug, Default)]
pub(super) struct Domains<'a> {
    affinity: &'a [AffinityTerm],
    anti_affinity: &'a [AffinityTerm],
    /// Those of pods that match all affinity terms.
    attracting: Counts<'a>,
    /// Those of pods that match an anti-affinity term.
    repelling: Counts<'a>,
    /// Those in which the anti-affinity of pods that are placed does not want the pod.
    repelled: Counts<'a>,
    /// The pod matches its own affinity terms: if no other does, somebody has to be first.
    wants_itself: bool,
}

/// What the terms say of other pods.
struct Wanted<'a> {
    attracts: bool,
    repels: Vec<&'a AffinityTerm>,
}

impl<'a> Domains<'a> {
    pub(super) fn of(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Domains<'a> {
        let (affinity, anti_affinity) = (&*pod.pod_affinity, &*pod.pod_anti_affinity);
        let wants_itself = affinity.iter().all(|term| snapshot.means(term, &pod.namespace, &pod.labels));
        let mut domains = Domains { affinity, anti_affinity, wants_itself, ..Domains::default() };
        if !affinity.is_empty() || !anti_affinity.is_empty() {
            for (group, nodes) in snapshot.groups() {
                let wanted = domains.wanted(snapshot, &group.namespace, &group.labels);
                if wanted.attracts || !wanted.repels.is_empty() {
                    nodes.for_each(|(node, pods)| domains.add(&wanted, node, pods));
                }
            }
        }
        for placed in snapshot.repelling() {
            if let Some(node) = snapshot.node_of(placed) {
                domains.repel(pod, snapshot, placed, node, 1);
            }
        }
        domains
    }

    fn wanted(&self, snapshot: &Snapshot, namespace: &str, labels: &BTreeMap<String, String>) -> Wanted<'a> {
        let matches = |term: &&AffinityTerm| snapshot.means(term, namespace, labels);
        Wanted {
            attracts: !self.affinity.is_empty() && self.affinity.iter().all(|term| matches(&term)),
            repels: self.anti_affinity.iter().filter(matches).collect(),
        }
    }

    fn add(&mut self, wanted: &Wanted<'a>, node: &'a NodeInfo, change: i64) {
        if wanted.attracts {
            for domain in self.affinity.iter().filter_map(|term| domain(term, node)) {
                count(&mut self.attracting, domain, change);
            }
        }
        for domain in wanted.repels.iter().filter_map(|term| domain(term, node)) {
            count(&mut self.repelling, domain, change);
        }
    }

    fn repel(&mut self, pod: &PodInfo, snapshot: &Snapshot, other: &'a Placed, node: &'a NodeInfo, change: i64) {
        let unwanted = other.pod_anti_affinity.iter();
        for term in unwanted.filter(|term| snapshot.means(term, &pod.namespace, &pod.labels)) {
            if let Some(domain) = domain(term, node) {
                count(&mut self.repelled, domain, change);
            }
        }
    }

    /// As if there were one such pod more, or less, on the node.
    pub(super) fn adjust(
        &mut self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        other: &'a Placed,
        node: &'a NodeInfo,
        change: i64,
    ) {
        let wanted = self.wanted(snapshot, &other.namespace, &other.labels);
        self.add(&wanted, node, change);
        self.repel(pod, snapshot, other, node, change);
    }

    pub(super) fn check(&self, node: &NodeInfo) -> Vec<Reason> {
        if !self.attracts(node) {
            return vec![Reason::PodAffinity];
        }
        let repels = |term| domain(term, node).is_some_and(|domain| self.repelling.contains_key(&domain));
        if !self.repelling.is_empty() && self.anti_affinity.iter().any(repels) {
            return vec![Reason::PodAntiAffinity];
        }
        let is_repelled =
            |(key, value): (&String, &String)| self.repelled.contains_key(&(key.as_str(), value.as_str()));
        if !self.repelled.is_empty() && node.labels.iter().any(is_repelled) {
            return vec![Reason::ExistingAntiAffinity];
        }
        Vec::new()
    }

    /// A node without the label of a term is in no domain, also not for the first pod.
    fn attracts(&self, node: &NodeInfo) -> bool {
        let is_first = self.wants_itself && self.attracting.is_empty();
        let fits = |term| domain(term, node).is_some_and(|domain| is_first || self.attracting.contains_key(&domain));
        self.affinity.iter().all(fits)
    }
}

/// The domain of the term that the node is in.
fn domain<'a>(term: &'a AffinityTerm, node: &'a NodeInfo) -> Option<Domain<'a>> {
    node.labels.get(&term.topology_key).map(|value| (term.topology_key.as_str(), value.as_str()))
}
