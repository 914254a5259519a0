//! What lies below objects, and what is only ever asked: one file each.

mod approval;
mod binding;
mod connect;
mod eviction;
mod finalize;
mod pod_part;
mod proxy;
mod reviews;
mod scale;
mod token;

pub(crate) use connect::{DIAL_MAX, dial, forward, headers_for_backend, is_upgrade};
pub(crate) use reviews::{is_review, user_info};

use std::sync::Arc;

use axum::response::Response;
use tandem_api::{ApiError, Object};
use tandem_registry::{ResourceDef, Subresource};
use tandem_store::Consistency;

use crate::{
    admission::{self, Operation},
    call::Call,
    core::Core,
    decode::{self, Expected},
    options::WriteOptions,
    request::{self, Verb},
    verbs,
    write::Target,
};

/// A request for a subresource of the row.
pub(crate) async fn serve(core: &Arc<Core>, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let path = call.path()?;
    let name = path.subresource.as_deref().unwrap_or_default();
    let sub = def.subresource(name).ok_or_else(request::not_found)?;
    let verb = call.info.verb;
    let passes = name == "proxy" && matches!(verb, Verb::Head | Verb::Options);
    if !passes && !sub.verbs.iter().any(|mine| mine == verb.as_str()) {
        return Err(request::method_not_allowed());
    }
    let target = verbs::target(def, path)?;
    match (name, verb) {
        ("status" | "approval" | "ephemeralcontainers" | "resize", Verb::Get) => verbs::get(core, call, def).await,
        ("status", Verb::Update) => verbs::update(core, call, def).await,
        ("status", Verb::Patch) => verbs::patch(core, call, def).await,
        ("approval", Verb::Update | Verb::Patch) => approval::change(core, call, &target).await,
        ("ephemeralcontainers", Verb::Update | Verb::Patch) => {
            pod_part::change(core, call, &target, pod_part::ephemeral_containers).await
        }
        ("resize", Verb::Update | Verb::Patch) => pod_part::change(core, call, &target, pod_part::resources).await,
        ("scale", Verb::Get) => scale::get(core, call, &target).await,
        ("scale", Verb::Update | Verb::Patch) => scale::change(core, call, &target, sub).await,
        ("binding", Verb::Create) => binding::create(core, call, &target, sub).await,
        ("eviction", Verb::Create) => eviction::create(core, call, &target, sub).await,
        ("finalize", Verb::Update) => finalize::update(core, call, &target).await,
        ("token", Verb::Create) => token::create(core, call, &target, sub).await,
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => connect::connect(core, call, &target, name).await,
        // Known to Kubernetes, not served here: clients take 404 for "this cluster does not have it".
        _ => Err(request::not_found()),
    }
}

/// A request for a resource that stores nothing.
pub(crate) async fn review(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    reviews::create(core, call, def).await
}

/// `POST bindings`: the old door to `pods/binding`.
pub(crate) async fn bind(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    binding::create_alone(core, call, def).await
}

/// What is sent to create something below an object, admitted.
async fn admit(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    options: &WriteOptions,
    object: &mut Object,
) -> Result<(), ApiError> {
    admission::ask(core, &target.request(&verbs::author(call, options), Operation::Create), object, None).await
}

/// The body of a subresource of another kind, and the options of its write.
async fn body(core: &Core, call: &Call, sub: &Subresource, options: &str) -> Result<(Object, WriteOptions), ApiError> {
    let options = WriteOptions::of(call, options)?;
    let expected = Expected::kind(core, &sub.kind)?;
    let object = decode::body(core, call, &expected, options.validation).await?;
    Ok((object, options))
}

async fn live(core: &Core, target: &Target<'_>) -> Result<Object, ApiError> {
    let found = core.objects.get(target.def, target.namespace, target.name, Consistency::Linearizable).await?;
    found.ok_or_else(|| target.not_found())
}

/// The Success that bindings and evictions are answered with.
fn created(core: &Core, call: &Call) -> Result<Response, ApiError> {
    let status =
        serde_json::json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    let as_ = call.representation(crate::negotiate::Offer::COMPUTED).unwrap_or_default();
    crate::respond::value(core, call, http::StatusCode::CREATED, &status, as_)
}
