//! LimitRange and ResourceQuota.

use std::collections::BTreeSet;

use serde_json::Value;
use tandem_api::{Cause, Object, Quantity};

use super::{IMMUTABLE, Problems, labels, pod, spec};
use crate::json::{Fields, FieldsExt};

const STANDARD: &str = "must be a standard resource type or fully qualified";
const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];
/// What may be named of claims without a domain, beyond what quotas may name.
const STORAGE: &str = "storage";

/// Quotas of whole numbers.
const COUNTS: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const AMOUNTS: [&str; 4] =
    ["ephemeral-storage", "limits.ephemeral-storage", "requests.ephemeral-storage", "requests.storage"];
/// Quotas of what pods compute with: those that a scope may stand beside.
const COMPUTE: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// Scopes that a pod is in or not, without a value.
const PLAIN_SCOPES: [&str; 5] =
    ["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "Terminating"];
const PRIORITY_CLASS: &str = "PriorityClass";
const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
const EXISTS: &str = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";

pub(crate) fn limit_range(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    let mut types = BTreeSet::new();
    for (at, item) in spec(object).each("limits").enumerate() {
        let path = format!("spec.limits[{at}]");
        let kind = item.text("type");
        labels::qualified_name(kind).into_iter().for_each(|why| problems.invalid(format!("{path}.type"), kind, why));
        if !kind.contains('/') && !TYPES.contains(&kind) {
            problems.invalid(format!("{path}.type"), kind, "must be a standard limit type or fully qualified");
        }
        if !types.insert(kind.to_owned()) {
            problems.duplicate(format!("{path}.type"), kind);
        }
        check_names(item, &path, &mut problems);
        if kind == "Pod" {
            for key in ["default", "defaultRequest"].into_iter().filter(|key| item.contains_key(*key)) {
                problems.forbidden(format!("{path}.{key}"), "may not be specified when `type` is 'Pod'");
            }
        }
        let bounded = |key: &str| item.child(key).is_some_and(|amounts| amounts.contains_key(STORAGE));
        if kind == "PersistentVolumeClaim" && !bounded("min") && !bounded("max") {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            problems.required(format!("{path}.limits"), why);
        }
        check_order(item, &path, &mut problems);
    }
    problems.into_causes()
}

const KEYS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

fn check_names(item: &Fields, path: &str, problems: &mut Problems) {
    let of_containers = matches!(item.text("type"), "Container" | "Pod");
    for key in KEYS {
        for (name, _) in item.pairs(key) {
            let path = format!("{path}.{key}[{name}]");
            if of_containers {
                pod::check_resource_name(name, &path, problems);
            } else {
                let known = name.contains('/') || name == STORAGE || is_quota(name);
                labels::qualified_name(name).into_iter().for_each(|why| problems.invalid(path.clone(), name, why));
                if !known {
                    problems.invalid(path, name, STANDARD);
                }
            }
        }
    }
}

/// The lower key, the higher one, which of them is named, and what they are called.
const ORDER: [(&str, &str, &str, [&str; 2]); 6] = [
    ("min", "max", "min", ["min", "max"]),
    ("min", "defaultRequest", "defaultRequest", ["min", "default request"]),
    ("defaultRequest", "max", "defaultRequest", ["default request", "max"]),
    ("defaultRequest", "default", "defaultRequest", ["default request", "default limit"]),
    ("min", "default", "default", ["min", "default"]),
    ("default", "max", "default", ["default", "max"]),
];

fn check_order(item: &Fields, path: &str, problems: &mut Problems) {
    let amount = |key: &str, name: &str| {
        let text = item.child(key).map(|amounts| amounts.text(name)).unwrap_or_default();
        Quantity::parse(text).ok()
    };
    let names: BTreeSet<&str> = KEYS.iter().flat_map(|key| item.pairs(key)).map(|(name, _)| name).collect();
    for name in names {
        for (low, high, named, words) in ORDER {
            let (Some(less), Some(more)) = (amount(low, name), amount(high, name)) else { continue };
            if less > more {
                let value = if named == low { less } else { more };
                let why = format!("{} value {less} is greater than {} value {more}", words[0], words[1]);
                problems.invalid(format!("{path}.{named}[{name}]"), value.to_string(), why);
            }
        }
        let Some(ratio) = amount("maxLimitRequestRatio", name) else { continue };
        let path = format!("{path}.maxLimitRequestRatio[{name}]");
        if ratio < Quantity::from_i64(1) {
            problems.invalid(path.clone(), ratio.to_string(), format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (amount("min", name), amount("max", name))
            && let Some(most) = max.ratio(min).filter(|most| ratio > *most)
        {
            let why = format!("ratio {ratio} is greater than max/min = {}", most.to_decimal());
            problems.invalid(path, ratio.to_string(), why);
        }
    }
}

/// Whether a name without a domain is one that quotas know.
fn is_quota(name: &str) -> bool {
    let huge = name.strip_prefix("requests.").unwrap_or(name).starts_with("hugepages-");
    huge || COUNTS.contains(&name) || AMOUNTS.contains(&name) || COMPUTE.contains(&name)
}

pub(crate) fn resource_quota(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    let spec = spec(object);
    for (name, text) in spec.pairs("hard") {
        let path = format!("spec.hard[{name}]");
        labels::qualified_name(name).into_iter().for_each(|why| problems.invalid(path.clone(), name, why));
        if !name.contains('/') && !is_quota(name) {
            if name != STORAGE {
                problems.invalid(path.clone(), name, STANDARD);
            }
            problems.invalid(path.clone(), name, "must be a standard resource for quota");
        }
        let amount = problems.check_quantity(text, path.clone());
        if COUNTS.contains(&name) && amount.is_some_and(|amount| !amount.is_whole()) {
            problems.invalid(path, text, "must be an integer");
        }
    }
    check_scopes(&spec, &mut problems);
    check_selector(&spec, &mut problems);
    if let Some(old) = old {
        let scopes = |spec: &Fields| -> BTreeSet<String> {
            spec.list("scopes").iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if scopes(&spec) != scopes(&super::spec(old)) {
            problems.invalid("spec.scopes", spec.list("scopes").to_vec(), IMMUTABLE);
        }
    }
    problems.into_causes()
}

fn is_scope(scope: &str) -> bool {
    scope == PRIORITY_CLASS || PLAIN_SCOPES.contains(&scope)
}

/// Whether the quota limits something that no object in this scope uses.
fn misses(spec: &Fields, scope: &str) -> bool {
    let computes = |name: &str| name == "pods" || (scope != "BestEffort" && COMPUTE.contains(&name));
    is_scope(scope) && spec.pairs("hard").any(|(name, _)| is_quota(name) && !computes(name))
}

const UNSUPPORTED: &str = "unsupported scope";
const MISAPPLIED: &str = "unsupported scope applied to resource";

fn check_scopes(spec: &Fields, problems: &mut Problems) {
    let path = "spec.scopes";
    let all = spec.get("scopes").cloned().unwrap_or_default();
    let scopes: Vec<&str> = spec.list("scopes").iter().filter_map(Value::as_str).collect();
    for scope in &scopes {
        if !is_scope(scope) {
            problems.invalid(path, all.clone(), UNSUPPORTED);
        }
        if misses(spec, scope) {
            problems.invalid(path, all.clone(), MISAPPLIED);
        }
    }
    if CONFLICTS.iter().any(|pair| pair.iter().all(|scope| scopes.contains(scope))) {
        problems.invalid(path, all, "conflicting scopes");
    }
}

fn check_selector(spec: &Fields, problems: &mut Problems) {
    let Some(selector) = spec.child("scopeSelector") else { return };
    let path = "spec.scopeSelector.matchExpressions";
    for expression in selector.each("matchExpressions") {
        let (scope, operator) = (expression.text("scopeName"), expression.text("operator"));
        if !is_scope(scope) {
            problems.invalid(format!("{path}.scopeName"), scope, UNSUPPORTED);
        }
        if misses(spec, scope) {
            problems.invalid(path, selector.clone(), MISAPPLIED);
        }
        if PLAIN_SCOPES.contains(&scope) && operator != "Exists" {
            problems.invalid(format!("{path}.operator"), operator, EXISTS);
        }
        let values = expression.list("values");
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                problems.required(format!("{path}.values"), why);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                problems.invalid(format!("{path}.values"), values.to_vec(), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => problems.invalid(format!("{path}.operator"), operator, "not a valid selector operator"),
        }
    }
}
