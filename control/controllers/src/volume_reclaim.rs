//! The life of a PersistentVolume: its phase, and what becomes of it when its claim is gone.
//!
//! ```text
//!  Available ─ promised ─> Bound ─ claim gone ─> Released ─┬─ Retain: stays
//!                                                          ├─ Delete: the object is deleted; its node removes the folder
//!                                                          └─ Delete, and nobody knows how: Failed
//! ```
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#reclaiming>

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use serde::Serialize;
use tandem_client::{
    events::{self, Note, Severity},
    volumes,
};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Target},
    object,
    volume_binder::claim_key,
};

pub(crate) struct VolumeReclaim;

#[derive(Debug)]
pub(crate) struct View {
    volume: Arc<PersistentVolume>,
    /// The claim that the volume is promised to, by name and uid.
    claim: Option<Arc<PersistentVolumeClaim>>,
    /// The node with the volume's folder is no part of the cluster any more.
    node_is_gone: bool,
}

impl Controller for VolumeReclaim {
    type Parent = PersistentVolume;
    type View = View;

    const NAME: &'static str = "persistent-volume-reclaim";
    const READS: &'static [&'static str] = &["PersistentVolume", "PersistentVolumeClaim", "Node"];

    fn store(cache: &Cache) -> &Store<PersistentVolume> {
        &cache.volumes
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let all = |wanted: &dyn Fn(&PersistentVolume) -> bool| {
            let volumes = cache.volumes.all().into_iter().filter(|volume| wanted(volume));
            volumes.map(|volume| Key::of(&volume.metadata)).collect()
        };
        match change {
            Change::PersistentVolume(delta) => vec![delta.key()],
            Change::PersistentVolumeClaim(delta) => {
                let key = delta.key();
                all(&|volume| claim_key(volume).as_ref() == Some(&key))
            }
            Change::Node(delta) if delta.new.is_none() => {
                let name = delta.key().name;
                all(&|volume| volumes::home(volume) == Some(name.as_str()))
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, volume: Arc<PersistentVolume>) -> Result<View, Error> {
        let claim = match claim_key(&volume) {
            None => None,
            Some(key) => claim(input, &volume, &key).await?,
        };
        let node_is_gone = match volumes::home(&volume).filter(|_| volumes::waits_for_its_folder(&volume)) {
            Some(node) if input.cache.nodes.get(&Key::new("", node)).is_none() => {
                Api::<Node>::all(input.client.clone()).get_opt(node).await?.is_none()
            }
            _ => false,
        };
        Ok(View { volume, claim, node_is_gone })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        Plan::of(plan(view, now))
    }
}

/// The claim if it is the one that was meant. The cache may be behind: only the API's word counts for the end of data.
async fn claim(
    input: &Input<'_>,
    volume: &PersistentVolume,
    key: &Key,
) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
    let uid = promised_uid(volume);
    let is_meant = |claim: &Arc<PersistentVolumeClaim>| uid.is_none() || uid == claim.metadata.uid.as_deref();
    // That the claim of a volume under deletion does not name it yet is such a word too.
    let counts = |claim: &Arc<PersistentVolumeClaim>| !object::is_deleting(&volume.metadata) || names(claim, volume);
    if let Some(claim) = input.cache.claims.get(key).filter(is_meant).filter(counts) {
        return Ok(Some(claim));
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(input.client.clone(), &key.namespace);
    Ok(api.get_opt(&key.name).await?.map(Arc::new).filter(is_meant))
}

/// The claim has, or wants, just this volume.
fn names(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    volumes::volume_name(claim).is_some_and(|name| name == object::name(&volume.metadata))
}

fn promised_uid(volume: &PersistentVolume) -> Option<&str> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    claim.uid.as_deref().filter(|uid| !uid.is_empty())
}

/// What a volume is, and what is said of it.
struct Standing {
    phase: &'static str,
    message: Option<String>,
}

fn standing(view: &View) -> Standing {
    let volume = &*view.volume;
    let of = |phase| Standing { phase, message: None };
    if promised_uid(volume).is_none() {
        return of("Available");
    }
    if view.claim.is_some() {
        return of("Bound");
    }
    let provisioned = object::annotation(&volume.metadata, volumes::PROVISIONED_BY).is_some();
    if volumes::is_kept(volume) || volumes::home(volume).is_some() || provisioned {
        return of("Released");
    }
    let name = object::name(&volume.metadata);
    let message =
        format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched");
    Standing { phase: "Failed", message: Some(message) }
}

/// The claim has another volume, so that this one was promised for nothing.
fn is_stray(view: &View) -> bool {
    let name = view.volume.metadata.name.as_deref();
    let other = view.claim.as_ref().and_then(|claim| volumes::volume_name(claim));
    promised_uid(&view.volume).is_some() && other.is_some() && other != name
}

fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let volume = &*view.volume;
    if is_stray(view) {
        return release(volume);
    }
    let Standing { phase, message } = standing(view);
    let status = volume.status.clone().unwrap_or_default();
    if status.phase.as_deref() != Some(phase) {
        let mut actions = Vec::new();
        if let Some(message) = &message {
            let note = Note::new(events::reference(volume), Severity::Warning, "VolumeFailedDelete", message.clone());
            actions.push(Action::Event(note));
        }
        let mut changed = volume.clone();
        let status = changed.status.get_or_insert_default();
        (status.phase, status.message) = (Some(phase.to_owned()), message);
        status.last_phase_transition_time = Some(object::time(now));
        actions.push(Action::set_status(changed));
        return actions;
    }
    let has: Vec<&str> = volume.metadata.finalizers.iter().flatten().map(String::as_str).collect();
    let wanted = finalizers(view, &has, phase);
    if has != wanted {
        return vec![finalize(Target::of(volume), &volume.metadata, wanted)];
    }
    let reclaimed = phase == "Released" && !volumes::is_kept(volume) && volumes::home(volume).is_some();
    if reclaimed && !object::is_deleting(&volume.metadata) {
        return vec![Action::Delete(Deletion::of(volume))];
    }
    Vec::new()
}

/// Takes the promise back: a volume that was made for the claim goes, another is free again.
fn release(volume: &PersistentVolume) -> Vec<Action> {
    if object::annotation(&volume.metadata, volumes::PROVISIONED_BY) == Some(volumes::PROVISIONER)
        && !volumes::is_kept(volume)
    {
        let deleting = object::is_deleting(&volume.metadata);
        return if deleting { Vec::new() } else { vec![Action::Delete(Deletion::of(volume))] };
    }
    let mut free = volume.clone();
    let by_controller =
        free.metadata.annotations.as_mut().and_then(|all| all.remove(volumes::BOUND_BY_CONTROLLER)).is_some();
    let spec = free.spec.get_or_insert_default();
    if by_controller {
        spec.claim_ref = None;
    } else if let Some(claim) = &mut spec.claim_ref {
        claim.uid = None;
        claim.resource_version = None;
    }
    vec![Action::update(free)]
}

fn finalizers<'a>(view: &View, has: &[&'a str], phase: &str) -> Vec<&'a str> {
    let volume = &*view.volume;
    let mut wanted = has.to_vec();
    if !object::is_deleting(&volume.metadata) {
        if !wanted.contains(&volumes::VOLUME_PROTECTION) {
            wanted.push(volumes::VOLUME_PROTECTION);
        }
        return wanted;
    }
    // A claim that was not bound yet never will be: what is being deleted is no claim's choice.
    let is_had = phase == "Bound" && view.claim.as_ref().is_some_and(|claim| names(claim, volume));
    if !is_had {
        wanted.retain(|finalizer| *finalizer != volumes::VOLUME_PROTECTION);
    }
    let nobody_removes = volumes::home(volume).is_none() || view.node_is_gone;
    if volumes::waits_for_its_folder(volume) && (volumes::is_kept(volume) || nobody_removes) {
        wanted.retain(|finalizer| *finalizer != volumes::FOLDER_FINALIZER);
    }
    wanted
}

#[derive(Debug, Serialize)]
struct Finalized {
    metadata: FinalizedMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FinalizedMeta {
    uid: Option<String>,
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

/// Replaces the finalizers of exactly this version of an object.
pub(crate) fn finalize(target: Target, meta: &kube::api::ObjectMeta, finalizers: Vec<&str>) -> Action {
    let finalizers = finalizers.into_iter().map(str::to_owned).collect();
    let (uid, resource_version) = (meta.uid.clone(), meta.resource_version.clone());
    Action::patch(target, Finalized { metadata: FinalizedMeta { uid, resource_version, finalizers } })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;
    use crate::action::testing::describe;

    fn volume(change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
        let mut volume = json!({
            "metadata": {
                "name": "v", "uid": "v", "labels": { volumes::NODE_LABEL: "n1" },
                "finalizers": [volumes::VOLUME_PROTECTION, volumes::FOLDER_FINALIZER],
            },
            "spec": {
                "persistentVolumeReclaimPolicy": "Delete",
                "csi": { "driver": volumes::PROVISIONER, "volumeHandle": "v" },
                "claimRef": { "namespace": "ns", "name": "c", "uid": "c" },
            },
            "status": { "phase": "Bound" },
        });
        change(&mut volume);
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn claim(volume: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let claim = json!({ "metadata": { "name": "c", "uid": "c" }, "spec": { "volumeName": volume } });
        Some(Arc::new(serde_json::from_value(claim).unwrap()))
    }

    fn check(
        volume: Arc<PersistentVolume>,
        claim: Option<Arc<PersistentVolumeClaim>>,
        node_is_gone: bool,
        expected: Expect,
    ) {
        let view = View { volume, claim, node_is_gone };
        let plan = VolumeReclaim::plan(&view, Timestamp::UNIX_EPOCH);
        expected.assert_eq(&describe(&plan, |action| match action.object::<PersistentVolume>() {
            Some(volume) => {
                let claimed = claim_key(volume).map_or_else(String::new, |key| key.to_string());
                let status = volume.status.clone().unwrap_or_default();
                format!("{} [{claimed}]{}", status.phase.unwrap_or_default(), status.message.unwrap_or_default())
            }
            None => String::new(),
        }));
    }

    fn in_phase(phase: &str) -> Arc<PersistentVolume> {
        volume(|volume| volume["status"]["phase"] = phase.into())
    }

    fn deleting(phase: &str, change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
        volume(|volume| {
            volume["status"]["phase"] = phase.into();
            volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            change(volume);
        })
    }

    #[test]
    fn a_volume_follows_its_claim() {
        check(in_phase("Bound"), claim("v"), false, expect![[""]]);
        check(in_phase("Pending"), claim("v"), false, expect![["status PersistentVolume v Bound [ns/c]\n"]]);
        check(in_phase("Bound"), None, false, expect![["status PersistentVolume v Released [ns/c]\n"]]);
        check(in_phase("Released"), None, false, expect![["delete PersistentVolume v\n"]]);
        let retained = |phase: &str| {
            volume(|volume| {
                volume["status"]["phase"] = phase.into();
                volume["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
            })
        };
        check(retained("Released"), None, false, expect![[""]]);
        check(retained("Bound"), claim("other"), false, expect![["update PersistentVolume v Bound [ns/c]\n"]]);
    }

    #[test]
    fn what_nobody_can_delete_fails() {
        let by_hand = volume(|volume| {
            volume["spec"]["csi"] = Value::Null;
            volume["spec"]["hostPath"] = json!({ "path": "/data" });
        });
        check(
            by_hand,
            None,
            false,
            expect![[r#"
                event Warning VolumeFailedDelete: error getting deleter volume plugin for volume "v": no deletable volume plugin matched
                status PersistentVolume v Failed [ns/c]error getting deleter volume plugin for volume "v": no deletable volume plugin matched
            "#]],
        );
    }

    #[test]
    fn the_object_stays_until_its_claim_and_then_its_folder_are_gone() {
        check(deleting("Bound", |_| ()), claim("v"), false, expect![[""]]);
        // It was promised to the claim, and deleted before that was bound.
        check(
            deleting("Bound", |_| ()),
            claim(""),
            false,
            expect![[r#"
                patch PersistentVolume v {"metadata":{"uid":"v","resourceVersion":null,"finalizers":["tandem.dev/local-volume"]}}
            "#]],
        );
        check(
            deleting("Released", |_| ()),
            None,
            false,
            expect![[r#"
                patch PersistentVolume v {"metadata":{"uid":"v","resourceVersion":null,"finalizers":["tandem.dev/local-volume"]}}
            "#]],
        );
        let waits = |policy: &str| {
            deleting("Released", |volume| {
                volume["metadata"]["finalizers"] = json!([volumes::FOLDER_FINALIZER]);
                volume["spec"]["persistentVolumeReclaimPolicy"] = policy.into();
            })
        };
        check(waits("Delete"), None, false, expect![[""]]);
        check(
            waits("Delete"),
            None,
            true,
            expect![[r#"
            patch PersistentVolume v {"metadata":{"uid":"v","resourceVersion":null,"finalizers":[]}}
        "#]],
        );
        check(
            waits("Retain"),
            None,
            false,
            expect![[r#"
            patch PersistentVolume v {"metadata":{"uid":"v","resourceVersion":null,"finalizers":[]}}
        "#]],
        );
    }
}
