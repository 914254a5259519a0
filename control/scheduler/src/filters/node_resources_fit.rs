use super::Reason;
use crate::snapshot::{NodeInfo, PodInfo};

/// What the pod asks for is still there, of every resource. Says all that is missing, not only the first.
pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let (wants, has, used) = (&pod.requests, &node.allocatable, &node.requested);
    let mut missing = Vec::new();
    if used.pods + 1 > has.pods {
        missing.push(Reason::TooManyPods);
    }
    let fits = |wants: i64, has: i64, used: i64| wants <= 0 || wants <= has - used;
    if !fits(wants.milli_cpu, has.milli_cpu, used.milli_cpu) {
        missing.push(Reason::Insufficient("cpu".into()));
    }
    if !fits(wants.memory, has.memory, used.memory) {
        missing.push(Reason::Insufficient("memory".into()));
    }
    if !fits(wants.ephemeral_storage, has.ephemeral_storage, used.ephemeral_storage) {
        missing.push(Reason::Insufficient("ephemeral-storage".into()));
    }
    for (name, amount) in &wants.extended {
        let of = |resources: &crate::snapshot::Resources| resources.extended.get(name).copied().unwrap_or(0);
        if !fits(*amount, of(has), of(used)) {
            missing.push(Reason::Insufficient(name.clone()));
        }
    }
    missing
}

/// Whether the pod would fit on the node if it were alone there.
pub(super) fn fits_alone(pod: &PodInfo, node: &NodeInfo) -> bool {
    let (wants, has) = (&pod.requests, &node.allocatable);
    let fits = |wants: i64, has: i64| wants <= 0 || wants <= has;
    fits(wants.milli_cpu, has.milli_cpu)
        && fits(wants.memory, has.memory)
        && fits(wants.ephemeral_storage, has.ephemeral_storage)
        && wants.extended.iter().all(|(name, amount)| fits(*amount, has.extended.get(name).copied().unwrap_or(0)))
}
