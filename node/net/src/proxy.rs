//! The driver: watches Services, EndpointSlices and Nodes, and makes the kernel, DNS and the routes follow.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
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
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{io::AsyncWriteExt as _, process::Command, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    dns::Zone,
    rules::{self, Ruleset, Sleepers, Snapshot},
};

/// Changes that come this close together become one transaction.
const SETTLE: Duration = Duration::from_millis(10);
/// How long to wait before the kernel is asked again after it refused a transaction.
const RETRY: Duration = Duration::from_secs(1);
const NFT_TIMEOUT: Duration = Duration::from_secs(20);
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The Service that leads to the API server.
const API_SERVICE: (&str, &str) = ("default", "kubernetes");

/// What the driver turns the cluster's state into, beside the kernel's rules.
#[derive(Debug)]
pub struct Published {
    pub zone: watch::Sender<Arc<Zone>>,
    /// The pod ranges of the other nodes, with the address of each.
    pub peers: watch::Sender<BTreeMap<Ipv4Net, Ipv4Addr>>,
    /// Where the API server is reached, if anybody wants to know.
    pub members: Option<watch::Sender<Vec<SocketAddr>>>,
    /// The Services whose workloads may be scaled to zero.
    pub sleepers: watch::Sender<Arc<Sleepers>>,
}

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Fixed {
    pub node: String,
    pub pod_cidr: Ipv4Net,
    pub api: (Ipv4Addr, u16),
    pub activator: (Ipv4Addr, u16),
    pub domain: String,
}

struct Caches {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    nodes: Store<Node>,
}

/// Keeps the node's view of the network true until shutdown.
pub async fn run(
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
        while let Err(error) = apply(applied.as_ref(), &next).await {
            // What the kernel holds is unknown now: the next transaction builds the table anew.
            tracing::error!(%error, "the service rules could not be changed; Services may not answer on this node");
            applied = None;
            tokio::select! {
                () = sleep(RETRY) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        applied = Some(next);
        published.zone.send_replace(Arc::new(caches.zone(&fixed.domain)));
        publish_changed(&published.peers, caches.peers(&fixed.node));
        // A Service without endpoints is one that nobody has filled yet: what was known before is better.
        if let Some(told) = &published.members
            && let members @ [_, ..] = &*members(&sorted(&caches.slices))
        {
            told.send_if_modified(|current| {
                let changed = current != members;
                *current = members.to_vec();
                changed
            });
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
pub async fn remove() -> Result<(), Error> {
    nft(&format!("add table {0}\ndelete table {0}\n", rules::TABLE)).await
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
            activator: Some(fixed.activator),
            services: sorted(&self.services),
            slices: sorted(&self.slices),
        }
    }

    fn zone(&self, domain: &str) -> Zone {
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

async fn apply(old: Option<&Ruleset>, new: &Ruleset) -> Result<(), Error> {
    let script = rules::transaction(old, new);
    if script.is_empty() {
        return Ok(());
    }
    tracing::debug!(bytes = script.len(), whole = old.is_none(), "change the service rules");
    nft(&script).await
}

/// Gives a script to `nft`, which makes one transaction of it.
async fn nft(script: &str) -> Result<(), Error> {
    let failed = |why: String| Error::Rules { why };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot run nft ({error}): install the package nftables")))?;
    let Some(mut stdin) = child.stdin.take() else { return Err(failed("nft has no standard input".to_owned())) };
    stdin.write_all(script.as_bytes()).await.map_err(|error| failed(error.to_string()))?;
    drop(stdin);
    let output = tokio::time::timeout(NFT_TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| failed("nft does not answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(text.lines().take(3).collect::<Vec<_>>().join("; ")))
}
