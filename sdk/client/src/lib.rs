//! Clients of the Kubernetes API, for everything that is one: in process, from certificates, from a kubeconfig.
//!
//! Re-exports the one version of `kube` and `k8s-openapi` that the product is built with.

pub mod events;
mod kubeconfig;
pub mod node_selector;
pub mod tolerations;
pub mod volumes;
pub mod wake;

use std::{
    path::PathBuf,
    task::{Context, Poll},
};

use axum::Router;
use http::Request;
use tandem_api::{Fence, Identity};
use tokio::sync::watch;
use tower::Service;

pub use k8s_openapi;
pub use kube;
pub use kubeconfig::{Kubeconfig, kubeconfig};

const DEFAULT_NAMESPACE: &str = "default";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Kubeconfig { path: String, source: kube::config::KubeconfigError },
    #[error("the server address {address:?} is not a URL: {source}")]
    Address { address: String, source: http::uri::InvalidUri },
    #[error("cannot make a client of {address}: {source}")]
    Client { address: String, source: Box<kube::Error> },
    #[error("{path} cannot be written as YAML: {why}")]
    Write { path: String, why: String },
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
}

/// A client that calls the API server's router directly: no socket, the same authorization, admission and audit.
///
/// `identity` travels as a request extension, which no request from outside can carry.
pub fn in_process(router: Router, identity: Identity) -> kube::Client {
    kube::Client::new(InProcess { router, identity, term: None }, DEFAULT_NAMESPACE)
}

/// As [`in_process`], for the work of a leader: `term` is the one in which this member leads or last led, and what is
/// written fails once another leader has taken over.
pub fn in_process_as_leader(router: Router, identity: Identity, term: watch::Receiver<u64>) -> kube::Client {
    kube::Client::new(InProcess { router, identity, term: Some(term) }, DEFAULT_NAMESPACE)
}

#[derive(Clone)]
struct InProcess {
    router: Router,
    identity: Identity,
    term: Option<watch::Receiver<u64>>,
}

impl Service<Request<kube::client::Body>> for InProcess {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = axum::routing::future::RouteFuture<std::convert::Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<kube::client::Body>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: Request<kube::client::Body>) -> Self::Future {
        request.extensions_mut().insert(self.identity.clone());
        if let Some(term) = &self.term {
            request.extensions_mut().insert(Fence(*term.borrow()));
        }
        self.router.call(request)
    }
}

/// How a machine proves itself to the API server: files, so that a renewed certificate is picked up.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The CA that the server's certificate must come from.
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A client of `server` (`https://HOST:PORT`) with a client certificate.
pub fn with_credentials(server: &str, credentials: &Credentials) -> Result<kube::Client, Error> {
    let address = server.parse().map_err(|source| Error::Address { address: server.to_owned(), source })?;
    let mut config = kube::Config::new(address);
    config.root_cert_file = Some(credentials.authority.clone());
    config.auth_info.client_certificate = Some(credentials.certificate.display().to_string());
    config.auth_info.client_key = Some(credentials.key.display().to_string());
    client(server, config)
}

/// A client of `server` with a bearer token, trusting `authority` (PEM) only.
pub fn with_token(server: &str, authority: &str, token: &str) -> Result<kube::Client, Error> {
    use kube::config::AuthInfo;
    let address = server.parse().map_err(|source| Error::Address { address: server.to_owned(), source })?;
    let mut config = kube::Config::new(address);
    config.root_cert = Some(kubeconfig::pem_blocks(authority));
    config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
    client(server, config)
}

/// A client of the cluster that a kubeconfig file names as current.
pub async fn from_kubeconfig(path: &std::path::Path) -> Result<kube::Client, Error> {
    from_kubeconfig_at(path, None).await
}

/// As [`from_kubeconfig`], of another member of the same cluster: the one at `server` (`https://HOST:PORT`).
pub async fn from_kubeconfig_at(path: &std::path::Path, server: Option<&str>) -> Result<kube::Client, Error> {
    let at = |source| Error::Kubeconfig { path: path.display().to_string(), source };
    let file = kube::config::Kubeconfig::read_from(path).map_err(at)?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(at)?;
    if let Some(server) = server {
        config.cluster_url = server.parse().map_err(|source| Error::Address { address: server.to_owned(), source })?;
    }
    let address = config.cluster_url.to_string();
    client(&address, config)
}

fn client(address: &str, config: kube::Config) -> Result<kube::Client, Error> {
    kube::Client::try_from(config)
        .map_err(|source| Error::Client { address: address.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use axum::{Extension, Json, Router, routing::get};
    use kube::Api;

    use super::*;

    #[tokio::test]
    async fn the_identity_reaches_the_router() {
        let who = |Extension(identity): Extension<Identity>| async move {
            let metadata = kube::core::ObjectMeta { name: Some(identity.name), ..Default::default() };
            Json(k8s_openapi::api::core::v1::Node { metadata, ..Default::default() })
        };
        let router = Router::new().route("/api/v1/nodes/any", get(who));
        let client = in_process(router, Identity::controller("deployment"));
        let node = Api::<k8s_openapi::api::core::v1::Node>::all(client).get("any").await.unwrap();
        assert_eq!(node.metadata.name.unwrap(), "system:serviceaccount:kube-system:deployment-controller");
    }

    #[tokio::test]
    async fn the_work_of_a_leader_carries_its_newest_term() {
        let fence = |fence: Option<Extension<Fence>>| async move {
            let metadata =
                kube::core::ObjectMeta { name: fence.map(|fence| fence.0.0.to_string()), ..Default::default() };
            Json(k8s_openapi::api::core::v1::Node { metadata, ..Default::default() })
        };
        let router = Router::new().route("/api/v1/nodes/any", get(fence));
        let name = async |client: kube::Client| {
            Api::<k8s_openapi::api::core::v1::Node>::all(client).get("any").await.unwrap().metadata.name
        };
        let (term, terms) = watch::channel(3);
        let leader = in_process_as_leader(router.clone(), Identity::scheduler(), terms);
        assert_eq!(name(leader.clone()).await.as_deref(), Some("3"));
        term.send_replace(5);
        assert_eq!(name(leader).await.as_deref(), Some("5"));
        assert_eq!(name(in_process(router, Identity::scheduler())).await, None);
    }
}
