use super::MAX;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Images smaller than this are soon pulled.
const LEAST_BYTES: i64 = 23 << 20;
/// Of each container so much counts.
const MOST_BYTES: i64 = 1000 << 20;

/// Likes nodes that have the pod's images. An image that few nodes have counts for less, so that a node is not filled
/// only because it once ran such a pod.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
    let nodes = i64::try_from(snapshot.nodes().len()).unwrap_or(i64::MAX).max(1);
    let there = |image: &String| {
        let size = i128::from(node.images.get(image.as_str()).copied()?);
        i64::try_from(size * i128::from(snapshot.nodes_with(image)) / i128::from(nodes)).ok()
    };
    let sum = pod.images.iter().filter_map(there).fold(0, i64::saturating_add);
    let most = MOST_BYTES * i64::try_from(pod.images.len()).unwrap_or(1).max(1);
    MAX * (sum.clamp(LEAST_BYTES, most) - LEAST_BYTES) / (most - LEAST_BYTES)
}
