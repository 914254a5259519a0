//! Where Services lead, for all that this server sends to them: proxied requests, those to aggregated API servers and to
//! webhooks.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use async_trait::async_trait;
use serde_json::Value;
use tandem_api::{ApiError, Entropy, Object, Reason};
use tandem_registry::ResourceDef;
use tandem_store::Consistency;
use tokio::{net::TcpStream, time::timeout};

use crate::{core::Core, objects::Objects, subresources::DIAL_MAX};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Opens connections to the endpoints of Services and to pods.
#[async_trait]
pub trait EndpointDialer: Send + Sync + 'static {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// Dials what is not this machine's own: whoever may change a pod's status or an EndpointSlice must not reach what only
/// this machine may.
#[derive(Clone, Copy, Debug)]
pub struct Outward;

#[async_trait]
impl EndpointDialer for Outward {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        if !is_reachable(address.ip()) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "address not allowed"));
        }
        TcpStream::connect(address).await
    }
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

pub(crate) async fn dial(core: &Core, address: SocketAddr) -> Result<TcpStream, ApiError> {
    let refused = |why: String| {
        ApiError::new(Reason::ServiceUnavailable, format!("error trying to reach service: dial tcp {address}: {why}"))
    };
    let dialed =
        timeout(DIAL_MAX, core.endpoints.dial(address)).await.map_err(|_| refused("i/o timeout".to_owned()))?;
    dialed.map_err(|why| match why.kind() {
        io::ErrorKind::PermissionDenied => ApiError::bad_request(why.to_string()),
        _ => refused(why.to_string()),
    })
}

pub(crate) fn no_endpoints(service: &str) -> ApiError {
    ApiError::new(Reason::ServiceUnavailable, format!("no endpoints available for service {service:?}"))
}

/// The ready endpoints of a Service's port, which is given by name or number, or is the only one. Each call begins with
/// another one.
pub(crate) async fn endpoints(core: &Core, service: &Object, port: &str) -> Result<Vec<SocketAddr>, ApiError> {
    let slices = core.row("discovery.k8s.io", "v1", "endpointslices")?;
    endpoints_of(&core.objects, &slices, core.entropy.as_ref(), service, port).await
}

pub(crate) async fn endpoints_of(
    objects: &Objects,
    slices: &ResourceDef,
    entropy: &dyn Entropy,
    service: &Object,
    port: &str,
) -> Result<Vec<SocketAddr>, ApiError> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let found = service.array_at(&["spec", "ports"]).iter().find(|own| {
        let is_number = number(own.get("port")).is_some_and(|own| own.to_string() == port);
        port.is_empty() || is_number || text(own.get("name")) == port
    });
    let port_name = text(found.ok_or_else(|| no_endpoints(service.name()))?.get("name"));
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for slice in objects.all(slices, service.namespace(), Consistency::Any).await? {
        let Some(port) = slice.array_at(&["ports"]).iter().find(|port| text(port.get("name")) == port_name) else {
            continue;
        };
        let is_of = slice.str_at(&["metadata", "labels", SERVICE_LABEL]) == Some(service.name());
        let Some(port) = number(port.get("port")).filter(|_| is_of) else { continue };
        addresses.extend(ready(&slice).map(|address| SocketAddr::new(address, port)));
    }
    let mut random = [0; 4];
    entropy.fill(&mut random);
    let first = u32::from_be_bytes(random) as usize % addresses.len().max(1);
    addresses.rotate_left(first);
    Ok(addresses)
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
    fn only_what_is_ready_is_reached() {
        let slice = serde_json::json!({"endpoints": [
            {"addresses": ["10.1.1.1"], "conditions": {"ready": false}}, {"addresses": ["10.1.1.2"]},
        ]});
        let slice = Object::from_value(slice).unwrap();
        assert_eq!(ready(&slice).map(|address| address.to_string()).collect::<Vec<_>>(), ["10.1.1.2"]);
    }
}
