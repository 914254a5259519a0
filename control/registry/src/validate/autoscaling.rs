//! HorizontalPodAutoscalers, as `autoscaling/v2`: the older shape is converted first, as Kubernetes does.

use serde_json::Value;
use tandem_api::{Cause, Object, REQUESTS_IN_FLIGHT, REQUESTS_PER_SECOND};

use super::{Problems, spec};
use crate::{
    def::NameRule,
    json::{Fields, FieldsExt},
    kinds::AUTOSCALER_V1_AS_V2,
    quantity::Quantity,
};

const WINDOW_MAX_SECONDS: i64 = 3600;
const PERIOD_MAX_SECONDS: i64 = 1800;
/// Metric types in the order of their names, and the field that each is said in.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
const POSITIVE_COUNT: &str = "must be greater than 0";

pub(crate) fn autoscaler(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let mut newest = object.clone();
    if object.api_version() == "autoscaling/v1" {
        (AUTOSCALER_V1_AS_V2.to_storage)(&mut newest);
    }
    let (spec, mut problems) = (spec(&newest), Problems::default());
    let least = spec.int("minReplicas").unwrap_or(1);
    let most = spec.int("maxReplicas").unwrap_or_default();
    if least < 0 {
        problems.invalid("spec.minReplicas", least, "must be greater than or equal to 0");
    }
    if least == 0 && !spec.each("metrics").any(counts_without_pods) {
        let why = "must specify at least one Object or External metric, or a Pods metric of http_requests_per_second or \
                   http_requests_in_flight, to support scaling to zero replicas";
        problems.forbidden("spec.metrics", why);
    }
    if most < 1 {
        problems.invalid("spec.maxReplicas", most, POSITIVE_COUNT);
    }
    if most < least {
        problems.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`");
    }
    let none = Fields::new();
    problems.check_reference(spec.child("scaleTargetRef").unwrap_or(&none), "spec.scaleTargetRef");
    for (at, metric) in spec.each("metrics").enumerate() {
        problems.check_metric(metric, &format!("spec.metrics[{at}]"));
    }
    if let Some(behavior) = spec.child("behavior") {
        for direction in ["scaleUp", "scaleDown"] {
            if let Some(rules) = behavior.child(direction) {
                problems.check_rules(rules, &format!("spec.behavior.{direction}"));
            }
        }
    }
    problems.into_causes()
}

/// Whether a metric tells when a workload without pods is wanted again. Kubernetes takes those that others measure;
/// requests of pods that are not there are noticed by the nodes.
fn counts_without_pods(metric: &Fields) -> bool {
    let name = |source: &Fields| source.child("metric").map(|metric| metric.text("name").to_owned());
    match metric.text("type") {
        "Object" | "External" => true,
        "Pods" => metric
            .child("pods")
            .and_then(name)
            .is_some_and(|name| [REQUESTS_PER_SECOND, REQUESTS_IN_FLIGHT].contains(&name.as_str())),
        _ => false,
    }
}

fn quantity(value: Option<&Value>) -> Option<Quantity> {
    Quantity::parse(value?.as_str()?).ok()
}

impl Problems {
    fn check_reference(&mut self, reference: &Fields, path: &str) {
        for key in ["kind", "name"] {
            self.check_segment(reference.text(key), format!("{path}.{key}"), "");
        }
    }

    /// A name that stands in a path of the API.
    fn check_segment(&mut self, name: &str, path: String, missing: &str) {
        if name.is_empty() {
            self.required(path, missing);
            return;
        }
        for why in NameRule::PathSegment.problems(name, false) {
            self.invalid(path.clone(), name, why);
        }
    }

    fn check_metric(&mut self, metric: &Fields, path: &str) {
        let kind = metric.text("type");
        if kind.is_empty() {
            self.required(format!("{path}.type"), "must specify a metric source type");
        }
        let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, field)| *field);
        if expected.is_none() {
            let names: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
            self.unsupported(format!("{path}.type"), kind, &names);
        }
        let mut present = SOURCES.iter().filter_map(|(_, field)| Some((*field, metric.child(field)?)));
        if let Some((field, source)) = present.next() {
            self.check_source(field, source, &format!("{path}.{field}"));
        }
        if let Some(expected) = expected.filter(|expected| metric.child(expected).is_none()) {
            let why = "must populate information for the given metric source";
            self.required(format!("{path}.{expected}"), why);
        }
        for (_, field) in SOURCES.iter().filter(|(_, field)| Some(*field) != expected && metric.child(field).is_some())
        {
            self.forbidden(format!("{path}.{field}"), "must populate the given metric source only");
        }
    }

    fn check_source(&mut self, field: &str, source: &Fields, path: &str) {
        let none = Fields::new();
        let target = source.child("target").unwrap_or(&none);
        let has = |key: &str| target.contains_key(key);
        let at = |key: &str| format!("{path}.target.{key}");
        match field {
            "resource" | "containerResource" => {
                if source.text("name").is_empty() {
                    self.required(format!("{path}.name"), "must specify a resource name");
                }
                if field == "containerResource" && source.text("container").is_empty() {
                    self.required(format!("{path}.container"), "must specify a container");
                }
                self.check_target(target, path);
                if !has("averageUtilization") && !has("averageValue") {
                    let why = "must set either a target raw value or a target utilization";
                    self.required(at("averageUtilization"), why);
                }
                if has("averageUtilization") && has("averageValue") {
                    let why = "may not set both a target raw value and a target utilization";
                    self.forbidden(at("averageValue"), why);
                }
                return;
            }
            "object" => self
                .check_reference(source.child("describedObject").unwrap_or(&none), &format!("{path}.describedObject")),
            _ => {}
        }
        let name = source.child("metric").map(|metric| metric.text("name")).unwrap_or_default();
        self.check_segment(name, format!("{path}.metric.name"), "must specify a metric name");
        self.check_target(target, path);
        match field {
            "pods" if quantity(target.get("averageValue")).is_none_or(|amount| amount <= Quantity::ZERO) => {
                self.required(at("averageValue"), "must specify a positive target averageValue");
            }
            "object" if !has("value") && !has("averageValue") => {
                self.required(at("averageValue"), "must set either a target value or averageValue");
            }
            "external" if !has("value") && !has("averageValue") => {
                self.required(at("averageValue"), "must set either a target value for metric or a per-pod target");
            }
            "external" if has("value") && has("averageValue") => {
                self.forbidden(at("value"), "may not set both a target value for metric and a per-pod target");
            }
            _ => {}
        }
    }

    fn check_target(&mut self, target: &Fields, path: &str) {
        let kind = target.text("type");
        if kind.is_empty() {
            self.required(format!("{path}.target.type"), "must specify a metric target type");
        }
        if !["Utilization", "Value", "AverageValue"].contains(&kind) {
            let why = "must be either Utilization, Value, or AverageValue";
            self.invalid(format!("{path}.target.type"), kind, why);
        }
        for key in ["value", "averageValue"] {
            if quantity(target.get(key)).is_some_and(|amount| amount <= Quantity::ZERO) {
                self.invalid(format!("{path}.target.{key}"), target.text(key), "must be positive");
            }
        }
        if let Some(percent) = target.int("averageUtilization").filter(|percent| *percent < 1) {
            self.invalid(format!("{path}.target.averageUtilization"), percent, POSITIVE_COUNT);
        }
    }

    fn check_rules(&mut self, rules: &Fields, path: &str) {
        match rules.int("stabilizationWindowSeconds") {
            Some(seconds) if seconds < 0 => {
                let why = "must be greater than or equal to zero";
                self.invalid(format!("{path}.stabilizationWindowSeconds"), seconds, why);
            }
            Some(seconds) if seconds > WINDOW_MAX_SECONDS => {
                let why = format!("must be less than or equal to {WINDOW_MAX_SECONDS}");
                self.invalid(format!("{path}.stabilizationWindowSeconds"), seconds, why);
            }
            _ => {}
        }
        self.check_enum(rules, "selectPolicy", path, &["Disabled", "Max", "Min"], false);
        for (at, policy) in rules.each("policies").enumerate() {
            let path = format!("{path}.policies[{at}]");
            let kind = policy.text("type");
            if !["Percent", "Pods"].contains(&kind) {
                self.unsupported(format!("{path}.type"), kind, &["Percent", "Pods"]);
            }
            for key in ["value", "periodSeconds"] {
                if let Some(number) = policy.int(key).filter(|number| *number <= 0) {
                    self.invalid(format!("{path}.{key}"), number, "must be greater than zero");
                }
            }
            if let Some(seconds) = policy.int("periodSeconds").filter(|seconds| *seconds > PERIOD_MAX_SECONDS) {
                let why = format!("must be less than or equal to {PERIOD_MAX_SECONDS}");
                self.invalid(format!("{path}.periodSeconds"), seconds, why);
            }
        }
        if let Some(amount) = quantity(rules.get("tolerance")).filter(Quantity::is_negative) {
            let why = "must be greater or equal to 0";
            self.invalid(format!("{path}.tolerance"), amount.to_string(), why);
        }
    }
}
