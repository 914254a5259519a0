//! Cells of the small kinds of the core group, and of events.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{
    age,
    age::since,
    part,
    text::{NONE, UNKNOWN, or},
};
use crate::json::{Fields, FieldsExt};

fn size(object: &Object, key: &str) -> usize {
    object.0.child(key).map_or(0, Fields::len)
}

pub(crate) fn config_map(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), (size(object, "data") + size(object, "binaryData")).into(), age(object, now).into()]
}

pub(crate) fn secret(object: &Object, now: Timestamp) -> Vec<Value> {
    let kind = object.str_at(&["type"]).unwrap_or_default();
    vec![object.name().into(), kind.into(), size(object, "data").into(), age(object, now).into()]
}

pub(crate) fn namespace(object: &Object, now: Timestamp) -> Vec<Value> {
    let phase = object.str_at(&["status", "phase"]).unwrap_or_default();
    vec![object.name().into(), phase.into(), age(object, now).into()]
}

pub(crate) fn service_account(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.0.list("secrets").len().into(), age(object, now).into()]
}

pub(crate) fn node(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let ready = status.each("conditions").find(|condition| condition.text("type") == "Ready");
    let mut state = match ready.map(|condition| condition.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if spec.flag("unschedulable") {
        state.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = status.each("addresses").find(|address| address.text("type") == kind);
        found.map_or_else(|| NONE.to_owned(), |found| found.text("address").to_owned())
    };
    let none = Fields::new();
    let info = status.child("nodeInfo").unwrap_or(&none);
    vec![
        object.name().into(),
        state.into(),
        roles(object).into(),
        age(object, now).into(),
        info.text("kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        or(info.text("osImage"), UNKNOWN).into(),
        or(info.text("kernelVersion"), UNKNOWN).into(),
        or(info.text("containerRuntimeVersion"), UNKNOWN).into(),
    ]
}

/// Roles are labels: `node-role.kubernetes.io/ROLE` or `kubernetes.io/role: ROLE`.
fn roles(node: &Object) -> String {
    let mut roles: Vec<String> = node
        .labels()
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => Some(value),
            _ => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .map(str::to_owned)
        .collect();
    roles.sort();
    roles.dedup();
    super::text::join(&roles, NONE)
}

pub(crate) fn resource_quota(object: &Object, now: Timestamp) -> Vec<Value> {
    let status = part(object, "status");
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let none = Fields::new();
    let (hard, used) = (status.child("hard").unwrap_or(&none), status.child("used").unwrap_or(&none));
    let mut names: Vec<&String> = hard.keys().collect();
    names.sort();
    for name in names {
        let entry = format!("{name}: {}/{}", or(used.text(name), "0"), hard.text(name));
        if name.starts_with("limits") { limits.push(entry) } else { requests.push(entry) }
    }
    vec![object.name().into(), requests.join(", ").into(), limits.join(", ").into(), age(object, now).into()]
}

pub(crate) fn component_status(object: &Object, _now: Timestamp) -> Vec<Value> {
    let healthy = object.0.each("conditions").find(|condition| condition.text("type") == "Healthy");
    let state = match healthy.map(|condition| condition.text("status")) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    let text = |key: &str| healthy.map(|condition| condition.text(key)).unwrap_or_default();
    vec![object.name().into(), state.into(), text("message").into(), text("error").into()]
}

/// The two shapes of events differ in the names of some fields.
struct Names {
    about: &'static str,
    message: &'static str,
    first: &'static str,
    last: &'static str,
    count: &'static str,
    source: &'static str,
    reporter: &'static str,
}

pub(crate) fn event(object: &Object, now: Timestamp) -> Vec<Value> {
    let names = Names {
        about: "involvedObject",
        message: "message",
        first: "firstTimestamp",
        last: "lastTimestamp",
        count: "count",
        source: "source",
        reporter: "reportingComponent",
    };
    event_cells(object, now, &names)
}

pub(crate) fn events_event(object: &Object, now: Timestamp) -> Vec<Value> {
    let names = Names {
        about: "regarding",
        message: "note",
        first: "deprecatedFirstTimestamp",
        last: "deprecatedLastTimestamp",
        count: "deprecatedCount",
        source: "deprecatedSource",
        reporter: "reportingController",
    };
    event_cells(object, now, &names)
}

fn event_cells(object: &Object, now: Timestamp, names: &Names) -> Vec<Value> {
    let event = &object.0;
    let ago = |time: &str| since(Some(time).filter(|time| !time.is_empty()), now);
    let first_time = or(event.text(names.first), event.text("eventTime"));
    let series = event.child("series");
    let last_time = match series {
        Some(series) => series.text("lastObservedTime").to_owned(),
        None => or(event.text(names.last), &first_time),
    };
    let count = series.and_then(|series| series.int("count")).or_else(|| event.int(names.count));
    let none = Fields::new();
    let about = event.child(names.about).unwrap_or(&none);
    let kind = about.text("kind").to_lowercase();
    let target = if about.text("name").is_empty() { kind } else { format!("{kind}/{}", about.text("name")) };
    vec![
        ago(&last_time).into(),
        event.text("type").into(),
        event.text("reason").into(),
        target.into(),
        about.text("fieldPath").into(),
        source(event, names).into(),
        event.text(names.message).trim().into(),
        ago(&first_time).into(),
        count.filter(|count| *count > 0).unwrap_or(1).into(),
        object.name().into(),
    ]
}

fn source(event: &Fields, names: &Names) -> String {
    let none = Fields::new();
    let source = event.child(names.source).unwrap_or(&none);
    let component = or(source.text("component"), event.text(names.reporter));
    let host = or(source.text("host"), event.text("reportingInstance"));
    if host.is_empty() || host == component { component } else { format!("{component}, {host}") }
}
