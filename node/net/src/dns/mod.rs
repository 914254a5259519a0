//! Cluster DNS: names of Services and pods, answered from memory; everything else is asked of the node's resolvers.
//!
//! The records follow the Kubernetes DNS specification (github.com/kubernetes/dns, docs/specification.md).

mod server;
mod zone;

pub use server::{Server, upstreams};
pub use zone::{Answer, Record, Zone};
