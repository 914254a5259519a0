//! Who controls what: objects are adopted by whoever selects them, and released by whoever selects them no more.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::Selector;
use serde::Serialize;

use crate::{
    Cached, Delta, Key, Store,
    action::{Action, Target},
    object,
};

/// The parent that controls an object, when it is of the wanted kind.
pub(crate) fn controller_key<P: Cached, K: Cached>(object: &K) -> Option<Key> {
    let owner = object::controller_of(object.metadata())?;
    let wanted = owner.kind == P::KIND && owner.api_version == P::API_VERSION;
    wanted.then(|| Key::new(object::namespace(object.metadata()), &owner.name))
}

/// The parents that a change concerns: those that control the object, and for one that nobody controls those that
/// want it.
pub(crate) fn woken<P: Cached, K: Cached>(
    parents: &Store<P>,
    change: &Delta<K>,
    wants: impl Fn(&P, &K) -> bool,
) -> Vec<Key> {
    let mut keys: Vec<Key> = change.versions().filter_map(|object| controller_key::<P, K>(object)).collect();
    keys.dedup();
    if let Some(orphan) = change.new.as_ref().filter(|new| object::controller_of(new.metadata()).is_none()) {
        let candidates = parents.in_namespace(object::namespace(orphan.metadata()));
        let wanting = candidates.iter().filter(|parent| wants(parent, orphan));
        keys.extend(wanting.map(|parent| Key::of(parent.metadata())));
    }
    keys
}

/// What a parent has after its claims, and the writes that make them true.
#[derive(Debug)]
pub(crate) struct Claims<'a, K> {
    /// Those that it controlled before and that still match, in any state.
    pub(crate) kept: Vec<&'a Arc<K>>,
    pub(crate) adopted: Vec<&'a Arc<K>>,
    pub(crate) actions: Vec<Action>,
}

/// A parent that is being deleted adopts nothing.
///
/// <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#non-template-pod-acquisitions>
pub(crate) fn claim<'a, P: Cached, K: Cached>(
    parent: &P,
    selector: Option<&Selector>,
    owned: &'a [Arc<K>],
    orphans: impl Iterator<Item = &'a Arc<K>>,
) -> Claims<'a, K> {
    let matches = |object: &K| object::matches(selector, object.metadata());
    let (kept, released): (Vec<_>, Vec<_>) = owned.iter().partition(|object| matches(object));
    let released = released.into_iter().filter(|object| !object::is_deleting(object.metadata()));
    let mut actions: Vec<Action> = released.map(|object| release(parent, &**object)).collect();
    let adopts = !object::is_deleting(parent.metadata());
    let adopted: Vec<_> =
        orphans.filter(|object| adopts && matches(object) && !object::is_deleting(object.metadata())).collect();
    actions.extend(adopted.iter().map(|object| adopt(parent, &***object)));
    Claims { kept, adopted, actions }
}

/// Takes control of an object that nobody controls.
pub(crate) fn adopt<P: Cached, K: Cached>(parent: &P, child: &K) -> Action {
    let mut owners = others(parent, child);
    owners.push(object::controller_reference(parent));
    set_owners(child, owners)
}

/// Lets an object go that the parent selects no more.
pub(crate) fn release<P: Cached, K: Cached>(parent: &P, child: &K) -> Action {
    set_owners(child, others(parent, child))
}

fn others<P: Cached, K: Cached>(parent: &P, child: &K) -> Vec<OwnerReference> {
    let uid = object::uid(parent.metadata());
    child.metadata().owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect()
}

#[derive(Debug, Serialize)]
struct Owners {
    metadata: OwnersMeta,
}

/// With the uid and the version that were seen, so that neither a successor nor a changed object is adopted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnersMeta {
    uid: Option<String>,
    resource_version: Option<String>,
    owner_references: Vec<OwnerReference>,
}

fn set_owners<K: Cached>(child: &K, owner_references: Vec<OwnerReference>) -> Action {
    let meta = child.metadata();
    let (uid, resource_version) = (meta.uid.clone(), meta.resource_version.clone());
    Action::patch(Target::of(child), Owners { metadata: OwnersMeta { uid, resource_version, owner_references } })
}
