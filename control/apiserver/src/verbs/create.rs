use axum::response::Response;
use http::StatusCode;
use tandem_api::ApiError;
use tandem_registry::ResourceDef;

use crate::{
    call::Call,
    core::Core,
    decode::{self, Expected},
    options::WriteOptions,
    respond, verbs,
    write::{self, Ownership, Target},
};

pub(super) async fn create(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let options = WriteOptions::of(call, "CreateOptions")?;
    call.representation(crate::negotiate::Offer::of(def))?;
    let object = decode::body(core, call, &Expected::object(def), options.validation).await?;
    let name = object.name().to_owned();
    let namespace = call.path()?.namespace.as_deref().filter(|_| def.is_namespaced());
    let target = Target { def, namespace, name: &name, subresource: "" };
    let created = write::create(core, &verbs::author(call, &options), &target, object, Ownership::Update).await?;
    respond::object(core, call, def, StatusCode::CREATED, created)
}
