use tandem_client::tolerations::tolerated;

use crate::snapshot::{NodeInfo, PodInfo};

/// Counts the taints that ask pods softly to stay away and that the pod does not tolerate.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerated(&pod.tolerations, taint)).map(|_| 1).sum()
}
