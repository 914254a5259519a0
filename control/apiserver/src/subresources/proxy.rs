//! HTTP to a pod or Service through the API server: `…/proxy/PATH`, named `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.

use std::net::{IpAddr, SocketAddr};

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tandem_api::{ApiError, Object, Reason};
use tokio::{net::TcpStream, time::timeout};

use super::{connect, live};
use crate::{
    NodeStream, aggregation,
    call::Call,
    core::Core,
    request::Verb,
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
    tls: bool,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Name<'a>, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            [name] => Ok(Name { name, port: "", tls: false }),
            ["https", name, port] => Ok(Name { name, port, tls: true }),
            ["" | "http", name, port] | [name, port] => Ok(Name { name, port, tls: false }),
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
    if let Some(redirect) = to_root(call)? {
        return Ok(redirect);
    }
    let stream = services::dial(core, address).await?;
    let stream: NodeStream = if asked.tls { over_tls(stream, address).await? } else { Box::new(stream) };
    connect::send(core, call, stream, &address.to_string(), path).await
}

/// Relative links of a root page lead to the right place only where its path ends with a slash.
fn to_root(call: &Call) -> Result<Option<Response>, ApiError> {
    let reads = matches!(call.info.verb, Verb::Get | Verb::Head) && !connect::is_upgrade(call);
    if !reads || !call.path()?.rest.is_empty() {
        return Ok(None);
    }
    let query = call.parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let location = HeaderValue::from_str(&format!("{}/{query}", call.parts.uri.path())).map_err(ApiError::internal)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(Some(response))
}

/// Whoever answers there is believed, as Kubernetes does: pods have certificates of all kinds, or of none that is known.
async fn over_tls(stream: TcpStream, address: SocketAddr) -> Result<NodeStream, ApiError> {
    let refused = |why: String| {
        ApiError::new(Reason::ServiceUnavailable, format!("error trying to reach service: tls: {address}: {why}"))
    };
    let connector = aggregation::unverified().map_err(refused)?;
    let connected = timeout(connect::DIAL_MAX, connector.connect(ServerName::from(address.ip()), stream)).await;
    let stream = connected.map_err(|_| refused("handshake timeout".to_owned()))?;
    Ok(Box::new(stream.map_err(|why| refused(why.to_string()))?))
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
        let check = |text, name, port| assert_eq!(Name::parse(text).unwrap(), Name { name, port, tls: false });
        check("web", "web", "");
        check("web:80", "web", "80");
        check("http:web:metrics", "web", "metrics");
        check(":web:80", "web", "80");
        assert!(Name::parse("https:web:443").unwrap().tls);
        assert!(Name::parse("a:b:c:d").is_err());
    }
}
