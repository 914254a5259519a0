//! What stays with an ordinal: the pod's name, its hostname, its claims.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet},
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use serde::Serialize;

use super::{Round, report};
use crate::{
    action::{Action, Target},
    history::{self, REVISION_HASH},
    object, pod,
};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
const DELETE: &str = "Delete";

/// The ordinal in a pod's name, when it is one of this set's.
pub(super) fn ordinal(set: &StatefulSet, name: &str) -> Option<i32> {
    let digits = name.strip_prefix(object::name(&set.metadata))?.strip_prefix('-')?;
    let ordinal: i32 = digits.parse().ok()?;
    (ordinal >= 0 && ordinal.to_string() == digits).then_some(ordinal)
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", object::name(&template.metadata), object::name(&set.metadata))
}

/// The ordinal that a claim of this name belongs to.
fn claimed_by(set: &StatefulSet, name: &str) -> Option<i32> {
    templates(set).iter().find_map(|template| {
        let pod = name.strip_prefix(object::name(&template.metadata))?.strip_prefix('-')?;
        ordinal(set, pod)
    })
}

pub(super) fn is_claim_of(set: &StatefulSet, name: &str) -> bool {
    claimed_by(set, name).is_some()
}

/// The claims that the pod of an ordinal lacks, then the pod.
pub(super) fn create(round: &Round<'_>, ordinal: i32) -> Vec<Action> {
    let set = round.set;
    let has = |name: &str| round.claims.iter().any(|claim| object::name(&claim.metadata) == name);
    let mut actions = Vec::new();
    for template in templates(set) {
        let name = claim_name(set, template, ordinal);
        if has(&name) {
            continue;
        }
        let mut claim = template.clone();
        claim.metadata.name = Some(name);
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
        claim.metadata.labels.get_or_insert_default().extend(selected);
        claim.metadata.owner_references = owners(round, &claim, ordinal);
        claim.status = None;
        actions.push(Action::Create { object: Box::new(claim), report: Some(report(set, "claim")) });
    }
    let pod = pod(set, round.revision(ordinal), ordinal);
    actions.push(Action::Create { object: Box::new(pod), report: Some(report(set, "pod")) });
    actions
}

fn pod(set: &StatefulSet, revision: &ControllerRevision, ordinal: i32) -> Pod {
    let meta = &set.metadata;
    let template = history::template(revision).unwrap_or_default();
    let owner = object::controller_reference(set);
    let mut pod = pod::from_template(&template, object::namespace(meta), object::name(meta), owner);
    let name = format!("{}-{ordinal}", object::name(meta));
    pod.metadata.generate_name = Some(format!("{}-", object::name(meta)));
    pod.metadata.name = Some(name.clone());
    let labels: &mut BTreeMap<String, String> = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION_HASH.to_owned(), object::name(&revision.metadata).to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|name| !name.is_empty());
    for template in templates(set) {
        let volume_name = object::name(&template.metadata).to_owned();
        let claim_name = claim_name(set, template, ordinal);
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != volume_name);
        let claim = PersistentVolumeClaimVolumeSource { claim_name, read_only: Some(false) };
        volumes.push(Volume { name: volume_name, persistent_volume_claim: Some(claim), ..Volume::default() });
    }
    pod
}

/// Who takes the claims of an ordinal along when he goes: the set, the pod that is scaled away, or nobody.
///
/// <https://github.com/kubernetes/enhancements/tree/master/keps/sig-apps/1847-autoremove-statefulset-pvcs>
fn owners(round: &Round<'_>, claim: &PersistentVolumeClaim, ordinal: i32) -> Option<Vec<OwnerReference>> {
    let set = round.set;
    let policy = round.spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let deletes = |when: &Option<String>| when.as_deref() == Some(DELETE);
    let pod_name = format!("{}-{ordinal}", object::name(&set.metadata));
    let condemned = round.condemned.iter().find(|pod| object::name(&pod.metadata) == pod_name);
    let is_mine = |owner: &OwnerReference| {
        owner.uid == object::uid(&set.metadata) || (owner.kind == "Pod" && owner.name == pod_name)
    };
    let mut owners: Vec<OwnerReference> =
        claim.metadata.owner_references.iter().flatten().filter(|owner| !is_mine(owner)).cloned().collect();
    match condemned {
        Some(pod) if deletes(&policy.when_scaled) => {
            let reference = object::controller_reference(&***pod);
            owners.push(OwnerReference { controller: None, block_owner_deletion: None, ..reference });
        }
        _ if deletes(&policy.when_deleted) => owners.push(object::controller_reference(set)),
        _ => {}
    }
    (!owners.is_empty()).then_some(owners)
}

#[derive(Debug, Serialize)]
struct Owned {
    metadata: OwnedMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnedMeta {
    uid: Option<String>,
    resource_version: Option<String>,
    owner_references: Vec<OwnerReference>,
}

/// Makes the claims that are there follow the policy as it is now.
pub(super) fn retention(round: &Round<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    for claim in round.claims.iter().filter(|claim| !object::is_deleting(&claim.metadata)) {
        let Some(ordinal) = claimed_by(round.set, object::name(&claim.metadata)) else { continue };
        let pod_name = format!("{}-{ordinal}", object::name(&round.set.metadata));
        let is_placed = round.ordinals().contains(&ordinal);
        let goes = round.condemned.iter().any(|pod| object::name(&pod.metadata) == pod_name);
        // What a pod that is gone took along is not called back.
        if !is_placed && !goes {
            continue;
        }
        let wanted = owners(round, claim, ordinal).unwrap_or_default();
        let has: Vec<&OwnerReference> = claim.metadata.owner_references.iter().flatten().collect();
        if has.len() == wanted.len() && has.iter().all(|owner| wanted.contains(owner)) {
            continue;
        }
        let (uid, resource_version) = (claim.metadata.uid.clone(), claim.metadata.resource_version.clone());
        let metadata = OwnedMeta { uid, resource_version, owner_references: wanted };
        actions.push(Action::patch(Target::of(&**claim), Owned { metadata }));
    }
    actions
}
