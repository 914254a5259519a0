use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use tandem_api::{Clock, Settings};
use tandem_runtime::Addresses;
use tokio::sync::watch;

use crate::{pod, registry::Registries, runtimes::Runtimes, usage::IngressCounts};

/// What the agent is started with.
pub struct Config {
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    /// Labels that the node registers with, beside those that every node has.
    pub labels: BTreeMap<String, String>,
    /// A client that speaks as `system:node:NAME`.
    pub client: kube::Client,
    pub runtimes: Runtimes,
    pub registries: Registries,
    pub addresses: Arc<dyn Addresses>,
    /// The network namespace of light component pods.
    pub light_namespace: PathBuf,
    /// The node's part of the data folder: `D/node`.
    pub directory: PathBuf,
    /// The cgroup of all pods below every hierarchy's root, such as `/tandem-1a2b`; unique on the machine.
    pub cgroup_root: String,
    pub settings: Settings,
    pub server: ServerConfig,
    /// What other parts of the node count; the agent adds its own and shows all.
    pub metrics: prometheus_client::registry::Registry,
    /// Where the node's pod CIDR is published once the control plane has given it.
    pub pod_cidr: watch::Sender<Option<Ipv4Net>>,
    /// What the node says its kubelet and its container runtime are.
    pub version: String,
    pub runtime_version: String,
    /// The time over which rates of what is measured are taken.
    pub metric_window: Duration,
    /// What the node's ingress counts.
    pub ingresses: IngressCounts,
    pub clock: Arc<dyn Clock>,
}

/// The node's own HTTPS server: files, so that renewed certificates are picked up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of this authority.
    pub client_authority: PathBuf,
}

/// Where the agent keeps what, below the node's folder.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    node: PathBuf,
}

impl Directories {
    pub(crate) fn new(node: &Path) -> Directories {
        Directories { node: node.to_owned() }
    }

    pub(crate) fn node(&self) -> &Path {
        &self.node
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.node.join("pods")
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub(crate) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// The data of volumes that outlive pods.
    pub(crate) fn persistent(&self) -> PathBuf {
        self.node.join("volumes")
    }

    /// Where a container leaves its termination message.
    pub(crate) fn last_words(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid).join("containers").join(container).join(format!("{attempt}.termination-log"))
    }

    pub(crate) fn seccomp(&self) -> PathBuf {
        self.node.join("seccomp")
    }

    pub(crate) fn services_cache(&self) -> PathBuf {
        self.node.join("services.json")
    }

    /// The pod as it was last seen, for a start without a control plane.
    pub(crate) fn pod_cache(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("pod.json")
    }

    pub(crate) fn probe_cache(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("probes.json")
    }

    pub(crate) fn logs(&self, pod: &k8s_openapi::api::core::v1::Pod) -> PathBuf {
        self.logs_of(pod::namespace(pod), pod::name(pod), pod::uid(pod))
    }

    pub(crate) fn logs_of(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.node.join("logs").join(format!("{namespace}_{name}_{uid}"))
    }
}

/// The log file of one container, below its pod's log folder.
pub(crate) fn log_file(container: &str, attempt: u32) -> PathBuf {
    Path::new(container).join(format!("{attempt}.log"))
}
