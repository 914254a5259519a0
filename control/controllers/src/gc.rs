//! Garbage collection: what is owned goes when its last owner has gone, whatever kind it is.
//!
//! ```text
//!  metadata of all resources ─> Graph ─ wakes ─> Queue ─> view: the object, the state of its owners ─> plan
//! ```
//! Background: an object whose owners are all gone is deleted. Foreground: an owner that waits goes after those that
//! block it. Orphan: an owner lets go of what it owns and then goes. The graph may be behind, so an owner counts as gone
//! only when the API says so, and deletions name the uid and the version that were seen.

mod graph;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Resource as _,
    api::{ApiResource, DynamicObject, ObjectMeta, PartialObjectMeta, PropagationPolicy},
    core::Request,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tandem_client::events::{Note, Severity};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, interval_at},
};

use crate::{
    Cache, Change, Error, Gone, Input, Key,
    action::{Action, Deletion, Plan, Target},
    cache::Retry,
    driver::Reconcile,
    guarded::{Complaints, Guarded},
    queue::Queue,
    resources::{self, Resource},
};
use graph::{FOREGROUND, Graph, Item, ORPHAN};

/// How often is looked for new resources.
const DISCOVER: Duration = Duration::from_secs(30);
/// A resource that cannot be listed for so long, as when it is another server's that is down, does not keep the others from
/// being collected: whether an owner is gone is asked for each one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Owners that are known to be gone from a namespace. Uids are never used again, so this cannot become wrong; it is
/// emptied when full.
const ABSENT: usize = 10_000;
/// Resources whose objects are too many and too short-lived to be owners or to be owned.
const IGNORED: [(&str, &str); 4] =
    [("", "events"), ("events.k8s.io", "events"), ("coordination.k8s.io", "leases"), ("metrics.k8s.io", "pods")];

/// The state of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    There,
    /// It is being deleted and waits for those that it owns.
    Waiting,
    Gone,
    /// It has a namespace and what it owns has none, so that nobody can say which object is meant.
    OutOfReach,
}

#[derive(Debug)]
struct View {
    item: Item,
    owners: Vec<(OwnerReference, Owner)>,
    dependents: Vec<Item>,
}

/// Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Inner>);

struct Inner {
    graph: RwLock<Graph>,
    resources: RwLock<Vec<Resource>>,
    /// Uid and namespace.
    absent: Mutex<HashSet<(String, String)>>,
    queue: OnceLock<Arc<Queue<String>>>,
    /// Told when the resources of the server may be others.
    resources_changed: Notify,
    ready: watch::Sender<bool>,
}

impl Default for Inner {
    fn default() -> Inner {
        Inner {
            graph: RwLock::default(),
            resources: RwLock::default(),
            absent: Mutex::default(),
            queue: OnceLock::new(),
            resources_changed: Notify::new(),
            ready: watch::Sender::new(false),
        }
    }
}

impl Reconcile for Collector {
    /// The uid of an object.
    type Key = String;

    const NAME: &'static str = "generic-garbage-collector";
    const WORKERS: usize = 8;

    fn attach(&self, queue: &Arc<Queue<String>>) {
        // A collector has one driver, which attaches once.
        let _first = self.0.queue.set(queue.clone());
    }

    async fn ready(&self, _cache: &Cache) {
        // The sender lives as long as the collector: waiting cannot fail.
        let mut ready = self.0.ready.subscribe();
        let _ready = ready.wait_for(|ready| *ready).await;
    }

    fn keys(&self, _cache: &Cache) -> Vec<String> {
        self.0.graph.read().of_interest()
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<String> {
        if let Change::CustomResourceDefinition(_) = change {
            self.0.resources_changed.notify_one();
        }
        Vec::new()
    }

    async fn plan(&self, input: &Input<'_>, uid: &String) -> Result<Plan, Error> {
        let (item, dependents) = {
            let graph = self.0.graph.read();
            let Some(item) = graph.get(uid) else { return Ok(Plan::default()) };
            (item.clone(), graph.dependents(uid).filter(|dependent| item.reaches(dependent)).cloned().collect())
        };
        let mut owners = Vec::with_capacity(item.owners.len());
        if !item.is_deleting {
            for owner in &item.owners {
                owners.push((owner.clone(), self.state(input.client, &item, owner).await?));
            }
        }
        Ok(plan(&View { item, owners, dependents }))
    }
}

#[derive(Deserialize)]
struct Found {
    metadata: FoundMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FoundMeta {
    uid: String,
    #[serde(default)]
    finalizers: Vec<String>,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

impl Collector {
    async fn state(&self, client: &Client, item: &Item, owner: &OwnerReference) -> Result<Owner, Error> {
        if let Some(known) = self.0.graph.read().get(&owner.uid).filter(|known| known.reaches(item)) {
            return Ok(if known.waits_for_dependents() { Owner::Waiting } else { Owner::There });
        }
        let Some(resource) = self.resource(owner) else {
            // A kind that the server does not know, or not yet: its objects are not known to be gone.
            tracing::debug!(kind = owner.kind, api_version = owner.api_version, "owner of an unknown kind");
            return Ok(Owner::There);
        };
        if resource.namespaced && item.key.namespace.is_empty() {
            return Ok(Owner::OutOfReach);
        }
        let namespace = resource.namespaced.then_some(item.key.namespace.as_str());
        let place = (owner.uid.clone(), namespace.unwrap_or_default().to_owned());
        if self.0.absent.lock().contains(&place) {
            return Ok(Owner::Gone);
        }
        let path = <DynamicObject as kube::Resource>::url_path(&resource.api, namespace);
        let request = Request::new(path).get_metadata(&owner.name, &kube::api::GetParams::default())?;
        let found: Result<Found, Error> = client.request(request).await.map_err(Error::from);
        match found {
            Ok(found) if found.metadata.uid == owner.uid => {
                let held = found.metadata.finalizers.iter().any(|finalizer| finalizer == FOREGROUND);
                let waits = held && found.metadata.deletion_timestamp.is_some();
                Ok(if waits { Owner::Waiting } else { Owner::There })
            }
            Err(error) if !error.is_not_found() => Err(error),
            Ok(_) | Err(_) => {
                let mut absent = self.0.absent.lock();
                if absent.len() >= ABSENT {
                    absent.clear();
                }
                absent.insert(place);
                Ok(Owner::Gone)
            }
        }
    }

    fn resource(&self, owner: &OwnerReference) -> Option<Resource> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let resources = self.0.resources.read();
        resources.iter().find(|resource| resource.api.group == group && resource.api.kind == owner.kind).cloned()
    }

    /// Keeps the graph equal to what the server has, for ever, and tells `cache` of what is deleted. Lists anew when this
    /// member begins to lead.
    pub(crate) async fn follow(&self, client: Client, mut leadership: watch::Receiver<bool>, cache: Arc<Cache>) {
        loop {
            let leading = *leadership.borrow_and_update();
            self.0.ready.send_replace(false);
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() {
                    return;
                },
                () = self.follow_term(&client, leading, &cache) => {}
            }
        }
    }

    async fn follow_term(&self, client: &Client, leading: bool, cache: &Arc<Cache>) {
        let mut informers = JoinSet::new();
        let mut followed: HashMap<Resource, AbortHandle> = HashMap::new();
        let listed = watch::Sender::new(0_usize);
        let mut listings = listed.subscribe();
        let mut tick = interval_at(Instant::now(), DISCOVER);
        loop {
            tokio::select! {
                _ = tick.tick() => match resources::all(client).await {
                    Err(error) => {
                        tracing::debug!(%error, "discovery retries");
                        tick.reset_after(Duration::from_secs(1));
                    }
                    Ok(resources) => {
                        *self.0.resources.write() = resources.clone();
                        self.forget_others(&resources, &mut followed);
                        for resource in resources.into_iter().filter(is_collected) {
                            followed.entry(resource.clone()).or_insert_with(|| {
                                informers.spawn(self.clone().inform(client.clone(), resource, listed.clone(), cache.clone()))
                            });
                        }
                    }
                },
                _ = listings.changed() => {}
                () = self.0.resources_changed.notified() => tick.reset_immediately(),
                Some(Err(error)) = informers.join_next() => if !error.is_cancelled() {
                    tracing::error!(%error, "an informer of the garbage collector ended");
                },
            }
            if leading && !followed.is_empty() && *listings.borrow_and_update() >= followed.len() {
                self.0.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
            }
        }
    }

    /// Stops to follow what is not there any more: the last object of a kind goes before the kind.
    fn forget_others(&self, resources: &[Resource], followed: &mut HashMap<Resource, AbortHandle>) {
        followed.retain(|resource, informer| {
            let stays = resources.contains(resource);
            if !stays {
                informer.abort();
                self.0.graph.write().retain(&Arc::new(resource.api.clone()), &HashSet::new());
            }
            stays
        });
    }

    async fn inform(self, client: Client, resource: Resource, listed: watch::Sender<usize>, cache: Arc<Cache>) {
        let api: Api<Guarded<PartialObjectMeta<DynamicObject>>> = Api::all_with(client, &resource.api);
        let resource = Arc::new(resource.api);
        let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Retry::default()).boxed();
        let (mut seen, mut first, mut complaints) = (HashSet::new(), true, Complaints::default());
        let begun = Instant::now();
        while let Some(event) = events.next().await {
            let item = |object: PartialObjectMeta<DynamicObject>| Item::of(&resource, object.metadata);
            let woken = match event {
                Ok(Event::Init) => {
                    seen.clear();
                    complaints.listing();
                    continue;
                }
                Ok(Event::InitApply(Guarded::Sound(object))) => {
                    let item = item(object);
                    seen.insert(item.uid.clone());
                    self.0.graph.write().set(item)
                }
                Ok(Event::InitApply(Guarded::Undecodable(broken))) => {
                    complaints.tell(&resource.kind, &broken);
                    seen.extend(broken.metadata.uid);
                    continue;
                }
                Ok(Event::Apply(Guarded::Undecodable(broken))) => {
                    complaints.tell(&resource.kind, &broken);
                    continue;
                }
                Ok(Event::InitDone) => {
                    if std::mem::take(&mut first) {
                        listed.send_modify(|count| *count += 1);
                    }
                    self.0.graph.write().retain(&resource, &std::mem::take(&mut seen))
                }
                Ok(Event::Apply(Guarded::Sound(object))) => self.0.graph.write().set(item(object)),
                Ok(Event::Delete(object)) => {
                    cache.notify(&Change::Gone(gone(&resource, object.meta())));
                    self.0.graph.write().remove(object.meta().uid.as_deref().unwrap_or_default())
                }
                Err(error) => {
                    tracing::debug!(kind = resource.kind, %error, "informer of the garbage collector retries");
                    if begun.elapsed() > PATIENCE && std::mem::take(&mut first) {
                        listed.send_modify(|count| *count += 1);
                    }
                    continue;
                }
            };
            if let Some(queue) = self.0.queue.get() {
                woken.into_iter().for_each(|uid| queue.add(uid));
            }
        }
    }
}

fn gone(resource: &ApiResource, meta: &ObjectMeta) -> Gone {
    let (group, plural) = (resource.group.clone(), resource.plural.clone());
    Gone { group, plural, namespace: meta.namespace.clone().unwrap_or_default() }
}

fn is_collected(resource: &Resource) -> bool {
    let name = (resource.api.group.as_str(), resource.api.plural.as_str());
    resource.watched && !IGNORED.contains(&name)
}

#[derive(Debug, Serialize)]
struct Held {
    metadata: HeldMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HeldMeta {
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Owned {
    metadata: OwnedMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnedMeta {
    uid: String,
    resource_version: Option<String>,
    owner_references: Vec<OwnerReference>,
}

fn target(item: &Item) -> Target {
    Target::dynamic(&item.resource, Key::new(&item.key.namespace, &item.key.name))
}

fn set_owners(item: &Item, owner_references: Vec<OwnerReference>) -> Action {
    let (uid, resource_version) = (item.uid.clone(), item.resource_version.clone());
    Action::patch(target(item), Owned { metadata: OwnedMeta { uid, resource_version, owner_references } })
}

fn let_go(item: &Item, finalizer: &str) -> Action {
    let finalizers = item.finalizers.iter().filter(|own| *own != finalizer).cloned().collect();
    let metadata = HeldMeta { resource_version: item.resource_version.clone(), finalizers };
    Action::patch(target(item), Held { metadata })
}

fn plan(view: &View) -> Plan {
    let item = &view.item;
    if item.is_deleting {
        return Plan::of(ending(view));
    }
    let unresolvable: Vec<Action> = view
        .owners
        .iter()
        .filter(|(_, state)| *state == Owner::OutOfReach)
        .map(|(owner, _)| invalid_namespace(item, owner))
        .collect();
    if !unresolvable.is_empty() {
        // As long as one owner is unknown nothing is known of the object.
        return Plan::of(unresolvable);
    }
    let in_state = |state| view.owners.iter().filter(move |(_, owner)| *owner == state);
    let gone = in_state(Owner::Gone).count();
    let waiting = in_state(Owner::Waiting).count();
    if gone + waiting == 0 {
        return Plan::default();
    }
    if in_state(Owner::There).next().is_some() {
        // Somebody still wants it: only the references that hold nothing go.
        let rest = in_state(Owner::There).map(|(reference, _)| reference.clone()).collect();
        return Plan::of(vec![set_owners(item, rest)]);
    }
    let mut actions = Vec::new();
    let mut propagation = match () {
        () if item.has(ORPHAN) => PropagationPolicy::Orphan,
        () if item.has(FOREGROUND) => PropagationPolicy::Foreground,
        () => PropagationPolicy::Background,
    };
    let mut resource_version = item.resource_version.clone();
    if waiting > 0 && !view.dependents.is_empty() {
        propagation = PropagationPolicy::Foreground;
        if view.dependents.iter().any(Item::waits_for_dependents) {
            // A circle of owners, each waiting for the next: this one waits no more.
            let unblocked =
                |owner: &OwnerReference| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() };
            actions.push(set_owners(item, item.owners.iter().map(unblocked).collect()));
            resource_version = None;
        }
    }
    let deletion = Deletion::new(target(item), item.uid.clone());
    actions.push(Action::Delete(Deletion { resource_version, propagation: Some(propagation), ..deletion }));
    Plan::of(actions)
}

/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/>
fn invalid_namespace(item: &Item, owner: &OwnerReference) -> Action {
    let (Key { namespace, name }, resource) = (&item.key, &item.resource);
    let regarding = ObjectReference {
        api_version: Some(resource.api_version.clone()),
        kind: Some(resource.kind.clone()),
        name: Some(name.clone()),
        namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
        uid: Some(item.uid.clone()),
        ..ObjectReference::default()
    };
    let OwnerReference { api_version, kind, name, uid, .. } = owner;
    let owner = format!("[{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}]");
    let message = format!("ownerRef {owner} does not exist in namespace {namespace:?}");
    Action::Event(Note::new(regarding, Severity::Warning, "OwnerRefInvalidNamespace", message))
}

/// What an object that is being deleted still has to do.
fn ending(view: &View) -> Vec<Action> {
    let item = &view.item;
    if item.has(ORPHAN) {
        let others = |dependent: &Item| {
            dependent.owners.iter().filter(|owner| owner.uid != item.uid).cloned().collect::<Vec<_>>()
        };
        let mut actions: Vec<Action> =
            view.dependents.iter().map(|dependent| set_owners(dependent, others(dependent))).collect();
        actions.push(let_go(item, ORPHAN));
        return actions;
    }
    let blocks = |dependent: &&Item| {
        let reference = dependent.owners.iter().find(|owner| owner.uid == item.uid);
        reference.is_some_and(|owner| owner.block_owner_deletion == Some(true))
    };
    if item.has(FOREGROUND) && view.dependents.iter().find(blocks).is_none() {
        return vec![let_go(item, FOREGROUND)];
    }
    Vec::new()
}

#[cfg(test)]
mod tests;
