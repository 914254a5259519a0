//! Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController, ControllerRevision, PodTemplate.

use serde_json::json;
use tandem_api::Object;

use super::template::default_template;
use crate::{
    Hooks, columns,
    json::{Fields, FieldsExt},
    validate,
};

pub(super) const DEPLOYMENT: Hooks = Hooks {
    default: default_deployment,
    validate: validate::workloads::deployment,
    cells: columns::workloads::deployment,
    ..Hooks::NONE
};
pub(super) const REPLICA_SET: Hooks = Hooks {
    default: default_replica_set,
    validate: validate::workloads::replica_set,
    fields: status_replicas,
    cells: columns::workloads::replica_set,
    ..Hooks::NONE
};
pub(super) const STATEFUL_SET: Hooks = Hooks {
    default: default_stateful_set,
    validate: validate::workloads::stateful_set,
    cells: columns::workloads::stateful_set,
    ..Hooks::NONE
};
pub(super) const DAEMON_SET: Hooks = Hooks {
    default: default_daemon_set,
    validate: validate::workloads::daemon_set,
    cells: columns::workloads::daemon_set,
    ..Hooks::NONE
};
pub(super) const REPLICATION_CONTROLLER: Hooks = Hooks {
    default: default_replication_controller,
    validate: validate::workloads::replication_controller,
    fields: status_replicas,
    cells: columns::workloads::replica_set,
    ..Hooks::NONE
};
pub(super) const CONTROLLER_REVISION: Hooks = Hooks { cells: columns::workloads::controller_revision, ..Hooks::NONE };
pub(super) const POD_TEMPLATE: Hooks = Hooks {
    default: |object| default_template(&mut object.0, "template"),
    cells: columns::workloads::pod_template,
    ..Hooks::NONE
};

fn status_replicas(object: &Object) -> Vec<(&'static str, String)> {
    vec![("status.replicas", object.i64_at(&["status", "replicas"]).unwrap_or_default().to_string())]
}

fn spec(object: &mut Object) -> Option<&mut Fields> {
    object.0.child_or_new("spec")
}

fn default_deployment(object: &mut Object) {
    let Some(spec) = spec(object) else { return };
    default_template(spec, "template");
    spec.or_set("replicas", 1);
    if let Some(strategy) = spec.child_or_new("strategy") {
        strategy.or_text("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate"
            && let Some(rolling) = strategy.child_or_new("rollingUpdate")
        {
            rolling.or_set("maxUnavailable", "25%");
            rolling.or_set("maxSurge", "25%");
        }
    }
    spec.or_set("revisionHistoryLimit", 10);
    spec.or_set("progressDeadlineSeconds", 600);
}

fn default_replica_set(object: &mut Object) {
    let Some(spec) = spec(object) else { return };
    default_template(spec, "template");
    spec.or_set("replicas", 1);
}

fn default_stateful_set(object: &mut Object) {
    let Some(spec) = spec(object) else { return };
    default_template(spec, "template");
    spec.or_set("replicas", 1);
    spec.or_text("podManagementPolicy", "OrderedReady");
    if let Some(strategy) = spec.child_or_new("updateStrategy") {
        strategy.or_text("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate"
            && let Some(rolling) = strategy.child_or_new("rollingUpdate")
        {
            rolling.or_set("partition", 0);
        }
    }
    if let Some(policy) = spec.child_or_new("persistentVolumeClaimRetentionPolicy") {
        policy.or_text("whenDeleted", "Retain");
        policy.or_text("whenScaled", "Retain");
    }
    spec.or_set("revisionHistoryLimit", 10);
    for claim in spec.each_mut("volumeClaimTemplates") {
        claim.or_text("apiVersion", "v1");
        claim.or_text("kind", "PersistentVolumeClaim");
        super::storage::default_claim(claim);
    }
}

fn default_daemon_set(object: &mut Object) {
    let Some(spec) = spec(object) else { return };
    default_template(spec, "template");
    if let Some(strategy) = spec.child_or_new("updateStrategy") {
        strategy.or_text("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate"
            && let Some(rolling) = strategy.child_or_new("rollingUpdate")
        {
            rolling.or_set("maxUnavailable", 1);
            rolling.or_set("maxSurge", 0);
        }
    }
    spec.or_set("revisionHistoryLimit", 10);
}

fn default_replication_controller(object: &mut Object) {
    let labels = object.at(&["spec", "template", "metadata", "labels"]).cloned();
    let Some(spec) = spec(object) else { return };
    default_template(spec, "template");
    spec.or_set("replicas", 1);
    let Some(labels) = labels.filter(|labels| *labels != json!({})) else { return };
    if spec.child("selector").is_none_or(Fields::is_empty) {
        spec.insert("selector".to_owned(), labels.clone());
    }
    if object.labels().next().is_none() {
        object.set(&["metadata", "labels"], labels);
    }
}
