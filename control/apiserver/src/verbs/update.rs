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
    write::{self, Change, Ownership, Scope},
};

pub(crate) async fn update(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let options = WriteOptions::of(call, "UpdateOptions")?;
    call.representation(crate::negotiate::Offer::of(def))?;
    let target = verbs::target(def, call.path()?)?;
    let object = decode::body(core, call, &Expected::object(def), options.validation).await?;
    if object.name().is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        )));
    }
    let scope = if target.subresource == "status" { Scope::Status } else { Scope::Object };
    let change = Change { scope, ownership: Ownership::Update, change: &|_| Ok(object.clone()) };
    let updated = write::update(core, &verbs::author(call, &options), &target, &change).await?;
    respond::object(core, call, def, StatusCode::OK, updated)
}
