//! What else is followed: what spreads pods that say nothing, and what protects them.

use std::fmt::Debug;

use futures::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{ReplicationController, Service},
};
use kube::runtime::{WatchStreamExt, watcher::Event};
use serde::de::DeserializeOwned;

use super::changes;
use crate::{kept::Kept, snapshot::Snapshot};

/// A change, as what it does to the snapshot.
type Change = Box<dyn FnOnce(&mut Snapshot) + Send>;

fn follow<K>(
    client: &kube::Client,
    strip: fn(&mut K),
    kept: fn(&mut Snapshot) -> &mut Kept<K>,
) -> BoxStream<'static, Change>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = changes::<K>(client).modify(move |object| {
        object.meta_mut().managed_fields = None;
        strip(object);
    });
    let change = move |event: Event<K>| Box::new(move |snapshot: &mut Snapshot| kept(snapshot).take(event)) as Change;
    events
        .filter_map(move |event| {
            let change = match event {
                Ok(event) => Some(change(event)),
                Err(error) => {
                    tracing::debug!(%error, kind = %K::kind(&()), "the scheduler's view retries");
                    None
                }
            };
            std::future::ready(change)
        })
        .boxed()
}

/// Objects are kept without what scheduling does not look at: there may be very many.
pub(super) fn all(client: &kube::Client) -> SelectAll<BoxStream<'static, Change>> {
    futures::stream::select_all([
        follow(client, |_| {}, |snapshot| &mut snapshot.budgets),
        follow::<Service>(client, |service| service.status = None, |snapshot| &mut snapshot.owners.services),
        follow::<ReplicationController>(client, strip_controller, |snapshot| &mut snapshot.owners.controllers),
        follow::<ReplicaSet>(client, strip_replica_set, |snapshot| &mut snapshot.owners.replica_sets),
        follow::<StatefulSet>(client, strip_stateful_set, |snapshot| &mut snapshot.owners.stateful_sets),
    ])
}

fn strip_controller(controller: &mut ReplicationController) {
    controller.status = None;
    controller.spec.iter_mut().for_each(|spec| spec.template = None);
}

fn strip_replica_set(set: &mut ReplicaSet) {
    set.status = None;
    set.spec.iter_mut().for_each(|spec| spec.template = None);
}

fn strip_stateful_set(set: &mut StatefulSet) {
    set.status = None;
    if let Some(spec) = &mut set.spec {
        spec.template = Default::default();
        spec.volume_claim_templates = None;
    }
}
