use super::{points, used};
use crate::snapshot::{NodeInfo, PodInfo};

/// Likes nodes with much left of CPU and memory, so that pods spread.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (has, uses, wants) = (&node.allocatable, &node.presumed, &pod.presumed);
    let cpu = 1.0 - used(has.milli_cpu, uses.milli_cpu, wants.milli_cpu);
    let memory = 1.0 - used(has.memory, uses.memory, wants.memory);
    points(f64::midpoint(cpu, memory))
}
