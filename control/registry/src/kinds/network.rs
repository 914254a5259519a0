//! Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR.

use serde_json::{Value, json};
use tandem_api::Object;

use crate::{Hooks, NameRule, columns, json::FieldsExt, validate};

pub(super) const INGRESS: Hooks = Hooks {
    default: default_ingress,
    validate: validate::network::ingress,
    cells: columns::network::ingress,
    ..Hooks::NONE
};
pub(super) const INGRESS_CLASS: Hooks = Hooks {
    default: default_ingress_class,
    validate: validate::network::ingress_class,
    cells: columns::network::ingress_class,
    ..Hooks::NONE
};
pub(super) const NETWORK_POLICY: Hooks = Hooks {
    default: default_network_policy,
    validate: validate::network::network_policy,
    cells: columns::network::network_policy,
    ..Hooks::NONE
};
pub(super) const IP_ADDRESS: Hooks =
    Hooks { cells: columns::network::ip_address, name: NameRule::IpAddress, ..Hooks::NONE };
pub(super) const SERVICE_CIDR: Hooks = Hooks { cells: columns::network::service_cidr, ..Hooks::NONE };

fn default_ingress(object: &mut Object) {
    if let Some(status) = object.0.child_or_new("status") {
        status.or_set("loadBalancer", json!({}));
    }
}

fn default_ingress_class(object: &mut Object) {
    let parameters = object.0.child_mut("spec").and_then(|spec| spec.child_mut("parameters"));
    if let Some(parameters) = parameters {
        parameters.or_text("scope", "Cluster");
    }
}

fn default_network_policy(object: &mut Object) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    spec.or_set("podSelector", json!({}));
    for direction in ["ingress", "egress"] {
        for rule in spec.each_mut(direction) {
            rule.each_mut("ports").for_each(|port| port.or_text("protocol", "TCP"));
        }
    }
    if spec.list("policyTypes").is_empty() {
        let mut types: Vec<Value> = vec!["Ingress".into()];
        if !spec.list("egress").is_empty() {
            types.push("Egress".into());
        }
        spec.insert("policyTypes".to_owned(), types.into());
    }
}
