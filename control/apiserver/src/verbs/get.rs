use axum::response::Response;
use http::StatusCode;
use tandem_api::ApiError;
use tandem_registry::ResourceDef;
use tandem_store::Consistency;

use crate::{
    call::Call,
    core::Core,
    negotiate::{Format, Offer, Representation, Shape},
    objects,
    options::Freshness,
    respond, verbs,
};

pub(crate) async fn get(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let target = verbs::target(def, call.path()?)?;
    let at = match Freshness::of(&call.info.query)?.revision {
        None => Consistency::Linearizable,
        Some(revision) if revision.0 == 0 => Consistency::Any,
        Some(revision) => Consistency::AtLeast(revision),
    };
    let as_ = call.representation(Offer::of(def))?;
    let stored =
        core.objects.stored(def, target.namespace, target.name, at).await?.ok_or_else(|| target.not_found())?;
    if as_ == (Representation { format: Format::Json, shape: Shape::Whole }) {
        return Ok(respond::json_bytes(StatusCode::OK, objects::json(def, &stored.value, stored.revision)?));
    }
    respond::object(core, call, def, StatusCode::OK, core.objects.read(def, &stored)?)
}
