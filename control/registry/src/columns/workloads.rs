//! Cells of what runs pods: deployments, sets, jobs.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{
    age,
    age::{human_duration, since},
    part,
    text::{NONE, containers, flag, labels, or, selector},
};
use crate::json::{Fields, FieldsExt};

fn count(fields: &Fields, key: &str) -> i64 {
    fields.int(key).unwrap_or_default()
}

/// The wide columns at the end: containers, images, selector.
fn with_template(mut cells: Vec<Value>, spec: &Fields) -> Vec<Value> {
    let (names, images) = containers(spec.child("template"));
    cells.extend([names.into(), images.into(), selector(spec, "selector").into()]);
    cells
}

pub(crate) fn deployment(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let cells = vec![
        object.name().into(),
        format!("{}/{}", count(&status, "readyReplicas"), count(&spec, "replicas")).into(),
        count(&status, "updatedReplicas").into(),
        count(&status, "availableReplicas").into(),
        age(object, now).into(),
    ];
    with_template(cells, &spec)
}

/// ReplicaSets and ReplicationControllers, whose selector is a plain map.
pub(crate) fn replica_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let (names, images) = containers(spec.child("template"));
    let is_set = object.kind() == "ReplicaSet";
    let selector = if is_set { selector(&spec, "selector") } else { labels(&spec, "selector") };
    vec![
        object.name().into(),
        count(&spec, "replicas").into(),
        count(&status, "replicas").into(),
        count(&status, "readyReplicas").into(),
        age(object, now).into(),
        names.into(),
        images.into(),
        selector.into(),
    ]
}

pub(crate) fn stateful_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let (names, images) = containers(spec.child("template"));
    vec![
        object.name().into(),
        format!("{}/{}", count(&status, "readyReplicas"), count(&spec, "replicas")).into(),
        age(object, now).into(),
        names.into(),
        images.into(),
    ]
}

pub(crate) fn daemon_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let pod = spec.child("template").and_then(|template| template.child("spec"));
    let cells = vec![
        object.name().into(),
        count(&status, "desiredNumberScheduled").into(),
        count(&status, "currentNumberScheduled").into(),
        count(&status, "numberReady").into(),
        count(&status, "updatedNumberScheduled").into(),
        count(&status, "numberAvailable").into(),
        pod.map_or_else(|| NONE.to_owned(), |pod| labels(pod, "nodeSelector")).into(),
        age(object, now).into(),
    ];
    with_template(cells, &spec)
}

pub(crate) fn job(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let succeeded = count(&status, "succeeded");
    let completions = match (spec.int("completions"), spec.int("parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let second = |key: &str| status.text(key).parse::<Timestamp>().ok().map(Timestamp::as_second);
    let duration = second("startTime")
        .map(|start| human_duration(second("completionTime").unwrap_or(now.as_second()) - start))
        .unwrap_or_default();
    let cells = vec![
        object.name().into(),
        job_status(object, &status).into(),
        completions.into(),
        duration.into(),
        age(object, now).into(),
    ];
    with_template(cells, &spec)
}

fn job_status(object: &Object, status: &Fields) -> &'static str {
    let has = |kind: &str| {
        status.each("conditions").any(|condition| condition.text("type") == kind && condition.text("status") == "True")
    };
    let first = |kinds: &[&'static str]| kinds.iter().copied().find(|kind| has(kind));
    let ended = first(&["Complete", "Failed"]);
    let dying = object.deletion_timestamp().map(|_| "Terminating");
    ended.or(dying).or_else(|| first(&["Suspended", "FailureTarget", "SuccessCriteriaMet"])).unwrap_or("Running")
}

pub(crate) fn cron_job(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let last = Some(status.text("lastScheduleTime")).filter(|last| !last.is_empty());
    let cells = vec![
        object.name().into(),
        spec.text("schedule").into(),
        or(spec.text("timeZone"), NONE).into(),
        flag(&spec, "suspend").into(),
        status.list("active").len().into(),
        last.map_or_else(|| NONE.to_owned(), |last| since(Some(last), now)).into(),
        age(object, now).into(),
    ];
    let none = Fields::new();
    let job = spec.child("jobTemplate").and_then(|template| template.child("spec")).unwrap_or(&none);
    with_template(cells, job)
}

pub(crate) fn controller_revision(object: &Object, now: Timestamp) -> Vec<Value> {
    let metadata = part(object, "metadata");
    let owner = metadata.each("ownerReferences").find(|owner| owner.flag("controller")).map(|owner| {
        let group = owner.text("apiVersion").split_once('/').map(|(group, _)| format!(".{group}"));
        format!("{}{}/{}", owner.text("kind").to_lowercase(), group.unwrap_or_default(), owner.text("name"))
    });
    vec![
        object.name().into(),
        owner.unwrap_or_else(|| NONE.to_owned()).into(),
        object.i64_at(&["revision"]).unwrap_or_default().into(),
        age(object, now).into(),
    ]
}

pub(crate) fn pod_template(object: &Object, _now: Timestamp) -> Vec<Value> {
    let template = object.0.child("template");
    let (names, images) = containers(template);
    let pod_labels =
        template.and_then(|template| template.child("metadata")).map(|metadata| labels(metadata, "labels"));
    vec![object.name().into(), names.into(), images.into(), pod_labels.unwrap_or_else(|| NONE.to_owned()).into()]
}
