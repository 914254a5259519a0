use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{
    age, part,
    text::{UNSET, or},
};
use crate::json::{Fields, FieldsExt};

pub(crate) fn webhooks(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.0.list("webhooks").len().into(), age(object, now).into()]
}

fn policy(object: &Object, rules: &str, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let kind = spec.child("paramKind").map(|kind| format!("{}/{}", kind.text("apiVersion"), kind.text("kind")));
    vec![
        object.name().into(),
        spec.list(rules).len().into(),
        kind.unwrap_or_else(|| UNSET.to_owned()).into(),
        age(object, now).into(),
    ]
}

pub(crate) fn validating_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    policy(object, "validations", now)
}

pub(crate) fn mutating_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    policy(object, "mutations", now)
}

pub(crate) fn policy_binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let reference = spec.child("paramRef").map(|reference: &Fields| match reference.text("namespace") {
        "" => or(reference.text("name"), "*"),
        namespace => format!("{namespace}/{}", or(reference.text("name"), "*")),
    });
    vec![
        object.name().into(),
        spec.text("policyName").into(),
        reference.unwrap_or_else(|| UNSET.to_owned()).into(),
        age(object, now).into(),
    ]
}

pub(crate) fn api_service(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let service =
        spec.child("service").map(|service| format!("{}/{}", service.text("namespace"), service.text("name")));
    let available = status.each("conditions").find(|condition| condition.text("type") == "Available");
    let available = match available {
        Some(condition) if condition.text("status") == "True" => "True".to_owned(),
        Some(condition) => format!("{} ({})", condition.text("status"), condition.text("reason")),
        None => "Unknown".to_owned(),
    };
    vec![
        object.name().into(),
        service.unwrap_or_else(|| "Local".to_owned()).into(),
        available.into(),
        age(object, now).into(),
    ]
}
