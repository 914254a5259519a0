//! The Kubernetes API over HTTP: every object, every verb, generic over the registry's rows.
//!
//! ```text
//!  socket ─ server (TLS, limits) ─┐
//!                                 ├─ layers: audit, panics, metrics, authn, limits, authz ─┬─ discovery, health
//!  client in the process ─────────┘                                                        ├─ verbs ─────────┐
//!                                                                                          └─ subresources ──┤
//!       store <── objects (envelope) <── write: defaults, admission, validation, owners <────────────────────┘
//!                        └ conversion ─┐        └ admission/webhook ─> webhook ─> HTTPS
//!                                      └────────────────────────────────┘
//! ```
//!
//! Only this crate writes objects to the store. No file under `verbs` or `patch` names a kind: what is particular to one
//! stands in the registry's hooks, in `admission`, `subresources` or `deletion`. It never acts on its own: what should
//! follow from a change is a controller's part.

mod admission;
mod aggregation;
mod audit;
mod authn;
mod authz;
mod bootstrap;
mod call;
mod conversion;
mod core;
mod decode;
mod deletion;
mod dialer;
mod discovery;
pub mod envelope;
mod follow;
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
mod services;
mod subresources;
pub mod tls;
mod usage;
mod verbs;
mod webhook;
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
use tandem_pki::{Pki, ServiceAccountKey};
use tandem_registry::Registry;
use tandem_store::{Leadership, Storage};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

pub use audit::{AuditLog, LogOptions};
pub use dialer::{NodeIo, NodeStream, TlsDialer};
pub use respond::error as status;
pub use server::{Front, OtherProtocol, serve, serve_beside};
pub use services::{EndpointDialer, Outward};
pub use usage::KEPT as METRIC_RESOLUTION;

use crate::{
    aggregation::Aggregation,
    call::Call,
    conversion::Converter,
    core::Core,
    heartbeats::Heartbeats,
    layers::{Limits, Metrics},
    objects::Objects,
    request::Target,
    webhook::Webhooks,
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
    /// The way to pods and the endpoints of Services.
    pub endpoints: Arc<dyn EndpointDialer>,
    /// The authorities that other API servers are told of; without them no request is passed on to one.
    pub pki: Option<Arc<Pki>>,
    pub images: Option<Arc<dyn ImageKinds>>,
    /// Where requests are written down, if anywhere.
    pub audit: Option<AuditLog>,
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
        let (objects, tasks) = (Objects::new(config.storage, Heartbeats::new(config.leadership)), TaskTracker::new());
        let (registry, entropy) = (config.registry.clone(), config.entropy.clone());
        let webhooks = Arc::new(Webhooks::new(objects.clone(), registry, entropy, tasks.clone()));
        let core = Core {
            objects: objects.converted_by(Converter(webhooks.clone())),
            webhooks,
            hooks: admission::webhook::Follower::default(),
            kinds: kinds::Kinds::new(config.registry),
            settings: config.settings,
            grants: authz::Follower::default(),
            policies: admission::Policies::default(),
            turns: admission::Turns::default(),
            clock: config.clock.clone(),
            entropy: config.entropy,
            service_account_key: config.service_account_key,
            nodes: config.nodes,
            endpoints: config.endpoints,
            aggregation: Aggregation::new(config.pki.clone(), config.clock.clone()),
            pki: config.pki,
            images: config.images,
            audit: config.audit,
            ready: config.ready,
            quorum: config.quorum,
            metrics: Metrics::new(config.metrics),
            limits: Limits::default(),
            usage: usage::Nodes::new(config.metric_resolution),
            tasks,
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

    /// Why the server of an APIService is not to be counted on, found in bounded time.
    pub async fn probe(&self, api_service: &str) -> Result<(), String> {
        aggregation::probe(&self.core, api_service).await
    }

    /// Creates what every cluster has: its namespaces, the RuntimeClass `wasm`, the `kubernetes` Service.
    pub async fn bootstrap(&self) -> Result<(), ApiError> {
        bootstrap::ensure(&self.core).await
    }
}

async fn handle(State(core): State<Arc<Core>>, request: Request) -> Response {
    let call = match Call::new(request) {
        Ok(call) => call,
        Err(error) => return respond::error(&error),
    };
    let answered = dispatch(&core, &call).await.unwrap_or_else(|error| respond::error(&error));
    respond::warned(&call, answered)
}

async fn dispatch(core: &Arc<Core>, call: &Call) -> Result<Response, ApiError> {
    let path = match &call.info.target {
        Target::Resource(path) => path,
        Target::Path(path) => return nonresource(core, call, path).await,
    };
    if let Some(route) = core.aggregation.route(core, &path.group, &path.version).await? {
        return aggregation::serve(core, call, &route).await;
    }
    // An APIService of the user comes first.
    if usage::requests::is_built_in(path) {
        return usage::requests::serve(core, call, path).await;
    }
    let def = match row(core, path).await {
        Ok(def) => def,
        Err(error) => {
            // By now this member has applied all that another one answered.
            let route = core.aggregation.route(core, &path.group, &path.version).await?;
            return aggregation::serve(core, call, &*route.ok_or(error)?).await;
        }
    };
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

async fn nonresource(core: &Arc<Core>, call: &Call, path: &str) -> Result<Response, ApiError> {
    if let Some(answer) = health::serve(core, call, path).await {
        return answer;
    }
    core.kinds.follow(&core.objects).await?;
    if let Some(answer) = aggregation::discover(core, call, path).await {
        return answer;
    }
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
