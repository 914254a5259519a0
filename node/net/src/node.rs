//! The network of one node, put together: links first, then everything that listens or follows the API.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tandem_api::{Clock, Settings};
use tandem_client::{events::Recorder, wake::Wake};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    activator::Activator,
    addresses::{Allocator, Ranges},
    dns::{self, Zone},
    forward, health, ipam,
    links::{Links, NodeNetwork},
    policy, proxy,
};

/// Room for the header of an overlay below every link's 1,500 bytes.
pub const MTU: u32 = 1400;
const DNS_PORT: u16 = 53;
/// Which pod has which address, in the node's folder.
pub const ADDRESSES_FILE: &str = "addresses.json";
/// Where the network plugin asks for one, in the same folder.
pub const ADDRESS_SOCKET: &str = "ipam.sock";
const RECORD_FILE: &str = "network.json";
const RECORD_VERSION: u32 = 1;
/// Lets what the node sends to its own NodePorts on 127.0.0.1 leave for a pod.
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

#[derive(Clone)]
pub struct Config {
    pub client: kube::Client,
    /// The node's name.
    pub node: String,
    /// The node's own folder, which its links are named after.
    pub directory: PathBuf,
    /// The node's pod addresses.
    pub pods: Ranges,
    pub settings: Settings,
    /// The control-plane members.
    pub members: forward::Members,
    /// Told which members there are; `None` where the member on this machine is always the one.
    pub known: Option<watch::Sender<Vec<SocketAddr>>>,
    /// The port of the API server on the pod gateway.
    pub gateway_port: u16,
    /// False where a member in this network namespace listens on all addresses, the pod gateway's included.
    pub forward_gateway: bool,
    /// The text of the node's `resolv.conf`.
    pub resolv_conf: String,
    pub metrics: policy::Metrics,
    pub clock: Arc<dyn Clock>,
    /// Asks for a workload that was scaled to zero.
    pub wake: Wake,
}

impl Config {
    fn network(&self) -> NodeNetwork {
        let settings = &self.settings;
        NodeNetwork { pods: self.pods, services: settings.service_cidr, dns: settings.dns_address, mtu: MTU }
    }
}

/// A node's network whose links exist and whose sockets listen.
pub struct Network {
    config: Config,
    links: Links,
    dns_udp: UdpSocket,
    dns_tcp: TcpListener,
    forwarder: Option<TcpListener>,
    activator: TcpListener,
}

impl Network {
    /// Makes the links and opens the sockets, so that whoever comes next finds them.
    pub async fn prepare(config: Config) -> Result<Network, Error> {
        record(&config)?;
        let links = Links::new(&config.directory)?;
        links.apply(&config.network()).await?;
        std::fs::write(ROUTE_LOCALNET, "1").map_err(|source| Error::Setting { path: ROUTE_LOCALNET, source })?;
        let dns = SocketAddr::from((config.settings.dns_address, DNS_PORT));
        let listen = |address: SocketAddr| move |source| Error::Listen { address, source };
        let dns_udp = UdpSocket::bind(dns).await.map_err(listen(dns))?;
        let dns_tcp = TcpListener::bind(dns).await.map_err(listen(dns))?;
        let gateway = SocketAddr::from((config.pods.gateway(), config.gateway_port));
        let forwarder = match config.forward_gateway {
            true => Some(TcpListener::bind(gateway).await.map_err(listen(gateway))?),
            false => None,
        };
        // Any port: clients come by rules that are made anew when this starts.
        let waking = SocketAddr::from((config.pods.gateway(), 0));
        let activator = TcpListener::bind(waking).await.map_err(listen(waking))?;
        Ok(Network { config, links, dns_udp, dns_tcp, forwarder, activator })
    }

    /// The file of the namespace that light pods share.
    pub fn light_namespace(&self) -> PathBuf {
        self.links.names().light_namespace.clone()
    }

    /// Follows the API until shutdown. The links and rules stay, so that workloads go on.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Network { config, links, dns_udp, dns_tcp, forwarder, activator } = self;
        let domain = config.settings.dns_domain.clone();
        let (zone, zones) = watch::channel(Arc::new(Zone::new(&domain, &[], &[])));
        let (peers, routes) = watch::channel(BTreeMap::new());
        let upstreams = dns::upstreams(&config.resolv_conf, config.settings.dns_address.into());
        let mut tasks = JoinSet::new();
        let server = dns::Server::new(zones, upstreams);
        tasks.spawn(server.serve(dns_udp, dns_tcp, shutdown.clone()));
        if let Some(listener) = forwarder {
            tasks.spawn(forward::forward(listener, config.members.clone(), shutdown.clone()));
        }
        tasks.spawn(follow_routes(links, routes, shutdown.clone()));
        let (sleepers, sleeping) = watch::channel(Arc::default());
        let waking = activator
            .local_addr()
            .map_err(|source| Error::Listen { address: SocketAddr::from((config.pods.gateway(), 0)), source })?;
        let (guarding, guarded) = watch::channel(Arc::default());
        tasks.spawn(Activator::new(sleeping, guarded, config.wake.clone()).serve(activator, shutdown.clone()));
        let fixed = proxy::Fixed {
            node: config.node.clone(),
            pod_cidr: config.settings.pod_cidr,
            api: (config.pods.gateway(), config.gateway_port),
            activator: (config.pods.gateway(), waking.port()),
            domain,
            external_ips: config.settings.external_ips,
        };
        let (health, asked) = watch::channel(health::Ports::new());
        tasks.spawn(health::serve(asked, shutdown.clone()));
        let (api, members) = watch::channel(Vec::new());
        let policies = policy::Fixed {
            node: config.node,
            pod_cidr: config.settings.pod_cidr,
            dns: config.settings.dns_address,
            api: fixed.api,
            activator: fixed.activator,
        };
        let (recorder, events) = Recorder::start(config.client.clone(), "network-policy", config.clock);
        let client = config.client.clone();
        let follower = policy::Follower::new(client, policies, members, guarding, config.metrics, recorder);
        tasks.spawn(follower.run(shutdown.clone()));
        let members = config.known.into_iter().chain([api]).collect();
        let published = proxy::Published { zone, peers, health, members, sleepers };
        let result = proxy::run(config.client, fixed, published, shutdown).await;
        while tasks.join_next().await.is_some() {}
        events.abort();
        result
    }
}

async fn follow_routes(
    links: Links,
    mut wanted: watch::Receiver<BTreeMap<Ipv4Net, Ipv4Addr>>,
    shutdown: CancellationToken,
) {
    loop {
        let peers = wanted.borrow_and_update().clone();
        if let Err(error) = links.apply_peers(&peers).await {
            tracing::error!(%error, "routes to other nodes' pods");
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// What was set up, so that it can be removed by a process that knows nothing else.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    version: u32,
    pods: Ipv4Net,
    services: Ipv4Net,
    dns: Ipv4Addr,
}

fn record(config: &Config) -> Result<(), Error> {
    let path = config.directory.join(RECORD_FILE);
    let record = Record {
        version: RECORD_VERSION,
        pods: config.pods.network(),
        services: config.settings.service_cidr,
        dns: config.settings.dns_address,
    };
    let text = serde_json::to_vec(&record).map_err(std::io::Error::other);
    text.and_then(|text| std::fs::write(&path, text)).map_err(|source| Error::Record { path, source })
}

/// The network that was recorded in this folder, if one was made.
fn recorded(directory: &Path) -> Result<Option<NodeNetwork>, Error> {
    let path = directory.join(RECORD_FILE);
    let failed = |source| Error::Record { path: path.clone(), source };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let record: Record = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let pods = Ranges::new(record.pods).map_err(|error| failed(std::io::Error::other(error)))?;
    Ok(Some(NodeNetwork { pods, services: record.services, dns: record.dns, mtu: MTU }))
}

/// Takes addresses back until `over`, for a node that nobody runs at the moment.
pub fn serve_addresses(
    directory: &Path,
    over: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static + use<>, Error> {
    let serving = match recorded(directory)? {
        Some(network) => {
            let allocator = Allocator::open(&directory.join(ADDRESSES_FILE), network.pods.network())?;
            Some(ipam::serve(&directory.join(ADDRESS_SOCKET), allocator, over)?)
        }
        // Without a network no pod ever had an address.
        None => None,
    };
    Ok(async {
        if let Some(serving) = serving {
            serving.await;
        }
    })
}

/// Removes the rules, links and routes of the node with this folder, as they were recorded when they were made.
pub async fn remove(directory: &Path) -> Result<(), Error> {
    proxy::remove().await?;
    let Some(network) = recorded(directory)? else { return Ok(()) };
    Links::new(directory)?.remove(&network).await?;
    let path = directory.join(RECORD_FILE);
    std::fs::remove_file(&path).map_err(|source| Error::Record { path, source })
}
