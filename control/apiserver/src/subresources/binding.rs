use axum::response::Response;
use serde_json::{Value, json};
use tandem_api::{ApiError, Cause, Object};
use tandem_registry::{ResourceDef, Subresource};

use super::{admit, body, created};
use crate::{
    call::Call,
    core::Core,
    decode::{self, Expected},
    deletion,
    options::WriteOptions,
    verbs,
    write::{self, Change, Ownership, Scope, Target},
};

pub(super) async fn create(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    sub: &Subresource,
) -> Result<Response, ApiError> {
    let (binding, options) = body(core, call, sub, "CreateOptions").await?;
    if !binding.name().is_empty() && binding.name() != target.name {
        let given = binding.name();
        return Err(ApiError::bad_request(format!("name in URL does not match name in Binding object: {given}")));
    }
    bind(core, call, target, binding, &options).await
}

pub(super) async fn create_alone(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let options = WriteOptions::of(call, "CreateOptions")?;
    let binding = decode::body(core, call, &Expected::object(def), options.validation).await?;
    let pods = core.row("", "v1", "pods")?;
    let namespace = call.path()?.namespace.as_deref();
    let target = Target { def: &pods, namespace, name: binding.name(), subresource: "binding" };
    bind(core, call, &target, binding.clone(), &options).await
}

async fn bind(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    mut binding: Object,
    options: &WriteOptions,
) -> Result<Response, ApiError> {
    admit(core, call, target, options, &mut binding).await?;
    let node = binding.str_at(&["target", "name"]).unwrap_or_default();
    let kind = binding.str_at(&["target", "kind"]).unwrap_or_default();
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        let (field, message) = if node.is_empty() {
            ("target.name", "Required value".to_owned())
        } else {
            ("target.kind", format!("Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""))
        };
        let cause = Cause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() };
        return Err(ApiError::invalid("", "Binding", binding.name(), vec![cause]));
    }
    let now = deletion::seconds(core.clock.now());
    let make = |live: &Object| assign(target, live, &binding, node, &now);
    let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
    write::update(core, &verbs::author(call, options), target, &change).await?;
    created(core, call)
}

/// The pod with its node. A pod is bound once, and not while it is being deleted.
fn assign(target: &Target<'_>, live: &Object, binding: &Object, node: &str, now: &str) -> Result<Object, ApiError> {
    let name = live.name();
    if live.deletion_timestamp().is_some() {
        return Err(target.conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let current = live.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if !current.is_empty() {
        return Err(target.conflict(format!("pod {name} is already assigned to node {current:?}")));
    }
    if !live.array_at(&["spec", "schedulingGates"]).is_empty() {
        return Err(target.conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut bound = live.clone();
    if !binding.uid().is_empty() {
        bound.set(&["metadata", "uid"], binding.uid());
    }
    bound.set(&["spec", "nodeName"], node);
    for (key, value) in binding.annotations() {
        bound.set(&["metadata", "annotations", key], value);
    }
    let mut conditions: Vec<Value> = live
        .array_at(&["status", "conditions"])
        .iter()
        .filter(|condition| condition.get("type").and_then(Value::as_str) != Some("PodScheduled"))
        .cloned()
        .collect();
    conditions
        .push(json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now }));
    bound.set(&["status", "conditions"], conditions);
    // It has its room: from now on the node alone says where it is.
    bound.remove(&["status", "nominatedNodeName"]);
    Ok(bound)
}
