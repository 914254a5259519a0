//! Deployments, sets, ReplicationControllers.

use serde_json::{Value, json};
use tandem_api::{Cause, Object};

use super::{IMMUTABLE, Problems, percent, pod::check_template, spec};
use crate::{
    json::{Fields, FieldsExt},
    selectors::LabelSelector,
};

const MISMATCH: &str = "`selector` does not match template `labels`";

pub(crate) fn deployment(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    check_counts(
        &spec,
        &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        &mut problems,
    );
    check_selector(&spec, "deployment", &mut problems);
    check_running_template(&spec, "ReplicaSet", &mut problems);
    check_strategy(&spec, &mut problems);
    let (deadline, ready) = (spec.int("progressDeadlineSeconds"), spec.int("minReadySeconds").unwrap_or_default());
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
        problems.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
    keep_selector(object, old, &mut problems);
    problems.into_causes()
}

pub(crate) fn replica_set(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    check_counts(&spec, &["replicas", "minReadySeconds"], &mut problems);
    check_selector(&spec, "deployment", &mut problems);
    check_running_template(&spec, "ReplicaSet", &mut problems);
    keep_selector(object, old, &mut problems);
    problems.into_causes()
}

pub(crate) fn daemon_set(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    check_counts(&spec, &["minReadySeconds", "revisionHistoryLimit"], &mut problems);
    check_selector(&spec, "daemonset", &mut problems);
    check_running_template(&spec, "DaemonSet", &mut problems);
    if let Some(strategy) = spec.child("updateStrategy") {
        problems.check_enum(strategy, "type", "spec.updateStrategy", &["RollingUpdate", "OnDelete"], false);
        if let Some(rolling) = strategy.child("rollingUpdate") {
            check_rolling(rolling, "spec.updateStrategy.rollingUpdate", &mut problems);
        }
    }
    keep_selector(object, old, &mut problems);
    problems.into_causes()
}

/// The pods of a StatefulSet have a volume for each claim that it makes, beside those of its template.
fn with_claimed_volumes(spec: &Fields) -> Fields {
    let claims = spec.each("volumeClaimTemplates").filter_map(|claim| claim.child("metadata"));
    let claimed: Vec<String> = claims.map(|metadata| metadata.text("name").to_owned()).collect();
    let mut spec = spec.clone();
    let Some(pod) = spec.child_mut("template").and_then(|template| template.child_mut("spec")) else { return spec };
    let named = |name: &String| pod.each("volumes").any(|volume| volume.text("name") == name);
    let missing: Vec<Value> = claimed
        .iter()
        .filter(|name| !name.is_empty() && !named(name))
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    if missing.is_empty() {
        return spec;
    }
    let mut volumes = pod.list("volumes").to_vec();
    volumes.extend(missing);
    pod.insert("volumes".to_owned(), volumes.into());
    spec
}

pub(crate) fn stateful_set(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let (mut spec, mut problems) = (spec(object), Problems::default());
    check_counts(&spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], &mut problems);
    if let Some(ordinals) = spec.child("ordinals") {
        problems.check_non_negative(ordinals, "start", "spec.ordinals");
    }
    check_selector(&spec, "statefulset", &mut problems);
    check_running_template(&with_claimed_volumes(&spec), "StatefulSet", &mut problems);
    problems.check_enum(&spec, "podManagementPolicy", "spec", &["OrderedReady", "Parallel"], false);
    if let Some(strategy) = spec.child("updateStrategy") {
        problems.check_enum(strategy, "type", "spec.updateStrategy", &["RollingUpdate", "OnDelete"], false);
        if let Some(rolling) = strategy.child("rollingUpdate") {
            problems.check_non_negative(rolling, "partition", "spec.updateStrategy.rollingUpdate");
            problems.check_share(rolling.get("maxUnavailable"), "spec.updateStrategy.rollingUpdate.maxUnavailable");
        }
    }
    if let Some(old) = old {
        let mut before = super::spec(old);
        for key in MUTABLE {
            spec.shift_remove(key);
            before.shift_remove(key);
        }
        if spec != before {
            let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            problems.forbidden("spec", why);
        }
    }
    problems.into_causes()
}

pub(crate) fn replication_controller(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    check_counts(&spec, &["replicas", "minReadySeconds"], &mut problems);
    let selector = LabelSelector::from_map(spec.get("selector"));
    if selector.is_none() {
        problems.required("spec.selector", "");
    }
    check_running_template(&spec, "ReplicationController", &mut problems);
    check_match(&spec, selector, &mut problems);
    problems.into_causes()
}

fn check_counts(spec: &Fields, keys: &[&str], problems: &mut Problems) {
    keys.iter().for_each(|key| problems.check_non_negative(spec, key, "spec"));
}

fn check_selector(spec: &Fields, kind: &str, problems: &mut Problems) {
    let Some(selector) = spec.child("selector") else {
        problems.required("spec.selector", "");
        return;
    };
    problems.check_selector(selector, "spec.selector");
    let parsed = LabelSelector::from_value(spec.get("selector")).ok().flatten();
    if parsed.as_ref().is_some_and(LabelSelector::is_empty) {
        problems.invalid("spec.selector", json!(selector), format!("empty selector is invalid for {kind}"));
        return;
    }
    check_match(spec, parsed, problems);
}

fn check_match(spec: &Fields, selector: Option<LabelSelector>, problems: &mut Problems) {
    let (Some(template), Some(selector)) = (spec.child("template"), selector) else { return };
    let labels = template.child("metadata").and_then(|metadata| metadata.child("labels"));
    if !selector.matches_labels(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str)) {
        let labels = labels.map_or(Value::Null, |labels| json!(labels));
        problems.invalid("spec.template.metadata.labels", labels, MISMATCH);
    }
}

/// The template of a workload whose pods run until they are replaced.
fn check_running_template(spec: &Fields, kind: &str, problems: &mut Problems) {
    let Some(template) = spec.child("template") else {
        problems.required("spec.template", "");
        return;
    };
    check_template(template, "spec.template", problems);
    let Some(pod) = template.child("spec") else { return };
    let policy = pod.text("restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        problems.unsupported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if pod.contains_key("activeDeadlineSeconds") {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        problems.forbidden("spec.template.spec.activeDeadlineSeconds", &why);
    }
}

fn check_strategy(spec: &Fields, problems: &mut Problems) {
    let Some(strategy) = spec.child("strategy") else { return };
    match (strategy.text("type"), strategy.child("rollingUpdate")) {
        ("Recreate", Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            problems.forbidden("spec.strategy.rollingUpdate", why);
        }
        ("RollingUpdate", Some(rolling)) => check_rolling(rolling, "spec.strategy.rollingUpdate", problems),
        ("RollingUpdate", None) => {
            problems.required("spec.strategy.rollingUpdate", "this should be defaulted and never be nil")
        }
        _ => problems.check_enum(strategy, "type", "spec.strategy", &["Recreate", "RollingUpdate"], false),
    }
}

fn check_rolling(rolling: &Fields, path: &str, problems: &mut Problems) {
    let share = |key: &str| rolling.get(key);
    problems.check_share(share("maxUnavailable"), &format!("{path}.maxUnavailable"));
    problems.check_share(share("maxSurge"), &format!("{path}.maxSurge"));
    let is_zero = |value: Option<&Value>| match value {
        Some(Value::String(text)) => percent(text) == Some(0),
        Some(other) => other.as_i64() == Some(0),
        None => true,
    };
    if is_zero(share("maxUnavailable")) && is_zero(share("maxSurge")) {
        let value = share("maxUnavailable").cloned().unwrap_or(json!(0));
        problems.invalid(format!("{path}.maxUnavailable"), value, "may not be 0 when `maxSurge` is 0");
    }
}

fn keep_selector(object: &Object, old: Option<&Object>, problems: &mut Problems) {
    if let Some(old) = old {
        let path = ["spec", "selector"];
        problems.check_immutable(object.at(&path), old.at(&path), "spec.selector", IMMUTABLE);
    }
}
