//! The driver: watches Ingresses and what they name, and publishes the table that follows from it.
//!
//! Services, EndpointSlices and Secrets are watched only once an Ingress needs them; of Secrets only those that are named.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    core::v1::{Secret, Service},
    discovery::v1::EndpointSlice,
    networking::v1::{Ingress, IngressClass},
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher,
    },
};
use rustls::sign::CertifiedKey;
use tandem_client::events::{self, Note, Recorder, Severity};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::StreamMap;
use tokio_util::sync::CancellationToken;

use crate::{
    certificates::{self, Certificate},
    metrics::Metrics,
    routes::{self, Name, Snapshot, Table},
};

/// Changes that come this close together become one table.
const SETTLE: Duration = Duration::from_millis(10);
/// What replaces a Secret by deletion and creation does both within this time.
const REPLACED_WITHIN: Duration = Duration::from_secs(5);

/// Certificates that are shown until new ones are known.
const FORMER_MAX: usize = 512;

/// What is told of a Secret.
enum Told {
    There(Box<Secret>),
    Gone,
    /// The API server shows nodes only Secrets of the type for TLS.
    Forbidden,
    /// The API server does not say.
    Unknown,
}

struct Follower {
    client: kube::Client,
    ingresses: Store<Ingress>,
    classes: Store<IngressClass>,
    changes: SelectAll<BoxStream<'static, ()>>,
    backends: Option<(Store<Service>, Store<EndpointSlice>)>,
    secrets: StreamMap<Name, BoxStream<'static, Told>>,
    /// Secrets of which nothing was told yet.
    awaited: BTreeSet<Name>,
    certificates: BTreeMap<Name, Arc<Certificate>>,
    /// Secrets that are gone, and until when their certificate is still shown.
    leaving: BTreeMap<Name, Instant>,
    /// Certificates that no Ingress names any more, while new Secrets are awaited.
    former: BTreeMap<Name, Arc<Certificate>>,
    recorder: Recorder,
    metrics: Metrics,
    all_watched: bool,
}

/// Publishes a table after each change until shutdown.
pub(crate) async fn run(
    client: kube::Client,
    recorder: Recorder,
    metrics: Metrics,
    default: Arc<CertifiedKey>,
    publish: watch::Sender<Arc<Table>>,
    shutdown: CancellationToken,
) {
    let mut follower = Follower::new(client, recorder, metrics);
    let mut published = false;
    loop {
        tokio::select! {
            woken = follower.change() => if !woken { return },
            () = shutdown.cancelled() => return,
        }
        follower.settle().await;
        let snapshot = follower.snapshot();
        // The first table has its certificates: what was served before a restart is not interrupted by the default one.
        if let Some(snapshot) = snapshot.filter(|_| published || follower.awaited.is_empty()) {
            published = true;
            publish.send_replace(Arc::new(routes::build(&snapshot, &default)));
        }
    }
}

impl Follower {
    fn new(client: kube::Client, recorder: Recorder, metrics: Metrics) -> Follower {
        let (ingresses, ingress_changes) = cache(Api::<Ingress>::all(client.clone()));
        let (classes, class_changes) = cache(Api::<IngressClass>::all(client.clone()));
        let changes = futures::stream::select_all([ingress_changes, class_changes]);
        Follower {
            client,
            ingresses,
            classes,
            changes,
            backends: None,
            secrets: StreamMap::new(),
            awaited: BTreeSet::new(),
            certificates: BTreeMap::new(),
            leaving: BTreeMap::new(),
            former: BTreeMap::new(),
            recorder,
            metrics,
            all_watched: true,
        }
    }

    /// Waits for a change of anything; false when there will be none.
    async fn change(&mut self) -> bool {
        let leaves = self.leaving.values().min().copied();
        tokio::select! {
            () = sleep_until(leaves.unwrap_or_else(Instant::now)), if leaves.is_some() => {
                self.leave(Instant::now());
                true
            }
            change = self.changes.next() => change.is_some(),
            Some((name, told)) = self.secrets.next(), if !self.secrets.is_empty() => {
                self.take(name, told);
                true
            }
        }
    }

    /// Waits until nothing new arrives for a moment, or for ten such moments at most.
    async fn settle(&mut self) {
        let deadline = Instant::now() + SETTLE * 10;
        loop {
            tokio::select! {
                more = self.change() => if !more { return },
                () = sleep(SETTLE) => return,
                () = sleep_until(deadline) => return,
            }
        }
    }

    fn leave(&mut self, now: Instant) {
        let left: Vec<Name> =
            self.leaving.iter().filter(|(_, until)| **until <= now).map(|(name, _)| name.clone()).collect();
        for name in left {
            self.leaving.remove(&name);
            self.certificates.remove(&name);
        }
    }

    /// A Secret that cannot be used keeps the certificate that it had: a mistake must not end what works.
    fn take(&mut self, name: Name, told: Told) {
        let is_first = self.awaited.remove(&name);
        let secret = match told {
            Told::There(secret) => secret,
            Told::Gone => {
                if self.certificates.contains_key(&name) {
                    self.leaving.entry(name.clone()).or_insert_with(|| Instant::now() + REPLACED_WITHIN);
                }
                return self.complain(&name, "it is not there");
            }
            Told::Forbidden if is_first => {
                return self.complain(&name, "nodes may read it only if its type is kubernetes.io/tls");
            }
            Told::Forbidden | Told::Unknown => return,
        };
        self.leaving.remove(&name);
        match certificates::of_secret(&secret) {
            Ok(certificate) => {
                self.certificates.insert(name, Arc::new(certificate));
            }
            Err(error) => self.complain(&name, &error.to_string()),
        }
    }

    /// Tells those who named a Secret why it gives no certificate.
    fn complain(&self, name: &Name, why: &str) {
        let (namespace, secret) = name;
        tracing::warn!(namespace, secret, why, "an Ingress names a Secret that gives no certificate");
        for ingress in routes::served(&self.ingresses.state(), &self.classes.state()) {
            if routes::secrets(std::slice::from_ref(&ingress)).contains(name) {
                let message = format!("Secret {secret:?} gives no certificate: {why}");
                let regarding = events::reference(&*ingress);
                self.recorder.record(Note::new(regarding, Severity::Warning, "CertificateUnusable", message));
            }
        }
    }

    /// What is known, once enough of it is: before that, a table would lack what there is.
    fn snapshot(&mut self) -> Option<Snapshot> {
        if !is_ready(&self.ingresses) || !is_ready(&self.classes) {
            return None;
        }
        let (ingresses, classes) = (self.ingresses.state(), self.classes.state());
        let served = routes::served(&ingresses, &classes);
        let names: Vec<Name> =
            served.iter().map(|ingress| (ingress.namespace().unwrap_or_default(), ingress.name_any())).collect();
        self.metrics.set_ingresses(&names);
        self.follow_secrets(&served);
        if served.is_empty() {
            return Some(Snapshot::default());
        }
        let (services, slices) = self.backends();
        let (services, slices) = (services.filter(is_ready)?.state(), slices.filter(is_ready)?.state());
        let certificates = self.certificates.clone();
        let (awaited, former) = (self.awaited.clone(), self.former.clone());
        Some(Snapshot { ingresses: served, classes, services, slices, certificates, awaited, former })
    }

    fn backends(&mut self) -> (Option<Store<Service>>, Option<Store<EndpointSlice>>) {
        if self.backends.is_none() {
            let (services, service_changes) = cache(Api::<Service>::all(self.client.clone()));
            let (slices, slice_changes) = cache(Api::<EndpointSlice>::all(self.client.clone()));
            self.changes.push(service_changes);
            self.changes.push(slice_changes);
            self.backends = Some((services, slices));
        }
        self.backends.clone().unzip()
    }

    fn follow_secrets(&mut self, served: &[Arc<Ingress>]) {
        let (named, all) = routes::watched(served);
        if !all && self.all_watched {
            tracing::warn!(watched = named.len(), "Ingresses name more Secrets than are watched");
        }
        self.all_watched = all;
        let gone: Vec<Name> = self.secrets.keys().filter(|name| !named.contains(name)).cloned().collect();
        for name in gone {
            self.secrets.remove(&name);
            self.awaited.remove(&name);
            self.leaving.remove(&name);
            if let Some(certificate) = self.certificates.remove(&name)
                && self.former.len() < FORMER_MAX
            {
                self.former.insert(name, certificate);
            }
        }
        for name in named {
            if !self.secrets.contains_key(&name) {
                let secret = secret(self.client.clone(), &name);
                self.awaited.insert(name.clone());
                self.secrets.insert(name, secret);
            }
        }
        if self.awaited.is_empty() {
            self.former.clear();
        }
    }
}

fn secret(client: kube::Client, (namespace, name): &Name) -> BoxStream<'static, Told> {
    let of = format!("{namespace}/{name}");
    watcher::watch_object(Api::<Secret>::namespaced(client, namespace), name)
        .default_backoff()
        .inspect_err(move |error| tracing::debug!(secret = of, %error, "watch for the ingress"))
        .map(|told| match told {
            Ok(Some(secret)) => Told::There(Box::new(secret)),
            Ok(None) => Told::Gone,
            Err(error) if is_forbidden(&error) => Told::Forbidden,
            Err(_) => Told::Unknown,
        })
        .boxed()
}

fn is_forbidden(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => status.code == 403,
        _ => false,
    }
}

fn cache<K>(api: Api<K>) -> (Store<K>, BoxStream<'static, ()>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .inspect_err(|error| tracing::debug!(%error, "watch for the ingress"))
        .map(|_| ());
    (store, changes.boxed())
}

fn is_ready<K>(store: &Store<K>) -> bool
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    use futures::FutureExt as _;
    store.wait_until_ready().now_or_never().is_some_and(|ready| ready.is_ok())
}
