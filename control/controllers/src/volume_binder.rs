//! Gives each PersistentVolumeClaim its volume: one that is there, or a new folder of the node that was chosen.
//!
//! ```text
//!  plan ─┬─ names a volume ─> bind, wait or Lost
//!        ├─ class waits for a pod, no node chosen yet ─> wait (the scheduler chooses)
//!        ├─ a volume fits (tandem_client::volumes) ─> bind: volume, then claim, then status
//!        └─ class is provisioned here ─> make the volume, promised to the claim; the plan after it binds
//! ```
//! One plan at a time, each after the last one's writes were seen, so that no volume is promised twice.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{
        CSIPersistentVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
        PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeSpec, VolumeNodeAffinity,
    },
    storage::v1::StorageClass,
};
use kube::api::ObjectMeta;
use tandem_client::{
    events::{self, Note, Severity},
    volumes::{self, Promise},
};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan},
    object,
};

const LOST: &str = "Lost";
const BOUND: &str = "Bound";
const DELETE: &str = "Delete";
/// What a folder of one node can be shared by.
const MODES: [&str; 2] = ["ReadWriteOnce", volumes::READ_WRITE_ONCE_POD];

pub(crate) struct VolumeBinder;

#[derive(Debug)]
pub(crate) struct View {
    claim: Arc<PersistentVolumeClaim>,
    volumes: Vec<Arc<PersistentVolume>>,
    class: Option<Arc<StorageClass>>,
    /// The node that was chosen for the claim.
    node: Option<Arc<Node>>,
}

impl Controller for VolumeBinder {
    type Parent = PersistentVolumeClaim;
    type View = View;

    const NAME: &'static str = "persistent-volume-binder";
    const READS: &'static [&'static str] = &["PersistentVolumeClaim", "PersistentVolume", "StorageClass", "Node"];
    const WORKERS: usize = 1;

    fn store(cache: &Cache) -> &Store<PersistentVolumeClaim> {
        &cache.claims
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let waiting = |wanted: &dyn Fn(&PersistentVolumeClaim) -> bool| -> Vec<Key> {
            let claims = cache.claims.all().into_iter().filter(|claim| volumes::phase(claim) != BOUND && wanted(claim));
            claims.map(|claim| Key::of(&claim.metadata)).collect()
        };
        match change {
            Change::PersistentVolumeClaim(delta) => vec![delta.key()],
            Change::PersistentVolume(delta) => {
                let mut keys: Vec<Key> = delta.versions().filter_map(|volume| claim_key(volume)).collect();
                // A volume that is free may be what any claim waits for.
                if delta.new.as_ref().is_some_and(|volume| claim_key(volume).is_none()) {
                    keys.extend(waiting(&|_| true));
                }
                keys
            }
            Change::StorageClass(delta) => {
                let name = delta.key().name;
                waiting(&|claim| volumes::class_of(claim) == Some(name.as_str()))
            }
            // A claim may be told a node before it is seen here, and its labels say what it reaches.
            Change::Node(delta) => match &delta.new {
                Some(node) if delta.old.as_ref().is_none_or(|old| old.metadata.labels != node.metadata.labels) => {
                    let name = object::name(&node.metadata);
                    waiting(&|claim| object::annotation(&claim.metadata, volumes::SELECTED_NODE) == Some(name))
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, claim: Arc<PersistentVolumeClaim>) -> Result<View, Error> {
        let cache = input.cache;
        let class = volumes::class_of(&claim).and_then(|class| cache.storage_classes.get(&Key::new("", class)));
        let node = object::annotation(&claim.metadata, volumes::SELECTED_NODE);
        let node = node.and_then(|node| cache.nodes.get(&Key::new("", node)));
        Ok(View { volumes: cache.volumes.all(), class, node, claim })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        // The claim's protection ends what is being deleted.
        if object::is_deleting(&view.claim.metadata) {
            return Plan::default();
        }
        Plan::of(match volumes::volume_name(&view.claim) {
            Some(name) => named(view, name),
            None => unnamed(view),
        })
    }
}

/// The claim that a volume is promised to.
pub(crate) fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(claim.namespace.clone()?, claim.name.clone()?))
}

fn event(claim: &PersistentVolumeClaim, severity: Severity, reason: &str, message: impl Into<String>) -> Action {
    Action::Event(Note::new(events::reference(claim), severity, reason, message))
}

fn warn(claim: &PersistentVolumeClaim, reason: &str, message: impl Into<String>) -> Vec<Action> {
    vec![event(claim, Severity::Warning, reason, message)]
}

fn named(view: &View, name: &str) -> Vec<Action> {
    let (claim, complete) = (&*view.claim, volumes::is_bound(&view.claim));
    let found = view.volumes.iter().find(|volume| object::name(&volume.metadata) == name);
    let Some(volume) = found else {
        let message = "Bound claim has lost its PersistentVolume. Any data on the volume is lost!";
        return if complete { lost(claim, "ClaimLost", message) } else { Vec::new() };
    };
    match volumes::promised(volume, claim) {
        Promise::Other if complete => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            lost(claim, "ClaimMisbound", message)
        }
        Promise::Other => warn(claim, "FailedBinding", format!("volume {name:?} already bound to a different claim.")),
        Promise::This | Promise::Nobody => match volumes::mismatch(claim, volume).filter(|_| !complete) {
            None => bind(claim, volume),
            Some(why) => warn(claim, "VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}")),
        },
    }
}

fn lost(claim: &PersistentVolumeClaim, reason: &str, message: &str) -> Vec<Action> {
    if volumes::phase(claim) == LOST {
        return Vec::new();
    }
    let status = PersistentVolumeClaimStatus { phase: Some(LOST.to_owned()), ..Default::default() };
    let gone = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
    vec![Action::set_status(gone), event(claim, Severity::Warning, reason, message)]
}

fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Action> {
    let mut actions = Vec::new();
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.and_then(|reference| reference.uid.as_ref()) != claim.metadata.uid.as_ref() {
        let mut promised = volume.clone();
        if reference.is_none() {
            annotate(&mut promised.metadata, volumes::BOUND_BY_CONTROLLER, "yes");
        }
        promised.spec.get_or_insert_default().claim_ref = Some(claim_reference(claim));
        actions.push(Action::update(promised));
    }
    if !volumes::is_bound(claim) {
        let mut bound = claim.clone();
        if volumes::volume_name(claim).is_none() {
            bound.spec.get_or_insert_default().volume_name.clone_from(&volume.metadata.name);
            annotate(&mut bound.metadata, volumes::BOUND_BY_CONTROLLER, "yes");
        }
        annotate(&mut bound.metadata, volumes::BIND_COMPLETED, "yes");
        actions.push(Action::update(bound));
        return actions;
    }
    let spec = volume.spec.as_ref();
    let status = PersistentVolumeClaimStatus {
        phase: Some(BOUND.to_owned()),
        access_modes: spec.and_then(|spec| spec.access_modes.clone()),
        capacity: spec.and_then(|spec| spec.capacity.clone()),
        ..claim.status.clone().unwrap_or_default()
    };
    if claim.status.as_ref() != Some(&status) {
        actions.push(Action::set_status(PersistentVolumeClaim { status: Some(status), ..claim.clone() }));
    }
    actions
}

fn annotate(meta: &mut ObjectMeta, key: &str, value: &str) {
    meta.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    events::reference(claim)
}

fn unnamed(view: &View) -> Vec<Action> {
    let claim = &*view.claim;
    let waits = view.class.as_ref().and_then(|class| class.volume_binding_mode.as_deref())
        == Some(volumes::WAIT_FOR_FIRST_CONSUMER);
    let chosen = object::annotation(&claim.metadata, volumes::SELECTED_NODE);
    let reaches = |volume: &PersistentVolume| {
        let promised = volumes::promised(volume, claim) == Promise::This;
        promised || !waits || view.node.as_ref().is_some_and(|node| volumes::reaches_node(volume, node))
    };
    if let Some(volume) = volumes::find(claim, view.volumes.iter(), reaches) {
        return bind(claim, volume);
    }
    if waits && chosen.is_none() {
        let message = "waiting for first consumer to be created before binding";
        return vec![event(claim, Severity::Normal, "WaitForFirstConsumer", message)];
    }
    provision(view)
}

fn provision(view: &View) -> Vec<Action> {
    let claim = &*view.claim;
    let Some(name) = volumes::class_of(claim).filter(|class| !class.is_empty()) else {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return vec![event(claim, Severity::Normal, "FailedBinding", message)];
    };
    let failed = |why: String| warn(claim, "ProvisioningFailed", why);
    let Some(class) = &view.class else { return failed(format!("storageclass.storage.k8s.io {name:?} not found")) };
    match class.provisioner.as_str() {
        volumes::PROVISIONER => match new_volume(view, class) {
            Ok(volume) => {
                let name = object::name(&volume.metadata);
                let message = format!("Successfully provisioned volume {name}");
                let told = event(claim, Severity::Normal, "ProvisioningSucceeded", message);
                vec![Action::create(volume), told]
            }
            Err(why) => failed(format!("failed to provision volume with StorageClass {name:?}: {why}")),
        },
        volumes::NO_PROVISIONER => failed(format!("no volume plugin matched name: {}", volumes::NO_PROVISIONER)),
        other => external(claim, other),
    }
}

/// Somebody else makes the volume: told by an annotation who.
fn external(claim: &PersistentVolumeClaim, provisioner: &str) -> Vec<Action> {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    let mut actions = Vec::new();
    if object::annotation(&claim.metadata, volumes::STORAGE_PROVISIONER) != Some(provisioner) {
        let mut told = claim.clone();
        annotate(&mut told.metadata, volumes::STORAGE_PROVISIONER, provisioner);
        actions.push(Action::update(told));
    }
    actions.push(event(claim, Severity::Normal, "ExternalProvisioning", message));
    actions
}

/// The object of a folder that the node makes when the first pod mounts it.
fn new_volume(view: &View, class: &StorageClass) -> Result<PersistentVolume, String> {
    let claim = &*view.claim;
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    let is_asked = |amounts: &Option<BTreeMap<String, String>>| amounts.as_ref().is_some_and(|all| !all.is_empty());
    let unsupported = [
        (
            modes.iter().any(|mode| !MODES.contains(&mode.as_str())),
            "only ReadWriteOnce and ReadWriteOncePod are supported",
        ),
        (spec.volume_mode.as_deref() == Some("Block"), "volumeMode Block is not supported"),
        (spec.selector.is_some(), "a selector is not supported"),
        (spec.data_source.is_some() || spec.data_source_ref.is_some(), "a dataSource is not supported"),
        (is_asked(&class.parameters), "the class has parameters, and this provisioner knows none"),
        (class.mount_options.as_ref().is_some_and(|all| !all.is_empty()), "mountOptions are not supported"),
    ];
    if let Some((_, why)) = unsupported.iter().find(|(asked, _)| *asked) {
        return Err((*why).to_owned());
    }
    let Some(node) = object::annotation(&claim.metadata, volumes::SELECTED_NODE) else {
        return Err("no node was chosen: the class must have volumeBindingMode WaitForFirstConsumer".to_owned());
    };
    let Some(node) = &view.node else { return Err(format!("node {node:?} not found")) };
    let name = format!("pvc-{}", object::uid(&claim.metadata));
    let node_name = object::name(&node.metadata);
    let hostname = node.metadata.labels.as_ref().and_then(|labels| labels.get(volumes::HOSTNAME_LABEL));
    let requirement = NodeSelectorRequirement {
        key: volumes::HOSTNAME_LABEL.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![hostname.map_or(node_name, String::as_str).to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), ..NodeSelectorTerm::default() };
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some([(volumes::NODE_LABEL.to_owned(), node_name.to_owned())].into()),
            annotations: Some([(volumes::PROVISIONED_BY.to_owned(), volumes::PROVISIONER.to_owned())].into()),
            finalizers: Some(vec![volumes::VOLUME_PROTECTION.to_owned(), volumes::FOLDER_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(modes),
            capacity: Some(requests.into_iter().filter(|(resource, _)| resource == "storage").collect()),
            claim_ref: Some(claim_reference(claim)),
            csi: Some(CSIPersistentVolumeSource {
                driver: volumes::PROVISIONER.to_owned(),
                volume_handle: name,
                ..CSIPersistentVolumeSource::default()
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| DELETE.to_owned())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

#[cfg(test)]
#[path = "volume_binder/tests.rs"]
mod tests;
