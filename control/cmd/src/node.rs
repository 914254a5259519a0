//! A node, put together: certificates, runtimes, network, agent.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use tandem_agent::Runtimes;
use tandem_api::{CLUSTER_REGISTRY, Settings, SystemClock};
use tandem_client::{kube, wake::waker};
use tandem_ingress::Listeners;
use tandem_net::{
    Allocator,
    addresses::Ranges,
    ipam,
    links::Names,
    node::{ADDRESS_SOCKET, ADDRESSES_FILE, Network},
};
use tandem_runtime::Runtime;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{addresses::Awaited, cli::NodeFlags, join::NodeFiles, program, terminal::Progress, way::Way};

/// How long the control plane may take to give the node its pod addresses.
const RANGE_WAIT: Duration = Duration::from_secs(60);
const API_PORT: u16 = 6443;
/// Files that the node may have open, where its user may have as many: connections of the ingress are files.
const FILES: u64 = 65_536;

/// What a node needs to know beside its flags.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    /// `D/node`.
    pub(crate) directory: PathBuf,
    pub(crate) files: NodeFiles,
    pub(crate) client: kube::Client,
    pub(crate) settings: Settings,
    pub(crate) way: Way,
    /// The port of a member on this machine that listens on all addresses.
    pub(crate) member_everywhere: Option<u16>,
}

/// Runs the node until shutdown; `ready` is told once pods can run.
pub(crate) async fn run(
    plan: Plan,
    flags: &NodeFlags,
    progress: &Progress,
    shutdown: CancellationToken,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    raise_files();
    std::fs::create_dir_all(&plan.directory)
        .with_context(|| format!("cannot make the node's folder {}", plan.directory.display()))?;
    let runtimes = async { tokio::join!(components(&plan, flags), containers(&plan, flags, progress)) };
    let Some((components, containerd)) = shutdown.run_until_cancelled(runtimes).await else { return Ok(()) };
    let (components, containerd) = (components?, containerd?);
    progress.done(if containerd.is_some() {
        "runtimes: containerd and the WebAssembly host answer"
    } else {
        "runtimes: the WebAssembly host answers; this node runs no containers"
    });

    let (allocator, addresses) = watch::channel(None);
    let (pod_cidr, mut range) = watch::channel(None);
    let runtimes = Runtimes { containers: containerd.as_ref().map(|it| it.runtime.clone()), components };
    let mut metrics = Registry::default();
    let ingress = tandem_ingress::Config {
        client: plan.client.clone(),
        listeners: ingress_listeners(flags, progress),
        metrics: tandem_ingress::Metrics::new(&mut metrics),
        clock: Arc::new(SystemClock),
    };
    let policy_metrics = tandem_net::policy::Metrics::new(&mut metrics);
    let counted = ingress.metrics.clone();
    let mut config = agent_config(&plan, flags, runtimes, Arc::new(Awaited(addresses)), pod_cidr, metrics);
    config.ingresses = Arc::new(move || counted.by_ingress());
    let mut tasks = JoinSet::new();
    let agent_shutdown = shutdown.clone();
    tasks.spawn(async move { Ok(tandem_agent::run(config, agent_shutdown).await?) });

    let given = tokio::select! {
        given = tokio::time::timeout(RANGE_WAIT, range.wait_for(Option::is_some)) => given,
        ended = tasks.join_next() => return ended.context("the node's agent ended")??,
        () = shutdown.cancelled() => return Ok(()),
    };
    let given =
        given.context("the control plane gave this node no pod addresses; is a member's controller running?")??;
    let Some(network) = *given else { bail!("the node has no pod addresses") };
    drop(given);
    let ranges = Allocator::open(&plan.directory.join(ADDRESSES_FILE), network)?;
    let prepared = Network::prepare(network_config(&plan, ranges.ranges(), policy_metrics)).await?;
    let serving = ipam::serve(&plan.directory.join(ADDRESS_SOCKET), ranges.clone(), shutdown.clone())?;
    tasks.spawn(async move {
        serving.await;
        Ok(())
    });
    allocator.send_replace(Some(ranges));
    let network_shutdown = shutdown.clone();
    tasks.spawn(async move { Ok(prepared.run(network_shutdown).await?) });
    let ingress_shutdown = shutdown.clone();
    tasks.spawn(async move { Ok(tandem_ingress::run(ingress, ingress_shutdown).await?) });
    progress.done(&format!("network: pods of this node have addresses in {network}"));
    ready();
    while let Some(ended) = tasks.join_next().await {
        // One part that fails ends the node: half a node would look like a whole one.
        if let Err(error) = ended? {
            shutdown.cancel();
            return Err(error);
        }
    }
    Ok(())
}

fn raise_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(FILES, |maximum| maximum.min(FILES));
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

/// A node whose ports are taken serves no Ingresses there, and everything else.
fn ingress_listeners(flags: &NodeFlags, progress: &Progress) -> Listeners {
    let open = |port: u16, flag: &str| match Listeners::open(port) {
        Ok(listener) => listener,
        Err(error) => {
            let why = if error.kind() == std::io::ErrorKind::AddrInUse {
                "another program uses it".to_owned()
            } else {
                error.to_string()
            };
            progress.note(&format!(
                "warning: this node serves no Ingresses on port {port}: {why}; choose another with --{flag}, or 0 for none"
            ));
            None
        }
    };
    Listeners {
        http: open(flags.ingress_http_port, "ingress-http-port"),
        https: open(flags.ingress_https_port, "ingress-https-port"),
    }
}

pub(crate) fn local_url(flags: &NodeFlags) -> String {
    format!("https://127.0.0.1:{}", flags.local_port)
}

async fn components(plan: &Plan, flags: &NodeFlags) -> anyhow::Result<Arc<dyn Runtime>> {
    let registry = tandem_wasm::Registry {
        endpoint: local_url(flags),
        ca: Some(plan.files.authority.clone()),
        certificate: Some(plan.files.client_certificate.clone()),
        key: Some(plan.files.client_key.clone()),
    };
    let hosts = flags.mirrors.iter().map(String::as_str).chain([CLUSTER_REGISTRY]);
    let config = tandem_wasm::Config {
        folder: plan.directory.join("wasm"),
        program: None,
        registries: hosts.map(|host| (host.to_owned(), registry.clone())).collect(),
        cgroup: Some(format!("{}/wasm", cgroup_root(&plan.directory))),
    };
    Ok(tandem_wasm::start(config).await.context("the WebAssembly host does not start")?)
}

async fn containers(
    plan: &Plan,
    flags: &NodeFlags,
    progress: &Progress,
) -> anyhow::Result<Option<tandem_containerd::Containerd>> {
    match flags.containerd.as_str() {
        "off" => return Ok(None),
        "auto" => {}
        socket => return Ok(Some(tandem_containerd::external(Path::new(socket)).await?)),
    }
    let config = tandem_containerd::Config {
        dir: plan.directory.join("containerd"),
        program: program::installed()?,
        address_socket: plan.directory.join(ADDRESS_SOCKET),
        mtu: tandem_net::node::MTU,
        registry: Some(tandem_containerd::Registry {
            host: CLUSTER_REGISTRY.to_owned(),
            endpoint: local_url(flags),
            authority: Some(plan.files.authority.clone()),
            client: Some((plan.files.client_certificate.clone(), plan.files.client_key.clone())),
            mirrors: flags.mirrors.iter().map(|host| mirror(host)).collect(),
        }),
        strict: flags.strict,
    };
    match tandem_containerd::start(config).await {
        Ok(containerd) => {
            for warning in &containerd.warnings {
                progress.note(&format!("warning: {warning}"));
            }
            Ok(Some(containerd))
        }
        Err(tandem_containerd::Error::Missing(missing)) => {
            progress.note(&format!("{missing}; going on with components only"));
            Ok(None)
        }
        Err(error) => Err(error).context("containerd does not start"),
    }
}

fn mirror(host: &str) -> tandem_containerd::Mirror {
    let upstream =
        if host == "docker.io" { "https://registry-1.docker.io".to_owned() } else { format!("https://{host}") };
    tandem_containerd::Mirror { host: host.to_owned(), upstream: Some(upstream) }
}

/// The cgroup of everything that belongs to one data folder, unique on the machine.
pub(crate) fn cgroup_root(directory: &Path) -> String {
    format!("/tandem-{}", Names::new(directory).light_link)
}

fn agent_config(
    plan: &Plan,
    flags: &NodeFlags,
    runtimes: Runtimes,
    addresses: Arc<Awaited>,
    pod_cidr: watch::Sender<Option<ipnet::Ipv4Net>>,
    metrics: Registry,
) -> tandem_agent::Config {
    let registry = tandem_agent::Endpoint {
        url: local_url(flags),
        authority: Some(plan.files.authority.clone()),
        identity: Some((plan.files.client_certificate.clone(), plan.files.client_key.clone())),
    };
    let mirrors = flags.mirrors.iter().map(|host| (host.clone(), vec![registry.clone()])).collect();
    let version = format!("v1.{}.0+tandem-{}", plan.settings.kubernetes_minor, env!("CARGO_PKG_VERSION"));
    tandem_agent::Config {
        node_name: plan.name.clone(),
        node_ip: plan.address,
        labels: BTreeMap::new(),
        client: plan.client.clone(),
        runtimes,
        registries: tandem_agent::Registries { cluster: Some(registry), mirrors },
        addresses,
        light_namespace: Names::new(&plan.directory).light_namespace,
        directory: plan.directory.clone(),
        cgroup_root: cgroup_root(&plan.directory),
        settings: plan.settings.clone(),
        server: tandem_agent::ServerConfig {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, flags.node_port)),
            certificate: plan.files.server_certificate.clone(),
            key: plan.files.server_key.clone(),
            client_authority: plan.files.authority.clone(),
        },
        metrics,
        pod_cidr,
        version,
        runtime_version: format!("tandem://{}", env!("CARGO_PKG_VERSION")),
        metric_window: flags.metric_window,
        ingresses: Arc::new(HashMap::new),
        clock: Arc::new(SystemClock),
    }
}

fn network_config(plan: &Plan, pods: Ranges, metrics: tandem_net::policy::Metrics) -> tandem_net::node::Config {
    tandem_net::node::Config {
        client: plan.client.clone(),
        node: plan.name.clone(),
        directory: plan.directory.clone(),
        pods,
        settings: plan.settings.clone(),
        members: plan.way.members.clone(),
        known: plan.way.known.clone(),
        gateway_port: plan.member_everywhere.unwrap_or(API_PORT),
        forward_gateway: plan.member_everywhere.is_none(),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        metrics,
        wake: waker(plan.client.clone(), Arc::new(SystemClock)),
        clock: Arc::new(SystemClock),
    }
}
