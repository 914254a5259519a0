//! Pods for which room is being made on a node: others of lower or equal priority see it as taken.

use std::collections::{BTreeMap, HashMap};

use super::{Placed, PodInfo};

/// Bounded by the number of pods that wait.
#[derive(Debug, Default)]
pub(crate) struct Nominations {
    /// By node and uid; in an order, so that the same state gives the same answers.
    by_node: HashMap<String, BTreeMap<String, Placed>>,
    nodes: HashMap<String, String>,
}

impl Nominations {
    pub(crate) fn set(&mut self, pod: &PodInfo, node: &str) {
        self.remove(&pod.uid);
        self.by_node.entry(node.to_owned()).or_default().insert(pod.uid.clone(), Placed::of(pod, node));
        self.nodes.insert(pod.uid.clone(), node.to_owned());
    }

    /// Says whether the pod was nominated.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some(node) = self.nodes.remove(uid) else { return false };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        true
    }

    /// The node of a pod.
    pub(crate) fn of(&self, uid: &str) -> Option<&str> {
        self.nodes.get(uid).map(String::as_str)
    }

    /// The pods that the node is kept for.
    pub(crate) fn on(&self, node: &str) -> impl Iterator<Item = &Placed> {
        self.by_node.get(node).into_iter().flat_map(BTreeMap::values)
    }
}
