use std::collections::HashSet;

use super::Reason;
use crate::snapshot::{AffinityTerm, NodeInfo, PodInfo, Snapshot};

/// A topology key with one of its values.
type Domain<'a> = (&'a str, &'a str);

/// Where required affinity and anti-affinity draw the pod to and keep it away from.
#[derive(Debug, Default)]
pub(super) struct Domains<'a> {
    affinity: &'a [AffinityTerm],
    anti_affinity: &'a [AffinityTerm],
    /// Those of pods that match all affinity terms.
    attracting: HashSet<Domain<'a>>,
    /// Those of pods that match an anti-affinity term.
    repelling: HashSet<Domain<'a>>,
    /// Those in which the anti-affinity of pods that are placed does not want the pod.
    repelled: HashSet<Domain<'a>>,
    /// The pod matches its own affinity terms, and no other does: somebody has to be first.
    is_first: bool,
}

impl<'a> Domains<'a> {
    pub(super) fn of(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Domains<'a> {
        let (affinity, anti_affinity) = (&*pod.pod_affinity, &*pod.pod_anti_affinity);
        let mut domains = Domains { affinity, anti_affinity, ..Domains::default() };
        if !affinity.is_empty() || !anti_affinity.is_empty() {
            domains.look_around(snapshot);
        }
        for placed in snapshot.repelling() {
            let unwanted =
                placed.pod_anti_affinity.iter().filter(|term| snapshot.means(term, &pod.namespace, &pod.labels));
            for term in unwanted {
                domains.repelled.extend(snapshot.node_of(placed).and_then(|node| domain(term, node)));
            }
        }
        domains.is_first = domains.attracting.is_empty()
            && affinity.iter().all(|term| snapshot.means(term, &pod.namespace, &pod.labels));
        domains
    }

    fn look_around(&mut self, snapshot: &'a Snapshot) {
        for placed in snapshot.pods() {
            let matches = |term: &&AffinityTerm| snapshot.means(term, &placed.namespace, &placed.labels);
            if !self.affinity.is_empty()
                && self.affinity.iter().all(|term| matches(&term))
                && let Some(node) = snapshot.node_of(placed)
            {
                self.attracting.extend(self.affinity.iter().filter_map(|term| domain(term, node)));
            }
            for term in self.anti_affinity.iter().filter(matches) {
                self.repelling.extend(snapshot.node_of(placed).and_then(|node| domain(term, node)));
            }
        }
    }

    pub(super) fn check(&self, node: &NodeInfo) -> Vec<Reason> {
        if !self.attracts(node) {
            return vec![Reason::PodAffinity];
        }
        let repels = |term| domain(term, node).is_some_and(|domain| self.repelling.contains(&domain));
        if !self.repelling.is_empty() && self.anti_affinity.iter().any(repels) {
            return vec![Reason::PodAntiAffinity];
        }
        let is_repelled = |(key, value): (&String, &String)| self.repelled.contains(&(key.as_str(), value.as_str()));
        if !self.repelled.is_empty() && node.labels.iter().any(is_repelled) {
            return vec![Reason::ExistingAntiAffinity];
        }
        Vec::new()
    }

    /// A node without the label of a term is in no domain, also not for the first pod.
    fn attracts(&self, node: &NodeInfo) -> bool {
        let fits = |term| domain(term, node).is_some_and(|domain| self.is_first || self.attracting.contains(&domain));
        self.affinity.iter().all(fits)
    }
}

/// The domain of the term that the node is in.
fn domain<'a>(term: &'a AffinityTerm, node: &'a NodeInfo) -> Option<Domain<'a>> {
    node.labels.get(&term.topology_key).map(|value| (term.topology_key.as_str(), value.as_str()))
}
