//! APIService.

use tandem_api::{Cause, Object, names};

use super::{Problems, spec};
use crate::{json::FieldsExt, registry};

const GROUP_PRIORITY_MAX: i64 = 20_000;
const VERSION_PRIORITY_MAX: i64 = 1000;

pub(crate) fn api_service(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    let (group, version) = (spec.text("group"), spec.text("version"));
    let name = format!("{version}.{group}");
    if object.name() != name {
        problems.invalid("metadata.name", object.name(), format!("must be `spec.version+\".\"+spec.group`: {name:?}"));
    }
    if group.is_empty() && version != "v1" {
        problems.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
    } else if !group.is_empty() {
        problems.check_subdomain(group, "spec.group");
    }
    for why in names::dns1035_label(version) {
        problems.invalid("spec.version", version, why);
    }
    for (key, most) in [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)] {
        let priority = spec.int(key).unwrap_or_default();
        if !(1..=most).contains(&priority) {
            problems.invalid(format!("spec.{key}"), priority, format!("must be positive and less than {most}"));
        }
    }
    let bundle = spec.text("caBundle");
    let Some(service) = spec.child("service") else {
        if !bundle.is_empty() {
            let why = "local APIServices may not have a caBundle";
            problems.invalid("spec.caBundle", format!("{} bytes", bundle.len()), why);
        }
        if spec.flag("insecureSkipTLSVerify") {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            problems.invalid("spec.insecureSkipTLSVerify", true, why);
        }
        return problems.into_causes();
    };
    if registry::is_own(group) {
        problems.forbidden("spec.service", "the group is built in, and no other server may take its place");
    }
    for key in ["namespace", "name"] {
        if service.text(key).is_empty() {
            problems.required(format!("spec.service.{key}"), "");
        }
    }
    if let Some(port) = service.int("port") {
        problems.check_port(port, "spec.service.port".to_owned());
    }
    if spec.flag("insecureSkipTLSVerify") && !bundle.is_empty() {
        problems.invalid("spec.insecureSkipTLSVerify", true, "may not be true if caBundle is present");
    }
    problems.into_causes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(name: &str, spec: Value, expected: &[&str]) {
        let object = Object::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap();
        let found: Vec<String> = api_service(&object, None).into_iter().map(|cause| cause.field).collect();
        assert_eq!(found, expected, "{name}");
    }

    #[test]
    fn api_services() {
        let service = json!({ "namespace": "a", "name": "b", "port": 443 });
        let spec = |group: &str, more: Value| {
            let mut spec =
                json!({ "group": group, "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15 });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        check("v1.", spec("", json!({})), &[]);
        check("v1.apps", spec("apps", json!({})), &[]);
        check("v1.example.com", spec("example.com", json!({ "service": service })), &[]);
        check("v1.metrics.k8s.io", spec("metrics.k8s.io", json!({ "service": service })), &[]);
        for group in ["apps", "apiregistration.k8s.io", "tandem.dev"] {
            check(&format!("v1.{group}"), spec(group, json!({ "service": service })), &["spec.service"]);
        }
        check("v1.", spec("", json!({ "service": service })), &["spec.service"]);
        check("other", spec("example.com", json!({})), &["metadata.name"]);
        check("v1.example.com", spec("example.com", json!({ "caBundle": "YQ==" })), &["spec.caBundle"]);
        let both = json!({ "service": service, "caBundle": "YQ==", "insecureSkipTLSVerify": true });
        check("v1.example.com", spec("example.com", both), &["spec.insecureSkipTLSVerify"]);
        let low = json!({ "groupPriorityMinimum": 0, "versionPriority": 1001, "service": {} });
        let expected =
            ["spec.groupPriorityMinimum", "spec.versionPriority", "spec.service.namespace", "spec.service.name"];
        check("v1.example.com", spec("example.com", low), &expected);
    }
}
