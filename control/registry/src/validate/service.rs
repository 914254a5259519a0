//! Service, Endpoints, EndpointSlice.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};
use tandem_api::{Cause, Object};

use super::{
    Problems,
    network::{CIDR, check_ip},
    port_name, spec,
};
use crate::json::{Fields, FieldsExt};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const HEADLESS: &str = "None";

pub(crate) fn service(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    let kind = spec.text("type");
    let headless = spec.text("clusterIP") == HEADLESS;
    if spec.list("ports").is_empty() && !headless && kind != "ExternalName" {
        problems.required("spec.ports", "");
    }
    match kind {
        "LoadBalancer" if headless => {
            problems.invalid("spec.clusterIPs[0]", HEADLESS, "may not be set to 'None' for LoadBalancer services");
        }
        "NodePort" if headless => {
            problems.invalid("spec.clusterIPs[0]", HEADLESS, "may not be set to 'None' for NodePort services");
        }
        "ExternalName" => check_external_name(&spec, &mut problems),
        _ => {}
    }
    check_ports(&spec, headless, &mut problems);
    problems.check_labels(&spec, "selector", "spec.selector");
    problems.check_enum(&spec, "sessionAffinity", "spec", &["ClientIP", "None"], true);
    problems.check_enum(&spec, "type", "spec", &TYPES, true);
    check_affinity(&spec, &mut problems);
    check_traffic(&spec, &mut problems);
    for (at, ip) in spec.list("externalIPs").iter().filter_map(Value::as_str).enumerate() {
        check_ip(ip, &format!("spec.externalIPs[{at}]"), &mut problems);
    }
    for (at, range) in spec.list("loadBalancerSourceRanges").iter().filter_map(Value::as_str).enumerate() {
        let path = format!("spec.loadBalancerSourceRanges[{at}]");
        if kind != "LoadBalancer" {
            problems.forbidden(path, "may only be used when `type` is 'LoadBalancer'");
        } else if range.trim().parse::<ipnet::IpNet>().is_err() {
            problems.invalid(path, range, CIDR);
        }
    }
    let cluster_ip = spec.text("clusterIP");
    if !matches!(cluster_ip, "" | HEADLESS) {
        check_ip(cluster_ip, "spec.clusterIPs[0]", &mut problems);
    }
    if let Some(old) = old {
        keep_cluster_ip(&spec, &super::spec(old), &mut problems);
    }
    problems.into_causes()
}

fn check_external_name(spec: &Fields, problems: &mut Problems) {
    if !spec.text("clusterIP").is_empty() {
        problems.forbidden("spec.clusterIPs[0]", "may not be set for ExternalName services");
    }
    match spec.text("externalName").trim_end_matches('.') {
        "" => problems.required("spec.externalName", ""),
        name => problems.check_subdomain(name, "spec.externalName"),
    }
}

fn check_ports(spec: &Fields, headless: bool, problems: &mut Problems) {
    let many = spec.list("ports").len() > 1;
    let (mut names, mut pairs, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (at, port) in spec.each("ports").enumerate() {
        let path = format!("spec.ports[{at}]");
        match port.text("name") {
            "" if many => problems.required(format!("{path}.name"), ""),
            "" => {}
            name => {
                problems.check_label(name, &format!("{path}.name"));
                if !names.insert(name) {
                    problems.duplicate(format!("{path}.name"), name);
                }
            }
        }
        let number = port.int("port").unwrap_or_default();
        problems.check_port(number, format!("{path}.port"));
        problems.check_enum(port, "protocol", &path, &PROTOCOLS, true);
        problems.check_port_or_name(port.get("targetPort"), format!("{path}.targetPort"));
        if headless && port.text("protocol") == "SCTP" && port.get("targetPort") != port.get("port") {
            let why = "must be equal to the value of 'port' when clusterIP = None";
            problems.invalid(format!("{path}.targetPort"), json!(port.get("targetPort")), why);
        }
        if !pairs.insert((number, port.text("protocol"))) {
            problems.duplicate(path.clone(), json!({ "protocol": port.text("protocol"), "port": number }));
        }
        let node_port = port.int("nodePort").unwrap_or_default();
        if node_port == 0 {
            continue;
        }
        let kind = spec.text("type");
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            problems.forbidden(format!("{path}.nodePort"), &format!("may not be used when `type` is '{kind}'"));
        } else if !node_ports.insert((node_port, port.text("protocol"))) {
            problems.duplicate(format!("{path}.nodePort"), node_port);
        }
    }
}

fn check_affinity(spec: &Fields, problems: &mut Problems) {
    let Some(config) = spec.child("sessionAffinityConfig") else { return };
    if spec.text("sessionAffinity") == "None" {
        let why = "must not be set when session affinity is None";
        problems.forbidden("spec.sessionAffinityConfig", why);
        return;
    }
    let seconds = config.child("clientIP").and_then(|client| client.int("timeoutSeconds"));
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    match seconds {
        None => problems.required(path, ""),
        Some(seconds) if !(1..=86400).contains(&seconds) => {
            problems.invalid(path, seconds, "must be greater than 0 and less than 86400");
        }
        Some(_) => {}
    }
}

fn check_traffic(spec: &Fields, problems: &mut Problems) {
    let kind = spec.text("type");
    let external = spec.text("externalTrafficPolicy");
    let reachable =
        matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && !spec.list("externalIPs").is_empty());
    if !external.is_empty() && !reachable {
        let why = "may only be set for externally-accessible services";
        problems.invalid("spec.externalTrafficPolicy", external, why);
    } else {
        problems.check_enum(spec, "externalTrafficPolicy", "spec", &["Cluster", "Local"], false);
    }
    problems.check_enum(spec, "internalTrafficPolicy", "spec", &["Cluster", "Local"], false);
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    problems.check_enum(spec, "trafficDistribution", "spec", &distributions, false);
    let families = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    problems.check_enum(spec, "ipFamilyPolicy", "spec", &families, false);
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if spec.contains_key(key) && kind != "LoadBalancer" {
            problems.forbidden(format!("spec.{key}"), "may only be used when `type` is 'LoadBalancer'");
        }
    }
}

/// An address that was given stays, unless the Service stops having one.
fn keep_cluster_ip(new: &Fields, old: &Fields, problems: &mut Problems) {
    let has_ip = |spec: &Fields| spec.text("type") != "ExternalName" && !spec.text("clusterIP").is_empty();
    if has_ip(old) && new.text("type") != "ExternalName" && new.text("clusterIP") != old.text("clusterIP") {
        let ips = json!([new.text("clusterIP")]);
        problems.invalid("spec.clusterIPs[0]", ips, "may not change once set");
    }
}

pub(crate) fn endpoints(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let mut problems = Problems::default();
    for (at, subset) in object.0.each("subsets").enumerate() {
        let path = format!("subsets[{at}]");
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            problems.required(path.clone(), "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (at, address) in subset.each(list).enumerate() {
                let path = format!("{path}.{list}[{at}].ip");
                check_endpoint_ip(address.text("ip"), &path, &mut problems);
            }
        }
        let many = subset.list("ports").len() > 1;
        for (at, port) in subset.each("ports").enumerate() {
            let path = format!("{path}.ports[{at}]");
            match port.text("name") {
                "" if many => problems.required(format!("{path}.name"), ""),
                "" => {}
                name => problems.check_label(name, &format!("{path}.name")),
            }
            problems.check_port(port.int("port").unwrap_or_default(), format!("{path}.port"));
            problems.check_enum(port, "protocol", &path, &PROTOCOLS, true);
        }
    }
    problems.into_causes()
}

/// Addresses that would make an endpoint of the node itself or of nobody.
fn check_endpoint_ip(text: &str, path: &str, problems: &mut Problems) {
    let Ok(ip) = text.parse::<IpAddr>() else {
        check_ip(text, path, problems);
        return;
    };
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let link_multicast = matches!(ip, IpAddr::V4(ip) if ip.octets()[..3] == [224, 0, 0]);
    for (wrong, why) in [
        (ip.is_unspecified(), format!("may not be unspecified ({text})")),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (link_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ] {
        if wrong {
            problems.invalid(path, text, why);
        }
    }
}

pub(crate) fn endpoint_slice(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    const MAX_ENDPOINTS: usize = 1000;
    let (slice, mut problems) = (&object.0, Problems::default());
    let kind = slice.text("addressType");
    problems.check_enum(slice, "addressType", "", &["FQDN", "IPv4", "IPv6"], true);
    if slice.list("endpoints").len() > MAX_ENDPOINTS {
        problems.too_many("endpoints", slice.list("endpoints").len(), MAX_ENDPOINTS);
    }
    for (at, endpoint) in slice.each("endpoints").enumerate() {
        let path = format!("endpoints[{at}].addresses");
        if endpoint.list("addresses").is_empty() {
            problems.required(path.clone(), "must contain at least 1 address");
        }
        for (at, address) in endpoint.list("addresses").iter().filter_map(Value::as_str).enumerate() {
            let path = format!("{path}[{at}]");
            match kind {
                "FQDN" => problems.check_subdomain(address, &path),
                _ => check_endpoint_ip(address, &path, &mut problems),
            }
        }
    }
    let mut names = BTreeSet::new();
    for (at, port) in slice.each("ports").enumerate() {
        let (path, name) = (format!("ports[{at}]"), port.text("name"));
        if !names.insert(name) {
            problems.duplicate(format!("{path}.name"), name);
        }
        if !name.is_empty() && port_name(name).len() > 1 {
            problems.check_label(name, &format!("{path}.name"));
        }
        problems.check_enum(port, "protocol", &path, &PROTOCOLS, true);
    }
    if let Some(old) = old {
        let path = ["addressType"];
        problems.check_immutable(object.at(&path), old.at(&path), "addressType", super::IMMUTABLE);
    }
    problems.into_causes()
}
