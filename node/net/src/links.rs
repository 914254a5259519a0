//! The node's links, addresses and routes: what must exist for a pod's packets to find their way.
//!
//! ```text
//!  node's namespace                                      light namespace (one for all light pods)
//!   lo: gateway, cluster DNS                              every light address is local
//!   NODE PODS: one veth each, made by CNI (ptp)
//!   LIGHT PODS via light_hop ── tdlHASH ════ veth ════ eth0 ── default via gateway
//!   other nodes' pods via their node addresses
//! ```
//!
//! In the light namespace, only what comes in at `eth0` is looked up as local. So what one light pod sends to another
//! also passes the node, where it is filtered and translated as for containers; and there is no loopback on which
//! pods could reach each other.
//!
//! Everything is named after the data folder, so that several nodes can be on one machine, and every step can be
//! repeated.

mod namespace;
mod netlink;

pub use namespace::enter;

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;

use crate::addresses::Ranges;
use netlink::{Link, Netlink, Owner, Route};

/// Room for an encapsulation header on the way to another node.
pub const MTU: u32 = 1400;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action}: {source}")]
    Netlink { action: String, source: rtnetlink::Error },
    #[error("{action}: {source}")]
    System { action: String, source: io::Error },
}

fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::System { action, source }
}

/// The names of one node's links, from its data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The node's end of the pair that leads to the light pods.
    pub light_link: String,
    /// The file that keeps the light pods' namespace.
    pub light_namespace: PathBuf,
    hash: u32,
}

/// In the light namespace.
const INNER_LINK: &str = "eth0";

impl Names {
    /// `directory` is the node's own folder, `D/node`.
    pub fn new(directory: &Path) -> Names {
        let hash = hash(directory.as_os_str().as_encoded_bytes());
        Names { light_link: format!("tdl{hash:08x}"), light_namespace: directory.join("netns").join("light"), hash }
    }

    /// Locally administered addresses; known ones need no resolution, which would cost an entry for each pod.
    fn hardware(&self, end: u8) -> [u8; 6] {
        let [a, b, c, d] = self.hash.to_be_bytes();
        [0x02, a, b, c, d, end]
    }
}

/// FNV-1a: short and the same in every version, which is all that a name needs.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What a node's network consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    pub pods: Ranges,
    /// The addresses of Services. They need a route, or what the node itself sends to them is refused before it is
    /// translated.
    pub services: Ipv4Net,
    pub dns: Ipv4Addr,
    pub mtu: u32,
}

/// The links of the node in whose network namespace this was made.
#[derive(Debug)]
pub struct Links {
    names: Names,
    node: Netlink,
}

impl Links {
    pub fn new(directory: &Path) -> Result<Links, Error> {
        let node = Netlink::here().map_err(system("open a netlink socket"))?;
        Ok(Links { names: Names::new(directory), node })
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Makes what is missing and corrects what is different.
    pub async fn apply(&self, network: &NodeNetwork) -> Result<(), Error> {
        set("/proc/sys/net/ipv4/ip_forward", "1")?;
        self.node.up("lo").await?;
        for address in [network.pods.gateway(), network.dns] {
            self.node.add_address("lo", address).await?;
        }
        let inner = namespace::ensure(&self.names.light_namespace).await?;
        let link = self.light_link(&inner, network.mtu).await?;
        set(&format!("/proc/sys/net/ipv4/conf/{}/send_redirects", self.names.light_link), "0")?;
        self.inside(&inner, network).await?;

        let hop = network.pods.light_hop();
        self.node.neighbour(&link, hop, self.names.hardware(2)).await?;
        let lo = self.node.link("lo").await?.map_or(1, |link| link.index);
        let via_hop = |destination| Route { destination, via: Some(hop), link: link.index };
        let [one, two] = network.pods.light_networks().map(via_hop);
        let services = Route { destination: network.services, via: None, link: lo };
        self.node.routes(Owner::Node, &[one, two, services], Some(network.pods.gateway())).await
    }

    /// The pair, in the state in which its two ends are in the two namespaces.
    async fn light_link(&self, inner: &Netlink, mtu: u32) -> Result<Link, Error> {
        let name = &self.names.light_link;
        let outer = self.node.link(name).await?;
        // One end without the other belongs to a namespace that was lost.
        let paired = outer.is_some() && inner.link(INNER_LINK).await?.is_some();
        if !paired {
            if outer.is_some() {
                self.node.delete(name).await?;
            }
            let namespace = std::fs::File::open(&self.names.light_namespace)
                .map_err(system(format!("open {}", self.names.light_namespace.display())))?;
            let ends = [(name.as_str(), self.names.hardware(1)), (INNER_LINK, self.names.hardware(2))];
            self.node.add_pair(ends, &namespace, mtu).await?;
        }
        self.node.up(name).await?;
        let link = self.node.link(name).await?;
        link.ok_or_else(|| system(format!("find {name}"))(io::ErrorKind::NotFound.into()))
    }

    async fn inside(&self, inner: &Netlink, network: &NodeNetwork) -> Result<(), Error> {
        inner.up("lo").await?;
        inner.up(INNER_LINK).await?;
        let settings = [
            ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
            ("/proc/sys/net/ipv4/conf/eth0/rp_filter", "0"),
            // What a light pod sends to another comes back in from the node.
            ("/proc/sys/net/ipv4/conf/eth0/accept_local", "1"),
            ("/proc/sys/net/ipv4/conf/all/accept_redirects", "0"),
            ("/proc/sys/net/ipv4/conf/eth0/accept_redirects", "0"),
            // The host of light pods needs no privilege to serve on port 80.
            ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
        ];
        namespace::within(&self.names.light_namespace, move || {
            settings.into_iter().try_for_each(|(file, value)| write(file, value))
        })
        .await
        .map_err(system("set up the namespace of light pods"))?;
        let gateway = network.pods.gateway();
        let link = inner.link(INNER_LINK).await?;
        let link = link.ok_or_else(|| system(format!("find {INNER_LINK}"))(io::ErrorKind::NotFound.into()))?;
        inner.neighbour(&link, gateway, self.names.hardware(1)).await?;
        let default = Route { destination: Ipv4Net::default(), via: Some(gateway), link: link.index };
        inner.routes(Owner::Node, &[default], None).await?;
        inner.local(&network.pods.light_networks()).await?;
        inner.look_up_local_only_from(INNER_LINK).await
    }

    /// Makes the routes to other nodes' pods what `wanted` says: pod network to node address.
    pub async fn apply_peers(&self, wanted: &BTreeMap<Ipv4Net, Ipv4Addr>) -> Result<(), Error> {
        let present = self.node.peers().await?;
        let changes = changes(&present, wanted);
        let mut first_failure = None;
        for change in changes {
            // One node that cannot be reached must not cut off the others.
            if let Err(error) = self.node.change_peer(change).await {
                tracing::warn!(%error, "route to another node's pods");
                first_failure.get_or_insert(error);
            }
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Takes away everything that `apply` and `apply_peers` made, whether it is there or not.
    pub async fn remove(&self, network: &NodeNetwork) -> Result<(), Error> {
        self.apply_peers(&BTreeMap::new()).await?;
        self.node.delete(&self.names.light_link).await?;
        self.node.routes(Owner::Node, &[], None).await?;
        namespace::remove(&self.names.light_namespace).await?;
        for address in [network.pods.gateway(), network.dns] {
            self.node.remove_address("lo", address).await?;
        }
        Ok(())
    }
}

/// One step towards the routes that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Set(Ipv4Net, Ipv4Addr),
    Remove(Ipv4Net, Ipv4Addr),
}

/// Removals first, so that a network that moved to another node is not in two routes.
fn changes(present: &BTreeMap<Ipv4Net, Ipv4Addr>, wanted: &BTreeMap<Ipv4Net, Ipv4Addr>) -> Vec<Change> {
    let gone = present.iter().filter(|(network, _)| !wanted.contains_key(*network));
    let set = wanted.iter().filter(|(network, via)| present.get(*network) != Some(*via));
    let gone = gone.map(|(network, via)| Change::Remove(*network, *via));
    gone.chain(set.map(|(network, via)| Change::Set(*network, *via))).collect()
}

fn set(file: &str, value: &str) -> Result<(), Error> {
    write(file, value).map_err(system(format!("write {value} to {file}")))
}

/// Leaves a setting alone that is right already: some places allow reading these files only.
fn write(file: &str, value: &str) -> io::Result<()> {
    if std::fs::read_to_string(file).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    std::fs::write(file, value)
}

#[cfg(test)]
mod tests;
