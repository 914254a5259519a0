//! Admission policies and their bindings.

use std::collections::BTreeSet;

use serde_json::Value;
use tandem_api::{Cause, Object, names};

use super::{Problems, labels, spec};
use crate::{
    NameRule,
    expressions::{Environment, Wanted},
    json::{Fields, FieldsExt},
};

const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const CONDITIONS_MAX: usize = 64;
const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_EXPRESSION_MAX_BYTES: usize = 5 * 1024;
/// How many variables one policy may have, and how many validations or mutations.
const EXPRESSIONS_MAX: usize = 200;
const NEITHER: &str = "validations or auditAnnotations must contain at least one item";
const EXCLUSIVE: &str = "name and selector are mutually exclusive";
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

fn is_identifier(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let sound = name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit());
    sound && name.bytes().next().is_some_and(letter) && !RESERVED.contains(&name)
}

pub(crate) fn validating_policy(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    if old.is_some_and(|old| old.at(&["spec"]) == object.at(&["spec"])) {
        return Vec::new();
    }
    let mut environment = policy(&spec, &mut problems);
    let (validations, annotations) = (spec.list("validations"), spec.list("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        problems.required("spec.validations", NEITHER);
        problems.required("spec.auditAnnotations", NEITHER);
    }
    for (at, one) in spec.each("validations").enumerate().take(EXPRESSIONS_MAX) {
        validation(one, &format!("spec.validations[{at}]"), &mut environment, &mut problems);
    }
    if annotations.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        problems.invalid("spec.auditAnnotations", annotations.to_vec(), why);
    }
    let mut keys = BTreeSet::new();
    for (at, one) in spec.each("auditAnnotations").enumerate().take(ANNOTATIONS_MAX) {
        let (path, key) = (format!("spec.auditAnnotations[{at}]"), one.text("key"));
        annotation(object.name(), one, &path, &mut environment, &mut problems);
        if !keys.insert(key) {
            problems.duplicate(format!("{path}.key"), key);
        }
    }
    problems.into_causes()
}

pub(crate) fn mutating_policy(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    if old.is_some_and(|old| old.at(&["spec"]) == object.at(&["spec"])) {
        return Vec::new();
    }
    let mut environment = policy(&spec, &mut problems);
    if spec.list("mutations").is_empty() {
        problems.required("spec.mutations", "mutations must contain at least one item");
    }
    for (at, one) in spec.each("mutations").enumerate().take(EXPRESSIONS_MAX) {
        mutation(one, &format!("spec.mutations[{at}]"), &mut environment, &mut problems);
    }
    problems.check_enum(&spec, "reinvocationPolicy", "spec", &["IfNeeded", "Never"], true);
    problems.into_causes()
}

/// What both sorts of policies have; answers with what their expressions may read.
fn policy(spec: &Fields, problems: &mut Problems) -> Environment<'static> {
    problems.check_enum(spec, "failurePolicy", "spec", &FAILURE_POLICIES, true);
    if let Some(kind) = spec.child("paramKind") {
        param_kind(kind, problems);
    }
    match spec.child("matchConstraints") {
        None => problems.required("spec.matchConstraints", ""),
        Some(constraints) => {
            match_resources(constraints, "spec.matchConstraints", problems);
            if constraints.list("resourceRules").is_empty() {
                problems.required("spec.matchConstraints.resourceRules", "");
            }
        }
    }
    let has_params = spec.child("paramKind").is_some();
    conditions(spec, &mut Environment::new(has_params), problems);
    let mut environment = Environment::new(has_params);
    for key in ["variables", "validations", "mutations"] {
        let count = spec.list(key).len();
        if count > EXPRESSIONS_MAX {
            problems.too_many(format!("spec.{key}"), count, EXPRESSIONS_MAX);
        }
    }
    for (at, variable) in spec.each("variables").enumerate().take(EXPRESSIONS_MAX) {
        let (path, name) = (format!("spec.variables[{at}]"), variable.text("name"));
        if name.trim().is_empty() {
            problems.required(format!("{path}.name"), "name is not specified");
        } else if !is_identifier(name) {
            problems.invalid(format!("{path}.name"), name, "name is not a valid CEL identifier");
        }
        let expression = variable.text("expression");
        if expression.trim().is_empty() {
            problems.required(format!("{path}.expression"), "expression is not specified");
        } else if let Err(why) = environment.define(name, expression) {
            problems.invalid(format!("{path}.expression"), expression, why);
        }
    }
    environment
}

fn param_kind(kind: &Fields, problems: &mut Problems) {
    let (api_version, name) = (kind.text("apiVersion"), kind.text("kind"));
    let at = "spec.paramKind.apiVersion";
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        problems.required(at, "");
    } else if version.contains('/') {
        problems.invalid(at, api_version, format!("unexpected GroupVersion string: {api_version}"));
    } else {
        if !group.is_empty() {
            problems.check_subdomain(group, at);
        }
        if version.is_empty() {
            problems.invalid(at, api_version, "version must be specified");
        } else {
            names::dns1035_label(version).into_iter().for_each(|why| problems.invalid(at, version, why));
        }
    }
    if name.is_empty() {
        problems.required("spec.paramKind.kind", "");
    }
    for why in names::dns1035_label(&name.to_lowercase()).into_iter().filter(|_| !name.is_empty()) {
        let why = format!("may have mixed case, but should otherwise match: {why}");
        problems.invalid("spec.paramKind.kind", name, why);
    }
}

fn conditions(spec: &Fields, environment: &mut Environment<'_>, problems: &mut Problems) {
    let count = spec.list("matchConditions").len();
    if count > CONDITIONS_MAX {
        problems.too_many("spec.matchConditions", count, CONDITIONS_MAX);
    }
    let mut known = BTreeSet::new();
    for (at, condition) in spec.each("matchConditions").enumerate().take(CONDITIONS_MAX) {
        let path = format!("spec.matchConditions[{at}]");
        let (name, expression) = (condition.text("name"), condition.text("expression").trim());
        if expression.is_empty() {
            problems.required(format!("{path}.expression"), "");
        } else if let Err(why) = environment.check(expression, Wanted::Bool, true) {
            problems.invalid(format!("{path}.expression"), expression, why);
        }
        if name.is_empty() {
            problems.required(format!("{path}.name"), "");
            continue;
        }
        labels::qualified_name(name).into_iter().for_each(|why| problems.invalid(format!("{path}.name"), name, why));
        if !known.insert(name) {
            problems.duplicate(format!("{path}.name"), name);
        }
    }
}

fn match_resources(resources: &Fields, path: &str, problems: &mut Problems) {
    problems.check_enum(resources, "matchPolicy", path, &["Equivalent", "Exact"], true);
    for key in ["namespaceSelector", "objectSelector"] {
        match resources.child(key) {
            Some(selector) => problems.check_selector(selector, &format!("{path}.{key}")),
            None => problems.required(format!("{path}.{key}"), ""),
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (at, one) in resources.each(key).enumerate() {
            rule(one, &format!("{path}.{key}[{at}]"), problems);
        }
    }
}

fn rule(rule: &Fields, path: &str, problems: &mut Problems) {
    let texts = |key: &str| rule.list(key).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let mut known = BTreeSet::new();
    for (at, name) in texts("resourceNames").into_iter().enumerate() {
        let path = format!("{path}.resourceNames[{at}]");
        let wrong = NameRule::PathSegment.problems(name, false);
        wrong.into_iter().for_each(|why| problems.invalid(path.clone(), name, why));
        if !known.insert(name) {
            problems.duplicate(path, name);
        }
    }
    let operations = texts("operations");
    if operations.is_empty() {
        problems.required(format!("{path}.operations"), "");
    }
    if operations.len() > 1 && operations.contains(&"*") {
        let why = "if '*' is present, must not specify other operations";
        problems.invalid(format!("{path}.operations"), rule.list("operations").to_vec(), why);
    }
    for (at, operation) in operations.iter().enumerate().filter(|(_, operation)| !OPERATIONS.contains(operation)) {
        problems.unsupported(format!("{path}.operations[{at}]"), operation, &OPERATIONS);
    }
    for (key, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions"), ("resources", "resources")] {
        let (path, list) = (format!("{path}.{key}"), texts(key));
        if list.is_empty() {
            problems.required(path.clone(), "");
        }
        let all = if key == "resources" { list.contains(&"*/*") } else { list.contains(&"*") };
        if all && list.len() > 1 {
            let star = if key == "resources" { "*/*" } else { "*" };
            let why = format!("if '{star}' is present, must not specify other {what}");
            problems.invalid(path.clone(), rule.list(key).to_vec(), why);
        }
        for (at, _) in list.iter().enumerate().filter(|(_, text)| text.is_empty() && key != "apiGroups") {
            problems.required(format!("{path}[{at}]"), "");
        }
    }
    problems.check_enum(rule, "scope", path, &["*", "Cluster", "Namespaced"], false);
}

fn validation(one: &Fields, path: &str, environment: &mut Environment<'_>, problems: &mut Problems) {
    let (expression, made) = (one.text("expression"), one.text("messageExpression"));
    if expression.trim().is_empty() {
        problems.required(format!("{path}.expression"), "expression is not specified");
    } else if let Err(why) = environment.check(expression, Wanted::Bool, true) {
        problems.invalid(format!("{path}.expression"), expression, why);
    }
    if !made.is_empty() && made.trim().is_empty() {
        problems.invalid(format!("{path}.messageExpression"), made, "must be non-empty if specified");
    } else if !made.is_empty()
        && let Err(why) = environment.check(made, Wanted::Text, false)
    {
        problems.invalid(format!("{path}.messageExpression"), made, why);
    }
    let message = one.text("message");
    if !message.is_empty() && message.trim().is_empty() {
        problems.invalid(format!("{path}.message"), message, "message must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        problems.invalid(format!("{path}.message"), message, "message must not contain line breaks");
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
    problems.check_enum(one, "reason", path, &reasons, false);
}

fn annotation(policy: &str, one: &Fields, path: &str, environment: &mut Environment<'_>, problems: &mut Problems) {
    let (key, expression) = (one.text("key"), one.text("valueExpression").trim());
    // Where the name is yet to be generated, the key is looked at with the name that it will have.
    if !policy.is_empty() {
        let name = format!("{policy}/{key}");
        let wrong = labels::qualified_name(&name);
        wrong.into_iter().for_each(|why| problems.invalid(format!("{path}.key"), name.as_str(), why));
    }
    let path = format!("{path}.valueExpression");
    if expression.is_empty() {
        problems.required(path, "valueExpression is not specified");
    } else if expression.len() > ANNOTATION_EXPRESSION_MAX_BYTES {
        problems.required(path, &format!("must not exceed {ANNOTATION_EXPRESSION_MAX_BYTES} bytes in length"));
    } else if let Err(why) = environment.check(expression, Wanted::TextOrNull, true) {
        problems.invalid(path, expression, why);
    }
}

fn mutation(one: &Fields, path: &str, environment: &mut Environment<'_>, problems: &mut Problems) {
    let sorts = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    let sort = one.text("patchType");
    let Some((_, key)) = sorts.into_iter().find(|(name, _)| *name == sort) else {
        match sort {
            "" => problems.required(format!("{path}.patchType"), ""),
            other => problems.unsupported(format!("{path}.patchType"), other, &["ApplyConfiguration", "JSONPatch"]),
        }
        return;
    };
    for (other, field) in sorts.into_iter().filter(|(_, field)| *field != key && one.child(field).is_some()) {
        let why = format!("{field} is forbidden when patchType is not {other}");
        problems.invalid(format!("{path}.{field}"), Value::from(one[field].to_string()), why);
    }
    let Some(inner) = one.child(key) else {
        problems.required(format!("{path}.{key}"), &format!("must be specified when patchType is {sort}"));
        return;
    };
    let (expression, path) = (inner.text("expression"), format!("{path}.{key}.expression"));
    let wanted = if sort == "JSONPatch" { Wanted::Patch } else { Wanted::Object };
    if expression.trim().is_empty() {
        problems.required(path, "expression is not specified");
    } else if let Err(why) = environment.check(expression, wanted, true) {
        problems.invalid(path, expression, why);
    }
}

pub(crate) fn validating_binding(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    binding(&spec, &mut problems);
    let (path, actions) = ("spec.validationActions", spec.list("validationActions"));
    let mut known = BTreeSet::new();
    for (at, action) in actions.iter().filter_map(Value::as_str).enumerate() {
        if !ACTIONS.contains(&action) {
            problems.unsupported(format!("{path}[{at}]"), action, &ACTIONS);
        }
        if !known.insert(action) {
            problems.duplicate(format!("{path}[{at}]"), action);
        }
    }
    if known.contains("Deny") && known.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        problems.invalid(path, actions.to_vec(), why);
    }
    if known.is_empty() {
        problems.required(path, "at least one validation action is required");
    }
    problems.into_causes()
}

pub(crate) fn mutating_binding(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    binding(&spec(object), &mut problems);
    problems.into_causes()
}

fn binding(spec: &Fields, problems: &mut Problems) {
    match spec.text("policyName") {
        "" => problems.required("spec.policyName", ""),
        name => problems.check_subdomain(name, "spec.policyName"),
    }
    if let Some(resources) = spec.child("matchResources") {
        match_resources(resources, "spec.matchResources", problems);
    }
    let Some(param) = spec.child("paramRef") else { return };
    let (name, path) = (param.text("name"), "spec.paramRef");
    let wrong = NameRule::PathSegment.problems(name, false);
    wrong.into_iter().for_each(|why| problems.invalid(format!("{path}.name"), name, why));
    if let Some(selector) = param.child("selector") {
        problems.check_selector(selector, &format!("{path}.selector"));
        if !name.is_empty() {
            problems.forbidden(format!("{path}.name"), EXCLUSIVE);
            problems.forbidden(format!("{path}.selector"), EXCLUSIVE);
        }
    } else if name.is_empty() {
        problems.required(path, "one of name or selector must be specified");
    }
    problems.check_enum(param, "parameterNotFoundAction", path, &["Deny", "Allow"], true);
}
