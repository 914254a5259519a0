//! What every request passes, outermost first: ids, panics, parsing, metrics, compression, audit, quorum, authentication,
//! impersonation, limits, authorization.

mod audit;
mod compression;
pub(crate) mod limits;
mod metrics;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use futures::FutureExt as _;
use tandem_api::{ApiError, Identity, Reason};

pub(crate) use audit::Audit;
pub(crate) use limits::Limits;
pub(crate) use metrics::Metrics;

use crate::{
    audit::{Trail, record},
    authn, authz,
    core::Core,
    request::RequestInfo,
    respond,
    server::Peer,
};

/// When to try again where there is no quorum: an election takes less.
const RETRY_SECONDS: u32 = 1;

/// The given routes behind all layers.
pub(crate) fn wrap(core: &Arc<Core>, router: Router) -> Router {
    router
        .layer(middleware::from_fn_with_state(core.clone(), authorize))
        .layer(middleware::from_fn_with_state(core.clone(), limits::hold))
        .layer(middleware::from_fn_with_state(core.clone(), authenticate))
        .layer(middleware::from_fn_with_state(core.clone(), need_quorum))
        .layer(middleware::from_fn_with_state(core.clone(), record))
        .layer(compression::layer())
        .layer(middleware::from_fn_with_state(core.clone(), metrics::measure))
        .layer(middleware::from_fn(parse))
        .layer(middleware::from_fn(catch_panics))
        .layer(middleware::from_fn_with_state(core.clone(), audit::identify))
}

async fn catch_panics(request: Request, next: Next) -> Response {
    let line = format!("{} {}", request.method(), request.uri().path());
    let answered = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answered.unwrap_or_else(|_| {
        tracing::error!(request = line, "a request handler panicked");
        respond::error(&ApiError::new(
            Reason::InternalError,
            "This request caused apiserver to panic. Look in the logs for details.",
        ))
    })
}

async fn parse(mut request: Request, next: Next) -> Response {
    match RequestInfo::parse(request.method(), request.uri()) {
        Ok(info) => {
            request.extensions_mut().insert(Arc::new(info));
            next.run(request).await
        }
        Err(error) => respond::error(&error),
    }
}

/// A member that is cut off from the others refuses at once: clients are to turn to another one instead of waiting, and
/// nobody is to see how things were before. What runs inside the process goes on with what it knows.
async fn need_quorum(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    let outside = request.extensions().get::<Peer>().is_some();
    if !outside || core.has_quorum() || is_about_this_member(request.uri().path()) {
        return next.run(request).await;
    }
    let message = "this member is not part of a quorum at the moment; another member may answer";
    respond::error(&ApiError::new(Reason::ServiceUnavailable, message).retry_after(RETRY_SECONDS))
}

/// Health, figures and version are a member's own; who the members are, each one knows.
fn is_about_this_member(path: &str) -> bool {
    let own = ["/livez", "/readyz", "/healthz", "/metrics", "/version", "/tandem/v1/status"];
    own.iter().any(|own| path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

async fn authenticate(State(core): State<Arc<Core>>, mut request: Request, next: Next) -> Response {
    let found = authn::authenticate(&core, authn::Credentials::of(&request)).await;
    let identity = match found {
        Ok(identity) => identity,
        Err(error) => return challenge(&request, &error),
    };
    let trail = request.extensions().get::<Arc<Trail>>().cloned();
    let user = trail.as_ref().map(|_| identity.clone());
    let identity = match authn::impersonate(&core, identity, request.headers()).await {
        Ok(identity) => identity,
        Err(error) => {
            if let (Some(trail), Some(user)) = (&trail, &user) {
                trail.identified(user, user);
            }
            return respond::error(&error);
        }
    };
    if let (Some(trail), Some(user)) = (&trail, &user) {
        trail.identified(user, &identity);
    }
    request.extensions_mut().insert(identity);
    next.run(request).await
}

/// Registry clients log in only when they are asked to (distribution-spec, "WWW-Authenticate").
fn challenge(request: &Request, error: &ApiError) -> Response {
    let mut response = respond::error(error);
    if is_registry(request) {
        let value = http::HeaderValue::from_static("Basic realm=\"tandem\"");
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, value);
    }
    response
}

pub(crate) fn is_registry<B>(request: &http::Request<B>) -> bool {
    let path = request.uri().path();
    path == "/v2" || path.starts_with("/v2/")
}

async fn authorize(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    let info = request.extensions().get::<Arc<RequestInfo>>().cloned();
    let identity = request.extensions().get::<Identity>().cloned();
    let (Some(info), Some(identity)) = (info, identity) else {
        return respond::error(&ApiError::internal("no user found for request"));
    };
    match authz::authorize(&core, &identity, &authz::Attributes::of(&info)).await {
        Ok(()) => next.run(request).await,
        Err(error) if is_anonymous(&identity) && is_registry(&request) => {
            tracing::debug!(%error, "an anonymous registry request is asked to log in");
            challenge(&request, &authn::unauthorized())
        }
        Err(error) => respond::error(&error),
    }
}

fn is_anonymous(identity: &Identity) -> bool {
    identity.in_group(tandem_api::groups::UNAUTHENTICATED)
}
