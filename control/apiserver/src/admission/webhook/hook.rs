//! One webhook of a configuration, made ready: what it is asked about. All is pure.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tandem_api::Object;
use tandem_cel::{Budget, Error, Patterns, Program, Value as Operand};
use tandem_registry::{selectors::LabelSelector, validate::webhooks};

use crate::{admission::Operation, webhook::ClientConfig};

/// What the conditions of one webhook may cost for one request, in steps.
const CONDITION_STEPS: u64 = 2_500_000;
const TIMEOUT_DEFAULT_SECONDS: u64 = 10;
const TIMEOUT_MAX_SECONDS: u64 = 30;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Given {
    name: String,
    client_config: ClientConfig,
    rules: Vec<Rule>,
    failure_policy: String,
    match_policy: String,
    namespace_selector: Value,
    object_selector: Value,
    side_effects: String,
    timeout_seconds: Option<u64>,
    admission_review_versions: Vec<String>,
    reinvocation_policy: String,
    match_conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    name: String,
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    scope: Option<String>,
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    pub(super) group: &'a str,
    pub(super) version: &'a str,
    pub(super) resource: &'a str,
    pub(super) subresource: &'a str,
    pub(super) is_namespaced: bool,
}

impl Rule {
    pub(super) fn matches(&self, asked: &Asked<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        has(&self.operations, asked.operation.as_str())
            && has(&self.api_groups, asked.group)
            && has(&self.api_versions, asked.version)
            && self.resources.iter().any(|one| is_resource(one, asked))
            && match self.scope.as_deref() {
                Some("Namespaced") => asked.is_namespaced,
                Some("Cluster") => !asked.is_namespaced,
                _ => true,
            }
    }
}

fn is_resource(text: &str, asked: &Asked<'_>) -> bool {
    let (resource, sub) = text.split_once('/').unwrap_or((text, ""));
    (resource == "*" || resource == asked.resource) && (sub == "*" || sub == asked.subresource)
}

/// A webhook, ready to be asked.
#[derive(Debug)]
pub(crate) struct Hook {
    /// Which one it is, among all.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) client: ClientConfig,
    pub(super) patience: Duration,
    pub(super) review_version: &'static str,
    /// Whether a request fails where the webhook cannot be asked.
    pub(super) is_required: bool,
    /// Whether it is asked about other versions of what it names, in the version that it names.
    pub(super) takes_equivalents: bool,
    /// Whether it may be asked in a dry run.
    pub(super) is_harmless: bool,
    pub(super) is_reinvoked: bool,
    rules: Vec<Rule>,
    pub(super) namespaces: LabelSelector,
    objects: LabelSelector,
    conditions: Vec<(String, Result<Program, String>)>,
}

impl Hook {
    /// The webhooks of a configuration, in its order.
    pub(super) fn all(configuration: &Object) -> Result<Vec<Hook>, String> {
        let one = |(at, given): (usize, &Value)| {
            let given: Given = serde_json::from_value(given.clone()).map_err(|why| why.to_string())?;
            Hook::new(format!("{}/{at}", configuration.name()), given)
        };
        configuration.array_at(&["webhooks"]).iter().enumerate().map(one).collect()
    }

    fn new(id: String, given: Given) -> Result<Hook, String> {
        // A selector that is left out selects everything.
        let selector = |value: &Value| {
            LabelSelector::from_value(Some(value)).map(Option::unwrap_or_default).map_err(|error| error.message)
        };
        let seconds = given.timeout_seconds.unwrap_or(TIMEOUT_DEFAULT_SECONDS).clamp(1, TIMEOUT_MAX_SECONDS);
        let is_v1 = given.admission_review_versions.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
        let mut patterns = Patterns::new(webhooks::CONDITION_PATTERNS_BYTES);
        let mut compile = |condition: Condition| {
            let program = webhooks::condition_program(&condition.expression, &mut patterns);
            (condition.name, program)
        };
        Ok(Hook {
            id,
            patience: Duration::from_secs(seconds),
            review_version: if is_v1.is_some_and(|version| version == "v1beta1") { "v1beta1" } else { "v1" },
            is_required: given.failure_policy != "Ignore",
            takes_equivalents: given.match_policy != "Exact",
            is_harmless: matches!(given.side_effects.as_str(), "None" | "NoneOnDryRun"),
            is_reinvoked: given.reinvocation_policy == "IfNeeded",
            rules: given.rules,
            namespaces: selector(&given.namespace_selector)?,
            objects: selector(&given.object_selector)?,
            conditions: given.match_conditions.into_iter().map(&mut compile).collect(),
            name: given.name,
            client: given.client_config,
        })
    }

    pub(super) fn names(&self, asked: &Asked<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(asked))
    }

    /// Whether the object, as it is or as it was, has the labels that are asked for. What has no metadata has no labels.
    pub(super) fn selects(&self, object: Option<&Object>, old: Option<&Object>) -> bool {
        let selected = |object: &Object| object.at(&["metadata"]).is_some() && self.objects.matches(object);
        self.objects.is_empty() || object.is_some_and(selected) || old.is_some_and(selected)
    }

    /// Whether all conditions hold. One that does not outweighs those that cannot be told.
    pub(super) fn conditions_hold(&self, request: &Value, object: &Value, old: &Value) -> Result<bool, String> {
        let budget = Budget::new(CONDITION_STEPS);
        let variables = [("request", request), ("object", object), ("oldObject", old)]
            .map(|(name, value)| (name, Operand::from_json(value)));
        let mut failures = Vec::new();
        for (name, program) in &self.conditions {
            let result = match program {
                Ok(program) => program.evaluate(&variables, &budget).map_err(|error| error.to_string()),
                Err(why) => Err(Error::Syntax(why.clone()).to_string()),
            };
            match result.map(|value| value.as_bool()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Ok(None) => failures.push(format!("match condition {name:?} does not evaluate to bool")),
                Err(why) => failures.push(format!("match condition {name:?}: {why}")),
            }
        }
        if failures.is_empty() { Ok(true) } else { Err(failures.join("; ")) }
    }

    pub(super) fn has_conditions(&self) -> bool {
        !self.conditions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hook(over: Value) -> Hook {
        let mut hook = json!({ "name": "a.b.c" });
        for (key, value) in over.as_object().unwrap() {
            hook[key] = value.clone();
        }
        let configuration = json!({ "metadata": { "name": "x" }, "webhooks": [hook] });
        Hook::all(&Object::from_value(configuration).unwrap()).unwrap().pop().unwrap()
    }

    #[test]
    fn rules() {
        use Operation::{Connect, Create, Delete, Update};
        let check = |rule: [&str; 5], asked: (Operation, &str, &str, bool), expected: bool| {
            let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
            let [operations, groups, versions, resources, scope] = rule;
            let rule = Rule {
                operations: list(operations),
                api_groups: list(groups),
                api_versions: list(versions),
                resources: list(resources),
                scope: Some(scope.to_owned()),
            };
            let (operation, group_version, resource, is_namespaced) = asked;
            let (group, version) = group_version.split_once('/').unwrap();
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let asked = Asked { operation, group, version, resource, subresource, is_namespaced };
            assert_eq!(rule.matches(&asked), expected, "{rule:?} {asked:?}");
        };
        let pods = ["CREATE,UPDATE", "", "v1", "pods", "*"];
        check(pods, (Create, "/v1", "pods", true), true);
        check(pods, (Delete, "/v1", "pods", true), false);
        check(pods, (Create, "apps/v1", "pods", true), false);
        check(pods, (Create, "/v2", "pods", true), false);
        check(pods, (Update, "/v1", "pods/status", true), false);
        check(["*", "*", "*", "*", "*"], (Connect, "e.com/v1", "tabs", true), true);
        check(["*", "*", "*", "*", "*"], (Connect, "e.com/v1", "tabs/status", true), false);
        check(["*", "*", "*", "*/*", "*"], (Update, "e.com/v1", "tabs/status", true), true);
        check(["*", "*", "*", "*/scale", "*"], (Update, "apps/v1", "deployments/scale", true), true);
        check(["*", "*", "*", "*/scale", "*"], (Update, "apps/v1", "deployments", true), false);
        check(["CONNECT", "", "v1", "pods/attach,pods/exec", "*"], (Connect, "/v1", "pods/attach", true), true);
        check(["*", "", "*", "pods/*", "*"], (Create, "/v1", "pods", true), true);
        check(["*", "", "*", "*", "Cluster"], (Create, "/v1", "pods", true), false);
        check(["*", "", "*", "*", "Cluster"], (Create, "/v1", "namespaces", false), true);
        check(["*", "", "*", "*", "Namespaced"], (Create, "/v1", "namespaces", false), false);
    }

    #[test]
    fn selectors_look_at_both_objects() {
        let hook = hook(json!({ "objectSelector": { "matchLabels": { "a": "b" } } }));
        let labelled = Object::from_value(json!({ "metadata": { "labels": { "a": "b" } } })).unwrap();
        let other = Object::from_value(json!({ "metadata": {} })).unwrap();
        assert!(hook.selects(Some(&labelled), None) && hook.selects(Some(&other), Some(&labelled)));
        assert!(!hook.selects(Some(&other), None) && !hook.selects(None, None));
        assert!(super::tests::hook(json!({})).selects(None, None));
    }

    #[test]
    fn conditions() {
        let check = |expressions: &[&str], expected: Result<bool, &str>| {
            let conditions: Vec<Value> =
                expressions.iter().map(|text| json!({ "name": "c", "expression": text })).collect();
            let hook = hook(json!({ "matchConditions": conditions }));
            let object = json!({ "metadata": { "name": "x" } });
            let held = hook.conditions_hold(&json!({ "operation": "CREATE" }), &object, &Value::Null);
            assert_eq!(held.as_ref().map_err(String::as_str).copied(), expected, "{expressions:?}");
        };
        check(&[], Ok(true));
        check(&["object.metadata.name == 'x'", "request.operation == 'CREATE' && oldObject == null"], Ok(true));
        check(&["object.metadata.name != 'x'"], Ok(false));
        check(&["object.metadata.name == 'x'", "has(object.none.x)", "false"], Ok(false));
        check(&["object.none.x == 1"], Err("match condition \"c\": no such key: none"));
        check(&["'text'"], Err("match condition \"c\" does not evaluate to bool"));
    }

    #[test]
    fn defaults() {
        let plain = hook(json!({}));
        assert!(plain.is_required && plain.takes_equivalents && !plain.is_harmless && !plain.is_reinvoked);
        assert_eq!((plain.patience.as_secs(), plain.review_version), (10, "v1"));
        assert_eq!(hook(json!({ "admissionReviewVersions": ["v9", "v1beta1", "v1"] })).review_version, "v1beta1");
    }
}
