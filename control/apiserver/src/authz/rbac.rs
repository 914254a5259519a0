//! Role-based access control: what roles and their bindings grant, as a pure function of both.
//!
//! The rules are those of <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use tandem_api::{Identity, Key};

use super::{Attributes, rules};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
const ALL: &str = "*";

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PolicyRule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) paths: Vec<String>,
}

/// The part of a Role or ClusterRole that grants.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Role {
    pub(crate) rules: Arc<[PolicyRule]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Binding {
    pub(crate) role_ref: RoleRef,
    subjects: Vec<Subject>,
}

impl Subject {
    /// A ServiceAccount without a namespace is one of the binding's.
    fn is(&self, identity: &Identity, binding: Option<&str>) -> bool {
        let place = if self.namespace.is_empty() { binding.unwrap_or_default() } else { &self.namespace };
        match self.kind.as_str() {
            "User" => self.name == identity.name,
            "Group" => identity.in_group(&self.name),
            "ServiceAccount" => identity
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|(namespace, name)| !place.is_empty() && namespace == place && name == self.name),
            _ => false,
        }
    }
}

impl RoleRef {
    /// Where the role is stored. A binding within a namespace may name a role of it, or a cluster role.
    pub(crate) fn key(&self, namespace: Option<&str>) -> Key {
        match (self.kind.as_str(), namespace) {
            ("Role", Some(namespace)) => Key::object(GROUP, "roles", Some(namespace), &self.name),
            _ => Key::object(GROUP, "clusterroles", None, &self.name),
        }
    }
}

/// Every role and binding that there is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    pub(super) roles: BTreeMap<Key, Role>,
    pub(super) bindings: BTreeMap<Key, Binding>,
}

impl Grants {
    pub(crate) fn rules_of_role(&self, role: &RoleRef, namespace: Option<&str>) -> Option<&[PolicyRule]> {
        self.roles.get(&role.key(namespace)).map(|role| &*role.rules)
    }

    /// What an identity holds in a namespace (with what it holds everywhere), or at the cluster scope.
    pub(crate) fn rules_of<'a>(
        &'a self,
        identity: &'a Identity,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a PolicyRule> {
        let everywhere = self.bound(Key::prefix(GROUP, "clusterrolebindings", None), identity, None);
        let there = namespace.filter(|namespace| !namespace.is_empty()).map(|namespace| {
            self.bound(Key::prefix(GROUP, "rolebindings", Some(namespace)), identity, Some(namespace))
        });
        everywhere.chain(there.into_iter().flatten())
    }

    fn bound<'a>(
        &'a self,
        prefix: Key,
        identity: &'a Identity,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a PolicyRule> {
        self.bindings
            .range(prefix.clone()..)
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .filter(move |(_, binding)| binding.subjects.iter().any(|subject| subject.is(identity, namespace)))
            .filter_map(move |(_, binding)| self.rules_of_role(&binding.role_ref, namespace))
            .flatten()
    }

    pub(crate) fn allow(&self, identity: &Identity, asked: &Attributes) -> bool {
        self.rules_of(identity, asked.namespace.as_deref()).any(|rule| rule.allows(asked))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|mine| mine == ALL || mine == wanted)
}

/// `*` is every resource, `*/status` a subresource of every resource.
fn has_resource(list: &[String], wanted: &str) -> bool {
    let subresource = wanted.split_once('/').map(|(_, subresource)| subresource);
    has(list, wanted)
        || subresource.is_some_and(|subresource| {
            list.iter().any(|mine| mine.strip_prefix("*/").is_some_and(|sub| sub == subresource))
        })
}

impl PolicyRule {
    fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if asked.is_path() {
            return self.paths.iter().any(|path| path == ALL || rules::covers(path, &asked.path));
        }
        let named = || asked.name.as_ref().is_some_and(|name| self.resource_names.contains(name));
        has(&self.api_groups, &asked.group)
            && has_resource(&self.resources, &asked.resource)
            && (self.resource_names.is_empty() || named())
    }

    /// Whether this rule alone grants everything that `part`, a rule of one verb on one thing, grants.
    fn includes(&self, part: &PolicyRule) -> bool {
        let each = |wanted: &[String], holds: &dyn Fn(&str) -> bool| wanted.iter().all(|wanted| holds(wanted));
        let names = self.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part.resource_names.iter().all(|name| self.resource_names.contains(name)));
        each(&part.verbs, &|verb| has(&self.verbs, verb))
            && each(&part.api_groups, &|group| has(&self.api_groups, group))
            && each(&part.resources, &|resource| has_resource(&self.resources, resource))
            && each(&part.paths, &|path| self.paths.iter().any(|mine| mine == ALL || rules::covers(mine, path)))
            && names
    }

    /// The rule as rules of one verb on one thing each.
    fn parts(&self) -> Vec<PolicyRule> {
        let one = |text: &String| vec![text.clone()];
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for path in &self.paths {
                parts.push(PolicyRule { verbs: one(verb), paths: one(path), ..PolicyRule::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let names: Vec<Vec<String>> = match self.resource_names.as_slice() {
                        [] => vec![Vec::new()],
                        names => names.iter().map(one).collect(),
                    };
                    parts.extend(names.into_iter().map(|resource_names| PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        resource_names,
                        paths: Vec::new(),
                    }));
                }
            }
        }
        parts
    }

    /// As Kubernetes prints a rule that is missing.
    pub(crate) fn describe(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.paths),
            ("Verbs", &self.verbs),
        ];
        let said = parts.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| format!("{name}:{list:?}"));
        format!("{{{}}}", said.collect::<Vec<_>>().join(", "))
    }
}

/// What of `wanted` no rule of `held` grants, verb by verb. Nobody may hand out what he does not hold.
pub(crate) fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let parts = wanted.iter().flat_map(PolicyRule::parts);
    parts.filter(|part| !held.iter().any(|rule| rule.includes(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, group: &str, resources: &str, names: &str) -> PolicyRule {
        let list = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        PolicyRule {
            verbs: list(verbs),
            api_groups: vec![group.to_owned()],
            resources: list(resources),
            resource_names: list(names),
            paths: Vec::new(),
        }
    }

    fn grants(namespace: Option<&str>, role: &RoleRef, rules: Vec<PolicyRule>, subject: (&str, &str, &str)) -> Grants {
        let (kind, space, name) = subject;
        let subject = Subject { kind: kind.to_owned(), name: name.to_owned(), namespace: space.to_owned() };
        let binding = Binding { role_ref: role.clone(), subjects: vec![subject] };
        let resource = if namespace.is_some() { "rolebindings" } else { "clusterrolebindings" };
        Grants {
            roles: [(role.key(namespace), Role { rules: rules.into() })].into(),
            bindings: [(Key::object(GROUP, resource, namespace, "b"), binding)].into(),
        }
    }

    fn role(kind: &str) -> RoleRef {
        RoleRef { kind: kind.to_owned(), name: "r".to_owned() }
    }

    fn asked(verb: &str, resource: &str, namespace: Option<&str>, name: Option<&str>) -> Attributes {
        Attributes::resource(verb, "", resource, namespace, name)
    }

    #[test]
    fn a_role_counts_in_its_namespace_only() {
        let jane = Identity::user("jane", &["devs"]);
        for (kind, subject) in [("Role", ("User", "", "jane")), ("ClusterRole", ("Group", "", "devs"))] {
            let grants = grants(Some("a"), &role(kind), vec![rule("get list", "", "pods", "")], subject);
            assert!(grants.allow(&jane, &asked("get", "pods", Some("a"), Some("x"))));
            assert!(!grants.allow(&jane, &asked("get", "pods", Some("ab"), Some("x"))));
            assert!(!grants.allow(&jane, &asked("list", "pods", None, None)));
            assert!(!grants.allow(&jane, &asked("get", "pods/log", Some("a"), Some("x"))));
            assert!(!grants.allow(&jane, &asked("delete", "pods", Some("a"), Some("x"))));
            assert!(!grants.allow(&Identity::user("joe", &[]), &asked("get", "pods", Some("a"), None)));
        }
    }

    #[test]
    fn a_cluster_binding_counts_everywhere() {
        let account = Identity::service_account("kube-system", "robot");
        let rules = vec![rule("*", "*", "*/status deployments", "")];
        let grants = grants(None, &role("ClusterRole"), rules, ("ServiceAccount", "kube-system", "robot"));
        assert!(grants.allow(&account, &asked("update", "pods/status", Some("a"), None)));
        assert!(grants.allow(&account, &Attributes::resource("get", "apps", "deployments", None, None)));
        assert!(!grants.allow(&account, &asked("get", "pods", None, None)));
        assert!(
            !grants.allow(&Identity::service_account("default", "robot"), &asked("get", "pods/status", None, None))
        );
    }

    #[test]
    fn an_account_without_a_namespace_is_one_of_the_bindings() {
        let rules = || vec![rule("get", "", "pods", "")];
        let pods = asked("get", "pods", Some("a"), None);
        let within = grants(Some("a"), &role("Role"), rules(), ("ServiceAccount", "", "robot"));
        assert!(within.allow(&Identity::service_account("a", "robot"), &pods));
        assert!(!within.allow(&Identity::service_account("b", "robot"), &pods));
        let everywhere = grants(None, &role("ClusterRole"), rules(), ("ServiceAccount", "", "robot"));
        for namespace in ["a", ""] {
            assert!(!everywhere.allow(&Identity::service_account(namespace, "robot"), &pods));
        }
    }

    #[test]
    fn names_narrow_a_rule() {
        let jane = Identity::user("jane", &[]);
        let rules = vec![rule("get list", "", "secrets", "one two")];
        let grants = grants(Some("a"), &role("Role"), rules, ("User", "", "jane"));
        assert!(grants.allow(&jane, &asked("get", "secrets", Some("a"), Some("two"))));
        assert!(!grants.allow(&jane, &asked("get", "secrets", Some("a"), Some("three"))));
        assert!(!grants.allow(&jane, &asked("list", "secrets", Some("a"), None)));
    }

    #[test]
    fn paths() {
        let jane = Identity::user("jane", &[]);
        let rules = vec![PolicyRule {
            verbs: vec!["get".to_owned()],
            paths: vec!["/metrics".to_owned(), "/logs/*".to_owned()],
            ..PolicyRule::default()
        }];
        let grants = grants(None, &role("ClusterRole"), rules, ("User", "", "jane"));
        let path = |path: &str| Attributes { verb: "get".to_owned(), path: path.to_owned(), ..Attributes::default() };
        assert!(grants.allow(&jane, &path("/metrics")) && grants.allow(&jane, &path("/logs/a/b")));
        assert!(!grants.allow(&jane, &path("/metrics/x")) && !grants.allow(&jane, &path("/other")));
    }

    #[test]
    fn a_binding_to_a_role_that_is_not_there_grants_nothing() {
        let mut grants = grants(Some("a"), &role("Role"), vec![rule("*", "*", "*", "")], ("User", "", "jane"));
        grants.roles.clear();
        assert!(!grants.allow(&Identity::user("jane", &[]), &asked("get", "pods", Some("a"), None)));
    }

    #[test]
    fn what_is_missing() {
        let check = |held: &[PolicyRule], wanted: PolicyRule, expected: &[&str]| {
            let missing: Vec<String> = missing(held, &[wanted]).iter().map(PolicyRule::describe).collect();
            assert_eq!(missing, expected);
        };
        let held =
            [rule("get list", "", "pods services", ""), rule("watch", "", "*", ""), rule("get", "", "secrets", "a")];
        check(&held, rule("get watch", "", "pods", ""), &[]);
        check(&held, rule("list", "", "pods", "only-one"), &[]);
        check(
            &held,
            rule("get delete", "", "services", ""),
            &[r#"{APIGroups:[""], Resources:["services"], Verbs:["delete"]}"#],
        );
        check(&held, rule("get", "", "secrets", "a"), &[]);
        check(&held, rule("get", "", "secrets", ""), &[r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#]);
        check(&held, rule("*", "", "pods", ""), &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#]);
        check(&[rule("*", "*", "*", "")], rule("*", "apps", "deployments/scale", ""), &[]);
    }
}
