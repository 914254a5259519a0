use k8s_openapi::api::core::v1::Taint;
use tandem_client::tolerations::tolerated;

use super::{Reason, unless};
use crate::snapshot::{NodeInfo, PodInfo};

/// A cordoned node takes only pods that tolerate the taint which says the same.
pub(super) fn check(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    if !node.unschedulable {
        return Vec::new();
    }
    let key = "node.kubernetes.io/unschedulable".to_owned();
    let taint = Taint { key, effect: "NoSchedule".to_owned(), ..Taint::default() };
    unless(tolerated(&pod.tolerations, &taint), Reason::Unschedulable)
}
