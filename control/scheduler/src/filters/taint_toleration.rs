use tandem_client::tolerations::tolerated;

use super::Reason;
use crate::snapshot::{NodeInfo, PodInfo};

/// Taints with a hard effect keep pods away that do not tolerate them.
pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let mut hard = node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    let untolerated = hard.find(|taint| !tolerated(&pod.tolerations, taint));
    let reason = |key: &String, value: &Option<String>| Reason::Taint {
        key: key.clone(),
        value: value.clone().unwrap_or_default(),
    };
    untolerated.map(|taint| reason(&taint.key, &taint.value)).into_iter().collect()
}
