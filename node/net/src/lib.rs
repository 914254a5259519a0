//! The network of one node: pod addresses, Services, cluster DNS, routes to other nodes, the way to the API server.
//!
//! ```text
//!  Services, EndpointSlices ──> rules (pure) ──> transaction (pure) ──> nft
//!        │                 └──> dns::Zone ──> dns::Server on the cluster DNS address
//!  NetworkPolicies, pods ──> policy rules (pure) ──> transaction (pure) ──> nft
//!        └ Nodes ──> routes
//!  pods, containerd ──> forward (gateway:6443, loopback) ──> any control-plane member
//! ```
//!
//! It never decides where a pod runs or whether it is ready; it makes what the API says reachable.

mod activator;
pub mod addresses;
mod conntrack;
pub mod dns;
pub mod forward;
mod health;
pub mod ipam;
pub mod links;
mod nft;
pub mod node;
pub mod policy;
mod proxy;
pub mod rules;

pub use addresses::Allocator;

/// Why the node's network could not be made as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nftables refused the rules: {why}")]
    Rules { why: String },
    #[error("cannot set up the node's network: {0}")]
    Links(#[from] links::Error),
    #[error("the record of the node's network in {}: {source}", path.display())]
    Record { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Addresses(#[from] addresses::Error),
    #[error(transparent)]
    AddressSocket(#[from] ipam::ListenError),
    #[error("cannot write {path}: {source}")]
    Setting { path: &'static str, source: std::io::Error },
    #[error("cannot listen on {address}{}: {source}", if source.kind() == std::io::ErrorKind::AddrInUse { ", which another program uses" } else { "" })]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
}
