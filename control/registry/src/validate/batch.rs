//! Job and CronJob.

use serde_json::Value;
use tandem_api::{Cause, Object};

use super::{IMMUTABLE, Problems, pod::check_template, spec};
use crate::{
    json::{Fields, FieldsExt},
    selectors::LabelSelector,
};

const COUNTS: [&str; 7] = [
    "parallelism",
    "completions",
    "activeDeadlineSeconds",
    "backoffLimit",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
    "ttlSecondsAfterFinished",
];

/// More would make `.status.completedIndexes` too long.
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
/// Jobs with more completions than this have narrower limits.
const COMPLETIONS_SOFT_LIMIT: i64 = 100_000;
const HIGH_COMPLETIONS_PARALLELISM_MAX: i64 = 10_000;
const HIGH_COMPLETIONS_FAILED_INDEXES_MAX: i64 = 10_000;

pub(crate) fn job(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    if !spec.contains_key("selector") {
        problems.required("spec.selector", "");
    }
    check_job(&spec, "spec", &mut problems);
    let labels =
        spec.child("template").and_then(|template| template.child("metadata")).and_then(|it| it.child("labels"));
    let selector = LabelSelector::from_value(spec.get("selector")).ok().flatten();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
    if selector.is_some_and(|selector| !selector.matches_labels(label)) {
        let labels = labels.map_or(Value::Null, |labels| Value::Object(labels.clone()));
        let why = "`selector` does not match template `labels`";
        problems.invalid("spec.template.metadata.labels", labels, why);
    }
    if let Some(old) = old {
        let before = super::spec(old);
        // A suspended job that has not begun may still be placed elsewhere.
        let waiting =
            before.flag("suspend") && !old.0.child("status").is_some_and(|status| status.contains_key("startTime"));
        let mut fixed = vec!["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"];
        if spec.text("completionMode") != "Indexed" {
            fixed.push("completions");
        }
        if !waiting {
            fixed.push("template");
        }
        for key in fixed {
            problems.check_immutable(spec.get(key), before.get(key), &format!("spec.{key}"), IMMUTABLE);
        }
    }
    problems.into_causes()
}

fn check_job(spec: &Fields, path: &str, problems: &mut Problems) {
    COUNTS.iter().for_each(|key| problems.check_non_negative(spec, key, path));
    problems.check_enum(spec, "completionMode", path, &["Indexed", "NonIndexed"], false);
    if spec.text("completionMode") == "Indexed" {
        check_indexed(spec, path, problems);
    }
    if let Some(selector) = spec.child("selector") {
        problems.check_selector(selector, &format!("{path}.selector"));
    }
    let Some(template) = spec.child("template") else {
        problems.required(format!("{path}.template"), "");
        return;
    };
    check_template(template, &format!("{path}.template"), problems);
    let policy = template.child("spec").map(|pod| pod.text("restartPolicy")).unwrap_or_default();
    let at = format!("{path}.template.spec.restartPolicy");
    match policy {
        "" => problems.required(at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.contains_key("podFailurePolicy") => {
            problems.invalid(at, policy, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        other => problems.unsupported(at, other, &["OnFailure", "Never"]),
    }
}

fn check_indexed(spec: &Fields, path: &str, problems: &mut Problems) {
    let (parallelism, failed) = (spec.int("parallelism"), spec.int("maxFailedIndexes"));
    let Some(completions) = spec.int("completions") else {
        problems.required(format!("{path}.completions"), "when completion mode is Indexed");
        return;
    };
    let mut check = |key: &str, value: Option<i64>, most: i64, why: String| {
        if let Some(value) = value.filter(|value| *value > most) {
            problems.invalid(format!("{path}.{key}"), value, why);
        }
    };
    let most = |most: i64| format!("must be less than or equal to {most}");
    let why = format!("{} when completion mode is Indexed", most(INDEXED_PARALLELISM_MAX));
    check("parallelism", parallelism, INDEXED_PARALLELISM_MAX, why);
    check("maxFailedIndexes", failed, completions, "must be less than or equal to completions".to_owned());
    check("maxFailedIndexes", failed, FAILED_INDEXES_MAX, most(FAILED_INDEXES_MAX));
    if completions <= COMPLETIONS_SOFT_LIMIT || !spec.contains_key("backoffLimitPerIndex") {
        return;
    }
    let high = |limit: i64| {
        let above = format!("when completions are above {COMPLETIONS_SOFT_LIMIT}");
        format!("{} {above} and used with backoff limit per index", most(limit))
    };
    let limit = HIGH_COMPLETIONS_PARALLELISM_MAX;
    check("parallelism", parallelism, limit, high(limit));
    let limit = HIGH_COMPLETIONS_FAILED_INDEXES_MAX;
    check("maxFailedIndexes", failed, limit, high(limit));
    if failed.is_none() {
        let why = format!("must be specified when completions is above {COMPLETIONS_SOFT_LIMIT}");
        problems.required(format!("{path}.maxFailedIndexes"), &why);
    }
}

pub(crate) fn cron_job(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    const MAX_NAME: usize = 52;
    let (spec, mut problems) = (spec(object), Problems::default());
    if object.name().len() > MAX_NAME {
        problems.invalid("metadata.name", object.name(), "must be no more than 52 characters");
    }
    match spec.text("schedule") {
        "" => problems.required("spec.schedule", ""),
        schedule => {
            if let Some(why) = schedule_problem(schedule) {
                problems.invalid("spec.schedule", schedule, why);
            }
        }
    }
    if spec.contains_key("timeZone") {
        match spec.text("timeZone") {
            "" => problems.invalid("spec.timeZone", "", "timeZone must be nil or non-empty string"),
            // It would mean another time on each machine.
            local if local.eq_ignore_ascii_case("local") => {
                problems.invalid(
                    "spec.timeZone",
                    local,
                    "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
                );
            }
            zone if jiff::tz::TimeZone::get(zone).is_err() => {
                problems.invalid("spec.timeZone", zone, format!("unknown time zone {zone}"));
            }
            _ => {}
        }
    }
    problems.check_non_negative(&spec, "startingDeadlineSeconds", "spec");
    problems.check_enum(&spec, "concurrencyPolicy", "spec", &["Allow", "Forbid", "Replace"], true);
    for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        problems.check_non_negative(&spec, key, "spec");
    }
    if let Some(job) = spec.child("jobTemplate").and_then(|template| template.child("spec")) {
        check_job(job, "spec.jobTemplate.spec", &mut problems);
    } else {
        problems.required("spec.jobTemplate.spec.template", "");
    }
    problems.into_causes()
}

/// What is wrong with a cron schedule: five fields, or one of the `@` words.
fn schedule_problem(schedule: &str) -> Option<String> {
    const WORDS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    if schedule.starts_with('@') {
        let known = WORDS.contains(&schedule) || schedule.starts_with("@every ");
        return (!known).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let bounds: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 6, &DAYS)];
    fields
        .iter()
        .zip(bounds)
        .find_map(|(field, (low, high, names))| field.split(',').find_map(|part| range_problem(part, low, high, names)))
}

fn range_problem(part: &str, low: u32, high: u32, names: &[&str]) -> Option<String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    let number = |text: &str| {
        let by_name = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        // Month names count from 1, day names from 0, as their bounds do.
        by_name.and_then(|at| u32::try_from(at).ok()).map(|at| at + low).or_else(|| text.parse().ok())
    };
    if let Some(step) = step
        && step.parse::<u32>().ok().is_none_or(|step| step == 0)
    {
        return Some(format!("failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"));
    }
    if range == "*" || range == "?" {
        return None;
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    for text in [first, last] {
        match number(text) {
            None => {
                return Some(format!(
                    "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
                ));
            }
            Some(value) if value < low => {
                return Some(format!("beginning of range ({value}) below minimum ({low}): {part}"));
            }
            Some(value) if value > high => {
                return Some(format!("end of range ({value}) above maximum ({high}): {part}"));
            }
            Some(_) => {}
        }
    }
    let (from, to) = (number(first)?, number(last)?);
    (from > to).then(|| format!("beginning of range ({from}) beyond end of range ({to}): {part}"))
}
