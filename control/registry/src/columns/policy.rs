//! Cells of autoscalers, budgets, classes, leases, certificates and devices.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{
    age,
    age::human_duration,
    part,
    text::{NONE, UNKNOWN, UNSET, or, scalar},
};
use crate::json::{Fields, FieldsExt};

/// How many metrics an autoscaler shows.
const SHOWN: usize = 2;

pub(crate) fn autoscaler(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let none = Fields::new();
    let target = spec.child("scaleTargetRef").unwrap_or(&none);
    vec![
        object.name().into(),
        format!("{}/{}", target.text("kind"), target.text("name")).into(),
        metrics(&spec, &status).into(),
        or(&scalar(spec.get("minReplicas")), UNSET).into(),
        spec.int("maxReplicas").unwrap_or_default().into(),
        status.int("currentReplicas").unwrap_or_default().into(),
        age(object, now).into(),
    ]
}

fn metrics(spec: &Fields, status: &Fields) -> String {
    // The older shape knows one metric.
    if let Some(percent) = spec.int("targetCPUUtilizationPercentage") {
        let current = status.int("currentCPUUtilizationPercentage").map(|percent| format!("{percent}%"));
        return format!("cpu: {}/{percent}%", current.unwrap_or_else(|| UNKNOWN.to_owned()));
    }
    let readings: Vec<&Fields> = status.each("currentMetrics").collect();
    let list: Vec<String> =
        spec.each("metrics").enumerate().map(|(at, wanted)| metric(wanted, readings.get(at).copied())).collect();
    match list.len() {
        0 => NONE.to_owned(),
        count if count > SHOWN => format!("{} + {} more...", list[..SHOWN].join(", "), count - SHOWN),
        _ => list.join(", "),
    }
}

fn metric(wanted: &Fields, reading: Option<&Fields>) -> String {
    let (key, named) = match wanted.text("type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".to_owned(),
    };
    let none = Fields::new();
    let source = wanted.child(key).unwrap_or(&none);
    let target = source.child("target").unwrap_or(&none);
    let current = reading.and_then(|reading| reading.child(key)).and_then(|reading| reading.child("current"));
    let show = |field: &str, unit: &str| {
        let current = scalar(current.and_then(|current| current.get(field)));
        let current = if current.is_empty() { UNKNOWN.to_owned() } else { format!("{current}{unit}") };
        format!("{current}/{}{unit}", scalar(target.get(field)))
    };
    let text = if target.contains_key("averageUtilization") {
        show("averageUtilization", "%")
    } else if target.contains_key("averageValue") {
        let average = if key == "pods" || named { "" } else { " (avg)" };
        format!("{}{average}", show("averageValue", ""))
    } else {
        show("value", "")
    };
    if named { format!("{}: {text}", source.text("name")) } else { text }
}

pub(crate) fn disruption_budget(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let bound = |key: &str| or(&scalar(spec.get(key)), "N/A");
    vec![
        object.name().into(),
        bound("minAvailable").into(),
        bound("maxUnavailable").into(),
        status.int("disruptionsAllowed").unwrap_or_default().into(),
        age(object, now).into(),
    ]
}

pub(crate) fn priority_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let fields = &object.0;
    vec![
        object.name().into(),
        fields.int("value").unwrap_or_default().into(),
        fields.flag("globalDefault").into(),
        age(object, now).into(),
        fields.text("preemptionPolicy").into(),
    ]
}

pub(crate) fn runtime_class(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.0.text("handler").into(), age(object, now).into()]
}

pub(crate) fn lease(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), part(object, "spec").text("holderIdentity").into(), age(object, now).into()]
}

pub(crate) fn signing_request(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let has = |kind: &str| status.each("conditions").any(|condition| condition.text("type") == kind);
    let mut condition = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !status.text("certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let duration = spec.int("expirationSeconds").map(human_duration);
    vec![
        object.name().into(),
        age(object, now).into(),
        or(spec.text("signerName"), NONE).into(),
        spec.text("username").into(),
        duration.unwrap_or_else(|| NONE.to_owned()).into(),
        condition.into(),
    ]
}

pub(crate) fn flow_schema(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let level = spec.child("priorityLevelConfiguration").map(|level| level.text("name")).unwrap_or_default();
    let method = spec.child("distinguisherMethod").map(|method| method.text("type")).unwrap_or_default();
    let dangling = status.each("conditions").find(|condition| condition.text("type") == "Dangling");
    vec![
        object.name().into(),
        or(level, NONE).into(),
        spec.int("matchingPrecedence").unwrap_or_default().into(),
        or(method, NONE).into(),
        age(object, now).into(),
        dangling.map_or("?", |condition| condition.text("status")).into(),
    ]
}

pub(crate) fn priority_level(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let none = Fields::new();
    let limits = spec.child("limited").or_else(|| spec.child("exempt")).unwrap_or(&none);
    let queuing = limits.child("limitResponse").and_then(|response| response.child("queuing")).unwrap_or(&none);
    let or_none = |fields: &Fields, key: &str| Value::from(or(&scalar(fields.get(key)), NONE));
    vec![
        object.name().into(),
        spec.text("type").into(),
        or_none(limits, "nominalConcurrencyShares"),
        or_none(queuing, "queues"),
        or_none(queuing, "handSize"),
        or_none(queuing, "queueLengthLimit"),
        age(object, now).into(),
    ]
}

pub(crate) fn resource_claim(object: &Object, now: Timestamp) -> Vec<Value> {
    let status = part(object, "status");
    let mut states = Vec::new();
    if object.deletion_timestamp().is_some() {
        states.push("deleted");
    }
    if status.contains_key("allocation") {
        states.push("allocated");
    } else if states.is_empty() {
        states.push("pending");
    }
    if !status.list("reservedFor").is_empty() {
        states.push("reserved");
    }
    vec![object.name().into(), states.join(",").into(), age(object, now).into()]
}

pub(crate) fn resource_slice(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let pool = spec.child("pool").map(|pool| pool.text("name")).unwrap_or_default();
    vec![
        object.name().into(),
        or(spec.text("nodeName"), UNSET).into(),
        spec.text("driver").into(),
        pool.into(),
        age(object, now).into(),
    ]
}
