//! Roles and their bindings.

use tandem_api::{Cause, Object};

use super::Problems;
use crate::json::{Fields, FieldsExt};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) fn role(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    rules(object, true)
}

pub(crate) fn cluster_role(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    rules(object, false)
}

fn rules(object: &Object, namespaced: bool) -> Vec<Cause> {
    let mut problems = Problems::default();
    for (at, rule) in object.0.each("rules").enumerate() {
        let path = format!("rules[{at}]");
        if rule.list("verbs").is_empty() {
            problems.required(format!("{path}.verbs"), "verbs must contain at least one value");
        }
        if rule.list("nonResourceURLs").is_empty() {
            if rule.list("apiGroups").is_empty() {
                problems.required(format!("{path}.apiGroups"), "resource rules must supply at least one api group");
            }
            if rule.list("resources").is_empty() {
                problems.required(format!("{path}.resources"), "resource rules must supply at least one resource");
            }
            continue;
        }
        let urls = rule.list("nonResourceURLs").to_vec();
        if namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            problems.invalid(format!("{path}.nonResourceURLs"), urls.clone(), why);
        }
        let resources = ["apiGroups", "resources", "resourceNames"];
        if resources.into_iter().any(|key| !rule.list(key).is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            problems.invalid(format!("{path}.nonResourceURLs"), urls, why);
        }
    }
    let selectors = object.0.child("aggregationRule");
    for (at, selector) in selectors.into_iter().flat_map(|rule| rule.each("clusterRoleSelectors")).enumerate() {
        problems.check_selector(selector, &format!("aggregationRule.clusterRoleSelectors[{at}]"));
    }
    problems.into_causes()
}

pub(crate) fn role_binding(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    binding(object, old, &["Role", "ClusterRole"])
}

pub(crate) fn cluster_role_binding(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    binding(object, old, &["ClusterRole"])
}

fn binding(object: &Object, old: Option<&Object>, kinds: &[&str]) -> Vec<Cause> {
    let mut problems = Problems::default();
    let none = Fields::new();
    let role = object.0.child("roleRef").unwrap_or(&none);
    if role.text("apiGroup") != GROUP {
        problems.unsupported("roleRef.apiGroup", role.text("apiGroup"), &[GROUP]);
    }
    if !kinds.contains(&role.text("kind")) {
        problems.unsupported("roleRef.kind", role.text("kind"), kinds);
    }
    if role.text("name").is_empty() {
        problems.required("roleRef.name", "");
    }
    if let Some(old) = old {
        let path = ["roleRef"];
        problems.check_immutable(object.at(&path), old.at(&path), "roleRef", "cannot change roleRef");
    }
    for (at, subject) in object.0.each("subjects").enumerate() {
        check_subject(subject, kinds.len() == 1, &format!("subjects[{at}]"), &mut problems);
    }
    problems.into_causes()
}

fn check_subject(subject: &Fields, cluster: bool, path: &str, problems: &mut Problems) {
    let (name, group) = (subject.text("name"), subject.text("apiGroup"));
    if name.is_empty() {
        problems.required(format!("{path}.name"), "");
    }
    match subject.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                problems.check_subdomain(name, &format!("{path}.name"));
            }
            if !group.is_empty() {
                problems.unsupported(format!("{path}.apiGroup"), group, &[""]);
            }
            if subject.text("namespace").is_empty() && cluster {
                problems.required(format!("{path}.namespace"), "");
            }
        }
        "User" | "Group" if group != GROUP => problems.unsupported(format!("{path}.apiGroup"), group, &[GROUP]),
        "User" | "Group" => {}
        other => problems.unsupported(format!("{path}.kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}
