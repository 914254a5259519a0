use axum::{
    body::Body,
    extract::{
        Path, Query, State, WebSocketUpgrade,
        ws::{Message, rejection::WebSocketUpgradeRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use futures::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use tandem_runtime::{Container, State as ContainerState};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{ContainerPath, Found, Refusal, Serving};
use crate::{
    config::log_file,
    life::{Life, outcome},
    logs::{LogOptions, send},
    observed::seconds,
    pod,
    status::pod_status,
};

/// Parts of a log that wait for a slow reader.
const WAITING_MAX: usize = 32;
const BINARY: &str = "binary.k8s.io";
const TEXT: &str = "base64.binary.k8s.io";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LogQuery {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<Timestamp>,
    limit_bytes: Option<i64>,
    stream: Option<String>,
}

fn is_true(value: Option<&String>) -> bool {
    value.is_some_and(|value| matches!(value.as_str(), "true" | "1" | "True" | "TRUE" | "t" | "T" | ""))
}

impl LogQuery {
    fn options(&self, now: Timestamp) -> Result<LogOptions, Refusal> {
        let count = |value: Option<i64>, name: &str| {
            let checked = value.map(usize::try_from).transpose();
            checked.map_err(|_| (StatusCode::UNPROCESSABLE_ENTITY, format!("{name} must not be negative")))
        };
        let stream = match self.stream.as_deref() {
            None | Some("" | "All") => None,
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            Some(other) => return Err((StatusCode::UNPROCESSABLE_ENTITY, format!("unknown stream {other:?}"))),
        };
        Ok(LogOptions {
            follow: is_true(self.follow.as_ref()),
            timestamps: is_true(self.timestamps.as_ref()),
            tail: count(self.tail_lines, "tailLines")?,
            since: self.since_time.or_else(|| self.since_seconds.map(|ago| now - seconds(ago))),
            limit_bytes: count(self.limit_bytes, "limitBytes")?,
            stream,
        })
    }
}

pub(super) async fn container_logs(
    State(serving): State<Serving>,
    Path((namespace, name, container)): ContainerPath,
    Query(query): Query<LogQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let response = match open(&serving, &namespace, &name, &container, &query) {
        Ok(response) => response,
        Err(refusal) => return refusal.into_response(),
    };
    match upgrade {
        Ok(upgrade) => over_websocket(upgrade, response),
        Err(_) => response,
    }
}

/// The log as messages of a WebSocket, for clients that speak nothing else.
fn over_websocket(upgrade: WebSocketUpgrade, log: Response) -> Response {
    let upgrade = upgrade.protocols([BINARY, TEXT]);
    let text = upgrade.selected_protocol().is_some_and(|protocol| protocol == TEXT);
    upgrade.on_upgrade(async move |mut socket| {
        let mut parts = log.into_body().into_data_stream();
        while let Some(Ok(part)) = parts.next().await {
            let message = if text { Message::Text(BASE64.encode(&part).into()) } else { Message::Binary(part) };
            if socket.send(message).await.is_err() {
                return;
            }
        }
        // Who is gone misses nothing.
        drop(socket.send(Message::Close(None)).await);
    })
}

fn open(
    serving: &Serving,
    namespace: &str,
    name: &str,
    container: &str,
    query: &LogQuery,
) -> Result<Response, Refusal> {
    let now = serving.context.clock.now();
    let options = query.options(now)?;
    let found = serving.find(namespace, name)?;
    let chosen = choose(&found, container, is_true(query.previous.as_ref()), now)?;
    let path = serving.context.directories.logs(&found.pod).join(log_file(container, chosen.attempt));
    if !path.exists() {
        let message =
            format!("failed to open log file {:?}: it is not there any more", path.file_name().unwrap_or_default());
        return Err((StatusCode::NOT_FOUND, message));
    }
    let (out, parts) = mpsc::channel(WAITING_MAX);
    let (observer, uid, id) = (serving.context.observer.clone(), pod::uid(&found.pod).to_owned(), chosen.id.clone());
    let lives = move || {
        let view = observer.view(&uid);
        let mut containers = view.iter().flat_map(|seen| &seen.sandbox.containers);
        containers.any(|container| container.id == id && matches!(container.state, ContainerState::Running { .. }))
    };
    let sending = tokio::spawn(async move {
        if let Err(error) = send(&path, options, lives, out.clone()).await {
            // The reader may have gone away as well; then there is nobody to tell.
            drop(out.send(Err(error)).await);
        }
    });
    // The task ends by itself when the response is dropped: its channel closes.
    drop(sending);
    let body = Body::from_stream(ReceiverStream::new(parts));
    Ok(([(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The container whose log is meant: the one that runs or ran last, or the one before it.
fn choose<'a>(found: &'a Found, name: &str, previous: bool, now: Timestamp) -> Result<&'a Container, Refusal> {
    let life = found.life(name)?;
    let pod_name = pod::name(&found.pod);
    let instances = found.seen.instances(name);
    let before = || instances.len().checked_sub(2).and_then(|index| instances.get(index)).copied();
    let chosen = match (life, previous) {
        (Life::Running(container), false) => Some(container),
        (Life::Ended(ended), false) => Some(ended.container),
        // One that waits to be restarted is itself the last that ended.
        (Life::Ended(ended), true) if ended.restarts && outcome(&found.pod, &found.seen, now).is_none() => {
            Some(ended.container)
        }
        (Life::Running(_) | Life::Ended(_) | Life::Created(_), true) => before(),
        (Life::Created(_), false) => before(),
        (Life::Absent | Life::Lost { .. }, _) => None,
    };
    chosen.ok_or_else(|| {
        let message = if previous {
            format!("previous terminated container \"{name}\" in pod \"{pod_name}\" not found")
        } else {
            let why = waiting_reason(found, name, now);
            format!("container \"{name}\" in pod \"{pod_name}\" is waiting to start: {why}")
        };
        (StatusCode::BAD_REQUEST, message)
    })
}

/// Why a container has not started, in the words of a kubelet.
fn waiting_reason(found: &Found, name: &str, now: Timestamp) -> String {
    let reported = found.pod.status.clone();
    let made = pod_status(&found.pod, &found.seen, &crate::observed::Probes::default(), now);
    let reason = |status: &k8s_openapi::api::core::v1::PodStatus| {
        let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
        let container = lists.into_iter().flatten().flatten().find(|container| container.name == name)?.clone();
        container.state?.waiting?.reason
    };
    // What the worker reported knows of troubles; what is made here knows only the runtimes.
    let reason = reported.as_ref().and_then(reason).or_else(|| reason(&made)).unwrap_or_default();
    match reason.as_str() {
        "ErrImagePull" => "image can't be pulled".to_owned(),
        "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
        other => other.to_owned(),
    }
}
