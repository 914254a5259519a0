//! PersistentVolume, PersistentVolumeClaim, StorageClass, CSIDriver and their family.

use serde_json::json;
use tandem_api::Object;

use crate::{
    Hooks, columns,
    json::{Fields, FieldsExt},
    validate,
};

pub(super) const VOLUME: Hooks = Hooks {
    default: default_volume,
    prepare: |object, old| begin_pending(object, old),
    validate: validate::storage::volume,
    cells: columns::storage::volume,
    ..Hooks::NONE
};
pub(super) const CLAIM: Hooks = Hooks {
    default: |object| default_claim(&mut object.0),
    prepare: prepare_claim,
    validate: validate::storage::claim,
    cells: columns::storage::claim,
    ..Hooks::NONE
};
pub(super) const STORAGE_CLASS: Hooks = Hooks {
    default: default_class,
    validate: validate::storage::class,
    cells: columns::storage::storage_class,
    ..Hooks::NONE
};
pub(super) const CSI_DRIVER: Hooks = Hooks { default: default_driver, cells: columns::storage::driver, ..Hooks::NONE };
pub(super) const CSI_NODE: Hooks = Hooks { cells: columns::storage::csi_node, ..Hooks::NONE };
pub(super) const CSI_CAPACITY: Hooks = Hooks { cells: columns::storage::csi_capacity, ..Hooks::NONE };
pub(super) const ATTACHMENT: Hooks = Hooks { cells: columns::storage::attachment, ..Hooks::NONE };
pub(super) const ATTRIBUTES_CLASS: Hooks = Hooks { cells: columns::storage::attributes_class, ..Hooks::NONE };

fn begin_pending(object: &mut Object, old: Option<&Object>) {
    if old.is_none() {
        object.set(&["status"], json!({ "phase": "Pending" }));
    }
}

fn default_volume(object: &mut Object) {
    if let Some(spec) = object.0.child_or_new("spec") {
        spec.or_text("persistentVolumeReclaimPolicy", "Retain");
        spec.or_text("volumeMode", "Filesystem");
    }
    if let Some(status) = object.0.child_or_new("status") {
        status.or_text("phase", "Pending");
    }
}

/// The defaults of a claim, also inside a StatefulSet.
pub(super) fn default_claim(claim: &mut Fields) {
    if let Some(spec) = claim.child_or_new("spec") {
        spec.or_text("volumeMode", "Filesystem");
    }
    if let Some(status) = claim.child_or_new("status") {
        status.or_text("phase", "Pending");
    }
}

/// `dataSource` and `dataSourceRef` say the same in an old and a new form; each fills in the other.
fn prepare_claim(object: &mut Object, old: Option<&Object>) {
    begin_pending(object, old);
    if old.is_some() {
        return;
    }
    let Some(spec) = object.0.child_mut("spec") else { return };
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".to_owned(), source);
        }
        (None, Some(source)) if source.get("namespace").is_none() => {
            spec.insert("dataSource".to_owned(), source);
        }
        _ => {}
    }
}

fn default_class(object: &mut Object) {
    object.0.or_text("reclaimPolicy", "Delete");
    object.0.or_text("volumeBindingMode", "Immediate");
}

fn default_driver(object: &mut Object) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    spec.or_set("attachRequired", true);
    for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        spec.or_set(key, false);
    }
    spec.or_text("fsGroupPolicy", "ReadWriteOnceWithFSType");
    spec.or_set("volumeLifecycleModes", json!(["Persistent"]));
}
