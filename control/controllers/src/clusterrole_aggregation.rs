//! ClusterRoles that are the sum of others, chosen by labels.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::rbac::v1::{ClusterRole, PolicyRule},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan},
    object,
};

pub(crate) struct AggregatedRoles;

#[derive(Debug)]
pub(crate) struct View {
    role: Arc<ClusterRole>,
    /// All roles, in the order of their names.
    roles: Vec<Arc<ClusterRole>>,
}

fn selectors_of(role: &ClusterRole) -> &[LabelSelector] {
    let rule = role.aggregation_rule.as_ref();
    rule.and_then(|rule| rule.cluster_role_selectors.as_deref()).unwrap_or_default()
}

impl Controller for AggregatedRoles {
    type Parent = ClusterRole;
    type View = View;

    const NAME: &'static str = "clusterrole-aggregation";
    const READS: &'static [&'static str] = &["ClusterRole"];

    fn store(cache: &Cache) -> &Store<ClusterRole> {
        &cache.cluster_roles
    }

    /// Any role may be part of any sum.
    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let Change::ClusterRole(_) = change else { return Vec::new() };
        let sums = cache.cluster_roles.all().into_iter().filter(|role| role.aggregation_rule.is_some());
        sums.map(|role| Key::of(&role.metadata)).collect()
    }

    async fn view(&self, input: &Input<'_>, role: Arc<ClusterRole>) -> Result<View, Error> {
        Ok(View { role, roles: input.cache.cluster_roles.all() })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        let View { role, roles } = view;
        if role.aggregation_rule.is_none() || object::is_deleting(&role.metadata) {
            return Plan::default();
        }
        let rules = sum(role, roles);
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Plan::default();
        }
        Plan::of(vec![Action::update(ClusterRole { rules: Some(rules), ..(**role).clone() })])
    }
}

/// The rules of the chosen roles, selector by selector, each once.
fn sum(role: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors_of(role) {
        let selector = object::selector(selector);
        let chosen = roles.iter().filter(|other| {
            other.metadata.name != role.metadata.name && object::matches(selector.as_ref(), &other.metadata)
        });
        for rule in chosen.flat_map(|other| other.rules.as_deref().unwrap_or_default()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use kube::api::ObjectMeta;

    use super::*;
    use crate::action::testing::describe;

    fn rule(resource: &str) -> PolicyRule {
        PolicyRule { resources: Some(vec![resource.into()]), verbs: vec!["get".into()], ..PolicyRule::default() }
    }

    fn role(name: &str, label: &str, rules: &[&str]) -> ClusterRole {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            labels: Some([(label.into(), "true".into())].into()),
            ..ObjectMeta::default()
        };
        ClusterRole { metadata, rules: Some(rules.iter().map(|name| rule(name)).collect()), ..ClusterRole::default() }
    }

    fn check(held: &[&str], parts: &[ClusterRole], expected: &str) {
        let mut total = role("admin", "other", held);
        let selector = LabelSelector {
            match_labels: Some([("to-admin".into(), "true".into())].into()),
            ..LabelSelector::default()
        };
        total.aggregation_rule = Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) });
        let roles = parts.iter().cloned().chain([total.clone()]).map(Arc::new).collect();
        let plan = AggregatedRoles::plan(&View { role: Arc::new(total), roles }, Timestamp::UNIX_EPOCH);
        let found = describe(&plan, |action| {
            let rules = action.object::<ClusterRole>().unwrap().rules.iter().flatten();
            rules.flat_map(|rule| rule.resources.iter().flatten()).cloned().collect::<Vec<_>>().join(" ")
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_sum_has_the_rules_of_the_roles_that_it_selects_once_each() {
        let parts = [role("a", "to-admin", &["pods", "jobs"]), role("b", "to-admin", &["jobs", "secrets"])];
        check(&[], &parts, "update ClusterRole admin pods jobs secrets\n");
        check(&["pods", "jobs", "secrets"], &parts, "");
        check(&["pods"], &[role("c", "to-view", &["pods"])], "update ClusterRole admin\n");
    }

    #[test]
    fn a_role_without_a_rule_of_aggregation_is_left_alone() {
        let plain = Arc::new(role("plain", "to-admin", &["pods"]));
        let view = View { role: plain.clone(), roles: vec![plain] };
        assert!(AggregatedRoles::plan(&view, Timestamp::UNIX_EPOCH).actions.is_empty());
    }
}
