//! Autoscalers, disruption budgets, quotas of the API server itself, scheduling, devices, certificates, leases.

use serde_json::json;
use tandem_api::Object;

use super::conversion::{CPU_PERCENT, cpu_target};
use crate::{
    Heartbeat, Hooks, NameRule, columns,
    json::{Fields, FieldsExt},
    validate,
};

pub(super) const AUTOSCALER: Hooks = Hooks {
    default: default_autoscaler,
    validate: validate::autoscaling::autoscaler,
    cells: columns::policy::autoscaler,
    ..Hooks::NONE
};
pub(super) const DISRUPTION_BUDGET: Hooks =
    Hooks { validate: validate::policy::disruption_budget, cells: columns::policy::disruption_budget, ..Hooks::NONE };
pub(super) const PRIORITY_CLASS: Hooks = Hooks {
    default: |object| object.0.or_text("preemptionPolicy", "PreemptLowerPriority"),
    validate: validate::policy::priority_class,
    cells: columns::policy::priority_class,
    ..Hooks::NONE
};
pub(super) const RUNTIME_CLASS: Hooks =
    Hooks { validate: validate::policy::runtime_class, cells: columns::policy::runtime_class, ..Hooks::NONE };
pub(super) const LEASE: Hooks = Hooks {
    validate: validate::policy::lease,
    cells: columns::policy::lease,
    heartbeat: Some(Heartbeat { namespace: "kube-node-lease", field: &["spec", "renewTime"] }),
    ..Hooks::NONE
};
pub(super) const SIGNING_REQUEST: Hooks = Hooks {
    validate: validate::policy::signing_request,
    fields: |request| vec![("spec.signerName", request.str_at(&["spec", "signerName"]).unwrap_or_default().to_owned())],
    cells: columns::policy::signing_request,
    name: NameRule::PathSegment,
    ..Hooks::NONE
};
pub(super) const FLOW_SCHEMA: Hooks =
    Hooks { default: default_flow_schema, cells: columns::policy::flow_schema, ..Hooks::NONE };
pub(super) const PRIORITY_LEVEL: Hooks =
    Hooks { default: default_priority_level, cells: columns::policy::priority_level, ..Hooks::NONE };
pub(super) const RESOURCE_CLAIM: Hooks = Hooks {
    default: |object| default_devices(object.0.child_mut("spec")),
    cells: columns::policy::resource_claim,
    ..Hooks::NONE
};
pub(super) const RESOURCE_CLAIM_TEMPLATE: Hooks = Hooks {
    default: |object| default_devices(object.0.child_mut("spec").and_then(|spec| spec.child_mut("spec"))),
    cells: columns::name_and_age,
    ..Hooks::NONE
};
pub(super) const DEVICE_CLASS: Hooks = Hooks { cells: columns::name_and_age, ..Hooks::NONE };
pub(super) const RESOURCE_SLICE: Hooks = Hooks { cells: columns::policy::resource_slice, ..Hooks::NONE };

fn default_autoscaler(object: &mut Object) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    spec.or_set("minReplicas", 1);
    let is_v1 = object.api_version() == "autoscaling/v1";
    let Some(spec) = object.0.child_or_new("spec").filter(|_| !is_v1) else { return };
    if spec.list("metrics").is_empty() {
        spec.insert("metrics".to_owned(), json!([cpu_target(&CPU_PERCENT.into())]));
    }
    let Some(behavior) = spec.child_mut("behavior") else { return };
    if let Some(up) = behavior.child_or_new("scaleUp") {
        up.or_set("stabilizationWindowSeconds", 0);
        up.or_text("selectPolicy", "Max");
        up.or_set(
            "policies",
            json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
        );
    }
    if let Some(down) = behavior.child_or_new("scaleDown") {
        down.or_text("selectPolicy", "Max");
        down.or_set("policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

fn default_flow_schema(object: &mut Object) {
    if let Some(spec) = object.0.child_mut("spec") {
        spec.or_nonzero("matchingPrecedence", 1000);
    }
}

fn default_priority_level(object: &mut Object) {
    let Some(spec) = object.0.child_mut("spec") else { return };
    if let Some(exempt) = spec.child_mut("exempt") {
        exempt.or_set("nominalConcurrencyShares", 0);
        exempt.or_set("lendablePercent", 0);
    }
    if let Some(limited) = spec.child_mut("limited") {
        limited.or_set("nominalConcurrencyShares", 30);
        limited.or_set("lendablePercent", 0);
        let queuing = limited.child_mut("limitResponse").and_then(|response| response.child_mut("queuing"));
        if let Some(queuing) = queuing {
            queuing.or_nonzero("queues", 64);
            queuing.or_nonzero("handSize", 8);
            queuing.or_nonzero("queueLengthLimit", 50);
        }
    }
}

fn default_devices(spec: Option<&mut Fields>) {
    let Some(devices) = spec.and_then(|spec| spec.child_mut("devices")) else { return };
    let default_request = |request: &mut Fields| {
        request.or_text("allocationMode", "ExactCount");
        if request.text("allocationMode") == "ExactCount" {
            request.or_nonzero("count", 1);
        }
        request.each_mut("tolerations").for_each(|toleration| toleration.or_text("operator", "Equal"));
    };
    for request in devices.each_mut("requests") {
        request.child_mut("exactly").into_iter().for_each(default_request);
        request.each_mut("firstAvailable").for_each(default_request);
    }
}
