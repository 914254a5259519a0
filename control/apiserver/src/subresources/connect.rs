//! Streams from and to the node of a pod: logs, exec, attach, port forwarding, and the node's own HTTP API. Bytes of
//! upgraded connections are passed through as they are; only the request is translated.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::KindName;
use tandem_store::Consistency;
use tokio::time::timeout;

use super::{live, proxy};
use crate::{
    NodeStream,
    admission::{self, Operation},
    authz::{self, Attributes},
    call::Call,
    core::Core,
    options::WriteOptions,
    request::{Query, Verb},
    respond, verbs,
    write::Target,
};

pub(crate) const DIAL_MAX: Duration = Duration::from_secs(10);
/// What a node says about a failure is shown up to this length.
const ERROR_MAX_BYTES: usize = 4096;
const LOG_PARAMETERS: [&str; 7] =
    ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes"];
/// The kubelet's names for the streams of exec and attach.
const STREAMS: [(&str, &str); 4] = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
/// Headers that belong to one connection, and credentials, which are not the node's to see.
const DROPPED: [HeaderName; 5] =
    [header::HOST, header::AUTHORIZATION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::COOKIE];

pub(super) async fn connect(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    subresource: &str,
) -> Result<Response, ApiError> {
    if subresource == "proxy" {
        admit(core, call, target, subresource).await?;
        let path = proxy::path(call)?;
        return match target.def.plural.as_str() {
            "nodes" => pass(core, call, target.name, &path).await,
            _ => proxy::connect(core, call, target, &path).await,
        };
    }
    if call.info.verb == Verb::Get && subresource != "log" {
        // WebSocket begins with GET, and who may only read may not do things in a pod (as Kubernetes since 1.35).
        let asked = Attributes { verb: Verb::Create.as_str().to_owned(), ..Attributes::of(&call.info) };
        authz::authorize(core, &call.identity, &asked).await?;
    }
    if subresource != "log" {
        admit(core, call, target, subresource).await?;
    }
    let pod = live(core, target).await?;
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        return match subresource {
            // A pod that has not begun has said nothing yet.
            "log" => Ok(respond::text(StatusCode::OK, "")),
            _ => Err(ApiError::bad_request(format!("pod {} does not have a host assigned", pod.name()))),
        };
    }
    let path = node_path(&pod, subresource, &call.info.query)?;
    pass(core, call, node, &path).await
}

/// Asks webhooks about the connection, by the options that it is opened with. They may refuse, but change nothing.
async fn admit(core: &Core, call: &Call, target: &Target<'_>, subresource: &str) -> Result<(), ApiError> {
    let Some(sub) = target.def.subresource(subresource) else { return Ok(()) };
    let options = WriteOptions::default();
    let author = verbs::author(call, &options);
    let request = target.request(&author, Operation::Connect);
    admission::connect(core, &request, &connection(&sub.kind, subresource, call)?).await
}

/// A connection as the kind of its subresource says it: what is asked for in the query, and behind `proxy`.
fn connection(kind: &KindName, subresource: &str, call: &Call) -> Result<Object, ApiError> {
    let query = &call.info.query;
    let mut object = Object::default();
    object.set(&["kind"], kind.kind.as_str());
    object.set(&["apiVersion"], kind.version.as_str());
    match subresource {
        "proxy" => object.set(&["path"], call.path()?.rest.as_str()),
        "portforward" => {
            let ports = query.all("ports").flat_map(|list| list.split(',')).filter_map(|port| port.parse::<u16>().ok());
            object.set(&["ports"], ports.map(Value::from).collect::<Vec<_>>());
        }
        _ => {
            for (ours, _) in STREAMS {
                if query.flag(ours)? {
                    object.set(&[ours], true);
                }
            }
            if let Some(container) = query.get("container") {
                object.set(&["container"], container);
            }
            let command: Vec<Value> = query.all("command").map(Value::from).collect();
            if !command.is_empty() && subresource == "exec" {
                object.set(&["command"], command);
            }
        }
    }
    Ok(object)
}

/// The path and query on the node, from those of the request.
fn node_path(pod: &Object, subresource: &str, query: &Query) -> Result<String, ApiError> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name());
    if subresource == "portforward" {
        let ports: Vec<(String, String)> =
            query.all("ports").map(|port| ("port".to_owned(), port.to_owned())).collect();
        return Ok(format!("/portForward/{namespace}/{name}{}", encoded(&ports)));
    }
    let container = container(pod, query.get("container"))?;
    let mut pairs: Vec<(String, String)> = Vec::new();
    if subresource == "log" {
        check_log(query, name)?;
        let given = LOG_PARAMETERS.iter().filter_map(|name| Some(((*name).to_owned(), query.get(name)?.to_owned())));
        pairs.extend(given);
        return Ok(format!("/containerLogs/{namespace}/{name}/{container}{}", encoded(&pairs)));
    }
    for (ours, theirs) in STREAMS {
        if query.flag(ours)? {
            pairs.push((theirs.to_owned(), "1".to_owned()));
        }
    }
    if subresource == "exec" {
        pairs.extend(query.all("command").map(|part| ("command".to_owned(), part.to_owned())));
    }
    if pairs.is_empty() || pairs.iter().all(|(name, _)| name == "command") {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(format!("/{subresource}/{namespace}/{name}/{container}{}", encoded(&pairs)))
}

/// What Kubernetes asks of the numbers in `PodLogOptions`.
fn check_log(query: &Query, pod: &str) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    for (field, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(number) = query.number(field)?.filter(|number| *number < least) {
            let message = format!("Invalid value: {number}: {why}");
            causes.push(Cause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() });
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        let message = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned();
        causes.push(Cause { reason: "FieldValueForbidden".to_owned(), message, field: "[]".to_owned() });
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("", "PodLogOptions", pod, causes)) }
}

fn encoded(pairs: &[(String, String)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// The container that is meant: the named one, the only one, or the one that the pod calls its default.
fn container(pod: &Object, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let name = |container: &Value| container.get("name").and_then(Value::as_str).map(str::to_owned);
        pod.array_at(&["spec", list]).iter().filter_map(name).collect()
    };
    let own = names("containers");
    let (init, ephemeral) = (names("initContainers"), names("ephemeralContainers"));
    let pod_name = pod.name();
    if let Some(asked) = asked {
        let known = own.iter().chain(&init).chain(&ephemeral).any(|name| name == asked);
        let unknown = || ApiError::bad_request(format!("container {asked} is not valid for pod {pod_name}"));
        return if known { Ok(asked.to_owned()) } else { Err(unknown()) };
    }
    let default = pod.annotations().find(|(key, _)| *key == "kubectl.kubernetes.io/default-container");
    if let Some((_, name)) = default.filter(|(_, name)| own.iter().any(|mine| mine == name)) {
        return Ok(name.to_owned());
    }
    match own.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::bad_request(format!("no containers in pod {pod_name}"))),
        several => {
            let mut message = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                several.join(" ")
            );
            if !init.is_empty() {
                message = format!("{message} or one of the init containers: [{}]", init.join(" "));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

/// Where a node's server listens.
async fn address(core: &Core, node: &str) -> Result<SocketAddr, ApiError> {
    let nodes = core.row("", "v1", "nodes")?;
    let found = core.objects.get(&nodes, None, node, Consistency::Any).await?;
    let found = found.ok_or_else(|| ApiError::not_found("", "nodes", node))?;
    let ip = found.array_at(&["status", "addresses"]).iter().find_map(|address| {
        let internal = address.get("type").and_then(Value::as_str) == Some("InternalIP");
        address.get("address").and_then(Value::as_str).filter(|_| internal)?.parse::<IpAddr>().ok()
    });
    let port = found.i64_at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).unwrap_or(10250);
    let ip = ip.ok_or_else(|| unreachable(node, "no preferred addresses found; known addresses: []"))?;
    Ok(SocketAddr::new(ip, u16::try_from(port).unwrap_or(10250)))
}

fn unreachable(node: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(Reason::InternalError, format!("Internal error occurred: error dialing backend: node {node}: {why}"))
}

/// Sends the request to the node and its answer back, upgraded where both sides are.
async fn pass(core: &Core, call: &Call, node: &str, path: &str) -> Result<Response, ApiError> {
    let (stream, address) = dial(core, node).await?;
    send(core, call, stream, &address.to_string(), path).await
}

/// A connection to a node's server, and where that is.
pub(crate) async fn dial(core: &Core, node: &str) -> Result<(NodeStream, SocketAddr), ApiError> {
    let dialer = core.nodes.as_ref().ok_or_else(|| unreachable(node, "this server has no credentials for nodes"))?;
    let address = address(core, node).await?;
    let dialed = timeout(DIAL_MAX, dialer.dial(node, address)).await;
    let stream = dialed
        .map_err(|_| unreachable(node, format!("dial tcp {address}: i/o timeout")))?
        .map_err(|why| unreachable(node, format!("dial tcp {address}: {why}")))?;
    Ok((stream, address))
}

/// Sends the request with another path. What the other side refuses is told as a Status.
pub(super) async fn send(
    core: &Core,
    call: &Call,
    stream: NodeStream,
    host: &str,
    path: &str,
) -> Result<Response, ApiError> {
    let headers = headers_for_backend(call.headers(), is_upgrade(call), host);
    told(forward(core, call, stream, path, headers).await?).await
}

/// Whether the client asks for another protocol on its connection.
pub(crate) fn is_upgrade(call: &Call) -> bool {
    call.parts.extensions.get::<OnUpgrade>().is_some() && call.headers().contains_key(header::UPGRADE)
}

/// Speaks HTTP/1.1 over the stream: the request with another path and other headers, its body, and an upgrade where one
/// is asked for.
pub(crate) async fn forward(
    core: &Core,
    call: &Call,
    stream: NodeStream,
    path: &str,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let failed = |why: hyper::Error| ApiError::internal(format!("error dialing backend: {host}: {why}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(failed)?;
    core.tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a backend ended");
        }
    });
    let upgrade = call.parts.extensions.get::<OnUpgrade>().cloned().filter(|_| is_upgrade(call));
    let mut request = Request::builder().method(call.parts.method.clone()).uri(path);
    if let Some(own) = request.headers_mut() {
        *own = headers;
    }
    let body = if upgrade.is_some() { Body::empty() } else { call.take_body() };
    let request = request.body(body).map_err(|why| ApiError::bad_request(why.to_string()))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    answer(core, response, upgrade)
}

/// The headers without those that belong to this connection, and without credentials.
pub(crate) fn headers_for_backend(given: &HeaderMap, upgrade: bool, host: &str) -> HeaderMap {
    let mut headers = given.clone();
    for name in DROPPED {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(header::UPGRADE);
        headers.remove(header::CONNECTION);
    }
    // Logs are passed on as they come.
    headers.remove(header::ACCEPT_ENCODING);
    let credentials: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in credentials {
        headers.remove(name);
    }
    if let Ok(host) = http::HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    headers
}

fn answer(
    core: &Core,
    mut response: http::Response<Incoming>,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, ApiError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = upgrade else {
            return Err(ApiError::internal("the node switched protocols, which the client did not ask for"));
        };
        let node = hyper::upgrade::on(&mut response);
        core.tasks.spawn(async move {
            if let Err(error) = join(client, node).await {
                tracing::debug!(%error, "an upgraded stream ended");
            }
        });
        return Ok(response.map(|_| Body::empty()));
    }
    let mut response = response.map(Body::new);
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    response.headers_mut().remove(header::CONNECTION);
    Ok(response)
}

/// The answer, or what it says was wrong.
async fn told(response: Response) -> Result<Response, ApiError> {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS || is_json {
        return Ok(response);
    }
    let text = match http_body_util::Limited::new(response.into_body(), ERROR_MAX_BYTES).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(why) => why.to_string(),
    };
    Err(match status.as_u16() {
        404 => ApiError::new(Reason::NotFound, text),
        400..=499 => ApiError::bad_request(text),
        _ => ApiError::internal(text),
    })
}

async fn join(client: OnUpgrade, node: OnUpgrade) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (client, node) = (client.await?, node.await?);
    let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
    tokio::io::copy_bidirectional(&mut client, &mut node).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(subresource: &str, query: &str, expected: Expect) {
        let pod = json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"containers": [{"name": "one"}, {"name": "two"}]}});
        let pod = Object::from_value(pod).unwrap();
        let path = node_path(&pod, subresource, &Query::parse(query));
        expected.assert_eq(&path.unwrap_or_else(|error| error.message));
    }

    #[test]
    fn requests_are_translated_for_the_node() {
        check(
            "log",
            "container=one&follow=true&tailLines=5&pretty=1",
            expect!["/containerLogs/a/web/one?follow=true&tailLines=5"],
        );
        check("log", "", expect!["a container name must be specified for pod web, choose one of: [one two]"]);
        for (options, why) in [
            ("limitBytes=0", "limitBytes: Invalid value: 0: must be greater than 0"),
            ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            (
                "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
                "[]: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
        ] {
            let pod = Object::from_value(json!({ "spec": { "containers": [{ "name": "one" }] } })).unwrap();
            let refused = node_path(&pod, "log", &Query::parse(options)).unwrap_err().message;
            assert_eq!(refused, format!("PodLogOptions \"\" is invalid: {why}"));
        }
        check("log", "container=x", expect!["container x is not valid for pod web"]);
        check(
            "exec",
            "container=two&command=sh&command=-c&command=a%20b&stdin=true&stdout=true&tty=false",
            expect!["/exec/a/web/two?input=1&output=1&command=sh&command=%2Dc&command=a%20b"],
        );
        check("exec", "container=two&command=sh", expect!["you must specify at least 1 of stdin, stdout, stderr"]);
        check("attach", "container=one&stdout=1", expect!["/attach/a/web/one?output=1"]);
        check("portforward", "ports=80", expect!["/portForward/a/web?port=80"]);
    }
}
