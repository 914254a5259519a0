//! Which request goes where: a table made of Ingresses and of what they name. Pure.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/ingress/>

mod build;
mod paths;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use rustls::sign::CertifiedKey;

pub(crate) use build::{Name, Snapshot, build, secrets, served, watched};

use crate::certificates::Certificates;
use paths::Paths;

/// What is spoken to the pods of a Service (KEP-3726).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS, known beforehand: what gRPC servers speak.
    Http2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The ready endpoints; there may be none.
    Endpoints(Vec<SocketAddr>, Protocol),
    /// Nobody can be asked, and why.
    Nowhere(&'static str),
}

/// Where the requests of a path go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// `NAMESPACE/SERVICE`, for logs.
    pub(crate) name: String,
    /// The Ingress of the path.
    pub(crate) ingress: Name,
    pub(crate) reach: Reach,
    /// The autoscaler that wakes the workload when it has no endpoints.
    pub(crate) woken_by: Option<Name>,
}

impl Backend {
    /// The autoscaler to be asked for an endpoint, where there is none because nobody needed one.
    pub(crate) fn asleep(&self) -> Option<&Name> {
        match &self.reach {
            Reach::Endpoints(addresses, _) if addresses.is_empty() => self.woken_by.as_ref(),
            _ => None,
        }
    }
}

/// All routes and certificates at one moment.
#[derive(Debug)]
pub(crate) struct Table {
    hosts: HashMap<String, Paths>,
    /// By what follows the first label: `*.a.test` under `a.test`.
    wildcards: HashMap<String, Paths>,
    /// Of rules without a host.
    any: Paths,
    pub(crate) certificates: Certificates,
}

impl Table {
    pub(crate) fn empty(default: Arc<CertifiedKey>) -> Table {
        Table {
            hosts: HashMap::new(),
            wildcards: HashMap::new(),
            any: Paths::default(),
            certificates: Certificates::new(default),
        }
    }

    /// The backend of a request: by exact host, then by wildcard, within each an exact path before the longest prefix;
    /// then the default backend of the Ingress of the host; then rules for all hosts, then the default of all.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<&Arc<Backend>> {
        let exact = self.hosts.get(host);
        let wildcard = parent(host).and_then(|parent| self.wildcards.get(parent));
        let named = || [exact, wildcard].into_iter().flatten();
        let of_host = named().find_map(|paths| paths.find(path));
        let of_host = of_host.or_else(|| named().find_map(|paths| paths.default.as_ref()));
        of_host.or_else(|| self.any.find(path)).or(self.any.default.as_ref())
    }

    /// Leads every path to one backend.
    #[cfg(test)]
    pub(crate) fn replace_all(&mut self, backend: &Arc<Backend>) {
        self.any = Paths::default();
        self.any.add_prefix("/", backend);
    }

    /// Every address that requests may be sent to.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let all = self.hosts.values().chain(self.wildcards.values()).chain([&self.any]);
        all.flat_map(Paths::backends).flat_map(|backend| {
            match &backend.reach {
                Reach::Endpoints(addresses, _) => addresses.as_slice(),
                Reach::Nowhere(_) => &[],
            }
            .iter()
            .copied()
        })
    }
}

/// What follows the first label of a host name.
pub(crate) fn parent(host: &str) -> Option<&str> {
    host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, rest)| rest)
}

/// A host name as tables hold it: in lower case, without the root's dot.
pub(crate) fn normal_host(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
