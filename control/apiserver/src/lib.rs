//! The Kubernetes API over HTTP: every object, every verb, generic over the registry's rows.
//!
//! ```text
//!  socket ─ server (TLS, limits) ─┐
//!                                 ├─ layers: audit, panics, metrics, authn, limits, authz ─┬─ discovery, health
//!  client in the process ─────────┘                                                        ├─ verbs ─────────┐
//!                                                                                          └─ subresources ──┤
//!       store <── objects (envelope) <── write: defaults, admission, validation, owners <────────────────────┘
//! ```
//!
//! Only this crate writes objects to the store. No file under `verbs` or `patch` names a kind: what is particular to one
//! stands in the registry's hooks, in `admission`, `subresources` or `deletion`. It never acts on its own: what should
//! follow from a change is a controller's part.

mod admission;
mod authn;
mod authz;
mod bootstrap;
mod call;
mod core;
mod decode;
mod deletion;
mod dialer;
mod discovery;
pub mod envelope;
mod health;
mod heartbeats;
mod held;
mod kinds;
mod layers;
mod managed;
mod negotiate;
mod objects;
mod options;
mod patch;
mod request;
mod respond;
pub mod server;
mod subresources;
pub mod tls;
mod usage;
mod verbs;
mod write;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use serde_json::json;
use tandem_api::{ApiError, Clock, Entropy, Settings};
use tandem_pki::ServiceAccountKey;
use tandem_registry::Registry;
use tandem_store::{Leadership, Storage};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

pub use dialer::{NodeIo, NodeStream, TlsDialer};
pub use respond::error as status;
pub use server::{Front, OtherProtocol, serve, serve_beside};
pub use usage::KEPT as METRIC_RESOLUTION;

use crate::{
    call::Call,
    core::Core,
    heartbeats::Heartbeats,
    layers::{Limits, Metrics},
    objects::Objects,
    request::Target,
};

/// Opens connections to the servers of nodes.
#[async_trait]
pub trait NodeDialer: Send + Sync + 'static {
    async fn dial(&self, node: &str, address: SocketAddr) -> io::Result<NodeStream>;
}

/// Knows the images of the cluster's own registry.
#[async_trait]
pub trait ImageKinds: Send + Sync + 'static {
    /// Whether the image is known, and is a component or module. Unknown images are not.
    async fn is_component(&self, image: &str) -> bool;
}

/// One line of `/readyz`.
#[derive(Clone)]
pub struct ReadyCheck {
    pub name: String,
    pub check: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// What the API server is made of.
pub struct Config {
    pub storage: Arc<dyn Storage>,
    /// Whether this member leads: only a leader may keep signs of life out of the log.
    pub leadership: watch::Receiver<Leadership>,
    pub registry: Arc<Registry>,
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    /// Signs and verifies ServiceAccount tokens; without it there are none.
    pub service_account_key: Option<Arc<ServiceAccountKey>>,
    /// The way to nodes, for logs and exec.
    pub nodes: Option<Arc<dyn NodeDialer>>,
    pub images: Option<Arc<dyn ImageKinds>>,
    pub ready: Vec<ReadyCheck>,
    /// Whether this member is part of a quorum. Without one nobody is answered from here; `None`: always.
    pub quorum: Option<watch::Receiver<bool>>,
    /// How long what nodes say of their use is good for.
    pub metric_resolution: Duration,
    /// Where the API server registers its figures; `/metrics` shows all that is registered there.
    pub metrics: Arc<Mutex<MetricsRegistry>>,
}

/// The API server. Cloning shares it.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
}

impl ApiServer {
    pub fn new(config: Config) -> ApiServer {
        let core = Core {
            objects: Objects::new(config.storage, Heartbeats::new(config.leadership)),
            kinds: kinds::Kinds::new(config.registry),
            settings: config.settings,
            grants: authz::Follower::default(),
            turns: admission::Turns::default(),
            clock: config.clock,
            entropy: config.entropy,
            service_account_key: config.service_account_key,
            nodes: config.nodes,
            images: config.images,
            ready: config.ready,
            quorum: config.quorum,
            metrics: Metrics::new(config.metrics),
            limits: Limits::default(),
            usage: usage::Nodes::new(config.metric_resolution),
            tasks: TaskTracker::new(),
        };
        ApiServer { core: Arc::new(core) }
    }

    /// The API behind all layers. A request that carries an [`tandem_api::Identity`] extension is authenticated already.
    pub fn router(&self) -> Router {
        self.layers(Router::new())
    }

    /// The API together with other routes (`/v2/`), all behind the layers: audit, authentication, authorization, limits.
    /// Handlers of such routes find the caller's `Identity` in the request's extensions.
    pub fn layers(&self, others: Router) -> Router {
        let api = Router::new()
            .route("/.well-known/openid-configuration", get(openid_configuration))
            .route("/openid/v1/jwks", get(jwks))
            .fallback(handle)
            .with_state(self.core.clone());
        layers::wrap(&self.core, others.merge(api))
    }

    /// Creates what every cluster has: its namespaces, the RuntimeClass `wasm`, the `kubernetes` Service.
    pub async fn bootstrap(&self) -> Result<(), ApiError> {
        bootstrap::ensure(&self.core).await
    }
}

async fn handle(State(core): State<Arc<Core>>, request: Request) -> Response {
    let answered = match Call::new(request) {
        Ok(call) => dispatch(&core, &call).await.map(|response| respond::warned(&call, response)),
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| respond::error(&error))
}

async fn dispatch(core: &Arc<Core>, call: &Call) -> Result<Response, ApiError> {
    let path = match &call.info.target {
        Target::Resource(path) => path,
        Target::Path(path) => return nonresource(core, call, path).await,
    };
    if usage::requests::is_built_in(path) {
        return usage::requests::serve(core, call, path).await;
    }
    let def = row(core, path).await?;
    verbs::check_place(&def, path, call.info.verb)?;
    if path.subresource.is_some() {
        return subresources::serve(core, call, &def).await;
    }
    if subresources::is_review(&def) {
        return subresources::review(core, call, &def).await;
    }
    if usage::is_usage(&def) {
        return usage::serve(core, call, &def).await;
    }
    if def.group.is_empty() && def.plural == "bindings" {
        return subresources::bind(core, call, &def).await;
    }
    verbs::serve(core, call, def).await
}

/// The row of a path.
async fn row(core: &Core, path: &request::ResourcePath) -> Result<Arc<tandem_registry::ResourceDef>, ApiError> {
    let find = || core.registry().by_path(&path.group, &path.version, &path.resource);
    core.kinds.follow(&core.objects).await?;
    // A kind that is defined at run time has a group with a dot. Another member may have made it a moment ago.
    if find().is_none() && path.group.contains('.') {
        core.kinds.refresh(&core.objects).await?;
    }
    find().ok_or_else(request::not_found)
}

async fn nonresource(core: &Core, call: &Call, path: &str) -> Result<Response, ApiError> {
    if let Some(answer) = health::serve(core, call, path).await {
        return answer;
    }
    core.kinds.follow(&core.objects).await?;
    match discovery::serve(core, call, path) {
        Some(answer) if matches!(call.info.verb, request::Verb::Get | request::Verb::Head) => answer,
        Some(_) => Err(request::method_not_allowed()),
        None => Err(request::not_found()),
    }
}

async fn openid_configuration(State(core): State<Arc<Core>>) -> Response {
    let issuer = core.settings.token_issuer.as_str();
    let document = json!({
        "issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    });
    respond::json_bytes(StatusCode::OK, document.to_string())
}

async fn jwks(State(core): State<Arc<Core>>) -> Response {
    let Some(key) = &core.service_account_key else { return respond::error(&request::not_found()) };
    let keys = json!({ "keys": [key.public()] });
    let mut response = respond::json_bytes(StatusCode::OK, keys.to_string()).into_response();
    let kind = http::HeaderValue::from_static("application/jwk-set+json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests;
