use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use tandem_api::{ApiError, Cause, Object};
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

/// What a subresource takes over from the pod that was sent; what is wrong with that.
pub(super) type Part = fn(live: &Object, sent: &Object) -> Result<Object, Vec<Cause>>;
/// What is wrong with a changed pod.
type Check = fn(new: &Object, live: &Object) -> Vec<Cause>;

/// Changes one part of a pod: nothing else of the body counts.
pub(super) async fn change(core: &Core, call: &Call, target: &Target<'_>, part: Part) -> Result<Response, ApiError> {
    let expected = Expected::object(target.def);
    let patches = call.info.verb == Verb::Patch;
    let options = WriteOptions::of(call, if patches { "PatchOptions" } else { "UpdateOptions" })?;
    let author = verbs::author(call, &options);
    let check: Check =
        if target.subresource == "resize" { validate::pod::resize } else { validate::pod::ephemeral_containers };
    let changed = if patches {
        let patch = verbs::patch_subresource(core, call, &expected, options.validation).await?;
        let make = |live: &Object| with(target, part, check, live, &patch(live)?);
        let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
        write::update(core, &author, target, &change).await?
    } else {
        let sent = decode::body(core, call, &expected, options.validation).await?;
        let make = |live: &Object| with(target, part, check, live, &sent);
        let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
        write::update(core, &author, target, &change).await?
    };
    respond::object(core, call, target.def, StatusCode::OK, changed)
}

/// The pod with the part that was sent, if it may be had.
fn with(target: &Target<'_>, part: Part, check: Check, live: &Object, sent: &Object) -> Result<Object, ApiError> {
    let invalid = |causes| ApiError::invalid(&target.def.group, &target.def.kind, target.name, causes);
    let mut new = part(live, sent).map_err(invalid)?;
    for kept in ["name", "namespace", "resourceVersion", "uid"] {
        if let Some(value) = sent.at(&["metadata", kept]) {
            new.set(&["metadata", kept], value.clone());
        }
    }
    target.def.default(&mut new);
    let causes = check(&new, live);
    if !causes.is_empty() {
        return Err(invalid(causes));
    }
    if new.at(&["spec"]) != live.at(&["spec"]) {
        new.set(&["metadata", "generation"], live.generation() + 1);
    }
    Ok(new)
}

pub(super) fn ephemeral_containers(live: &Object, sent: &Object) -> Result<Object, Vec<Cause>> {
    let mut new = live.clone();
    match sent.array_at(&["spec", "ephemeralContainers"]) {
        [] => {
            new.remove(&["spec", "ephemeralContainers"]);
        }
        containers => new.set(&["spec", "ephemeralContainers"], containers.to_vec()),
    }
    Ok(new)
}

/// The resources of the containers, and which of them need a restart.
pub(super) fn resources(live: &Object, sent: &Object) -> Result<Object, Vec<Cause>> {
    let name = |container: &Value| container.get("name").cloned();
    let mut new = live.clone();
    for list in ["containers", "initContainers"] {
        let given = sent.array_at(&["spec", list]);
        if !given.iter().map(name).eq(live.array_at(&["spec", list]).iter().map(name)) {
            return Err(vec![Cause {
                reason: "FieldValueForbidden".to_owned(),
                message: "Forbidden: containers may not be renamed or reordered on resize".to_owned(),
                field: format!("spec.{list}"),
            }]);
        }
        let Some(Value::Array(containers)) = new.at_mut(&["spec", list]) else { continue };
        for (container, given) in containers.iter_mut().filter_map(Value::as_object_mut).zip(given) {
            for key in ["resources", "resizePolicy"] {
                match given.get(key) {
                    Some(value) => container.insert(key.to_owned(), value.clone()),
                    None => container.shift_remove(key),
                };
            }
        }
    }
    Ok(new)
}
