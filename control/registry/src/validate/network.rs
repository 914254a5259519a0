//! Ingress, IngressClass, NetworkPolicy.

use std::net::IpAddr;

use serde_json::{Value, json};
use tandem_api::{Cause, INGRESS_CLASS_ANNOTATION, Object, names};

use super::{IMMUTABLE, Problems, spec};
use crate::json::{Fields, FieldsExt};

const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
pub(super) const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub(crate) fn check_ip(text: &str, path: &str, problems: &mut Problems) {
    if text.parse::<IpAddr>().is_err() {
        problems.invalid(path, text, IP);
    }
}

pub(crate) fn ingress(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    let annotated = object.str_at(&["metadata", "annotations", INGRESS_CLASS_ANNOTATION]);
    let differs = spec.contains_key("ingressClassName") && annotated != Some(spec.text("ingressClassName"));
    if let Some(class) = annotated.filter(|_| old.is_none() && differs) {
        let why = "must match `ingressClassName` when both are specified";
        problems.invalid(format!("annotations.{INGRESS_CLASS_ANNOTATION}"), class, why);
    }
    if spec.list("rules").is_empty() && !spec.contains_key("defaultBackend") {
        let why = "either `defaultBackend` or `rules` must be specified";
        problems.invalid("spec", json!(spec), why);
    }
    if let Some(backend) = spec.child("defaultBackend") {
        check_backend(backend, "spec.defaultBackend", &mut problems);
    }
    for (at, rule) in spec.each("rules").enumerate() {
        let path = format!("spec.rules[{at}]");
        check_host(rule.text("host"), &format!("{path}.host"), &mut problems);
        let Some(http) = rule.child("http") else { continue };
        if http.list("paths").is_empty() {
            problems.required(format!("{path}.http.paths"), "");
        }
        for (at, route) in http.each("paths").enumerate() {
            check_route(route, &format!("{path}.http.paths[{at}]"), &mut problems);
        }
    }
    for (at, tls) in spec.each("tls").enumerate() {
        for (host_at, host) in tls.list("hosts").iter().filter_map(Value::as_str).enumerate() {
            check_host(host, &format!("spec.tls[{at}].hosts[{host_at}]"), &mut problems);
        }
        let secret = tls.text("secretName");
        if !secret.is_empty() {
            problems.check_subdomain(secret, &format!("spec.tls[{at}].secretName"));
        }
    }
    let class = spec.text("ingressClassName");
    if !class.is_empty() {
        problems.check_subdomain(class, "spec.ingressClassName");
    }
    problems.into_causes()
}

fn check_host(host: &str, path: &str, problems: &mut Problems) {
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        problems.invalid(path, host, "must be a DNS name, not an IP address");
    } else if let Some(rest) = host.strip_prefix("*.") {
        if !names::dns1123_subdomain(rest).is_empty() {
            let why = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
            problems.invalid(path, host, why);
        }
    } else {
        problems.check_subdomain(host, path);
    }
}

fn check_route(route: &Fields, path: &str, problems: &mut Problems) {
    let (kind, at) = (route.text("pathType"), route.text("path"));
    match kind {
        "" => problems.required(format!("{path}.pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !at.starts_with('/') {
                problems.invalid(format!("{path}.path"), at, "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|bad| at.contains(bad)) {
                problems.invalid(format!("{path}.path"), at, format!("must not contain '{bad}'"));
            }
            for bad in ["/..", "/."].into_iter().filter(|bad| at.ends_with(bad)) {
                problems.invalid(format!("{path}.path"), at, format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" => {
            if !at.is_empty() && !at.starts_with('/') {
                problems.invalid(format!("{path}.path"), at, "must be an absolute path");
            }
        }
        other => {
            problems.unsupported(format!("{path}.pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    match route.child("backend") {
        Some(backend) => check_backend(backend, &format!("{path}.backend"), problems),
        None => problems.required(format!("{path}.backend"), ""),
    }
}

fn check_backend(backend: &Fields, path: &str, problems: &mut Problems) {
    match (backend.child("service"), backend.child("resource")) {
        (Some(_), Some(_)) => problems.invalid(path, "", "cannot set both resource and service backends"),
        (Some(service), None) => {
            match service.text("name") {
                "" => problems.required(format!("{path}.service.name"), ""),
                name => {
                    let found = names::dns1123_label(name);
                    found.into_iter().for_each(|why| problems.invalid(format!("{path}.service.name"), name, why));
                }
            }
            let port = service.child("port");
            let (name, number) = (port.map(|port| port.text("name")), port.and_then(|port| port.int("number")));
            match (name.unwrap_or_default(), number.unwrap_or_default()) {
                ("", 0) => problems.required(path, "port name or number is required"),
                ("", number) => problems.check_port(number, format!("{path}.service.port.number")),
                (_, 0) => {}
                _ => problems.invalid(path, "", "cannot set both port name & port number"),
            }
        }
        (None, Some(_)) => {}
        (None, None) => problems.required(path, "either service or resource must be specified"),
    }
}

pub(crate) fn ingress_class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    match spec.text("controller") {
        "" => problems.required("spec.controller", ""),
        controller if !controller.contains('/') => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            problems.invalid("spec.controller", controller, why);
        }
        _ => {}
    }
    if let Some(old) = old {
        let path = ["spec", "controller"];
        problems.check_immutable(object.at(&path), old.at(&path), "spec.controller", IMMUTABLE);
    }
    problems.into_causes()
}

pub(crate) fn network_policy(object: &Object, _old: Option<&Object>) -> Vec<Cause> {
    let (spec, mut problems) = (spec(object), Problems::default());
    if let Some(selector) = spec.child("podSelector") {
        problems.check_selector(selector, "spec.podSelector");
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in spec.each(direction).enumerate() {
            let path = format!("spec.{direction}[{at}]");
            for (at, port) in rule.each("ports").enumerate() {
                check_policy_port(port, &format!("{path}.ports[{at}]"), &mut problems);
            }
            for (at, peer) in rule.each(peers).enumerate() {
                check_peer(peer, &format!("{path}.{peers}[{at}]"), &mut problems);
            }
        }
    }
    for (at, kind) in spec.list("policyTypes").iter().filter_map(Value::as_str).enumerate() {
        if !["Ingress", "Egress"].contains(&kind) {
            problems.unsupported(format!("spec.policyTypes[{at}]"), kind, &["Egress", "Ingress"]);
        }
    }
    problems.into_causes()
}

fn check_policy_port(port: &Fields, path: &str, problems: &mut Problems) {
    problems.check_enum(port, "protocol", path, &["SCTP", "TCP", "UDP"], false);
    if port.contains_key("port") {
        problems.check_port_or_name(port.get("port"), format!("{path}.port"));
    }
    if let Some(end) = port.int("endPort") {
        match port.get("port") {
            Some(Value::Number(start)) if start.as_i64().is_some_and(|start| end < start) => {
                problems.invalid(format!("{path}.endPort"), end, "must be greater than or equal to `port`");
            }
            Some(Value::Number(_)) => {}
            _ => problems.required(format!("{path}.port"), "may not be specified when `port` is non-numeric"),
        }
    }
}

fn check_peer(peer: &Fields, path: &str, problems: &mut Problems) {
    if peer.is_empty() {
        problems.required(path, "must specify a peer");
    }
    for key in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = peer.child(key) {
            problems.check_selector(selector, &format!("{path}.{key}"));
        }
    }
    let Some(block) = peer.child("ipBlock") else { return };
    if peer.len() > 1 {
        problems.forbidden(path, "may not specify both ipBlock and another peer");
    }
    let (cidr, path) = (block.text("cidr"), format!("{path}.ipBlock"));
    let Ok(net) = cidr.parse::<ipnet::IpNet>() else {
        problems.invalid(format!("{path}.cidr"), cidr, CIDR);
        return;
    };
    for (at, text) in block.list("except").iter().filter_map(Value::as_str).enumerate() {
        let path = format!("{path}.except[{at}]");
        match text.parse::<ipnet::IpNet>() {
            Err(_) => problems.invalid(path, text, CIDR),
            Ok(except) if !net.contains(&except) || except == net => {
                problems.invalid(path, text, format!("must be a strict subset of `cidr` {cidr:?}"));
            }
            Ok(_) => {}
        }
    }
}
