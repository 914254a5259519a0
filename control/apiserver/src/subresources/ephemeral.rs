use axum::response::Response;
use http::StatusCode;
use tandem_api::{ApiError, Object};
use tandem_registry::validate;

use crate::{
    call::Call,
    core::Core,
    decode::{self, Expected},
    options::WriteOptions,
    request::Verb,
    respond, verbs,
    write::{self, Change, Ownership, Scope, Target},
};

/// Adds ephemeral containers to a pod: of the body only `spec.ephemeralContainers` counts.
pub(super) async fn change(core: &Core, call: &Call, target: &Target<'_>) -> Result<Response, ApiError> {
    let expected = Expected::object(target.def);
    let patches = call.info.verb == Verb::Patch;
    let options = WriteOptions::of(call, if patches { "PatchOptions" } else { "UpdateOptions" })?;
    let author = verbs::author(call, &options);
    let changed = if patches {
        let patch = verbs::patch_subresource(core, call, &expected, options.validation).await?;
        let make = |live: &Object| with(target, live, &patch(live)?);
        let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
        write::update(core, &author, target, &change).await?
    } else {
        let sent = decode::body(core, call, &expected, options.validation).await?;
        let make = |live: &Object| with(target, live, &sent);
        let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
        write::update(core, &author, target, &change).await?
    };
    respond::object(core, call, target.def, StatusCode::OK, changed)
}

/// The pod with the ephemeral containers that were sent, if they may be had.
fn with(target: &Target<'_>, live: &Object, sent: &Object) -> Result<Object, ApiError> {
    let mut new = live.clone();
    for kept in ["name", "namespace", "resourceVersion", "uid"] {
        if let Some(value) = sent.at(&["metadata", kept]) {
            new.set(&["metadata", kept], value.clone());
        }
    }
    match sent.array_at(&["spec", "ephemeralContainers"]) {
        [] => {
            new.remove(&["spec", "ephemeralContainers"]);
        }
        containers => new.set(&["spec", "ephemeralContainers"], containers.to_vec()),
    }
    target.def.default(&mut new);
    let causes = validate::pod::ephemeral_containers(&new, live);
    if !causes.is_empty() {
        return Err(ApiError::invalid(&target.def.group, &target.def.kind, target.name, causes));
    }
    if new.at(&["spec"]) != live.at(&["spec"]) {
        new.set(&["metadata", "generation"], live.generation() + 1);
    }
    Ok(new)
}
