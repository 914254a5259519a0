//! The controllers: each compares what is wanted with what is, and plans the writes that close the gap.
//!
//! ```text
//!  API ─ informers ─> Cache ─ changes ─> Queue ─> Driver ─┬─ view(cache, parent) ─> View
//!   ^                                                     ├─ plan(View, now)     ─> Plan   (pure)
//!   └───────────────── Executor <─────────────────────────┘
//! ```
//! One driver runs them all; a controller is a file that says what it reads (`view`) and what it wants (`plan`).
//! `plan` is pure: no client, no clock, no `async`. Everything is written through the API, with an identity of its own
//! for each controller. This crate never touches the store or the API server's inside, and acts only while it leads.

mod action;
mod apiservice;
mod autoscaler;
mod backends;
mod cache;
mod certificate_signer;
mod claim_protection;
mod clusterrole_aggregation;
mod cronjob;
mod customresourcedefinition;
mod daemonset;
mod deployment;
mod disruption;
mod driver;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod event_ttl;
mod execute;
mod gc;
mod guarded;
mod hash;
mod history;
mod ingress;
mod job;
mod job_ttl;
mod load_balancer;
mod metrics;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod object;
mod ownership;
mod pod;
mod pod_gc;
mod queue;
mod ranking;
mod replicaset;
mod resourcequota;
mod resources;
mod root_ca;
mod service_account;
mod sign;
mod statefulset;
#[cfg(test)]
mod testing;
mod volume_binder;
mod volume_reclaim;
mod wakeable;

use std::{collections::HashMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::ReplicationController};
use parking_lot::Mutex;
use tandem_api::{Clock, Settings};
use tandem_client::events::Recorder;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use action::{Action, Body, Deletion, Manifest, Plan, Report, Target};
pub use apiservice::{LocalApi, Prober};
pub use autoscaler::PERIOD as AUTOSCALER_PERIOD;
pub use cache::{Cache, Cached, Change, Delta, Expectation, Gone, Key, Store};
pub use execute::{Error, Failure};
pub use metrics::Metrics;
pub use sign::{Asked, SignError, Signer, Usage};

use driver::{Driver, Reconcile};
use execute::Executor;
use queue::Queue;

/// What the driver offers a controller that makes its view.
pub struct Input<'a> {
    pub cache: &'a Cache,
    /// For the few facts that no cache has. Only reads.
    pub client: &'a kube::Client,
    /// Why the last plan for this key failed.
    pub failure: Option<&'a Failure>,
    pub now: Timestamp,
}

/// One controller: a parent kind, what it looks at, what it wants.
pub trait Controller: Send + Sync + 'static {
    type Parent: Cached;
    /// Everything that `plan` may look at.
    type View: Send + Sync;

    /// The name of its identity and of its queue.
    const NAME: &'static str;
    /// The kinds that `view` reads: nothing is planned before they are known.
    const READS: &'static [&'static str];
    /// Keys that are planned and performed at a time. A controller with one plans nothing before its last write is
    /// seen: for decisions over all objects.
    const WORKERS: usize = 8;

    fn store(cache: &Cache) -> &Store<Self::Parent>;

    /// What is planned for when this member begins to lead.
    fn keys(&self, cache: &Cache) -> Vec<Key> {
        Self::store(cache).keys()
    }

    /// The parents that a change may matter to. Too many cost time, too few are a bug.
    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key>;

    fn view(
        &self,
        input: &Input<'_>,
        parent: Arc<Self::Parent>,
    ) -> impl Future<Output = Result<Self::View, Error>> + Send;

    fn plan(view: &Self::View, now: Timestamp) -> Plan;

    /// What to do about a parent that is not there.
    fn absent(&self, _cache: &Cache, _key: &Key) -> Plan {
        Plan::default()
    }
}

/// What the controllers need of the process that they run in.
pub struct Context {
    /// A client with the identity of the controller of this name.
    pub client_for: Arc<dyn Fn(&str) -> kube::Client + Send + Sync>,
    /// The client that fills the caches: it may list and watch everything.
    pub reader: kube::Client,
    pub leadership: watch::Receiver<bool>,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    /// The certificates that pods trust the API server by.
    pub ca_pem: String,
    pub signer: Arc<dyn Signer>,
    /// Where the `kubernetes` Service leads: every member of the control plane.
    pub members: watch::Receiver<Vec<SocketAddr>>,
    /// A node that was not heard of for this long is not ready.
    pub node_grace: Duration,
    /// The groups that the API server has built in.
    pub local_apis: Vec<LocalApi>,
    pub prober: Arc<dyn Prober>,
    /// Time between two looks at what an autoscaler's pods use.
    pub autoscaler_period: Duration,
}

/// Nodes send a heartbeat every few seconds; a node is given up after missing several.
pub const NODE_GRACE: Duration = Duration::from_secs(8);

/// Runs all controllers until it is told to stop.
pub async fn run(context: Context, shutdown: CancellationToken) {
    let mut running = Running { cache: Arc::default(), tasks: JoinSet::new(), shutdown: shutdown.clone(), context };
    let (settings, members) = (running.context.settings.clone(), running.context.members.clone());
    running.add(replicaset::Replicas::<ReplicaSet>::default());
    running.add(replicaset::Replicas::<ReplicationController>::default());
    running.add(deployment::Deployments);
    running.add(daemonset::DaemonSets);
    running.add(statefulset::StatefulSets);
    running.add(volume_binder::VolumeBinder);
    running.add(volume_reclaim::VolumeReclaim);
    running.add(claim_protection::ClaimProtection);
    running.add(disruption::Budgets);
    running.add(autoscaler::Autoscalers::new(running.context.autoscaler_period));
    running.add(job::Jobs);
    running.add(job_ttl::FinishedJobs);
    running.add(cronjob::CronJobs);
    running.add(endpoints::EndpointsOfServices { members: members.clone() });
    running.add(endpointslice::SlicesOfServices { members: members.clone() });
    running.add(endpointslice_mirroring::MirroredEndpoints);
    running.add(load_balancer::LoadBalancers { settings: settings.clone(), members: members.clone() });
    running.tell_of_members(members);
    running.add(service_account::DefaultAccounts);
    running.add(root_ca::RootCertificates { ca_pem: running.context.ca_pem.clone() });
    running.add(namespace::Namespaces);
    running.add(resourcequota::Quotas);
    running.add(customresourcedefinition::Definitions);
    let (local, prober) = (running.context.local_apis.clone(), running.context.prober.clone());
    running.add(apiservice::ApiServices { local, prober });
    running.add(node_ipam::NodeRanges { settings });
    running.add(node_lifecycle::NodeLifecycle::new(running.context.node_grace));
    running.add(pod_gc::PodCollector);
    running.add(ingress::Ingresses);
    running.add(clusterrole_aggregation::AggregatedRoles);
    running.add(event_ttl::EventsOfNamespaces);
    running.add(certificate_signer::CertificateSigner { signer: running.context.signer.clone() });
    let collector = gc::Collector::default();
    running.follow(collector.clone());
    running.add(collector);
    running.finish().await;
}

/// The tasks of a run. Informers start last, so that no controller misses a change.
struct Running {
    context: Context,
    cache: Arc<Cache>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Running {
    fn add<R: Reconcile>(&mut self, reconcile: R) {
        let context = &self.context;
        let client = (context.client_for)(R::NAME);
        let component = format!("{}-controller", R::NAME);
        let (recorder, events) = Recorder::start(client.clone(), &component, context.clock.clone());
        let queue = Arc::new(Queue::new(context.metrics.queue(R::NAME)));
        let reconcile = Arc::new(reconcile);
        driver::subscribe(&self.cache, reconcile.clone(), queue.clone());
        let driver = Arc::new(Driver {
            reconcile,
            cache: self.cache.clone(),
            queue,
            executor: Executor { client, recorder, signer: context.signer.clone() },
            leadership: context.leadership.clone(),
            clock: context.clock.clone(),
            failures: Mutex::new(HashMap::new()),
            perform_max: driver::PERFORM_MAX,
        });
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            driver.run(shutdown).await;
            events.abort();
        });
    }

    /// Members are no objects: whoever depends on them looks at the API's Service again.
    fn tell_of_members(&mut self, mut members: watch::Receiver<Vec<SocketAddr>>) {
        let (cache, shutdown) = (self.cache.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    changed = members.changed() => if changed.is_err() { return },
                }
                if let Some(service) = cache.services.get(&backends::api_service()) {
                    cache.notify(&Change::Service(Delta { old: Some(service.clone()), new: Some(service) }));
                }
            }
        });
    }

    fn follow(&mut self, collector: gc::Collector) {
        let (reader, leadership, shutdown) =
            (self.context.reader.clone(), self.context.leadership.clone(), self.shutdown.clone());
        let cache = self.cache.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = collector.follow(reader, leadership, cache) => {}
            }
        });
    }

    async fn finish(mut self) {
        let (cache, reader, leadership) =
            (self.cache.clone(), self.context.reader.clone(), self.context.leadership.clone());
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = cache.follow(&reader, &leadership) => {}
            }
        });
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a controller ended");
            }
        }
    }
}
