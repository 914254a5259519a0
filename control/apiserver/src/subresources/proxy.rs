//! HTTP to a pod or Service through the API server: `…/proxy/PATH`, named `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.

use std::net::{IpAddr, SocketAddr};

use axum::response::Response;
use serde_json::Value;
use tandem_api::{ApiError, Object, Reason};
use tandem_registry::selectors::LabelSelector;
use tandem_store::Consistency;
use tokio::{net::TcpStream, time::timeout};

use super::{connect, live};
use crate::{call::Call, core::Core, write::Target};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The path behind `proxy`, with the query.
pub(super) fn path(call: &Call) -> Result<String, ApiError> {
    let rest = &call.path()?.rest;
    let query = call.parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Ok(format!("{}{query}", if rest.is_empty() { "/" } else { rest }))
}

/// What a proxied name says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name<'a> {
    name: &'a str,
    port: &'a str,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Name<'a>, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            [name] => Ok(Name { name, port: "" }),
            ["" | "http", name, port] | [name, port] => Ok(Name { name, port }),
            ["https", ..] => Err(ApiError::bad_request("https backends are not proxied by this version")),
            _ => Err(ApiError::bad_request(format!("invalid proxy request {text:?}"))),
        }
    }
}

pub(super) async fn connect(core: &Core, call: &Call, target: &Target<'_>, path: &str) -> Result<Response, ApiError> {
    let asked = Name::parse(target.name)?;
    let found = live(core, &Target { name: asked.name, ..*target }).await?;
    let address = if target.def.plural == "pods" {
        pod_address(&found, asked.port)?
    } else {
        service_address(core, target, &found, asked.port).await?
    };
    if !is_reachable(address.ip()) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    let dialed = timeout(connect::DIAL_MAX, TcpStream::connect(address)).await;
    let refused = |why: String| {
        ApiError::new(Reason::ServiceUnavailable, format!("error trying to reach service: dial tcp {address}: {why}"))
    };
    let stream = dialed.map_err(|_| refused("i/o timeout".to_owned()))?.map_err(|why| refused(why.to_string()))?;
    connect::send(core, call, Box::new(stream), &address.to_string(), path).await
}

/// Whoever may change a pod's status or an EndpointSlice must not reach what only this machine may.
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

fn number(value: Option<&Value>) -> Option<u16> {
    value.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
}

fn pod_address(pod: &Object, port: &str) -> Result<SocketAddr, ApiError> {
    let address = pod.str_at(&["status", "podIP"]).and_then(|text| text.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| ApiError::bad_request("address not allowed: the pod has no address yet"))?;
    let first = || {
        let ports = pod.array_at(&["spec", "containers"]).iter().flat_map(|container| container.get("ports"));
        let mut ports = ports.filter_map(Value::as_array).flatten();
        ports.find_map(|port| number(port.get("containerPort")))
    };
    let port = if port.is_empty() { Some(first().unwrap_or(80)) } else { port.parse().ok() };
    let port = port.ok_or_else(|| ApiError::bad_request("invalid port number in the request"))?;
    Ok(SocketAddr::new(address, port))
}

/// A ready endpoint of the Service's port.
async fn service_address(
    core: &Core,
    target: &Target<'_>,
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
    let slices = core.row("discovery.k8s.io", "v1", "endpointslices")?;
    let selector = LabelSelector::parse(&format!("{SERVICE_LABEL}={}", service.name()))?;
    let mut found: Vec<SocketAddr> = Vec::new();
    for slice in core.objects.all(&slices, target.namespace, Consistency::Any).await? {
        let Some(port) = slice.array_at(&["ports"]).iter().find(|port| text(port.get("name")) == port_name) else {
            continue;
        };
        let Some(port) = number(port.get("port")).filter(|_| selector.matches(&slice)) else { continue };
        found.extend(ready(&slice).map(|address| SocketAddr::new(address, port)));
    }
    let mut random = [0; 4];
    core.entropy.fill(&mut random);
    let at = u32::from_be_bytes(random) as usize;
    found.get(at % found.len().max(1)).copied().ok_or_else(none)
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
    fn addresses() {
        let pod = serde_json::json!({"spec": {"containers": [{"ports": [{"containerPort": 8080}]}]}, "status": {"podIP": "10.1.1.1"}});
        let pod = Object::from_value(pod).unwrap();
        assert_eq!(pod_address(&pod, "").unwrap().to_string(), "10.1.1.1:8080");
        assert_eq!(pod_address(&pod, "9").unwrap().to_string(), "10.1.1.1:9");
        assert!(pod_address(&pod, "web").is_err() && pod_address(&Object::default(), "").is_err());
        let slice = serde_json::json!({"endpoints": [
            {"addresses": ["10.1.1.1"], "conditions": {"ready": false}}, {"addresses": ["10.1.1.2"]},
        ]});
        let slice = Object::from_value(slice).unwrap();
        assert_eq!(ready(&slice).map(|address| address.to_string()).collect::<Vec<_>>(), ["10.1.1.2"]);
    }

    #[test]
    fn names() {
        let check = |text, name, port| assert_eq!(Name::parse(text).unwrap(), Name { name, port });
        check("web", "web", "");
        check("web:80", "web", "80");
        check("http:web:metrics", "web", "metrics");
        check(":web:80", "web", "80");
        assert!(Name::parse("https:web:443").is_err());
        assert!(Name::parse("a:b:c:d").is_err());
    }
}
