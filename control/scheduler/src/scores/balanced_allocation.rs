use super::{points, used};
use crate::snapshot::{NodeInfo, PodInfo};

/// Likes nodes on which CPU and memory are used to the same degree, so that neither strands the other.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (has, uses, wants) = (&node.allocatable, &node.presumed, &pod.presumed);
    let cpu = used(has.milli_cpu, uses.milli_cpu, wants.milli_cpu);
    let memory = used(has.memory, uses.memory, wants.memory);
    // Of two numbers the standard deviation is half their distance.
    points(1.0 - (cpu - memory).abs() / 2.0)
}
