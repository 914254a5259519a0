use axum::response::Response;
use http::StatusCode;
use tandem_api::{ApiError, Object};

use crate::{
    call::Call,
    core::Core,
    decode::{self, Expected},
    deletion,
    options::WriteOptions,
    request::Verb,
    respond, verbs,
    write::{self, Change, Ownership, Scope, Target},
};

/// Approves or denies: of the body `status.conditions` counts, and the labels and annotations.
pub(super) async fn change(core: &Core, call: &Call, target: &Target<'_>) -> Result<Response, ApiError> {
    let expected = Expected::object(target.def);
    let now = deletion::seconds(core.clock.now());
    let conditions = |live: &Object, sent: &Object| {
        let mut new = live.clone();
        if let Some(version) = sent.at(&["metadata", "resourceVersion"]) {
            new.set(&["metadata", "resourceVersion"], version.clone());
        }
        for field in ["labels", "annotations"] {
            match sent.at(&["metadata", field]) {
                Some(sent) => new.set(&["metadata", field], sent.clone()),
                None => drop(new.remove(&["metadata", field])),
            }
        }
        let mut conditions = sent.array_at(&["status", "conditions"]).to_vec();
        for condition in conditions.iter_mut().filter_map(serde_json::Value::as_object_mut) {
            for time in ["lastUpdateTime", "lastTransitionTime"] {
                if condition.get(time).is_none_or(serde_json::Value::is_null) {
                    condition.insert(time.to_owned(), now.as_str().into());
                }
            }
        }
        new.set(&["status", "conditions"], conditions);
        new
    };
    let options = WriteOptions::of(call, "UpdateOptions")?;
    let author = verbs::author(call, &options);
    let changed = if call.info.verb == Verb::Patch {
        let patch = verbs::patch_subresource(core, call, &expected, options.validation).await?;
        let make = |live: &Object| Ok(conditions(live, &patch(live)?));
        let change = Change { scope: Scope::Status, ownership: Ownership::Update, change: &make };
        write::update(core, &author, target, &change).await?
    } else {
        let sent = decode::body(core, call, &expected, options.validation).await?;
        let make = |live: &Object| Ok(conditions(live, &sent));
        let change = Change { scope: Scope::Status, ownership: Ownership::Update, change: &make };
        write::update(core, &author, target, &change).await?
    };
    respond::object(core, call, target.def, StatusCode::OK, changed)
}
