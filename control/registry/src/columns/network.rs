//! Cells of services, endpoints and what routes to them.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{
    age, part,
    text::{NONE, UNSET, first_few, join, or, scalar, selector, strings},
};
use crate::json::{Fields, FieldsExt};

pub(crate) fn service(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let ports: Vec<String> = spec.each("ports").map(port).collect();
    vec![
        object.name().into(),
        spec.text("type").into(),
        or(spec.text("clusterIP"), NONE).into(),
        external_ip(&spec, &status).into(),
        join(&ports, NONE).into(),
        age(object, now).into(),
        super::text::labels(&spec, "selector").into(),
    ]
}

fn port(port: &Fields) -> String {
    let (number, protocol) = (port.int("port").unwrap_or_default(), port.text("protocol"));
    match port.int("nodePort") {
        Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
        _ => format!("{number}/{protocol}"),
    }
}

/// The addresses of a load balancer, sorted.
fn balancer(status: &Fields) -> Vec<String> {
    let ingress = status.child("loadBalancer").into_iter().flat_map(|balancer| balancer.each("ingress"));
    let mut addresses: Vec<String> =
        ingress.map(|one| or(one.text("ip"), one.text("hostname"))).filter(|address| !address.is_empty()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn external_ip(spec: &Fields, status: &Fields) -> String {
    let fixed = strings(spec, "externalIPs");
    match spec.text("type") {
        "ClusterIP" | "NodePort" => join(&fixed, NONE),
        "LoadBalancer" => join(&[balancer(status), fixed].concat(), "<pending>"),
        "ExternalName" => spec.text("externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

pub(crate) fn endpoints(object: &Object, now: Timestamp) -> Vec<Value> {
    let mut list = Vec::new();
    for subset in object.0.each("subsets") {
        let addresses = || subset.each("addresses").map(|address| address.text("ip"));
        for port in subset.each("ports") {
            list.extend(addresses().map(|ip| host_port(ip, port.int("port").unwrap_or_default())));
        }
        if subset.list("ports").is_empty() {
            list.extend(addresses().map(str::to_owned));
        }
    }
    vec![object.name().into(), first_few(&list, NONE).into(), age(object, now).into()]
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub(crate) fn endpoint_slice(object: &Object, now: Timestamp) -> Vec<Value> {
    let port = |port: &Fields| match port.int("port") {
        Some(number) => number.to_string(),
        None => or(port.text("name"), "*"),
    };
    let ports: Vec<String> = object.0.each("ports").map(port).collect();
    let addresses: Vec<String> =
        object.0.each("endpoints").flat_map(|endpoint| strings(endpoint, "addresses")).collect();
    vec![
        object.name().into(),
        object.str_at(&["addressType"]).unwrap_or_default().into(),
        first_few(&ports, UNSET).into(),
        first_few(&addresses, UNSET).into(),
        age(object, now).into(),
    ]
}

pub(crate) fn ingress(object: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let hosts: Vec<String> =
        spec.each("rules").map(|rule| rule.text("host").to_owned()).filter(|host| !host.is_empty()).collect();
    let ports = if spec.list("tls").is_empty() { "80" } else { "80, 443" };
    vec![
        object.name().into(),
        or(spec.text("ingressClassName"), NONE).into(),
        first_few(&hosts, "*").into(),
        balancer(&status).join(",").into(),
        ports.into(),
        age(object, now).into(),
    ]
}

pub(crate) fn ingress_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let parameters = spec.child("parameters").map(|parameters| {
        let group = parameters.text("apiGroup");
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        format!("{}{group}/{}", parameters.text("kind"), parameters.text("name"))
    });
    vec![
        object.name().into(),
        spec.text("controller").into(),
        parameters.unwrap_or_else(|| NONE.to_owned()).into(),
        age(object, now).into(),
    ]
}

pub(crate) fn network_policy(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    vec![object.name().into(), selector(&spec, "podSelector").into(), age(object, now).into()]
}

pub(crate) fn ip_address(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    let parent = spec.child("parentRef").map(|parent| {
        let parts = ["resource", "namespace", "name"].map(|key| scalar(parent.get(key)));
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    });
    vec![object.name().into(), parent.unwrap_or_else(|| NONE.to_owned()).into(), age(object, now).into()]
}

pub(crate) fn service_cidr(object: &Object, now: Timestamp) -> Vec<Value> {
    let spec = part(object, "spec");
    vec![object.name().into(), strings(&spec, "cidrs").join(",").into(), age(object, now).into()]
}
