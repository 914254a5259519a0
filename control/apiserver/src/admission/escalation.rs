use std::sync::Arc;

use tandem_api::{ApiError, Identity, Object, groups};

use super::{Operation, Request};
use crate::{
    authz::{
        self, Attributes, Decision,
        rbac::{self, GROUP, Grants, PolicyRule, Role, RoleRef},
    },
    core::Core,
};

/// Nobody may hand out rights that he does not hold, by a role or by a binding to one, unless he is allowed to
/// (`escalate` on the role, `bind` on the role that is bound).
///
/// <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>
pub(super) async fn prevent(
    core: &Core,
    request: &Request<'_>,
    object: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    if request.operation == Operation::Delete
        || request.def.group != GROUP
        || request.identity.in_group(groups::MASTERS)
    {
        return Ok(());
    }
    match request.def.plural.as_str() {
        "roles" | "clusterroles" => role(core, request, object, old).await,
        _ => binding(core, request, object).await,
    }
}

async fn role(core: &Core, request: &Request<'_>, object: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let unchanged = |path: &[&str]| old.is_some_and(|old| old.at(path) == object.at(path));
    let aggregates = object.at(&["aggregationRule"]).is_some();
    if unchanged(&["rules"]) && unchanged(&["aggregationRule"]) {
        return Ok(());
    }
    if may(core, request, "escalate", &request.def.plural, object.name()).await? {
        return Ok(());
    }
    let grants = core.grants.grants(core).await?;
    if aggregates && !unchanged(&["aggregationRule"]) {
        let all = || vec!["*".to_owned()];
        let everything = [
            PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() },
            PolicyRule { verbs: all(), paths: all(), ..PolicyRule::default() },
        ];
        if !rbac::missing(&held(&grants, request), &everything).is_empty() {
            return Err(
                request.forbidden(object.name(), "must have cluster-admin privileges to use the aggregationRule")
            );
        }
    }
    let role: Role = read(object)?;
    confirm(request, object, &grants, &role.rules)
}

async fn binding(core: &Core, request: &Request<'_>, object: &Object) -> Result<(), ApiError> {
    let reference: RoleRef = match object.at(&["roleRef"]) {
        Some(value) => {
            serde_json::from_value(value.clone()).map_err(|error| ApiError::bad_request(error.to_string()))?
        }
        None => return Ok(()),
    };
    let resource = if reference.kind == "Role" { "roles" } else { "clusterroles" };
    if may(core, request, "bind", resource, &reference.name).await? {
        return Ok(());
    }
    let grants = core.grants.grants(core).await?;
    let Some(rules) = grants.rules_of_role(&reference, request.namespace) else {
        return Err(ApiError::not_found(GROUP, resource, &reference.name));
    };
    confirm(request, object, &grants, rules)
}

async fn may(core: &Core, request: &Request<'_>, verb: &str, resource: &str, name: &str) -> Result<bool, ApiError> {
    let asked = Attributes::resource(verb, GROUP, resource, request.namespace, Some(name));
    Ok(authz::decide(core, request.identity, &asked).await? == Decision::Allowed)
}

fn held(grants: &Arc<Grants>, request: &Request<'_>) -> Vec<PolicyRule> {
    let compiled_in = authz::rules_of(request.identity)
        .filter(|rule| rule.namespace.is_none_or(|namespace| request.namespace == Some(namespace)));
    let granted = grants.rules_of(request.identity, request.namespace).cloned();
    granted.chain(compiled_in.map(PolicyRule::from)).collect()
}

fn confirm(request: &Request<'_>, object: &Object, grants: &Arc<Grants>, rules: &[PolicyRule]) -> Result<(), ApiError> {
    let missing = rbac::missing(&held(grants, request), rules);
    if missing.is_empty() {
        return Ok(());
    }
    let Identity { name, groups, .. } = request.identity;
    let listed: Vec<String> = missing.iter().map(PolicyRule::describe).collect();
    let why = format!(
        "user {name:?} (groups={groups:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        listed.join("\n")
    );
    Err(request.forbidden(object.name(), why))
}

fn read(object: &Object) -> Result<Role, ApiError> {
    serde_json::from_slice(&object.to_vec()).map_err(|error| ApiError::bad_request(error.to_string()))
}
