//! Job and CronJob.

use serde_json::json;
use tandem_api::Object;

use super::template::default_template;
use crate::{Hooks, columns, json::FieldsExt, validate};

pub(super) const JOB: Hooks = Hooks {
    default: default_job,
    prepare: prepare_job,
    validate: validate::batch::job,
    fields: |job| vec![("status.successful", job.i64_at(&["status", "succeeded"]).unwrap_or_default().to_string())],
    cells: columns::workloads::job,
    ..Hooks::NONE
};
pub(super) const CRON_JOB: Hooks = Hooks {
    default: default_cron_job,
    validate: validate::batch::cron_job,
    cells: columns::workloads::cron_job,
    ..Hooks::NONE
};

const CONTROLLER_UID: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const JOB_NAME: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

fn default_job(object: &mut Object) {
    let labels = object.at(&["spec", "template", "metadata", "labels"]).cloned();
    let Some(spec) = object.0.child_or_new("spec") else { return };
    default_template(spec, "template");
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.or_set("completions", 1);
    }
    spec.or_set("parallelism", 1);
    let per_index = spec.contains_key("backoffLimitPerIndex");
    spec.or_set("backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    spec.or_text("completionMode", "NonIndexed");
    spec.or_set("suspend", false);
    spec.or_set("manualSelector", false);
    let failed_only = spec.contains_key("podFailurePolicy");
    spec.or_text("podReplacementPolicy", if failed_only { "Failed" } else { "TerminatingOrFailed" });
    if let Some(policy) = spec.child_mut("podFailurePolicy") {
        for rule in policy.each_mut("rules") {
            rule.each_mut("onPodConditions").for_each(|condition| condition.or_text("status", "True"));
        }
    }
    if let Some(labels) = labels.filter(|labels| *labels != json!({}))
        && object.labels().next().is_none()
    {
        object.set(&["metadata", "labels"], labels);
    }
}

/// A job selects its pods by its uid, unless the writer says that he selects himself.
fn prepare_job(object: &mut Object, old: Option<&Object>) {
    let manual = object.at(&["spec", "manualSelector"]).and_then(serde_json::Value::as_bool).unwrap_or_default();
    let (uid, name) = (object.uid().to_owned(), object.name().to_owned());
    if old.is_some() || manual || uid.is_empty() {
        return;
    }
    for (keys, value) in [(CONTROLLER_UID, &uid), (JOB_NAME, &name)] {
        for key in keys {
            object.set(&["spec", "template", "metadata", "labels", key], value.as_str());
        }
    }
    object.set(&["spec", "selector", "matchLabels", CONTROLLER_UID[1]], uid);
}

fn default_cron_job(object: &mut Object) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    if let Some(job) = spec.child_mut("jobTemplate").and_then(|template| template.child_or_new("spec")) {
        default_template(job, "template");
    }
    spec.or_text("concurrencyPolicy", "Allow");
    spec.or_set("suspend", false);
    spec.or_set("successfulJobsHistoryLimit", 3);
    spec.or_set("failedJobsHistoryLimit", 1);
}
