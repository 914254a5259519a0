//! Port forwarding: the streams of a client, two for each connection, to TCP ports of a pod.
//!
//! ```text
//!  WebSocket messages or an upgraded connection ─> SPDY frames ─┬─> streams "error" + "data" ─> a port of the sandbox
//!                                                               └─> streams "error" + "data" ─> …
//! ```
//!
//! The same SPDY/3.1 comes in two wrappings: kubectl since 1.31 tunnels it through WebSocket, older ones upgrade to it.
//! Other clients don't speak it at all (`channels`).

mod channels;
mod session;

use std::{io, pin::Pin, sync::Arc};

use axum::{
    extract::{
        FromRequestParts, Path, Request, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt, future};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::codec::{BytesCodec, Framed};

use super::{Refusal, Serving};
use channels::{BASE64, BINARY, Coding};
use session::Target;

/// SPDY as it is tunnelled through WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const SPDY: &str = "SPDY/3.1";
const PROTOCOL: &str = "portforward.k8s.io";
const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Clients whose ports are forwarded at a time.
pub(super) const CLIENTS_MAX: usize = 256;
const MESSAGE_MAX: usize = 1 << 20;

type Incoming = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;
type Outgoing = Pin<Box<dyn Sink<Bytes, Error = io::Error> + Send>>;

pub(super) async fn port_forward_of_uid(
    state: State<Serving>,
    Path((namespace, pod, _uid)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    port_forward(state, Path((namespace, pod)), request).await
}

pub(super) async fn port_forward(
    State(serving): State<Serving>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Response {
    let target = match find(&serving, &namespace, &pod) {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let Ok(permit) = serving.forwards.clone().try_acquire_owned() else {
        let message = format!("{CLIENTS_MAX} clients forward ports of this node already");
        return (StatusCode::TOO_MANY_REQUESTS, message).into_response();
    };
    let (mut parts, _) = request.into_parts();
    if has(&parts.headers, &header::UPGRADE, SPDY) {
        return upgraded(&mut parts, target, permit);
    }
    let Ok(upgrade) = WebSocketUpgrade::from_request_parts(&mut parts, &()).await else {
        let message = format!("port forwarding is served over WebSocket ({TUNNEL}, {BINARY}) and {SPDY} only");
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    let upgrade = upgrade.protocols([TUNNEL, BINARY, BASE64]).max_message_size(MESSAGE_MAX);
    let coding = match upgrade.selected_protocol().and_then(|protocol| protocol.to_str().ok()) {
        Some(TUNNEL) => None,
        Some(BINARY) => Some(Coding::Binary),
        Some(BASE64) => Some(Coding::Base64),
        _ => {
            let message = format!("no known subprotocol: {TUNNEL}, {BINARY} and {BASE64} are");
            return (StatusCode::BAD_REQUEST, message).into_response();
        }
    };
    if let Some(coding) = coding {
        return match channels::ports(parts.uri.query().unwrap_or_default()) {
            Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
            Ok(ports) => upgrade.on_upgrade(move |socket| async move {
                channels::run(socket, coding, &ports, target).await;
                drop(permit);
            }),
        };
    }
    upgrade.on_upgrade(move |socket| async move {
        let (source, sink) = messages(socket);
        session::run(source, sink, target).await;
        drop(permit);
    })
}

fn find(serving: &Serving, namespace: &str, name: &str) -> Result<Target, Refusal> {
    let found = serving.find(namespace, name)?;
    let sandbox = found.seen.primary_sandbox();
    let runtime = sandbox.and_then(|sandbox| {
        let seen = found.seen.sandboxes.iter().find(|seen| seen.sandbox.id == sandbox.id)?;
        serving.context.runtimes.get(seen.kind)
    });
    let (Some(sandbox), Some(runtime)) = (sandbox, runtime) else {
        return Err((StatusCode::NOT_FOUND, format!("pod \"{name}\" does not run")));
    };
    Ok(Target {
        observer: serving.context.observer.clone(),
        runtime: Arc::clone(runtime),
        sandbox: sandbox.id.clone(),
        pod: Arc::clone(&found.pod),
    })
}

/// Whether one of the header's values, or of their parts between commas, is this.
fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
}

/// Answers an upgrade to SPDY itself.
fn upgraded(parts: &mut Parts, target: Target, permit: OwnedSemaphorePermit) -> Response {
    let any = !parts.headers.contains_key(&PROTOCOL_HEADER);
    if !any && !has(&parts.headers, &PROTOCOL_HEADER, PROTOCOL) {
        return (StatusCode::FORBIDDEN, format!("no known stream protocol: {PROTOCOL} is")).into_response();
    }
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return (StatusCode::BAD_REQUEST, "this connection cannot be upgraded").into_response();
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => {
                let (source, sink) = bytes(stream);
                session::run(source, sink, target).await;
            }
            Err(error) => tracing::debug!(%error, "an upgrade to SPDY failed"),
        }
        drop(permit);
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static(SPDY)),
        (PROTOCOL_HEADER, HeaderValue::from_static(PROTOCOL)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn bytes(stream: Upgraded) -> (Incoming, Outgoing) {
    let (sink, source) = Framed::new(TokioIo::new(stream), BytesCodec::new()).split();
    (Box::pin(source.map(|bytes| bytes.map(BytesMut::freeze))), Box::pin(sink))
}

/// The bytes in binary messages, however they are cut, until the client closes.
fn messages(socket: WebSocket) -> (Incoming, Outgoing) {
    let (sink, source) = socket.split();
    let source = source.take_while(|message| future::ready(!matches!(message, Ok(Message::Close(_)))));
    let source = source.filter_map(|message| {
        future::ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(Message::Text(_)) => Some(Err(io::Error::other("a text message"))),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        })
    });
    let sink = sink.sink_map_err(io::Error::other);
    (Box::pin(source), Box::pin(sink.with(|bytes| future::ready(Ok::<_, io::Error>(Message::Binary(bytes))))))
}
