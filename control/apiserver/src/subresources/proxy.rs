//! HTTP to a pod or Service through the API server: `…/proxy/PATH`, named `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.

use std::net::{IpAddr, SocketAddr};

use axum::response::Response;
use serde_json::Value;
use tandem_api::{ApiError, Object};

use super::{connect, live};
use crate::{
    call::Call,
    core::Core,
    services::{self, number},
    write::Target,
};

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
        let endpoints = services::endpoints(core, &found, asked.port).await?;
        *endpoints.first().ok_or_else(|| services::no_endpoints(found.name()))?
    };
    let stream = services::dial(core, address).await?;
    connect::send(core, call, Box::new(stream), &address.to_string(), path).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let pod = serde_json::json!({"spec": {"containers": [{"ports": [{"containerPort": 8080}]}]}, "status": {"podIP": "10.1.1.1"}});
        let pod = Object::from_value(pod).unwrap();
        assert_eq!(pod_address(&pod, "").unwrap().to_string(), "10.1.1.1:8080");
        assert_eq!(pod_address(&pod, "9").unwrap().to_string(), "10.1.1.1:9");
        assert!(pod_address(&pod, "web").is_err() && pod_address(&Object::default(), "").is_err());
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
