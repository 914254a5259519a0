//! What the controllers know of the cluster: one store a kind, filled by one informer, read by all controllers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use kube::{
    Api, Resource,
    api::ObjectMeta,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event},
    },
};
use parking_lot::RwLock;
use tokio::{sync::watch, time::Instant};

use crate::{
    guarded::{Complaints, Guarded},
    object,
};

/// The first and the longest wait before an informer that failed asks again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Failures in a row from which on they are told.
const FAILURES: u32 = 4;

/// Where an object is; `namespace` is empty for cluster-scoped kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(meta: &ObjectMeta) -> Key {
        Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            formatter.write_str(&self.name)
        } else {
            write!(formatter, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A kind that can be cached.
pub trait Cached:
    Resource<DynamicType = ()>
    + k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Clone
    + fmt::Debug
    + serde::de::DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Cached for K where
    K: Resource<DynamicType = ()>
        + k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Clone
        + fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// One object before and after; never both absent.
#[derive(Clone, Debug)]
pub struct Delta<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Delta<K> {
    /// The versions that there are, the newest first.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<K>> {
        self.new.iter().chain(self.old.iter())
    }
}

impl<K: k8s_openapi::Metadata<Ty = ObjectMeta>> Delta<K> {
    pub fn key(&self) -> Key {
        self.versions().next().map(|object| Key::of(object.metadata())).unwrap_or_default()
    }
}

/// An object of any kind, cached or not, was deleted.
#[derive(Clone, Debug)]
pub struct Gone {
    pub group: String,
    pub plural: String,
    pub namespace: String,
}

/// How far a store has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The highest resourceVersion that an object in it had.
    pub revision: u64,
    /// Listed since this member began to lead, so that the last leader's writes are in it.
    pub fresh: bool,
}

/// All objects of a kind, indexed by namespace and by controlling owner.
pub struct Store<K> {
    objects: RwLock<Objects<K>>,
    seen: watch::Sender<Seen>,
}

struct Objects<K> {
    all: BTreeMap<Key, Arc<K>>,
    controlled: HashMap<String, BTreeSet<Key>>,
    orphans: HashMap<String, BTreeSet<Key>>,
}

impl<K> Default for Store<K> {
    fn default() -> Store<K> {
        let objects = Objects { all: BTreeMap::new(), controlled: HashMap::new(), orphans: HashMap::new() };
        Store { objects: RwLock::new(objects), seen: watch::Sender::new(Seen::default()) }
    }
}

impl<K: k8s_openapi::Metadata<Ty = ObjectMeta>> Store<K> {
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.read().all.get(key).cloned()
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().all.values().cloned().collect()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.objects.read().all.keys().cloned().collect()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let from = objects.all.range(Key::new(namespace, "")..);
        from.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    /// The objects whose controller has this uid.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let keys = objects.controlled.get(uid).into_iter().flatten();
        keys.filter_map(|key| objects.all.get(key).cloned()).collect()
    }

    /// The objects of a namespace that no controller owns.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let keys = objects.orphans.get(namespace).into_iter().flatten();
        keys.filter_map(|key| objects.all.get(key).cloned()).collect()
    }

    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    pub fn apply(&self, object: K) -> Delta<K> {
        let revision = object::revision(object.metadata());
        let new = Arc::new(object);
        let old = self.objects.write().insert(new.clone());
        self.advance(revision);
        Delta { old, new: Some(new) }
    }

    pub fn remove(&self, object: &K) -> Delta<K> {
        self.remove_named(object.metadata())
    }

    fn remove_named(&self, meta: &ObjectMeta) -> Delta<K> {
        let old = self.objects.write().remove(&Key::of(meta));
        self.advance(object::revision(meta));
        Delta { old, new: None }
    }

    /// Takes over the result of a list: what is not in it was deleted meanwhile.
    pub fn replace(&self, listed: Vec<K>) -> Vec<Delta<K>> {
        self.replace_but(listed, &BTreeMap::new())
    }

    /// As `replace`, with objects that are there, at these revisions, but that nobody can read: they stay as they were.
    fn replace_but(&self, listed: Vec<K>, unread: &BTreeMap<Key, u64>) -> Vec<Delta<K>> {
        let mut deltas = Vec::with_capacity(listed.len());
        let mut revision = unread.values().copied().max().unwrap_or(0);
        let mut objects = self.objects.write();
        let mut gone: BTreeSet<Key> = objects.all.keys().filter(|key| !unread.contains_key(key)).cloned().collect();
        for object in listed {
            revision = revision.max(object::revision(object.metadata()));
            gone.remove(&Key::of(object.metadata()));
            let new = Arc::new(object);
            let old = objects.insert(new.clone());
            deltas.push(Delta { old, new: Some(new) });
        }
        for key in gone {
            let old = objects.remove(&key);
            deltas.push(Delta { old, new: None });
        }
        drop(objects);
        self.advance(revision);
        deltas
    }

    fn advance(&self, revision: u64) {
        self.seen.send_modify(|seen| seen.revision = seen.revision.max(revision));
    }

    pub fn set_fresh(&self, fresh: bool) {
        self.seen.send_if_modified(|seen| std::mem::replace(&mut seen.fresh, fresh) != fresh);
    }

    /// True while the object with this uid is there and nobody has begun to delete it.
    pub fn is_untouched(&self, key: &Key, uid: &str) -> bool {
        self.get(key).is_some_and(|object| {
            let meta = object.metadata();
            meta.uid.as_deref() == Some(uid) && meta.deletion_timestamp.is_none()
        })
    }
}

impl<K: k8s_openapi::Metadata<Ty = ObjectMeta>> Objects<K> {
    fn insert(&mut self, new: Arc<K>) -> Option<Arc<K>> {
        let key = Key::of(new.metadata());
        let old = self.remove(&key);
        match object::controller_of(new.metadata()) {
            Some(owner) => self.controlled.entry(owner.uid.clone()).or_default().insert(key.clone()),
            None => self.orphans.entry(key.namespace.clone()).or_default().insert(key.clone()),
        };
        self.all.insert(key, new);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.all.remove(key)?;
        match object::controller_of(old.metadata()) {
            Some(owner) => forget(&mut self.controlled, &owner.uid, key),
            None => forget(&mut self.orphans, &key.namespace, key),
        }
        Some(old)
    }
}

fn forget(index: &mut HashMap<String, BTreeSet<Key>>, entry: &str, key: &Key) {
    if let Some(keys) = index.get_mut(entry) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(entry);
        }
    }
}

/// What must be seen in the caches before a key is planned again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    Revision { kind: String, revision: u64 },
    Deleted { kind: String, key: Key, uid: String },
}

/// Called for every change of a cached object, on the informer's task: it must be quick and never block.
pub(crate) type Listener = Box<dyn Fn(&Cache, &Change) + Send + Sync>;

/// Keeps `store` equal to what the server has, for ever. Lists anew when this member begins to lead.
pub(crate) async fn inform<K: Cached>(
    store: &Store<K>,
    api: Api<Guarded<K>>,
    config: watcher::Config,
    mut leadership: watch::Receiver<bool>,
    notify: impl Fn(Delta<K>),
) {
    loop {
        let leading = *leadership.borrow_and_update();
        let events = watcher::watcher(api.clone(), config.clone())
            .modify(|object| object.meta_mut().managed_fields = None)
            .backoff(Retry::default());
        follow(store, events, leading, &mut leadership, &notify).await;
    }
}

/// Returns when the store has to be listed anew.
async fn follow<K: Cached>(
    store: &Store<K>,
    events: impl Stream<Item = watcher::Result<Event<Guarded<K>>>>,
    listed_as_leader: bool,
    leadership: &mut watch::Receiver<bool>,
    notify: &impl Fn(Delta<K>),
) {
    let mut events = pin!(events);
    let mut fresh = listed_as_leader;
    let mut intake = Intake::new(store);
    let mut leadership_known = true;
    let mut failures = 0;
    loop {
        tokio::select! {
            changed = leadership.changed(), if leadership_known => {
                leadership_known = changed.is_ok();
                let leading = *leadership.borrow_and_update();
                if leading && !fresh {
                    return;
                }
                fresh &= leading;
                if !fresh {
                    store.set_fresh(false);
                }
            }
            event = events.next() => match event {
                Some(Ok(event)) => {
                    let is_listed = matches!(event, Event::InitDone);
                    intake.take(event).into_iter().for_each(notify);
                    if is_listed {
                        failures = 0;
                        store.set_fresh(fresh);
                    }
                }
                Some(Err(error)) => {
                    failures += 1;
                    // One failure is usual while members change; more are worth telling.
                    if failures < FAILURES {
                        tracing::debug!(kind = K::KIND, %error, "informer retries");
                    } else {
                        tracing::warn!(kind = K::KIND, %error, "informer retries");
                    }
                }
                None => return,
            }
        }
    }
}

/// What comes from the server on its way into a store. An object that cannot be decoded stays as it was known: taken
/// for deleted, it would have others replace it or clean up after it.
struct Intake<'a, K> {
    store: &'a Store<K>,
    listed: Vec<K>,
    unread: BTreeMap<Key, u64>,
    complaints: Complaints,
}

impl<'a, K: Cached> Intake<'a, K> {
    fn new(store: &'a Store<K>) -> Intake<'a, K> {
        Intake { store, listed: Vec::new(), unread: BTreeMap::new(), complaints: Complaints::default() }
    }

    fn take(&mut self, event: Event<Guarded<K>>) -> Vec<Delta<K>> {
        match event {
            Event::Init => {
                self.listed.clear();
                self.unread.clear();
                self.complaints.listing();
            }
            Event::InitApply(Guarded::Sound(object)) => self.listed.push(object),
            Event::InitApply(Guarded::Undecodable(broken)) => {
                self.complaints.tell(K::KIND, &broken);
                self.unread.insert(Key::of(&broken.metadata), object::revision(&broken.metadata));
            }
            Event::InitDone => {
                let (listed, unread) = (std::mem::take(&mut self.listed), std::mem::take(&mut self.unread));
                return self.store.replace_but(listed, &unread);
            }
            Event::Apply(Guarded::Sound(object)) => return vec![self.store.apply(object)],
            Event::Apply(Guarded::Undecodable(broken)) => {
                self.complaints.tell(K::KIND, &broken);
                self.store.advance(object::revision(&broken.metadata));
            }
            Event::Delete(object) => return vec![self.store.remove_named(object.meta())],
        }
        Vec::new()
    }
}

/// Doubling waits. A list that fails is announced like one that works, so only time without a failure is a success.
#[derive(Debug)]
pub(crate) struct Retry {
    wait: Duration,
    last: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { wait: RETRY_FIRST, last: None }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.wait;
        self.wait = (wait * 2).min(RETRY_MAX);
        self.last = Some(Instant::now());
        Some(wait)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > RETRY_MAX * 2) {
            *self = Retry::default();
        }
    }
}

macro_rules! stores {
    ($($field:ident: $kind:ident from $path:path, $config:expr;)*) => {
        $(use $path;)*

        /// Every store, and who wants to hear of changes.
        #[derive(Default)]
        pub struct Cache {
            $(pub $field: Store<$kind>,)*
            listeners: RwLock<Vec<Listener>>,
        }

        /// One change in one store, or beside them.
        #[derive(Clone, Debug)]
        pub enum Change {
            $($kind(Delta<$kind>),)*
            Gone(Gone),
        }

        impl Cache {
            /// How far the store of a kind has come; `None` for kinds that are not cached.
            pub fn seen(&self, kind: &str) -> Option<watch::Receiver<Seen>> {
                match kind {
                    $(stringify!($kind) => Some(self.$field.seen()),)*
                    _ => None,
                }
            }

            fn is_untouched(&self, kind: &str, key: &Key, uid: &str) -> bool {
                match kind {
                    $(stringify!($kind) => self.$field.is_untouched(key, uid),)*
                    _ => false,
                }
            }

            /// Fills all stores until it is dropped.
            pub async fn follow(&self, client: &kube::Client, leadership: &watch::Receiver<bool>) {
                tokio::join!($(
                    inform(&self.$field, Api::all(client.clone()), $config, leadership.clone(), |delta| {
                        self.notify(&Change::$kind(delta));
                    }),
                )*);
            }
        }
    };
}

fn everything() -> watcher::Config {
    watcher::Config::default()
}

fn named(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}

fn within(namespace: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.namespace={namespace}"))
}

stores! {
    pods: Pod from k8s_openapi::api::core::v1::Pod, everything();
    replica_sets: ReplicaSet from k8s_openapi::api::apps::v1::ReplicaSet, everything();
    replication_controllers: ReplicationController from k8s_openapi::api::core::v1::ReplicationController, everything();
    deployments: Deployment from k8s_openapi::api::apps::v1::Deployment, everything();
    daemon_sets: DaemonSet from k8s_openapi::api::apps::v1::DaemonSet, everything();
    stateful_sets: StatefulSet from k8s_openapi::api::apps::v1::StatefulSet, everything();
    budgets: PodDisruptionBudget from k8s_openapi::api::policy::v1::PodDisruptionBudget, everything();
    autoscalers: HorizontalPodAutoscaler from k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler, everything();
    claims: PersistentVolumeClaim from k8s_openapi::api::core::v1::PersistentVolumeClaim, everything();
    volumes: PersistentVolume from k8s_openapi::api::core::v1::PersistentVolume, everything();
    storage_classes: StorageClass from k8s_openapi::api::storage::v1::StorageClass, everything();
    quotas: ResourceQuota from k8s_openapi::api::core::v1::ResourceQuota, everything();
    controller_revisions: ControllerRevision from k8s_openapi::api::apps::v1::ControllerRevision, everything();
    jobs: Job from k8s_openapi::api::batch::v1::Job, everything();
    cron_jobs: CronJob from k8s_openapi::api::batch::v1::CronJob, everything();
    services: Service from k8s_openapi::api::core::v1::Service, everything();
    endpoints: Endpoints from k8s_openapi::api::core::v1::Endpoints, everything();
    endpoint_slices: EndpointSlice from k8s_openapi::api::discovery::v1::EndpointSlice, everything();
    namespaces: Namespace from k8s_openapi::api::core::v1::Namespace, everything();
    service_accounts: ServiceAccount from k8s_openapi::api::core::v1::ServiceAccount, named("default");
    root_certificates: ConfigMap from k8s_openapi::api::core::v1::ConfigMap, named(crate::root_ca::CONFIG_MAP);
    nodes: Node from k8s_openapi::api::core::v1::Node, everything();
    leases: Lease from k8s_openapi::api::coordination::v1::Lease, within(crate::node_lifecycle::LEASES);
    ingresses: Ingress from k8s_openapi::api::networking::v1::Ingress, everything();
    ingress_classes: IngressClass from k8s_openapi::api::networking::v1::IngressClass, everything();
    cluster_roles: ClusterRole from k8s_openapi::api::rbac::v1::ClusterRole, everything();
    definitions: CustomResourceDefinition from crate::customresourcedefinition::CustomResourceDefinition, everything();
    api_services: APIService from k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService, everything();
    signing_requests: CertificateSigningRequest from k8s_openapi::api::certificates::v1::CertificateSigningRequest, everything();
}

impl Cache {
    /// Listeners are added before the informers start, so that none misses a change.
    pub(crate) fn listen(&self, listener: Listener) {
        self.listeners.write().push(listener);
    }

    pub(crate) fn notify(&self, change: &Change) {
        for listener in self.listeners.read().iter() {
            listener(self, change);
        }
    }

    /// Waits until all of these kinds were listed since this member began to lead.
    pub async fn fresh(&self, kinds: &[&str]) {
        for kind in kinds {
            if let Some(mut seen) = self.seen(kind) {
                // The sender lives as long as the cache: waiting cannot fail.
                let _seen = seen.wait_for(|seen| seen.fresh).await;
            }
        }
    }

    /// Waits until the caches show the effects of the writes. Kinds that are not cached have nothing to wait for.
    pub async fn settled(&self, expectations: &[Expectation]) {
        for expectation in expectations {
            match expectation {
                Expectation::Revision { kind, revision } => {
                    if let Some(mut seen) = self.seen(kind) {
                        let _seen = seen.wait_for(|seen| seen.revision >= *revision).await;
                    }
                }
                Expectation::Deleted { kind, key, uid } => {
                    if let Some(mut seen) = self.seen(kind) {
                        let _seen = seen.wait_for(|_| !self.is_untouched(kind, key, uid)).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::{
        guarded::Undecodable,
        testing::{Answer, Server},
    };

    fn pod(name: &str, revision: u64, owner: Option<&str>) -> Pod {
        let owner =
            owner.map(|uid| OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() });
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(revision.to_string()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        Pod { metadata, ..Pod::default() }
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    #[test]
    fn the_indexes_follow_the_owner() {
        let store = Store::default();
        store.apply(pod("a", 1, None));
        store.apply(pod("b", 2, Some("rs")));
        assert_eq!(names(&store.orphans("ns")), ["a"]);
        store.apply(pod("a", 3, Some("rs")));
        assert_eq!(names(&store.controlled_by("rs")), ["a", "b"]);
        assert!(store.orphans("ns").is_empty());
        store.remove(&pod("b", 4, None));
        assert_eq!(names(&store.controlled_by("rs")), ["a"]);
        assert_eq!(store.seen().borrow().revision, 4);
        assert!(store.in_namespace("other").is_empty());
    }

    #[test]
    fn a_list_says_what_is_gone() {
        let store = Store::default();
        store.replace(vec![pod("a", 1, None), pod("b", 2, None)]);
        let deltas = store.replace(vec![pod("b", 2, None)]);
        let gone: Vec<Key> = deltas.iter().filter(|delta| delta.new.is_none()).map(Delta::key).collect();
        assert_eq!(gone, [Key::new("ns", "a")]);
    }

    #[test]
    fn waits_double_also_when_a_list_is_announced_between_failures() {
        let mut retry = Retry::default();
        let mut wait = || {
            retry.reset();
            retry.next().unwrap().as_millis()
        };
        assert_eq!([wait(), wait(), wait()], [100, 200, 400]);
        assert_eq!((0..9).map(|_| wait()).last(), Some(RETRY_MAX.as_millis()));
    }

    #[tokio::test]
    async fn a_write_is_settled_when_the_cache_has_seen_it() {
        let cache = Cache::default();
        let written = [Expectation::Revision { kind: "Pod".into(), revision: 7 }];
        assert!(cache.settled(&written).now_or_never().is_none());
        cache.pods.apply(pod("a", 7, None));
        assert!(cache.settled(&written).now_or_never().is_some());
        let deleted = [Expectation::Deleted { kind: "Pod".into(), key: Key::new("ns", "a"), uid: "uid-a".into() }];
        assert!(cache.settled(&deleted).now_or_never().is_none());
        cache.pods.remove(&pod("a", 8, None));
        assert!(cache.settled(&deleted).now_or_never().is_some());
        let uncached = [Expectation::Revision { kind: "Secret".into(), revision: 99 }];
        assert!(cache.settled(&uncached).now_or_never().is_some());
    }

    fn sound(name: &str, revision: u64) -> Guarded<Pod> {
        Guarded::Sound(pod(name, revision, None))
    }

    fn undecodable(name: &str, revision: u64) -> Guarded<Pod> {
        let metadata = pod(name, revision, None).metadata;
        Guarded::Undecodable(Box::new(Undecodable { metadata, error: "null".into() }))
    }

    #[test]
    fn what_cannot_be_decoded_stays_as_it_was_known() {
        let store = Store::default();
        let mut intake = Intake::new(&store);
        let mut take = |events: Vec<Event<Guarded<Pod>>>| -> usize {
            events.into_iter().map(|event| intake.take(event).len()).sum()
        };
        let list = |items: Vec<Guarded<Pod>>| {
            let items = items.into_iter().map(Event::InitApply);
            std::iter::once(Event::Init).chain(items).chain([Event::InitDone]).collect()
        };
        assert_eq!(take(list(vec![sound("a", 1), undecodable("b", 2), sound("c", 1)])), 2);
        assert_eq!(names(&store.all()), ["a", "c"]);
        assert_eq!(store.seen().borrow().revision, 2, "who waits for its version waits no more");
        assert_eq!(take(vec![Event::Apply(undecodable("a", 5)), Event::Apply(sound("d", 4))]), 1);
        assert_eq!(store.get(&Key::new("ns", "a")).unwrap().metadata.resource_version.as_deref(), Some("1"));
        assert_eq!(store.seen().borrow().revision, 5);
        assert_eq!(take(list(vec![undecodable("a", 5), sound("d", 4)])), 2, "d as it is, and c is gone");
        assert_eq!(names(&store.all()), ["a", "d"]);
        take(vec![Event::Delete(undecodable("a", 6))]);
        assert_eq!(names(&store.all()), ["d"]);
    }

    #[tokio::test]
    async fn an_informer_gets_past_what_cannot_be_decoded() {
        const LIST: &str = r#"{"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": [
            {"metadata": {"name": "a", "namespace": "ns", "resourceVersion": "7"}, "spec": {"overhead": {"cpu": null}}},
            {"metadata": {"name": "b", "namespace": "ns", "resourceVersion": "8"}}]}"#;
        let asked = AtomicUsize::new(0);
        let server = Server::new(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::Body(LIST),
            _ => Answer::Never,
        });
        let (store, (_lead, leadership)) = (Store::default(), watch::channel(true));
        let mut seen = store.seen();
        tokio::select! {
            () = inform(&store, Api::all(server.client()), everything(), leadership, |_| ()) => {}
            _ = seen.wait_for(|seen| seen.fresh) => {}
        }
        assert_eq!(names(&store.all()), ["b"]);
    }

    fn events(events: Vec<Event<Guarded<Pod>>>) -> impl Stream<Item = watcher::Result<Event<Guarded<Pod>>>> {
        futures::stream::iter(events.into_iter().map(Ok)).chain(futures::stream::pending())
    }

    #[tokio::test]
    async fn a_cache_listed_by_a_follower_is_listed_again_by_the_leader() {
        let store = Store::default();
        let (lead, mut leadership) = watch::channel(false);
        let listed = || events(vec![Event::Init, Event::InitApply(sound("a", 1)), Event::InitDone]);
        let mut following = Box::pin(follow(&store, listed(), false, &mut leadership, &|_| ()));
        assert!((&mut following).now_or_never().is_none());
        assert_eq!(*store.seen().borrow(), Seen { revision: 1, fresh: false });
        lead.send(true).unwrap();
        assert!((&mut following).now_or_never().is_some(), "asks for a new list");
        drop(following);
        let mut following = Box::pin(follow(&store, listed(), true, &mut leadership, &|_| ()));
        assert!((&mut following).now_or_never().is_none());
        assert!(store.seen().borrow().fresh);
        lead.send(false).unwrap();
        assert!((&mut following).now_or_never().is_none());
        assert!(!store.seen().borrow().fresh);
    }
}
