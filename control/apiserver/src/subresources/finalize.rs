use axum::response::Response;
use http::StatusCode;
use tandem_api::{ApiError, Object};

use crate::{
    call::Call,
    core::Core,
    decode::{self, Expected},
    options::WriteOptions,
    respond, verbs,
    write::{self, Change, Ownership, Scope, Target},
};

/// Sets `spec.finalizers`, and nothing else. The object goes when the last one has gone from an object that is marked.
pub(super) async fn update(core: &Core, call: &Call, target: &Target<'_>) -> Result<Response, ApiError> {
    let options = WriteOptions::of(call, "UpdateOptions")?;
    let sent = decode::body(core, call, &Expected::object(target.def), options.validation).await?;
    let make = |live: &Object| {
        let mut new = live.clone();
        for kept in ["resourceVersion", "uid"] {
            if let Some(value) = sent.at(&["metadata", kept]) {
                new.set(&["metadata", kept], value.clone());
            }
        }
        match sent.array_at(&["spec", "finalizers"]) {
            [] => {
                new.remove(&["spec", "finalizers"]);
            }
            finalizers => new.set(&["spec", "finalizers"], finalizers.to_vec()),
        }
        Ok(new)
    };
    let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
    let updated = write::update(core, &verbs::author(call, &options), target, &change).await?;
    respond::object(core, call, target.def, StatusCode::OK, updated)
}
