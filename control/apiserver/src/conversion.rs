//! Objects of kinds that are defined at run time, from one version to another: by the webhook that their definition
//! names, or by their version's name alone.
//!
//! What is stored is converted when it is read ([`Objects::in_version`]) and before it is written ([`Objects::encode`]),
//! so that nothing else need know in which version an object is kept.
//!
//! [`Objects::in_version`]: crate::objects::Objects::in_version
//! [`Objects::encode`]: crate::objects::Objects::encode

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use tandem_api::{ApiError, Object, Reason};
use tandem_registry::{ResourceDef, custom::ConversionWebhook, validate::labels};

use crate::{
    core::Core,
    webhook::{ClientConfig, Webhooks},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Objects are sent together up to this many bytes.
const BATCH_MAX_BYTES: usize = 2 * 1024 * 1024;

/// Asks webhooks to convert.
pub(crate) struct Converter(pub(crate) Arc<Webhooks>);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Review {
    kind: String,
    api_version: String,
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    converted_objects: Vec<Value>,
    result: Outcome,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Outcome {
    status: String,
    message: String,
}

impl Converter {
    /// The objects in another version; those that are in it already stay as they are.
    ///
    /// Boxed, since the way to a webhook leads through objects that are read.
    pub(crate) fn convert<'a>(
        &'a self,
        webhook: &'a ConversionWebhook,
        to: &'a str,
        objects: Vec<Object>,
    ) -> BoxFuture<'a, Result<Vec<Object>, ApiError>> {
        Box::pin(self.convert_all(webhook, to, objects))
    }

    async fn convert_all(
        &self,
        webhook: &ConversionWebhook,
        to: &str,
        mut objects: Vec<Object>,
    ) -> Result<Vec<Object>, ApiError> {
        let (mut batch, mut bytes) = (Batch::default(), 0);
        let mut batches = Vec::new();
        for (at, object) in objects.iter().enumerate().filter(|(_, object)| object.api_version() != to) {
            let text = object.to_vec();
            if bytes > 0 && bytes + text.len() > BATCH_MAX_BYTES {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += text.len();
            batch.places.push(at);
            batch.texts.push(text);
        }
        batches.push(batch);
        for Batch { places, texts } in batches.into_iter().filter(|batch| !batch.places.is_empty()) {
            let first = &objects[places[0]];
            let failed = {
                let of = format!("{}, Kind={}", first.api_version(), first.kind());
                move |why: String| {
                    ApiError::new(Reason::InternalError, format!("conversion webhook for {of} failed: {why}"))
                }
            };
            let answered = self.ask(webhook, to, &texts).await.map_err(&failed)?;
            if answered.len() != places.len() {
                let (found, wanted) = (answered.len(), places.len());
                return Err(failed(format!("returned {found} objects, expected {wanted}")));
            }
            for (number, (at, converted)) in places.into_iter().zip(answered).enumerate() {
                let invalid = |why| failed(format!("returned invalid converted object at index {number}: {why}"));
                objects[at] = accepted(&objects[at], converted, to).map_err(invalid)?;
            }
        }
        Ok(objects)
    }

    async fn ask(&self, webhook: &ConversionWebhook, to: &str, texts: &[Vec<u8>]) -> Result<Vec<Value>, String> {
        let config: ClientConfig =
            serde_json::from_value(Value::Object(webhook.client.clone())).map_err(|why| why.to_string())?;
        let api_version = format!("apiextensions.k8s.io/{}", webhook.review_version);
        let uid = self.0.entropy.uid();
        let head = format!(
            r#"{{"kind":"ConversionReview","apiVersion":"{api_version}","request":{{"uid":"{uid}","desiredAPIVersion":"{to}","objects":["#
        );
        let body = [head.as_bytes(), &texts.join(&b','), b"]}}"].concat();
        let answer = self.0.call(&config, PATIENCE, body).await.map_err(|why| why.to_string())?;
        let review: Review = serde_json::from_slice(&answer).map_err(|why| format!("the answer is no JSON: {why}"))?;
        if review.kind != "ConversionReview" || review.api_version != api_version {
            let (found, kind) = (review.api_version, review.kind);
            return Err(format!(
                "expected webhook response of {api_version}, Kind=ConversionReview, got {found}, Kind={kind}"
            ));
        }
        let response = review.response.ok_or("no response provided")?;
        if response.uid != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", response.uid));
        }
        match response.result {
            Outcome { status, .. } if status == "Success" => Ok(response.converted_objects),
            Outcome { message, .. } if !message.is_empty() => Err(message),
            Outcome { status, .. } => Err(format!("response.result.status was '{status}', not 'Success'")),
        }
    }
}

#[derive(Default)]
struct Batch {
    places: Vec<usize>,
    texts: Vec<Vec<u8>>,
}

/// What a webhook made of an object, with the metadata that it may not change.
fn accepted(before: &Object, converted: Value, to: &str) -> Result<Object, String> {
    let mut after = Object::from_value(converted).ok_or("it is not an object")?;
    if after.api_version() != to {
        return Err(format!("invalid groupVersion (expected {to}, received {})", after.api_version()));
    }
    let same = |what: &str, one: &str, other: &str| match one == other {
        true => Ok(()),
        false => Err(format!("must have the same {what}: {one} != {other}")),
    };
    same("kind", before.kind(), after.kind())?;
    if !after.at(&["metadata"]).is_some_and(Value::is_object) {
        return Err("it has no metadata".to_owned());
    }
    same("name", before.name(), after.name())?;
    same("namespace", before.namespace().unwrap_or_default(), after.namespace().unwrap_or_default())?;
    same("UID", before.uid(), after.uid())?;
    let mut metadata = before.at(&["metadata"]).cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        let given = after.at(&["metadata", key]).filter(|given| !given.is_null()).cloned();
        if let Some(given) = &given {
            check_words(key, given)?;
        }
        if let Some(metadata) = metadata.as_object_mut() {
            match given {
                Some(given) => {
                    metadata.insert(key.to_owned(), given);
                }
                None => {
                    metadata.shift_remove(key);
                }
            }
        }
    }
    after.set(&["metadata"], metadata);
    Ok(after)
}

fn check_words(key: &str, given: &Value) -> Result<(), String> {
    let words = given.as_object().ok_or_else(|| format!("metadata.{key} is not an object"))?;
    for (name, value) in words {
        let value = value.as_str().ok_or_else(|| format!("metadata.{key}: the value of {name:?} is not text"))?;
        let mut problems = labels::qualified_name(name);
        if key == "labels" {
            problems.extend(labels::label_value(value));
        }
        if let Some(why) = problems.first() {
            return Err(format!("metadata.{key}: Invalid value: {name:?}: {why}"));
        }
    }
    Ok(())
}

/// An object of one row as another row of the same objects has it.
pub(crate) async fn between(
    core: &Core,
    from: &ResourceDef,
    to: &ResourceDef,
    mut object: Object,
) -> Result<Object, ApiError> {
    if let Some(conversion) = from.conversion {
        (conversion.to_storage)(&mut object);
    }
    if let Some(conversion) = to.conversion {
        (conversion.from_storage)(&mut object);
    }
    let webhook = to.custom.as_ref().and_then(|custom| custom.conversion.as_ref());
    if let Some(webhook) = webhook {
        let converted = Converter(core.webhooks.clone()).convert(webhook, &to.api_version(), vec![object]).await?;
        object = converted.into_iter().next().unwrap_or_default();
    }
    object.set(&["apiVersion"], to.api_version());
    object.set(&["kind"], to.kind.as_str());
    Ok(object)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(after: Value, expected: Expect) {
        let before = json!({"apiVersion": "e.com/v1", "kind": "Tab", "hostPort": "a:1",
            "metadata": {"name": "one", "uid": "u", "generation": 3, "labels": {"a": "b"}}});
        let accepted = accepted(&Object::from_value(before).unwrap(), after, "e.com/v2");
        expected.assert_eq(&accepted.map_or_else(|why| why, |object| Value::Object(object.0).to_string()));
    }

    #[test]
    fn metadata_but_labels_and_annotations_stays() {
        let after =
            |metadata: Value| json!({"apiVersion": "e.com/v2", "kind": "Tab", "host": "a", "metadata": metadata});
        check(
            after(json!({"name": "one", "uid": "u", "generation": 9, "annotations": {"x": "y"}, "finalizers": ["z"]})),
            expect![[
                r#"{"apiVersion":"e.com/v2","kind":"Tab","host":"a","metadata":{"name":"one","uid":"u","generation":3,"annotations":{"x":"y"}}}"#
            ]],
        );
        check(after(json!({"name": "two", "uid": "u"})), expect!["must have the same name: one != two"]);
        check(after(json!({"name": "one"})), expect!["must have the same UID: u != "]);
        check(
            after(json!({"name": "one", "uid": "u", "labels": {"a": 1}})),
            expect![[r#"metadata.labels: the value of "a" is not text"#]],
        );
        check(json!([]), expect!["it is not an object"]);
        check(
            json!({"apiVersion": "e.com/v1"}),
            expect!["invalid groupVersion (expected e.com/v2, received e.com/v1)"],
        );
    }
}
