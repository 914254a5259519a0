//! What a ReplicationController says: a plain map of labels instead of a selector, and a status of the same fields.

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::Selector;

use super::{Replicating, Wanted};
use crate::{Cache, Change, Delta, Store, object};

impl Replicating for ReplicationController {
    const NAME: &'static str = "replication-controller";
    const READS: &'static [&'static str] = &["ReplicationController", "Pod"];

    fn store(cache: &Cache) -> &Store<ReplicationController> {
        &cache.replication_controllers
    }

    fn delta(change: &Change) -> Option<&Delta<ReplicationController>> {
        if let Change::ReplicationController(delta) = change { Some(delta) } else { None }
    }

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone().unwrap_or_default();
        Wanted {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template.unwrap_or_default(),
        }
    }

    fn selector(&self) -> Option<Selector> {
        let match_labels = self.spec.as_ref()?.selector.clone();
        object::own_selector(&LabelSelector { match_labels, match_expressions: None })
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let conditions = status.conditions.map(|conditions| conditions.into_iter().map(set_condition).collect());
        Some(ReplicaSetStatus {
            available_replicas: status.available_replicas,
            conditions,
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
            terminating_replicas: None,
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> ReplicationController {
        let conditions = status.conditions.map(|conditions| conditions.into_iter().map(condition).collect());
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions,
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        ReplicationController { status: Some(status), ..self.clone() }
    }
}

fn set_condition(condition: ReplicationControllerCondition) -> ReplicaSetCondition {
    let ReplicationControllerCondition { last_transition_time, message, reason, status, type_ } = condition;
    ReplicaSetCondition { last_transition_time, message, reason, status, type_ }
}

fn condition(condition: ReplicaSetCondition) -> ReplicationControllerCondition {
    let ReplicaSetCondition { last_transition_time, message, reason, status, type_ } = condition;
    ReplicationControllerCondition { last_transition_time, message, reason, status, type_ }
}
