//! The driver: watches Services, EndpointSlices and Nodes, and makes the kernel, DNS and the routes follow.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use ipnet::Ipv4Net;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, conntrack,
    dns::Zone,
    health::Ports,
    nft,
    rules::{self, Ruleset, Sleepers, Snapshot},
};

/// Changes that come this close together become one transaction.
pub(crate) const SETTLE: Duration = Duration::from_millis(10);
/// How long to wait before the kernel is asked again after it refused a transaction.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The Service that leads to the API server.
const API_SERVICE: (&str, &str) = ("default", "kubernetes");

/// What the driver turns the cluster's state into, beside the kernel's rules.
#[derive(Debug)]
pub(crate) struct Published {
    pub zone: watch::Sender<Arc<Zone>>,
    /// The pod ranges of the other nodes, with the address of each.
    pub peers: watch::Sender<BTreeMap<Ipv4Net, Ipv4Addr>>,
    pub health: watch::Sender<Ports>,
    /// Where the API server is reached: for the policies, and for whoever else wants to know.
    pub members: Vec<watch::Sender<Vec<SocketAddr>>>,
    /// The Services whose workloads may be scaled to zero.
    pub sleepers: watch::Sender<Arc<Sleepers>>,
}

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    pub node: String,
    pub pod_cidr: Ipv4Net,
    pub api: (Ipv4Addr, u16),
    pub activator: (Ipv4Addr, u16),
    pub domain: String,
    pub external_ips: bool,
}

struct Caches {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    nodes: Store<Node>,
}

/// Keeps the node's view of the network true until shutdown.
pub(crate) async fn run(
    client: kube::Client,
    fixed: Fixed,
    published: Published,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (services, service_changes) = cache(Api::<Service>::all(client.clone()));
    let (slices, slice_changes) = cache(Api::<EndpointSlice>::all(client.clone()));
    let (nodes, node_changes) = cache(Api::<Node>::all(client));
    let caches = Caches { services, slices, nodes };
    let mut changes = futures::stream::select_all([service_changes, slice_changes, node_changes]);
    let mut applied: Option<Ruleset> = None;
    loop {
        let woken = tokio::select! {
            woken = changes.next() => woken,
            () = shutdown.cancelled() => return Ok(()),
        };
        if woken.is_none() {
            return Ok(());
        }
        settle(&mut changes).await;
        if !caches.ready() {
            continue;
        }
        let snapshot = caches.snapshot(&fixed);
        let next = rules::rules(&snapshot);
        // Who waits goes on while the kernel is told.
        publish_changed(&published.sleepers, Arc::new(rules::sleepers(&snapshot)));
        let udp_changes = applied.as_ref().is_none_or(|applied| applied.datagrams != next.datagrams);
        while let Err(error) = nft::apply(applied.as_ref(), &next).await {
            // What the kernel holds is unknown now: the next transaction builds the table anew.
            tracing::error!(%error, "the service rules could not be changed; Services may not answer on this node");
            applied = None;
            tokio::select! {
                () = sleep(RETRY) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        if udp_changes {
            conntrack::forget(next.datagrams.clone()).await;
        }
        applied = Some(next);
        published.health.send_replace(rules::health(&snapshot));
        published.zone.send_replace(Arc::new(caches.names(&fixed.domain)));
        publish_changed(&published.peers, caches.peers(&fixed.node));
        // A Service without endpoints is one that nobody has filled yet: what was known before is better.
        if let members @ [_, ..] = &*members(&sorted(&caches.slices)) {
            published.members.iter().for_each(|told| publish_changed(told, members.to_vec()));
        }
    }
}

fn publish_changed<T: PartialEq>(to: &watch::Sender<T>, new: T) {
    to.send_if_modified(|current| {
        let changed = *current != new;
        *current = new;
        changed
    });
}

/// Where the `kubernetes` Service leads: to every member of the control plane.
fn members(slices: &[EndpointSlice]) -> Vec<SocketAddr> {
    let is_api = |slice: &&EndpointSlice| {
        let of = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        slice.namespace().as_deref() == Some(API_SERVICE.0) && of.is_some_and(|of| of == API_SERVICE.1)
    };
    let mut found = Vec::new();
    for slice in slices.iter().filter(is_api) {
        let port = slice.ports.iter().flatten().find_map(|port| u16::try_from(port.port?).ok());
        let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
        let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
        found.extend(addresses.filter_map(|address| Some(SocketAddr::new(address, port?))));
    }
    found.sort();
    found.dedup();
    found
}

/// Removes everything of ours from the kernel's packet filter.
pub(crate) async fn remove() -> Result<(), Error> {
    nft::run(&[rules::TABLE, rules::POLICY_TABLE].map(rules::removal).concat()).await
}

fn cache<K>(api: Api<K>) -> (Store<K>, BoxStream<'static, ()>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .inspect_err(|error| tracing::debug!(%error, "watch for the network"))
        .map(|_| ());
    (store, changes.boxed())
}

/// Waits until nothing new arrives for a moment, or for ten such moments at most.
async fn settle(changes: &mut (impl futures::Stream<Item = ()> + Unpin)) {
    let deadline = sleep(SETTLE * 10);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            more = changes.next() => if more.is_none() { return },
            () = sleep(SETTLE) => return,
            () = &mut deadline => return,
        }
    }
}

impl Caches {
    /// Whether each cache has seen its first full list: before that, rules would remove what they don't know yet.
    fn ready(&self) -> bool {
        is_ready(&self.services) && is_ready(&self.slices) && is_ready(&self.nodes)
    }

    fn snapshot(&self, fixed: &Fixed) -> Snapshot {
        Snapshot {
            node: fixed.node.clone(),
            pod_cidr: fixed.pod_cidr,
            api: Some(fixed.api),
            zone: self.zone(&fixed.node),
            external_ips: fixed.external_ips,
            activator: Some(fixed.activator),
            services: sorted(&self.services),
            slices: sorted(&self.slices),
        }
    }

    fn zone(&self, node: &str) -> Option<String> {
        let node = self.nodes.get(&ObjectRef::new(node))?;
        node.labels().get("topology.kubernetes.io/zone").cloned()
    }

    fn names(&self, domain: &str) -> Zone {
        Zone::new(domain, &sorted(&self.services), &sorted(&self.slices))
    }

    fn peers(&self, ourselves: &str) -> BTreeMap<Ipv4Net, Ipv4Addr> {
        let others = self.nodes.state().into_iter().filter(|node| node.name_any() != ourselves);
        others.filter_map(|node| peer(&node)).collect()
    }
}

fn is_ready<K>(store: &Store<K>) -> bool
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    use futures::FutureExt as _;
    store.wait_until_ready().now_or_never().is_some_and(|ready| ready.is_ok())
}

fn sorted<K>(store: &Store<K>) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut all = store.state();
    all.sort_by_cached_key(|object| (object.namespace(), object.name_any()));
    all.into_iter().map(|object| K::clone(&object)).collect()
}

fn peer(node: &Node) -> Option<(Ipv4Net, Ipv4Addr)> {
    let range = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|address| address.type_ == "InternalIP")?;
    Some((range, internal.address.parse().ok()?))
}
