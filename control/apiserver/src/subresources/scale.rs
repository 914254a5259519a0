use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::{ResourceDef, Subresource};

use super::live;
use crate::{
    admission::{self, Operation},
    call::Call,
    core::Core,
    decode::{self, Expected},
    negotiate::Offer,
    options::WriteOptions,
    request::Verb,
    respond, verbs,
    write::{self, Change, Ownership, Scope, Target},
};

/// How often a patch is made anew while other writers are faster.
const TRIES_MAX: usize = 16;

pub(super) async fn get(core: &Core, call: &Call, target: &Target<'_>) -> Result<Response, ApiError> {
    answer(core, call, &live(core, target).await?, &Places::of(target.def))
}

fn answer(core: &Core, call: &Call, object: &Object, places: &Places) -> Result<Response, ApiError> {
    let as_ = call.representation(Offer::COMPUTED)?;
    respond::value(core, call, StatusCode::OK, &Value::Object(scale(object, places).0), as_)
}

/// Where an object keeps what its scale shows.
struct Places {
    wanted: Vec<String>,
    there: Vec<String>,
    selector: Option<Vec<String>>,
    /// Whether the selector is text, and not an object.
    is_text: bool,
}

impl Places {
    fn of(def: &ResourceDef) -> Places {
        let path = |path: [&str; 2]| path.map(str::to_owned).to_vec();
        match def.custom.as_ref().and_then(|custom| custom.scale()) {
            Some(scale) => Places {
                wanted: scale.spec_replicas.clone(),
                there: scale.status_replicas.clone(),
                selector: scale.label_selector.clone(),
                is_text: true,
            },
            None => Places {
                wanted: path(["spec", "replicas"]),
                there: path(["status", "replicas"]),
                selector: Some(path(["spec", "selector"])),
                is_text: false,
            },
        }
    }
}

fn borrowed(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

/// What a request makes of a Scale.
type Wanted<'a> = Box<dyn Fn(&Object) -> Result<Object, ApiError> + Send + Sync + 'a>;

pub(super) async fn change(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    sub: &Subresource,
) -> Result<Response, ApiError> {
    let expected = Expected::kind(core, &sub.kind)?;
    let options = WriteOptions::of(call, "UpdateOptions")?;
    let author = verbs::author(call, &options);
    let places = Places::of(target.def);
    let patches = call.info.verb == Verb::Patch;
    let wanted: Wanted<'_> = if patches {
        Box::new(verbs::patch_subresource(core, call, &expected, options.validation).await?)
    } else {
        let sent = decode::body(core, call, &expected, options.validation).await?;
        Box::new(move |_| Ok(sent.clone()))
    };
    for _ in 0..TRIES_MAX {
        let old = scale(&live(core, target).await?, &places);
        let mut new = wanted(&old)?;
        admission::ask(core, &target.request(&author, Operation::Update), &mut new, Some(&old)).await?;
        let make = |live: &Object| with_replicas(live, &new, &places);
        let change = Change { scope: Scope::Object, ownership: Ownership::Update, change: &make };
        match write::update(core, &author, target, &change).await {
            // A patch is of the scale as it was: of another one it has to be made, and admitted, anew.
            Err(error) if patches && error.reason == Reason::Conflict => {}
            scaled => return answer(core, call, &scaled?, &places),
        }
    }
    Err(target.conflict("other writers were faster"))
}

/// What a Scale asks for, laid over the object.
fn with_replicas(live: &Object, scale: &Object, places: &Places) -> Result<Object, ApiError> {
    let replicas = scale.i64_at(&["spec", "replicas"]).unwrap_or_default();
    if replicas < 0 {
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".to_owned(),
        };
        return Err(ApiError::invalid("autoscaling", "Scale", live.name(), vec![cause]));
    }
    if !scale.name().is_empty() && scale.name() != live.name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            scale.name(),
            live.name()
        )));
    }
    let mut new = live.clone();
    if let Some(version) = scale.at(&["metadata", "resourceVersion"]) {
        new.set(&["metadata", "resourceVersion"], version.clone());
    }
    if !scale.uid().is_empty() {
        new.set(&["metadata", "uid"], scale.uid());
    }
    new.set(&borrowed(&places.wanted), replicas);
    Ok(new)
}

/// The object seen as something that has replicas.
fn scale(object: &Object, places: &Places) -> Object {
    let mut scale = Object::default();
    scale.set(&["kind"], "Scale");
    scale.set(&["apiVersion"], "autoscaling/v1");
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.at(&["metadata", key]) {
            scale.set(&["metadata", key], value.clone());
        }
    }
    scale.set(&["spec"], json!({}));
    if let Some(replicas) = object.i64_at(&borrowed(&places.wanted)).filter(|replicas| *replicas != 0) {
        scale.set(&["spec", "replicas"], replicas);
    }
    scale.set(&["status", "replicas"], object.i64_at(&borrowed(&places.there)).unwrap_or_default());
    let selector = match places.selector.as_ref().and_then(|path| object.at(&borrowed(path))) {
        Some(text) if places.is_text => text.as_str().unwrap_or_default().to_owned(),
        found => selector(found),
    };
    if !selector.is_empty() {
        scale.set(&["status", "selector"], selector);
    }
    scale
}

/// A selector in the form that `labelSelector=` takes.
fn selector(selector: Option<&Value>) -> String {
    let Some(Value::Object(map)) = selector else { return String::new() };
    let structured = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let labels = if structured { map.get("matchLabels").and_then(Value::as_object) } else { Some(map) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut terms: Vec<String> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    for expression in map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression.get("key").map(text).unwrap_or_default();
        let mut values: Vec<String> =
            expression.get("values").and_then(Value::as_array).into_iter().flatten().map(text).collect();
        values.sort();
        let values = values.join(",");
        terms.push(match expression.get("operator").and_then(Value::as_str) {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key,
        });
    }
    terms.sort();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_become_text() {
        let check = |value: Value, expected: &str| assert_eq!(selector(Some(&value)), expected);
        check(json!({"b": "2", "a": "1"}), "a=1,b=2");
        check(json!({"matchLabels": {"app": "web"}}), "app=web");
        check(
            json!({"matchExpressions": [{"key": "x", "operator": "In", "values": ["b", "a"]}, {"key": "y", "operator": "Exists"}, {"key": "z", "operator": "DoesNotExist"}]}),
            "!z,x in (a,b),y",
        );
    }
}
