//! Image references, and what a registry says an image is.
//!
//! Only manifests and configurations are read here; layers are the runtimes' business.

mod client;
mod kind;
mod reference;

use std::{collections::BTreeMap, path::PathBuf};

pub(crate) use client::{Error, Resolver, credentials, legacy_credentials};
pub(crate) use reference::Reference;

/// Which servers are asked for an image.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// The cluster's own registry, named `registry.tandem` in references.
    pub cluster: Option<Endpoint>,
    /// Servers that are asked before the one that a reference names, by its host (`docker.io`).
    pub mirrors: BTreeMap<String, Vec<Endpoint>>,
}

/// A registry server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// `https://HOST:PORT`, without `/v2/`.
    pub url: String,
    /// The only authority that its certificate may come from; `None` for the machine's trusted ones.
    pub authority: Option<PathBuf>,
    /// The certificate and key that the node shows.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Registries {
    /// The servers for a reference, in the order in which they are asked.
    fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let host = reference.host();
        if host == tandem_api::CLUSTER_REGISTRY {
            return self.cluster.iter().cloned().collect();
        }
        let mirrors = self.mirrors.get(host).cloned().unwrap_or_default();
        let server = match host {
            "docker.io" => "https://registry-1.docker.io".to_owned(),
            local if local.starts_with("localhost") || local.starts_with("127.") => format!("http://{local}"),
            other => format!("https://{other}"),
        };
        mirrors.into_iter().chain([Endpoint { url: server, authority: None, identity: None }]).collect()
    }
}
