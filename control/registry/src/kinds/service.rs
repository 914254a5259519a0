//! Service, Endpoints, EndpointSlice.

use serde_json::{Value, json};
use tandem_api::Object;

use crate::{
    Hooks, columns,
    json::{Fields, FieldsExt},
    validate,
};

pub(super) const SERVICE: Hooks = Hooks {
    default: default_service,
    prepare: prepare_service,
    validate: validate::service::service,
    fields: service_fields,
    cells: columns::network::service,
    name: crate::NameRule::Dns1123Label,
    ..Hooks::NONE
};
pub(super) const ENDPOINTS: Hooks = Hooks {
    default: default_endpoints,
    validate: validate::service::endpoints,
    cells: columns::network::endpoints,
    ..Hooks::NONE
};
pub(super) const ENDPOINT_SLICE: Hooks = Hooks {
    default: default_endpoint_slice,
    validate: validate::service::endpoint_slice,
    cells: columns::network::endpoint_slice,
    ..Hooks::NONE
};

const EXTERNAL_NAME: &str = "ExternalName";

fn service_fields(service: &Object) -> Vec<(&'static str, String)> {
    let text = |key: &str| service.str_at(&["spec", key]).unwrap_or_default().to_owned();
    vec![("spec.clusterIP", text("clusterIP")), ("spec.type", text("type"))]
}

fn default_service(object: &mut Object) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    spec.or_text("sessionAffinity", "None");
    match spec.text("sessionAffinity") {
        "None" => {
            spec.shift_remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let config = spec.child_or_new("sessionAffinityConfig");
            if let Some(client) = config.and_then(|config| config.child_or_new("clientIP")) {
                client.or_set("timeoutSeconds", 10_800);
            }
        }
        _ => {}
    }
    spec.or_text("type", "ClusterIP");
    for port in spec.each_mut("ports") {
        port.or_text("protocol", "TCP");
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null)) || port["targetPort"] == json!(0);
        if (unset || port["targetPort"] == json!(""))
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let kind = spec.text("type").to_owned();
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if outside || (kind == "ClusterIP" && !spec.list("externalIPs").is_empty()) {
        spec.or_text("externalTrafficPolicy", "Cluster");
    }
    if outside || kind == "ClusterIP" {
        spec.or_text("internalTrafficPolicy", "Cluster");
        spec.or_text("ipFamilyPolicy", "SingleStack");
        spec.or_set("ipFamilies", json!(["IPv4"]));
    }
    if kind == "LoadBalancer" {
        spec.or_set("allocateLoadBalancerNodePorts", true);
    }
    let status = object.0.child_or_new("status");
    if let Some(balancer) = status.and_then(|status| status.child_or_new("loadBalancer")) {
        balancer.each_mut("ingress").filter(|ingress| !ingress.text("ip").is_empty()).for_each(|ingress| {
            ingress.or_text("ipMode", "VIP");
        });
    }
}

/// On update, what was allocated stays although the writer left it out, and what no longer fits the type goes.
fn prepare_service(object: &mut Object, old: Option<&Object>) {
    let Some(old) = old else {
        object.set(&["status", "loadBalancer"], Fields::new());
        return;
    };
    let (Some(old), Some(spec)) = (old.0.child("spec"), object.0.child_mut("spec")) else { return };
    keep_allocated(spec, old);
    drop_unfit(spec, old);
}

fn has_cluster_ip(spec: &Fields) -> bool {
    matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(spec: &Fields) -> bool {
    matches!(spec.text("type"), "NodePort" | "LoadBalancer")
}

fn keep_allocated(spec: &mut Fields, old: &Fields) {
    if has_cluster_ip(spec) && has_cluster_ip(old) {
        for key in ["clusterIP", "clusterIPs"] {
            let empty = spec.text(key).is_empty() && spec.list(key).is_empty();
            if let (true, Some(allocated)) = (empty, old.get(key)) {
                spec.insert(key.to_owned(), allocated.clone());
            }
        }
    }
    if has_node_ports(spec) && has_node_ports(old) {
        for port in spec.each_mut("ports") {
            let same = |other: &&Fields| {
                other.int("port") == port.int("port") && other.text("protocol") == port.text("protocol")
            };
            let allocated = old.each("ports").find(same).and_then(|other| other.int("nodePort"));
            port.or_nonzero("nodePort", allocated.unwrap_or_default());
            if port.int("nodePort") == Some(0) {
                port.shift_remove("nodePort");
            }
        }
    }
}

fn drop_unfit(spec: &mut Fields, old: &Fields) {
    let unchanged = |spec: &Fields, key: &str| spec.get(key) == old.get(key);
    if !has_cluster_ip(spec) && has_cluster_ip(old) {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if unchanged(spec, key) || spec.text("type") == EXTERNAL_NAME && key != "clusterIP" {
                spec.shift_remove(key);
            }
        }
    }
    if !has_node_ports(spec) && has_node_ports(old) {
        for port in spec.each_mut("ports") {
            let kept = old.each("ports").any(|other| other.get("nodePort") == port.get("nodePort"));
            if kept {
                port.shift_remove("nodePort");
            }
        }
        if spec.list("externalIPs").is_empty() && unchanged(spec, "externalTrafficPolicy") {
            spec.shift_remove("externalTrafficPolicy");
        }
    }
    if spec.text("type") != "LoadBalancer" && old.text("type") == "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            if unchanged(spec, key) {
                spec.shift_remove(key);
            }
        }
    }
}

fn default_endpoints(object: &mut Object) {
    for subset in object.0.each_mut("subsets") {
        subset.each_mut("ports").for_each(|port| port.or_text("protocol", "TCP"));
    }
}

fn default_endpoint_slice(object: &mut Object) {
    for port in object.0.each_mut("ports") {
        port.or_set("name", "");
        port.or_text("protocol", "TCP");
    }
}
