//! Which requests the rules and selectors of policies and webhooks are for: pure functions of both.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-rules>

use serde_json::Value;
use tandem_api::{ApiError, Object};
use tandem_registry::{Registry, ResourceDef, selectors::LabelSelector};

const ALL: &str = "*";

/// A resource as rules name it, without its subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    pub(crate) resource: &'a str,
}

impl<'a> Place<'a> {
    pub(crate) fn of(def: &'a ResourceDef) -> Place<'a> {
        Place { group: &def.group, version: &def.version, resource: &def.plural }
    }
}

/// A request as rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub(crate) operation: &'a str,
    pub(crate) place: Place<'a>,
    pub(crate) subresource: &'a str,
    /// Empty where it is yet to be generated.
    pub(crate) name: &'a str,
    /// Empty for what lives in none.
    pub(crate) namespace: &'a str,
}

impl Attributes<'_> {
    fn is_namespace(&self) -> bool {
        self.place.group.is_empty() && self.place.resource == "namespaces"
    }

    fn in_namespace(&self) -> bool {
        !self.namespace.is_empty() && !self.is_namespace()
    }
}

/// `RuleWithOperations`, with the `resourceNames` of a `NamedRuleWithOperations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    /// None for any.
    names: Vec<String>,
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    pub(crate) fn read(rule: &Value) -> Rule {
        Rule {
            operations: texts(rule, "operations"),
            groups: texts(rule, "apiGroups"),
            versions: texts(rule, "apiVersions"),
            resources: texts(rule, "resources"),
            scope: rule.get("scope").and_then(Value::as_str).unwrap_or(ALL).to_owned(),
            names: texts(rule, "resourceNames"),
        }
    }

    /// The rules of a list that is a member of `owner`.
    pub(crate) fn read_all(owner: &Value, key: &str) -> Vec<Rule> {
        owner.get(key).and_then(Value::as_array).into_iter().flatten().map(Rule::read).collect()
    }

    /// Whether the rule is for the request, taken as one for `place`.
    pub(crate) fn matches(&self, asked: &Attributes<'_>, place: Place<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == ALL || one == wanted);
        let scope = match self.scope.as_str() {
            "Namespaced" => asked.in_namespace(),
            "Cluster" => !asked.in_namespace(),
            _ => true,
        };
        scope
            && has(&self.operations, asked.operation)
            && has(&self.groups, place.group)
            && has(&self.versions, place.version)
            && self.resources.iter().any(|pattern| covers(pattern, place.resource, asked.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| name == asked.name))
    }
}

/// `*`, `pods`, `pods/*`, `*/scale`, `*/*`
fn covers(pattern: &str, resource: &str, subresource: &str) -> bool {
    let (mine, below) = pattern.split_once('/').unwrap_or((pattern, ""));
    (mine == ALL || mine == resource) && (below == ALL || below == subresource)
}

/// The resource as which a request matches one of the rules: its own before any of `others`, under which the same
/// objects are served (`matchPolicy: Equivalent`).
pub(crate) fn matched<'a>(rules: &[Rule], asked: &Attributes<'a>, others: &[Place<'a>]) -> Option<Place<'a>> {
    let places = || std::iter::once(asked.place).chain(others.iter().copied());
    rules.iter().find_map(|rule| places().find(|place| rule.matches(asked, *place)))
}

/// The other rows under which the objects of this one are served.
pub(crate) fn equivalents(registry: &Registry, def: &ResourceDef) -> Vec<std::sync::Arc<ResourceDef>> {
    let same = |other: &std::sync::Arc<ResourceDef>| {
        let (mine, its) = (&def.storage, &other.storage);
        (&mine.group, &mine.plural) == (&its.group, &its.plural)
            && (&other.group, &other.version, &other.plural) != (&def.group, &def.version, &def.plural)
    };
    registry.all().into_iter().filter(same).collect()
}

/// What narrows rules down by labels. One that is not there selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selectors {
    pub(crate) namespace: LabelSelector,
    pub(crate) object: LabelSelector,
}

impl Selectors {
    /// Those of a `MatchResources` or a webhook.
    pub(crate) fn read(owner: &Value) -> Result<Selectors, ApiError> {
        let read = |key: &str| LabelSelector::from_value(owner.get(key)).map(Option::unwrap_or_default);
        Ok(Selectors { namespace: read("namespaceSelector")?, object: read("objectSelector")? })
    }

    /// Whether the Namespace of the request must be known.
    pub(crate) fn needs_namespace(&self, asked: &Attributes<'_>) -> bool {
        !self.namespace.is_empty() && (asked.in_namespace() || asked.is_namespace())
    }

    /// `namespace` is the one that the request is in, or is about. What lives in none is always selected.
    pub(crate) fn select_namespace(&self, asked: &Attributes<'_>, namespace: Option<&Object>) -> bool {
        !self.needs_namespace(asked) || namespace.is_some_and(|namespace| self.namespace.matches(namespace))
    }

    /// Either state of the object will do.
    pub(crate) fn select_object(&self, object: Option<&Object>, old: Option<&Object>) -> bool {
        self.object.is_empty() || [object, old].into_iter().flatten().any(|object| self.object.matches(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PODS: Place<'static> = Place { group: "", version: "v1", resource: "pods" };

    fn asked<'a>(place: Place<'a>, subresource: &'a str, namespace: &'a str) -> Attributes<'a> {
        Attributes { operation: "CREATE", place, subresource, name: "web", namespace }
    }

    fn rule(change: &Value) -> Rule {
        let mut rule =
            json!({ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] });
        for (key, value) in change.as_object().unwrap() {
            rule[key] = value.clone();
        }
        Rule::read(&rule)
    }

    #[test]
    fn rules_match_in_each_of_their_parts() {
        let deployments = Place { group: "apps", version: "v1", resource: "deployments" };
        let namespaces = Place { group: "", version: "v1", resource: "namespaces" };
        let nodes = Place { group: "", version: "v1", resource: "nodes" };
        for (change, asked, expected) in [
            (json!({}), asked(PODS, "", "a"), true),
            (json!({}), asked(PODS, "exec", "a"), false),
            (json!({}), asked(deployments, "", "a"), false),
            (json!({ "operations": ["UPDATE", "DELETE"] }), asked(PODS, "", "a"), false),
            (json!({ "operations": ["*"] }), asked(PODS, "", "a"), true),
            (
                json!({ "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"] }),
                asked(deployments, "", "a"),
                true,
            ),
            (
                json!({ "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"] }),
                asked(deployments, "scale", "a"),
                false,
            ),
            (
                json!({ "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"] }),
                asked(deployments, "scale", "a"),
                true,
            ),
            (json!({ "resources": ["pods/*"] }), asked(PODS, "exec", "a"), true),
            (json!({ "resources": ["pods/*"] }), asked(PODS, "", "a"), true),
            (json!({ "resources": ["*/exec"] }), asked(PODS, "exec", "a"), true),
            (json!({ "scope": "Cluster" }), asked(PODS, "", "a"), false),
            (json!({ "scope": "Namespaced" }), asked(PODS, "", "a"), true),
            (json!({ "scope": "Namespaced", "resources": ["*"] }), asked(nodes, "", ""), false),
            (json!({ "scope": "Cluster", "resources": ["*"] }), asked(namespaces, "", "a"), true),
            (json!({ "scope": "Namespaced", "resources": ["*"] }), asked(namespaces, "", "a"), false),
            (json!({ "resourceNames": ["db"] }), asked(PODS, "", "a"), false),
            (json!({ "resourceNames": ["db", "web"] }), asked(PODS, "", "a"), true),
        ] {
            assert_eq!(rule(&change).matches(&asked, asked.place), expected, "{change} {asked:?}");
        }
    }

    #[test]
    fn a_request_matches_as_what_its_object_also_is() {
        let (v1, v2) = (
            Place { group: "example.com", version: "v1", resource: "tabs" },
            Place { group: "example.com", version: "v2", resource: "tabs" },
        );
        let asked = asked(v2, "", "a");
        let rules = [rule(&json!({ "apiGroups": ["example.com"], "resources": ["tabs"] }))];
        assert_eq!(matched(&rules, &asked, &[]), None);
        assert_eq!(matched(&rules, &asked, &[v1]), Some(v1));
        let both = [rule(&json!({ "apiGroups": ["example.com"], "apiVersions": ["*"], "resources": ["tabs"] }))];
        assert_eq!(matched(&both, &asked, &[v1]), Some(v2));
    }

    #[test]
    fn selectors() {
        let object = |labels: &Value| Object::from_value(json!({ "metadata": { "labels": labels } })).unwrap();
        let (red, blue) = (object(&json!({ "color": "red" })), object(&json!({ "color": "blue" })));
        let selector = json!({ "matchLabels": { "color": "red" } });
        let selectors = Selectors::read(&json!({ "namespaceSelector": selector, "objectSelector": selector })).unwrap();
        let nodes = Place { group: "", version: "v1", resource: "nodes" };
        assert!(selectors.select_namespace(&asked(PODS, "", "a"), Some(&red)));
        assert!(!selectors.select_namespace(&asked(PODS, "", "a"), Some(&blue)));
        assert!(!selectors.select_namespace(&asked(PODS, "", "a"), None));
        assert!(selectors.select_namespace(&asked(nodes, "", ""), None));
        assert!(selectors.select_object(Some(&blue), Some(&red)));
        assert!(!selectors.select_object(Some(&blue), None));
        assert!(Selectors::read(&json!({})).unwrap().select_object(None, None));
    }
}
