use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use tandem_api::{ApiError, Reason};
use tandem_registry::ResourceDef;

use crate::{
    call::Call,
    core::Core,
    negotiate::Offer,
    options::Selection,
    respond, verbs,
    verbs::list,
    write::{self, Deleted, Target},
};

/// Deletes what the selectors mean, one by one, and answers with what it found.
pub(super) async fn delete(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let path = call.path()?;
    let selection = Selection::of(&call.info.query, def, None)?;
    let (deletion, options) = verbs::delete_options(core, call).await?;
    let author = verbs::author(call, &options);
    let found = list::find(core, &call.info.query, def, path.namespace.as_deref(), &selection).await?;
    let mut items = Vec::new();
    for stored in &found.items {
        let object = core.objects.read(def, stored)?;
        let target = Target { def, namespace: object.namespace(), name: object.name(), subresource: "" };
        match write::delete(core, &author, &target, &deletion).await {
            Ok(Deleted::Gone(object) | Deleted::Marked(object)) => items.push(Value::Object(object.0)),
            // Somebody else was faster.
            Err(error) if error.reason == Reason::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({
        "kind": def.list_kind, "apiVersion": def.api_version(),
        "metadata": { "resourceVersion": found.revision.to_string() }, "items": items,
    });
    let as_ = call.representation(Offer::of(def).whole()).unwrap_or_default();
    respond::value(core, call, StatusCode::OK, &list, as_)
}
