//! Pods and the pod templates of workloads.

mod containers;
mod resize;
mod update;
mod volumes;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tandem_api::{Cause, Object};

use super::{Problems, labels, spec};
use crate::json::{Fields, FieldsExt};

pub(super) use containers::check_resource_name;
pub use resize::resize;
pub use update::ephemeral_containers;

const SYSCTL_NAME_MAX: usize = 253;
const SYSCTL_PATTERN: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const MAX_SECONDS: i64 = i32::MAX as i64;

pub(crate) fn pod(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    match old {
        None => check_spec(&spec(object), "spec", &mut problems),
        Some(old) => update::check(&spec(object), &spec(old), &mut problems),
    }
    problems.into_causes()
}

/// A `PodTemplateSpec`: metadata and spec.
pub(crate) fn check_template(template: &Fields, path: &str, problems: &mut Problems) {
    let none = Fields::new();
    let metadata = template.child("metadata").unwrap_or(&none);
    problems.check_labels(metadata, "labels", &format!("{path}.metadata.labels"));
    for (key, _) in metadata.pairs("annotations") {
        let found = labels::qualified_name(&key.to_lowercase());
        found.into_iter().for_each(|why| problems.invalid(format!("{path}.metadata.annotations"), key, why));
    }
    let spec = template.child("spec").unwrap_or(&none);
    check_spec(spec, &format!("{path}.spec"), problems);
    if !spec.list("ephemeralContainers").is_empty() {
        problems
            .forbidden(format!("{path}.spec.ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

pub(super) fn check_spec(spec: &Fields, path: &str, problems: &mut Problems) {
    let volumes = volumes::check(spec, &format!("{path}.volumes"), problems);
    containers::check_all(spec, &volumes, path, problems);
    problems.check_enum(spec, "restartPolicy", path, &["Always", "OnFailure", "Never"], true);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    problems.check_enum(spec, "dnsPolicy", path, &policies, true);
    let servers = spec.child("dnsConfig").map_or(0, |config| config.list("nameservers").len());
    if spec.text("dnsPolicy") == "None" && servers == 0 {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        problems.required(format!("{path}.dnsConfig.nameservers"), why);
    }
    problems.check_non_negative(spec, "terminationGracePeriodSeconds", path);
    check_names(spec, path, problems);
    problems.check_labels(spec, "nodeSelector", &format!("{path}.nodeSelector"));
    for (at, toleration) in spec.each("tolerations").enumerate() {
        check_toleration(toleration, &format!("{path}.tolerations[{at}]"), problems);
    }
    if let Some(seconds) = spec.int("activeDeadlineSeconds").filter(|seconds| !(1..=MAX_SECONDS).contains(seconds)) {
        let why = format!("must be between 1 and {MAX_SECONDS}, inclusive");
        problems.invalid(format!("{path}.activeDeadlineSeconds"), seconds, why);
    }
    if let Some(context) = spec.child("securityContext") {
        check_ids(context, &["runAsUser", "runAsGroup", "fsGroup"], &format!("{path}.securityContext"), problems);
        check_sysctls(context, &format!("{path}.securityContext"), problems);
    }
    check_spread(spec, path, problems);
    check_gates(spec, path, problems);
    check_affinity(spec, path, problems);
}

fn check_names(spec: &Fields, path: &str, problems: &mut Problems) {
    for key in ["serviceAccountName", "nodeName", "runtimeClassName", "priorityClassName"] {
        let name = spec.text(key);
        if !name.is_empty() {
            problems.check_subdomain(name, &format!("{path}.{key}"));
        }
    }
    for key in ["hostname", "subdomain"] {
        let name = spec.text(key);
        if !name.is_empty() {
            problems.check_label(name, &format!("{path}.{key}"));
        }
    }
    for (at, secret) in spec.each("imagePullSecrets").enumerate() {
        if secret.text("name").is_empty() {
            problems.required(format!("{path}.imagePullSecrets[{at}].name"), "");
        }
    }
    for (at, alias) in spec.each("hostAliases").enumerate() {
        let path = format!("{path}.hostAliases[{at}]");
        super::network::check_ip(alias.text("ip"), &format!("{path}.ip"), problems);
        for (at, name) in alias.list("hostnames").iter().filter_map(Value::as_str).enumerate() {
            problems.check_subdomain(name, &format!("{path}.hostnames[{at}]"));
        }
    }
}

fn check_sysctls(context: &Fields, path: &str, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    for (at, sysctl) in context.each("sysctls").enumerate() {
        let (path, name) = (format!("{path}.sysctls[{at}].name"), sysctl.text("name"));
        if name.is_empty() {
            problems.required(path, "");
        } else if !is_sysctl(name) {
            let why = format!("must have at most {SYSCTL_NAME_MAX} characters and match regex {SYSCTL_PATTERN}");
            problems.invalid(path, name, why);
        } else if !names.insert(name) {
            problems.duplicate(path, name);
        }
    }
}

/// Whether the text matches [`SYSCTL_PATTERN`].
fn is_sysctl(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    name.len() <= SYSCTL_NAME_MAX
        && name.split(['.', '/']).map(str::as_bytes).all(|part| {
            let inner = |byte: &u8| is_end(Some(byte)) || matches!(byte, b'-' | b'_');
            is_end(part.first()) && is_end(part.last()) && part.iter().all(inner)
        })
}

pub(super) fn check_ids(context: &Fields, keys: &[&str], path: &str, problems: &mut Problems) {
    for key in keys {
        if let Some(id) = context.int(key).filter(|id| !(0..=MAX_SECONDS).contains(id)) {
            problems.invalid(format!("{path}.{key}"), id, format!("must be between 0 and {MAX_SECONDS}, inclusive"));
        }
    }
}

fn check_toleration(toleration: &Fields, path: &str, problems: &mut Problems) {
    let (key, value, operator) = (toleration.text("key"), toleration.text("value"), toleration.text("operator"));
    if !key.is_empty() {
        labels::qualified_name(key).into_iter().for_each(|why| problems.invalid(format!("{path}.key"), key, why));
    } else if operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        problems.invalid(format!("{path}.operator"), operator, why);
    }
    let effect = toleration.text("effect");
    if toleration.contains_key("tolerationSeconds") && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        problems.invalid(format!("{path}.effect"), effect, why);
    }
    match operator {
        "" | "Equal" => {
            labels::label_value(value)
                .into_iter()
                .for_each(|why| problems.invalid(format!("{path}.operator"), value, why));
        }
        "Exists" if !value.is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            problems.invalid(format!("{path}.operator"), json!(toleration), why);
        }
        "Exists" => {}
        "Lt" | "Gt" => {
            if value.parse::<i64>().is_err() {
                problems.invalid(format!("{path}.value"), value, "value must be a valid integer");
            }
        }
        other => problems.unsupported(format!("{path}.operator"), other, &["Equal", "Exists"]),
    }
    problems.check_enum(toleration, "effect", path, &["NoSchedule", "PreferNoSchedule", "NoExecute"], false);
}

fn check_spread(spec: &Fields, path: &str, problems: &mut Problems) {
    for (at, constraint) in spec.each("topologySpreadConstraints").enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{at}]");
        if constraint.int("maxSkew").unwrap_or_default() <= 0 {
            let skew = constraint.int("maxSkew").unwrap_or_default();
            problems.invalid(format!("{path}.maxSkew"), skew, "must be greater than zero");
        }
        if constraint.text("topologyKey").is_empty() {
            problems.required(format!("{path}.topologyKey"), "can not be empty");
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&constraint.text("whenUnsatisfiable")) {
            let action = constraint.text("whenUnsatisfiable");
            problems.unsupported(format!("{path}.whenUnsatisfiable"), action, &actions);
        }
        if let Some(selector) = constraint.child("labelSelector") {
            problems.check_selector(selector, &format!("{path}.labelSelector"));
        }
    }
}

fn check_gates(spec: &Fields, path: &str, problems: &mut Problems) {
    for (at, gate) in spec.each("readinessGates").enumerate() {
        let (path, kind) = (format!("{path}.readinessGates[{at}].conditionType"), gate.text("conditionType"));
        labels::qualified_name(kind).into_iter().for_each(|why| problems.invalid(path.clone(), kind, why));
    }
    let mut seen = Vec::new();
    for (at, gate) in spec.each("schedulingGates").enumerate() {
        let (path, name) = (format!("{path}.schedulingGates[{at}]"), gate.text("name"));
        labels::qualified_name(name).into_iter().for_each(|why| problems.invalid(path.clone(), name, why));
        if seen.contains(&name) {
            problems.duplicate(path, name);
        }
        seen.push(name);
    }
}

fn check_affinity(spec: &Fields, path: &str, problems: &mut Problems) {
    let Some(affinity) = spec.child("affinity") else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(rules) = affinity.child(kind) else { continue };
        let path = format!("{path}.affinity.{kind}");
        let (hard, soft) =
            ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
        for (at, term) in rules.each(hard).enumerate() {
            check_affinity_term(term, &format!("{path}.{hard}[{at}]"), problems);
        }
        for (at, preference) in rules.each(soft).enumerate() {
            let path = format!("{path}.{soft}[{at}]");
            let weight = preference.int("weight").unwrap_or_default();
            if !(1..=100).contains(&weight) {
                problems.invalid(format!("{path}.weight"), weight, "must be in the range 1-100");
            }
            if let Some(term) = preference.child("podAffinityTerm") {
                check_affinity_term(term, &format!("{path}.podAffinityTerm"), problems);
            }
        }
    }
    let hard =
        affinity.child("nodeAffinity").and_then(|rules| rules.child("requiredDuringSchedulingIgnoredDuringExecution"));
    if hard.is_some_and(|hard| hard.list("nodeSelectorTerms").is_empty()) {
        let path =
            format!("{path}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        problems.required(path, "must have at least one node selector term");
    }
}

fn check_affinity_term(term: &Fields, path: &str, problems: &mut Problems) {
    if term.text("topologyKey").is_empty() {
        problems.required(format!("{path}.topologyKey"), "can not be empty");
    }
    if let Some(selector) = term.child("labelSelector") {
        problems.check_selector(selector, &format!("{path}.labelSelector"));
    }
}
