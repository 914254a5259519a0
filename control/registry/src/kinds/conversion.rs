//! Two shapes of one stored kind: `events.k8s.io/v1` Events as core ones, `autoscaling/v1` autoscalers as `v2`.

use serde_json::{Value, json};
use tandem_api::Object;

use crate::{
    Conversion,
    json::{Fields, FieldsExt},
};

pub(crate) const EVENTS_AS_CORE: Conversion = Conversion { to_storage: event_to_core, from_storage: event_from_core };
pub(crate) const AUTOSCALER_V1_AS_V2: Conversion =
    Conversion { to_storage: autoscaler_to_v2, from_storage: autoscaler_from_v2 };

/// The fields of `events.k8s.io/v1` and their names in the core group.
const EVENT_NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.0.shift_remove(from) {
        object.0.insert(to.to_owned(), value);
    }
}

fn event_to_core(object: &mut Object) {
    for (new, core) in EVENT_NAMES {
        rename(object, new, core);
    }
    object.set(&["apiVersion"], "v1");
}

fn event_from_core(object: &mut Object) {
    for (new, core) in EVENT_NAMES {
        rename(object, core, new);
    }
    object.set(&["apiVersion"], "events.k8s.io/v1");
}

/// Where v1 keeps what it has no fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

/// The target of an autoscaler that names no metric.
pub(super) const CPU_PERCENT: i64 = 80;

pub(super) fn cpu_target(percent: &Value) -> Value {
    json!({"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// The utilization of a metric that v1 can say.
fn cpu_percent<'a>(metric: &'a Value, at: &str) -> Option<&'a Value> {
    let resource = metric.get("resource").filter(|resource| resource["name"] == "cpu")?;
    resource.get(at)?.get("averageUtilization")
}

fn take_annotation(object: &mut Object, key: &str) -> Option<Value> {
    let text = object.remove(&["metadata", "annotations", key])?;
    serde_json::from_str(text.as_str()?).ok()
}

fn put_annotation(object: &mut Object, key: &str, value: &Value) {
    object.set(&["metadata", "annotations", key], value.to_string());
}

fn autoscaler_to_v2(object: &mut Object) {
    object.set(&["apiVersion"], "autoscaling/v2");
    let percent = object.remove(&["spec", "targetCPUUtilizationPercentage"]);
    let current = object.remove(&["status", "currentCPUUtilizationPercentage"]);
    let mut metrics: Vec<Value> = percent.iter().map(cpu_target).collect();
    if let Some(Value::Array(others)) = take_annotation(object, METRICS) {
        metrics.extend(others);
    }
    if metrics.is_empty() {
        metrics.push(cpu_target(&CPU_PERCENT.into()));
    }
    object.set(&["spec", "metrics"], metrics);
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        object.set(&["spec", "behavior"], behavior);
    }
    let mut readings: Vec<Value> = current
        .iter()
        .map(|percent| json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}))
        .collect();
    if let Some(Value::Array(others)) = take_annotation(object, CURRENT) {
        readings.extend(others);
    }
    if !readings.is_empty() {
        object.set(&["status", "currentMetrics"], readings);
    }
    if let Some(conditions) = take_annotation(object, CONDITIONS) {
        object.set(&["status", "conditions"], conditions);
    }
    if object.0.child("metadata").and_then(|metadata| metadata.child("annotations")).is_some_and(Fields::is_empty) {
        object.remove(&["metadata", "annotations"]);
    }
}

fn autoscaler_from_v2(object: &mut Object) {
    object.set(&["apiVersion"], "autoscaling/v1");
    split_metrics(object, &["spec", "metrics"], "target", &["spec", "targetCPUUtilizationPercentage"], METRICS);
    split_metrics(
        object,
        &["status", "currentMetrics"],
        "current",
        &["status", "currentCPUUtilizationPercentage"],
        CURRENT,
    );
    for (path, key) in [(["spec", "behavior"], BEHAVIOR), (["status", "conditions"], CONDITIONS)] {
        if let Some(value) = object.remove(&path) {
            put_annotation(object, key, &value);
        }
    }
}

/// One CPU metric becomes the field that v1 has; the others go into an annotation.
fn split_metrics(object: &mut Object, from: &[&str], at: &str, to: &[&str], rest: &str) {
    let Some(Value::Array(metrics)) = object.remove(from) else { return };
    let (mut percent, mut others) = (None, Vec::new());
    for metric in metrics {
        match (cpu_percent(&metric, at), &percent) {
            (Some(found), None) => percent = Some(found.clone()),
            _ => others.push(metric),
        }
    }
    if let Some(percent) = percent {
        object.set(to, percent);
    }
    if !others.is_empty() {
        put_annotation(object, rest, &Value::Array(others));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_keep_what_v1_cannot_say() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "web"}, "spec": {"maxReplicas": 3,
            "metrics": [cpu_target(&json!(50)), {"type": "Pods"}], "behavior": {"scaleUp": {}}}, "status": {"desiredReplicas": 1}});
        let mut object = Object::from_value(v2.clone()).unwrap();
        autoscaler_from_v2(&mut object);
        assert_eq!(object.i64_at(&["spec", "targetCPUUtilizationPercentage"]), Some(50));
        assert_eq!(object.str_at(&["metadata", "annotations", METRICS]), Some(r#"[{"type":"Pods"}]"#));
        autoscaler_to_v2(&mut object);
        assert_eq!(Value::Object(object.0), v2);
    }

    #[test]
    fn an_autoscaler_of_v1_that_names_no_target_has_the_default() {
        let mut object =
            Object::from_value(json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 3}})).unwrap();
        autoscaler_to_v2(&mut object);
        assert_eq!(object.at(&["spec", "metrics"]), Some(&json!([cpu_target(&json!(80))])));
        autoscaler_from_v2(&mut object);
        assert_eq!(object.i64_at(&["spec", "targetCPUUtilizationPercentage"]), Some(80));
    }

    #[test]
    fn events_change_their_names() {
        let core = json!({"apiVersion": "v1", "involvedObject": {"name": "p"}, "message": "m", "count": 2});
        let mut object = Object::from_value(core.clone()).unwrap();
        event_from_core(&mut object);
        assert_eq!(object.str_at(&["regarding", "name"]), Some("p"));
        assert_eq!(object.str_at(&["note"]), Some("m"));
        event_to_core(&mut object);
        assert_eq!(Value::Object(object.0), core);
    }
}
