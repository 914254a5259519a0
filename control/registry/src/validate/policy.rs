//! Disruption budgets, classes, leases, certificate requests.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use tandem_api::{Cause, Object};

use super::{IMMUTABLE, Problems, spec};
use crate::json::FieldsExt;

/// Above it are the priorities of the system itself.
const MAX_PRIORITY: i64 = 1_000_000_000;

pub(crate) fn disruption_budget(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    if spec.contains_key("minAvailable") && spec.contains_key("maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        problems.invalid("spec", json!(spec), why);
    }
    for key in ["minAvailable", "maxUnavailable"] {
        problems.check_share(spec.get(key), &format!("spec.{key}"));
    }
    if let Some(selector) = spec.child("selector") {
        problems.check_selector(selector, "spec.selector");
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    problems.check_enum(&spec, "unhealthyPodEvictionPolicy", "spec", &policies, false);
    problems.into_causes()
}

pub(crate) fn priority_class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (class, mut problems) = (&object.0, Problems::default());
    let (name, value) = (object.name(), class.int("value").unwrap_or_default());
    let system = ["system-cluster-critical", "system-node-critical"].contains(&name);
    if name.starts_with("system-") && !system {
        let why = "priority class names with 'system-' prefix are reserved for system use only";
        problems.forbidden("metadata.name", why);
    }
    if value > MAX_PRIORITY && !system {
        let why = format!("maximum allowed value of a user defined priority is {MAX_PRIORITY}");
        problems.forbidden("value", &why);
    }
    problems.check_enum(class, "preemptionPolicy", "", &["Never", "PreemptLowerPriority"], false);
    if let Some(old) = old {
        if class.int("value") != old.0.int("value") {
            problems.forbidden("value", "may not be changed in an update.");
        }
        let policy = "preemptionPolicy";
        problems.check_immutable(class.get(policy), old.0.get(policy), policy, IMMUTABLE);
    }
    problems.into_causes()
}

pub(crate) fn runtime_class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    problems.check_label(object.0.text("handler"), "handler");
    if let Some(old) = old {
        problems.check_immutable(object.0.get("handler"), old.0.get("handler"), "handler", IMMUTABLE);
    }
    let overhead = object.0.child("overhead");
    for (name, text) in overhead.into_iter().flat_map(|overhead| overhead.pairs("podFixed")) {
        problems.check_quantity(text, format!("overhead.podFixed[{name}]"));
    }
    problems.into_causes()
}

pub(crate) fn lease(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    if let Some(seconds) = spec.int("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        problems.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    problems.check_non_negative(&spec, "leaseTransitions", "spec");
    problems.into_causes()
}

pub(crate) fn signing_request(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    let pem = STANDARD.decode(spec.text("request")).unwrap_or_default();
    if !pem.starts_with(b"-----BEGIN CERTIFICATE REQUEST-----") {
        let why = "PEM block type must be CERTIFICATE REQUEST";
        problems.invalid("spec.request", spec.text("request"), why);
    }
    if spec.list("usages").is_empty() {
        problems.required("spec.usages", "");
    }
    let signer = spec.text("signerName");
    if !signer.split_once('/').is_some_and(|(domain, rest)| domain.contains('.') && !rest.is_empty()) {
        let why = "must be a fully qualified domain and path of the form \"example.com/signer-name\"";
        problems.invalid("spec.signerName", signer, why);
    }
    if let Some(seconds) = spec.int("expirationSeconds").filter(|seconds| *seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        problems.invalid("spec.expirationSeconds", seconds, why);
    }
    if let Some(old) = old {
        let path = ["spec"];
        problems.check_immutable(object.at(&path), old.at(&path), "spec", IMMUTABLE);
    }
    problems.into_causes()
}
