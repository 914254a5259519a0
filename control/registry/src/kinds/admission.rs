//! Webhook configurations, admission policies, custom resource definitions, API services.

use serde_json::json;
use tandem_api::Object;

use crate::{
    Hooks, NameRule, columns, custom,
    json::{Fields, FieldsExt},
    validate::{self, admission, webhooks},
};

pub(super) const MUTATING_WEBHOOKS: Hooks = Hooks {
    default: |object| default_webhooks(object, true),
    validate: webhooks::mutating,
    cells: columns::admission::webhooks,
    ..Hooks::NONE
};
pub(super) const VALIDATING_WEBHOOKS: Hooks = Hooks {
    default: |object| default_webhooks(object, false),
    validate: webhooks::validating,
    cells: columns::admission::webhooks,
    ..Hooks::NONE
};
pub(super) const VALIDATING_POLICY: Hooks = Hooks {
    default: default_policy,
    validate: admission::validating_policy,
    cells: columns::admission::validating_policy,
    ..Hooks::NONE
};
pub(super) const MUTATING_POLICY: Hooks = Hooks {
    default: default_policy,
    validate: admission::mutating_policy,
    cells: columns::admission::mutating_policy,
    ..Hooks::NONE
};
pub(super) const VALIDATING_POLICY_BINDING: Hooks = Hooks {
    default: default_policy_binding,
    validate: admission::validating_binding,
    cells: columns::admission::policy_binding,
    ..Hooks::NONE
};
pub(super) const MUTATING_POLICY_BINDING: Hooks = Hooks {
    default: default_policy_binding,
    validate: admission::mutating_binding,
    cells: columns::admission::policy_binding,
    ..Hooks::NONE
};
pub(super) const CUSTOM_RESOURCE: Hooks =
    Hooks { default: default_custom_resource, prepare: custom::prepare, validate: custom::validate, ..Hooks::NONE };
pub(super) const API_SERVICE: Hooks = Hooks {
    default: default_api_service,
    validate: validate::apiservice::api_service,
    cells: columns::admission::api_service,
    name: NameRule::PathSegment,
    ..Hooks::NONE
};

const HTTPS: i64 = 443;

fn default_match(owner: &mut Fields) {
    owner.or_text("matchPolicy", "Equivalent");
    owner.or_set("namespaceSelector", json!({}));
    owner.or_set("objectSelector", json!({}));
}

fn default_scopes(owner: &mut Fields, rules: &str) {
    owner.each_mut(rules).for_each(|rule| rule.or_text("scope", "*"));
}

fn default_service_port(client: Option<&mut Fields>) {
    if let Some(service) = client.and_then(|client| client.child_mut("service")) {
        service.or_set("port", HTTPS);
    }
}

fn default_webhooks(object: &mut Object, mutating: bool) {
    for webhook in object.0.each_mut("webhooks") {
        webhook.or_text("failurePolicy", "Fail");
        default_match(webhook);
        webhook.or_set("timeoutSeconds", 10);
        if mutating {
            webhook.or_text("reinvocationPolicy", "Never");
        }
        default_scopes(webhook, "rules");
        default_service_port(webhook.child_mut("clientConfig"));
    }
}

fn default_constraints(constraints: &mut Fields) {
    default_match(constraints);
    default_scopes(constraints, "resourceRules");
    default_scopes(constraints, "excludeResourceRules");
}

fn default_policy(object: &mut Object) {
    let Some(spec) = object.0.child_mut("spec") else { return };
    spec.or_text("failurePolicy", "Fail");
    if let Some(constraints) = spec.child_mut("matchConstraints") {
        default_constraints(constraints);
    }
}

fn default_policy_binding(object: &mut Object) {
    let resources = object.0.child_mut("spec").and_then(|spec| spec.child_mut("matchResources"));
    if let Some(resources) = resources {
        default_constraints(resources);
    }
}

fn default_custom_resource(object: &mut Object) {
    let Some(spec) = object.0.child_mut("spec") else { return };
    if let Some(names) = spec.child_mut("names") {
        let kind = names.text("kind").to_owned();
        if !kind.is_empty() {
            names.or_text("singular", &kind.to_lowercase());
            names.or_text("listKind", &format!("{kind}List"));
        }
    }
    if let Some(conversion) = spec.child_or_new("conversion") {
        conversion.or_text("strategy", "None");
        default_service_port(conversion.child_mut("webhook").and_then(|webhook| webhook.child_mut("clientConfig")));
    }
}

fn default_api_service(object: &mut Object) {
    default_service_port(object.0.child_mut("spec"));
}
