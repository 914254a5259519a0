use axum::response::Response;
use http::{StatusCode, header};
use serde_json::Value;
use tandem_api::{ApiError, Object};
use tandem_registry::{KindName, ResourceDef};

use crate::{
    call::Call,
    core::Core,
    decode::{self, Expected},
    deletion::Propagation,
    negotiate::Offer,
    options::{self, Validation, WriteOptions},
    respond, verbs,
    write::{self, Deleted, Deletion, Preconditions},
};

pub(super) async fn delete(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let target = verbs::target(def, call.path()?)?;
    let (deletion, options) = delete_options(core, call).await?;
    let deleted = write::delete(core, &verbs::author(call, &options), &target, &deletion).await?;
    answer(core, call, def, deleted)
}

pub(crate) fn answer(core: &Core, call: &Call, def: &ResourceDef, deleted: Deleted) -> Result<Response, ApiError> {
    match deleted {
        Deleted::Gone(object) => {
            let as_ = call.representation(Offer::COMPUTED).unwrap_or_default();
            respond::value(core, call, StatusCode::OK, &respond::success(def, object.name(), object.uid()), as_)
        }
        Deleted::Marked(object) => respond::object(core, call, def, StatusCode::OK, object),
    }
}

/// DeleteOptions from the body, where there is one, and from the query, which older clients use.
pub(crate) async fn delete_options(core: &Core, call: &Call) -> Result<(Deletion, WriteOptions), ApiError> {
    let mut options = WriteOptions::of(call, "DeleteOptions")?;
    let kind = KindName { group: String::new(), version: "v1".to_owned(), kind: "DeleteOptions".to_owned() };
    let body = if has_body(call) {
        decode::body(core, call, &Expected::kind(core, &kind)?, Validation::Ignore).await?
    } else {
        Object::default()
    };
    if let Some(first) = body.array_at(&["dryRun"]).first() {
        options.dry_run |= options::dry_run(first.as_str(), "DeleteOptions")?;
    }
    let query = &call.info.query;
    let grace_seconds = match body.i64_at(&["gracePeriodSeconds"]) {
        Some(seconds) => Some(seconds),
        None => query.number("gracePeriodSeconds")?,
    };
    let policy = body.str_at(&["propagationPolicy"]).or_else(|| query.get("propagationPolicy"));
    let propagation = match policy {
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "propagationPolicy: Invalid value: {other:?}: must be one of Foreground, Background, Orphan"
            )));
        }
        None => orphan(&body, query.get("orphanDependents")),
    };
    let text = |key: &str| body.str_at(&["preconditions", key]).map(str::to_owned);
    let preconditions = Preconditions { uid: text("uid"), resource_version: text("resourceVersion") };
    Ok((Deletion { grace_seconds, propagation, preconditions }, options))
}

/// The old way to say which propagation is meant.
fn orphan(body: &Object, query: Option<&str>) -> Option<Propagation> {
    let from_query = query.and_then(|text| text.parse::<bool>().ok());
    let orphan = body.at(&["orphanDependents"]).and_then(Value::as_bool).or(from_query)?;
    Some(if orphan { Propagation::Orphan } else { Propagation::Background })
}

fn has_body(call: &Call) -> bool {
    let length = call.header(header::CONTENT_LENGTH);
    let chunked = call.headers().contains_key(header::TRANSFER_ENCODING);
    // HTTP/2 needs neither header: an empty body then reads as no options at all.
    length.map_or(chunked || !call.body_is_empty(), |length| length != "0")
}
