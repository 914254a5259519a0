//! Webhooks: configurations of admission webhooks, and how any webhook is reached.

use std::collections::BTreeSet;

use serde_json::Value;
use tandem_api::{Cause, Object, names};
use tandem_cel::{Patterns, Program};

use super::{Problems, labels};
use crate::json::{Fields, FieldsExt};

/// The versions of reviews that are spoken.
pub(crate) const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// What expressions of match conditions may read.
pub const CONDITION_VARIABLES: [&str; 3] = ["object", "oldObject", "request"];
/// What the patterns of one webhook's conditions may take.
pub const CONDITION_PATTERNS_BYTES: usize = 1 << 20;
const TIMEOUT_MAX_SECONDS: i64 = 30;
const CONDITIONS_MAX: usize = 64;
/// How many segments the name of an admission webhook has at least.
const NAME_SEGMENTS_MIN: usize = 3;

pub(crate) fn mutating(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    configuration(object)
}

pub(crate) fn validating(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    configuration(object)
}

fn configuration(object: &Object) -> Vec<Cause> {
    let mut problems = Problems::default();
    let mut seen = BTreeSet::new();
    for (at, hook) in object.0.each("webhooks").enumerate() {
        let path = format!("webhooks[{at}]");
        check_hook(hook, &path, &mut problems);
        if !seen.insert(hook.text("name")) {
            problems.duplicate(format!("{path}.name"), hook.text("name"));
        }
    }
    problems.into_causes()
}

fn check_hook(hook: &Fields, path: &str, problems: &mut Problems) {
    check_name(hook.text("name"), &format!("{path}.name"), problems);
    for (at, rule) in hook.each("rules").enumerate() {
        check_rule(rule, &format!("{path}.rules[{at}]"), problems);
    }
    problems.check_enum(hook, "failurePolicy", path, &["Fail", "Ignore"], false);
    problems.check_enum(hook, "matchPolicy", path, &["Equivalent", "Exact"], false);
    problems.check_enum(hook, "reinvocationPolicy", path, &["IfNeeded", "Never"], false);
    let effects = ["None", "NoneOnDryRun"];
    match hook.text("sideEffects") {
        "" => problems.required(format!("{path}.sideEffects"), "must specify one of None, NoneOnDryRun"),
        _ => problems.check_enum(hook, "sideEffects", path, &effects, true),
    }
    if let Some(seconds) = hook.int("timeoutSeconds").filter(|seconds| !(1..=TIMEOUT_MAX_SECONDS).contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        problems.invalid(format!("{path}.timeoutSeconds"), seconds, why);
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        if let Some(given) = hook.child(selector) {
            problems.check_selector(given, &format!("{path}.{selector}"));
        }
    }
    let empty = Fields::new();
    check_client(hook.child("clientConfig").unwrap_or(&empty), &format!("{path}.clientConfig"), problems);
    check_review_versions(hook, "admissionReviewVersions", path, problems);
    check_conditions(hook, path, problems);
}

fn check_name(name: &str, path: &str, problems: &mut Problems) {
    if name.is_empty() {
        return problems.required(path, "");
    }
    let before = problems.len();
    problems.check_subdomain(name, path);
    if problems.len() == before && name.split('.').count() < NAME_SEGMENTS_MIN {
        problems.invalid(path, name, "should be a domain with at least three segments separated by dots");
    }
}

/// A list of texts that is not empty, and of which `*` is the only one where it is there.
fn check_words(rule: &Fields, key: &str, path: &str, what: &str, problems: &mut Problems) {
    let list = rule.list(key);
    if list.is_empty() {
        problems.required(format!("{path}.{key}"), "");
    }
    if list.len() > 1 && list.iter().any(|one| one == "*") {
        let why = format!("if '*' is present, must not specify other {what}");
        problems.invalid(format!("{path}.{key}"), list.to_vec(), why);
    }
}

pub(crate) fn check_rule(rule: &Fields, path: &str, problems: &mut Problems) {
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    check_words(rule, "operations", path, "operations", problems);
    for (at, operation) in rule.list("operations").iter().filter_map(Value::as_str).enumerate() {
        if !OPERATIONS.contains(&operation) {
            problems.unsupported(format!("{path}.operations[{at}]"), operation, &OPERATIONS);
        }
    }
    check_words(rule, "apiGroups", path, "API groups", problems);
    check_words(rule, "apiVersions", path, "API versions", problems);
    for (at, version) in rule.list("apiVersions").iter().enumerate() {
        if version == "" {
            problems.required(format!("{path}.apiVersions[{at}]"), "");
        }
    }
    check_resources(rule, &format!("{path}.resources"), problems);
    problems.check_enum(rule, "scope", path, &["*", "Cluster", "Namespaced"], false);
}

fn check_resources(rule: &Fields, path: &str, problems: &mut Problems) {
    let resources: Vec<&str> = rule.list("resources").iter().filter_map(Value::as_str).collect();
    if resources.is_empty() {
        problems.required(path, "");
    }
    let has = |wanted: &str| resources.contains(&wanted);
    if has("*/*") && resources.len() > 1 {
        problems.invalid(
            path,
            rule.list("resources").to_vec(),
            "if '*/*' is present, must not specify other resources",
        );
    }
    let plain = resources.iter().filter(|one| !one.contains('/')).count();
    if has("*") && plain > 1 {
        let why = "if '*' is present, must not specify other resources without subresources";
        problems.invalid(path, rule.list("resources").to_vec(), why);
    }
    for (at, text) in resources.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let (resource, sub) = text.split_once('/').unwrap_or((text, ""));
        if text.is_empty() {
            problems.required(path, "");
        } else if resource != "*" && sub != "*" && !sub.is_empty() && has(&format!("{resource}/*")) {
            problems.invalid(path, *text, format!("if '{resource}/*' is present, must not specify {text}"));
        } else if resource != "*" && !sub.is_empty() && has(&format!("*/{sub}")) {
            problems.invalid(path, *text, format!("if '*/{sub}' is present, must not specify {text}"));
        }
    }
}

pub(crate) fn check_review_versions(owner: &Fields, key: &str, path: &str, problems: &mut Problems) {
    let (at, versions) = (format!("{path}.{key}"), owner.list(key));
    if versions.is_empty() {
        return problems.required(at, "must specify one of v1, v1beta1");
    }
    let mut seen = BTreeSet::new();
    for (number, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        let at = format!("{at}[{number}]");
        if !seen.insert(version) {
            problems.invalid(&at, version, "duplicate version");
        }
        names::dns1035_label(version).into_iter().for_each(|why| problems.invalid(&at, version, why));
    }
    if !REVIEW_VERSIONS.iter().any(|known| seen.contains(known)) {
        problems.invalid(at, versions.to_vec(), "must include at least one of v1, v1beta1");
    }
}

fn check_conditions(hook: &Fields, path: &str, problems: &mut Problems) {
    let count = hook.list("matchConditions").len();
    if count > CONDITIONS_MAX {
        problems.too_many(format!("{path}.matchConditions"), count, CONDITIONS_MAX);
        return;
    }
    let mut seen = BTreeSet::new();
    let mut patterns = Patterns::new(CONDITION_PATTERNS_BYTES);
    for (at, condition) in hook.each("matchConditions").enumerate() {
        let path = format!("{path}.matchConditions[{at}]");
        let (name, text) = (condition.text("name"), condition.text("expression"));
        if name.is_empty() {
            problems.required(format!("{path}.name"), "");
        } else {
            let at = format!("{path}.name");
            labels::qualified_name(name).into_iter().for_each(|why| problems.invalid(&at, name, why));
            if !seen.insert(name) {
                problems.duplicate(at, name);
            }
        }
        if text.trim().is_empty() {
            problems.required(format!("{path}.expression"), "");
        } else if let Err(why) = condition_program(text, &mut patterns) {
            problems.invalid(format!("{path}.expression"), text, format!("compilation failed: {why}"));
        }
    }
}

/// The program of a match condition, or why there is none.
pub fn condition_program(text: &str, patterns: &mut Patterns) -> Result<Program, String> {
    let program = Program::compile(text, patterns).map_err(|error| error.to_string())?;
    match program.undeclared(&CONDITION_VARIABLES) {
        Some(name) => Err(format!("undeclared reference to '{name}'")),
        None => Ok(program),
    }
}

/// How a webhook is reached: by a URL, or by a Service.
pub(crate) fn check_client(client: &Fields, path: &str, problems: &mut Problems) {
    match (client.text("url"), client.child("service")) {
        ("", Some(service)) => check_service(service, &format!("{path}.service"), problems),
        (url, None) if !url.is_empty() => check_url(url, &format!("{path}.url"), problems),
        _ => problems.required(path, "exactly one of url or service is required"),
    }
}

const URL_FORM: &str = "; desired format: https://host[/path]";

fn check_url(url: &str, path: &str, problems: &mut Problems) {
    let Some((scheme, rest)) = url.split_once("://") else {
        let why = format!("'https' is the only allowed URL scheme{URL_FORM}");
        return problems.invalid(path, url, why);
    };
    if scheme != "https" {
        problems.invalid(path, scheme, format!("'https' is the only allowed URL scheme{URL_FORM}"));
    }
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
    if host.is_empty() || host.starts_with(':') {
        problems.invalid(path, host, format!("host must be specified{URL_FORM}"));
    }
    if !user.is_empty() {
        problems.invalid(path, user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        problems.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = rest.split_once('?') {
        problems.invalid(path, query, "query parameters are not permitted in the URL");
    }
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    let sound = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if !sound || rest.contains(char::is_whitespace) || rest.contains(char::is_control) || !rest.is_ascii() {
        problems.invalid(path, url, "url must be a valid URL");
    }
}

fn check_service(service: &Fields, path: &str, problems: &mut Problems) {
    for key in ["name", "namespace"] {
        let (text, at) = (service.text(key), format!("{path}.{key}"));
        if text.is_empty() {
            problems.required(at, &format!("service {key} is required"));
        } else {
            problems.check_label(text, &at);
        }
    }
    if let Some(port) = service.int("port").filter(|port| !(1..=65535).contains(port)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        problems.invalid(format!("{path}.port"), port, why);
    }
    let (text, at) = (service.text("path"), format!("{path}.path"));
    if text.is_empty() || text == "/" {
        return;
    }
    let Some(inner) = text.strip_prefix('/') else {
        return problems.invalid(at, text, "must start with a '/'");
    };
    for (number, segment) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if segment.is_empty() {
            problems.invalid(&at, text, format!("segment[{number}] may not be empty"));
        }
        let sound = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte));
        if !sound {
            problems.invalid(&at, text, format!("segment[{number}]: is not a path segment"));
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    /// A webhook that is right but for what is laid over it.
    fn check(over: Value, expected: Expect) {
        let mut hook = json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": { "service": { "namespace": "default", "name": "hook", "path": "/check" } },
            "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }],
        });
        for (key, value) in over.as_object().unwrap() {
            hook[key] = value.clone();
        }
        let object = Object::from_value(json!({ "webhooks": [hook] })).unwrap();
        let lines: Vec<String> =
            mutating(&object, None).iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn hooks() {
        check(json!({}), expect![""]);
        check(
            json!({ "name": "a.b", "timeoutSeconds": 31, "failurePolicy": "Maybe", "sideEffects": "Some" }),
            expect![[r#"
                webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots
                webhooks[0].failurePolicy: Unsupported value: "Maybe": supported values: "Fail", "Ignore"
                webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun"
                webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"#]],
        );
        check(
            json!({ "name": "", "sideEffects": "", "admissionReviewVersions": ["v7"] }),
            expect![[r#"
            webhooks[0].name: Required value
            webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun
            webhooks[0].admissionReviewVersions: Invalid value: ["v7"]: must include at least one of v1, v1beta1"#]],
        );
        check(
            json!({ "admissionReviewVersions": [], "matchPolicy": "Near" }),
            expect![[r#"
            webhooks[0].matchPolicy: Unsupported value: "Near": supported values: "Equivalent", "Exact"
            webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"#]],
        );
        let condition = |text: &str| json!({ "matchConditions": [{ "name": "c", "expression": text }] });
        check(condition("object.metadata.name != 'x' && request.operation == 'CREATE'"), expect![""]);
        check(
            condition("... [] bad expression"),
            expect![[
                r#"webhooks[0].matchConditions[0].expression: Invalid value: "... [] bad expression": compilation failed: Syntax error: mismatched input Sign(".")"#
            ]],
        );
        check(
            condition("params.x == 1"),
            expect![[
                r#"webhooks[0].matchConditions[0].expression: Invalid value: "params.x == 1": compilation failed: undeclared reference to 'params'"#
            ]],
        );
    }

    #[test]
    fn clients() {
        let url = |url: &str| json!({ "clientConfig": { "url": url } });
        check(url("https://hooks.example.com:8443/a/b"), expect![""]);
        check(url("https://[::1]/a"), expect![""]);
        check(
            url("http://u:p@/a?b#c"),
            expect![[r#"
            webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]
            webhooks[0].clientConfig.url: Invalid value: "": host must be specified; desired format: https://host[/path]
            webhooks[0].clientConfig.url: Invalid value: "u:p": user information is not permitted in the URL
            webhooks[0].clientConfig.url: Invalid value: "c": fragments are not permitted in the URL
            webhooks[0].clientConfig.url: Invalid value: "b#c": query parameters are not permitted in the URL"#]],
        );
        check(
            url("hooks.example.com"),
            expect![[
                r#"webhooks[0].clientConfig.url: Invalid value: "hooks.example.com": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#
            ]],
        );
        check(
            json!({ "clientConfig": {} }),
            expect!["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
        );
        let service = |path: &str| json!({ "clientConfig": { "service": { "namespace": "a", "name": "", "path": path, "port": 0 } } });
        check(
            service("/a//b"),
            expect![[r#"
            webhooks[0].clientConfig.service.name: Required value: service name is required
            webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive
            webhooks[0].clientConfig.service.path: Invalid value: "/a//b": segment[1] may not be empty"#]],
        );
        check(
            service("a"),
            expect![[r#"
            webhooks[0].clientConfig.service.name: Required value: service name is required
            webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive
            webhooks[0].clientConfig.service.path: Invalid value: "a": must start with a '/'"#]],
        );
    }

    #[test]
    fn rules() {
        let rule = |resources: Value, operations: Value| json!({ "rules": [{ "operations": operations, "apiGroups": ["*", ""], "apiVersions": [""], "resources": resources, "scope": "Both" }] });
        check(
            rule(json!(["pods", "pods/*", "pods/status"]), json!(["*", "CREATE"])),
            expect![[r#"
            webhooks[0].rules[0].operations: Invalid value: ["*","CREATE"]: if '*' is present, must not specify other operations
            webhooks[0].rules[0].apiGroups: Invalid value: ["*",""]: if '*' is present, must not specify other API groups
            webhooks[0].rules[0].apiVersions[0]: Required value
            webhooks[0].rules[0].resources[2]: Invalid value: "pods/status": if 'pods/*' is present, must not specify pods/status
            webhooks[0].rules[0].scope: Unsupported value: "Both": supported values: "*", "Cluster", "Namespaced""#]],
        );
        check(
            rule(json!(["*/*", "pods"]), json!(["READ"])),
            expect![[r#"
            webhooks[0].rules[0].operations[0]: Unsupported value: "READ": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE"
            webhooks[0].rules[0].apiGroups: Invalid value: ["*",""]: if '*' is present, must not specify other API groups
            webhooks[0].rules[0].apiVersions[0]: Required value
            webhooks[0].rules[0].resources: Invalid value: ["*/*","pods"]: if '*/*' is present, must not specify other resources
            webhooks[0].rules[0].scope: Unsupported value: "Both": supported values: "*", "Cluster", "Namespaced""#]],
        );
        check(
            rule(json!(["*", "pods", "*/scale", "deployments/scale"]), json!([])),
            expect![[r#"
            webhooks[0].rules[0].operations: Required value
            webhooks[0].rules[0].apiGroups: Invalid value: ["*",""]: if '*' is present, must not specify other API groups
            webhooks[0].rules[0].apiVersions[0]: Required value
            webhooks[0].rules[0].resources: Invalid value: ["*","pods","*/scale","deployments/scale"]: if '*' is present, must not specify other resources without subresources
            webhooks[0].rules[0].resources[3]: Invalid value: "deployments/scale": if '*/scale' is present, must not specify deployments/scale
            webhooks[0].rules[0].scope: Unsupported value: "Both": supported values: "*", "Cluster", "Namespaced""#]],
        );
    }
}
