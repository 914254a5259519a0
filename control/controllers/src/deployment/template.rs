//! What the ReplicaSet for a pod template looks like.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{REVISION, rollout, rollout::Rollout, spec};
use crate::{hash::template_hash, object};

/// The label that keeps the pods of one template apart from those of another.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Annotations of a ReplicaSet that are not its Deployment's.
const OWN_ANNOTATIONS: [&str; 5] = [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS];

fn current_hash(deployment: &Deployment) -> String {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    template_hash(&spec(deployment).template, collisions)
}

pub(super) fn set_name(deployment: &Deployment) -> String {
    format!("{}-{}", object::name(&deployment.metadata), current_hash(deployment))
}

/// Whether a ReplicaSet was made from this template: equal but for the hash label.
pub(super) fn is_made_from(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
        template
    };
    let made_from = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    made_from.is_some_and(|made_from| without_hash(made_from) == without_hash(template))
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    object::annotation(&set.metadata, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

pub(super) fn new_set(rollout: &Rollout<'_>, name: &str) -> ReplicaSet {
    let (deployment, spec) = (rollout.deployment, spec(rollout.deployment));
    let hash = current_hash(deployment);
    let mut template = spec.template;
    template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default()
        .insert(HASH_LABEL.to_owned(), hash.clone());
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
            owner_references: Some(vec![object::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(rollout.replicas_of_a_new_set()),
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate(&mut set, deployment, rollout.next_revision());
    rollout::note_size(&mut set, deployment);
    set
}

/// Copies the Deployment's annotations, such as the cause of the change, and raises the revision.
pub(super) fn annotate(set: &mut ReplicaSet, deployment: &Deployment, next: i64) {
    let current = revision(set);
    let annotations: &mut BTreeMap<String, String> = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN_ANNOTATIONS.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if current >= next {
        return;
    }
    let before = annotations.insert(REVISION.to_owned(), next.to_string());
    if let Some(before) = before {
        // An old ReplicaSet that is rolled back to: what it was is kept for the history.
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&before);
    }
}
