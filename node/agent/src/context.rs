use std::{net::Ipv4Addr, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use tandem_api::{Clock, Settings};
use tandem_runtime::Addresses;
use tokio::sync::Semaphore;

use crate::{
    cgroup::Hierarchies,
    config::Directories,
    events::Events,
    fields::{NodeSize, Placement},
    images::Images,
    metrics::Metrics,
    objects::Objects,
    observed::{Kind, NodeFacts, Observed},
    observer::Observer,
    pod,
    resize::Room,
    runtimes::Runtimes,
    services::Services,
    usage::Usage,
    volumes::Volumes,
};

/// What the workers of all pods share.
pub(crate) struct Context {
    pub(crate) node_name: String,
    pub(crate) node_ip: Ipv4Addr,
    pub(crate) size: NodeSize,
    pub(crate) client: kube::Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) directories: Directories,
    pub(crate) runtimes: Runtimes,
    pub(crate) observer: Observer,
    pub(crate) addresses: Arc<dyn Addresses>,
    pub(crate) light_namespace: PathBuf,
    pub(crate) cgroup_root: String,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) events: Events,
    pub(crate) services: Services,
    pub(crate) objects: Arc<Objects>,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    /// Requests of probes and hooks; follows no redirects and trusts any certificate, as a kubelet.
    pub(crate) http: reqwest::Client,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) usage: Usage,
    pub(crate) room: Room,
    /// Bounds the status patches under way.
    pub(crate) patches: Semaphore,
}

impl Context {
    pub(crate) fn facts(&self) -> NodeFacts {
        NodeFacts {
            address: self.node_ip,
            containers: self.runtimes.get(Kind::Container).is_some(),
            container_scheme: self.runtimes.scheme(Kind::Container),
            component_scheme: self.runtimes.scheme(Kind::Component),
        }
    }

    pub(crate) fn placement(&self, seen: &Observed) -> Placement<'_> {
        Placement {
            node_name: &self.node_name,
            node_address: self.node_ip,
            pod_address: seen.address(),
            size: self.size,
        }
    }

    pub(crate) fn cgroup(&self, pod: &Pod) -> String {
        format!("{}/pods/{}", self.cgroup_root, pod::uid(pod))
    }
}
