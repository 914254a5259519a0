//! Services as the API server reaches them: by a ready endpoint, since a member may have no node, and so no rules that
//! lead from a Service's address to its pods.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tandem_api::{ApiError, Entropy, Object, Reason};
use tandem_registry::{ResourceDef, selectors::LabelSelector};
use tandem_store::Consistency;

use crate::objects::Objects;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A ready endpoint of the Service's port, which is asked for by name or number; without either, of its first one.
pub(crate) async fn endpoint(
    objects: &Objects,
    slices: &ResourceDef,
    entropy: &dyn Entropy,
    service: &Object,
    asked: &str,
) -> Result<SocketAddr, ApiError> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let ports = service.array_at(&["spec", "ports"]);
    let port = ports.iter().find(|port| {
        let matches =
            text(port.get("name")) == asked || number(port.get("port")).is_some_and(|own| own.to_string() == asked);
        asked.is_empty() || matches
    });
    let none = || {
        ApiError::new(Reason::ServiceUnavailable, format!("no endpoints available for service {:?}", service.name()))
    };
    let port_name = text(port.ok_or_else(none)?.get("name"));
    let selector = LabelSelector::parse(&format!("{SERVICE_LABEL}={}", service.name()))?;
    let mut found: Vec<SocketAddr> = Vec::new();
    for slice in objects.all(slices, service.namespace(), Consistency::Any).await? {
        let Some(port) = slice.array_at(&["ports"]).iter().find(|port| text(port.get("name")) == port_name) else {
            continue;
        };
        let Some(port) = number(port.get("port")).filter(|_| selector.matches(&slice)) else { continue };
        found.extend(ready(&slice).map(|address| SocketAddr::new(address, port)));
    }
    let mut random = [0; 4];
    entropy.fill(&mut random);
    let at = u32::from_be_bytes(random) as usize;
    let address = found.get(at % found.len().max(1)).copied().ok_or_else(none)?;
    check_reachable(address.ip())?;
    Ok(address)
}

/// Whoever may change a pod's status or an EndpointSlice must not reach what only this machine may.
pub(crate) fn check_reachable(address: IpAddr) -> Result<(), ApiError> {
    if is_reachable(address) { Ok(()) } else { Err(ApiError::bad_request("address not allowed")) }
}

fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_loopback() && !address.is_link_local() && !address.is_unspecified() && !address.is_multicast()
        }
        IpAddr::V6(address) => {
            let mapped = address.to_ipv4_mapped().map(IpAddr::V4);
            let local = address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified();
            !local && !address.is_multicast() && mapped.is_none_or(is_reachable)
        }
    }
}

pub(crate) fn number(value: Option<&Value>) -> Option<u16> {
    value.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
}

fn ready(slice: &Object) -> impl Iterator<Item = IpAddr> {
    let is_ready = |endpoint: &&Value| endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
    let endpoints = slice.array_at(&["endpoints"]).iter().filter(is_ready);
    endpoints.filter_map(|endpoint| endpoint.pointer("/addresses/0")?.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_this_machines_own_is_out_of_reach() {
        let reachable = |text: &str| is_reachable(text.parse().unwrap());
        assert!(reachable("10.128.0.7") && reachable("192.168.1.1") && reachable("fd00::1"));
        for own in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1"] {
            assert!(!reachable(own), "{own}");
        }
    }

    #[test]
    fn only_ready_endpoints_count() {
        let slice = serde_json::json!({"endpoints": [
            {"addresses": ["10.1.1.1"], "conditions": {"ready": false}}, {"addresses": ["10.1.1.2"]},
        ]});
        let slice = Object::from_value(slice).unwrap();
        assert_eq!(ready(&slice).map(|address| address.to_string()).collect::<Vec<_>>(), ["10.1.1.2"]);
    }
}
