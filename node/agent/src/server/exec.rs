//! Exec and attach over WebSocket: `v5.channel.k8s.io`, `v4` for clients that cannot end a stream, and the first protocol,
//! which tells of failures only; the latter two also in text, by base64.

use axum::{
    body::Bytes,
    extract::{
        Path, RawQuery, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tandem_runtime::{ContainerId, Error, ExecIo, ExecRequest, Runtime};
use tokio::{sync::mpsc, time::timeout};

use super::{ContainerPath, Refusal, Serving};
use crate::life::Life;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V1: &str = "channel.k8s.io";
const V4_TEXT: &str = "v4.base64.channel.k8s.io";
const V1_TEXT: &str = "base64.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In v5: the stream named by the next byte has ended.
const CLOSE: u8 = 255;

const MESSAGE_MAX: usize = 1 << 20;
/// Input that no program takes.
const INPUT_STALL_MAX: Duration = Duration::from_secs(300);
/// Parts of a stream that wait for a slow end.
const WAITING_MAX: usize = 16;

/// What a client asks for, by the parameters of the kubelet and by those of the API server.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parameters {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Parameters {
    fn parse(query: &str) -> Parameters {
        let mut parameters = Parameters::default();
        for (key, value) in form(query) {
            let yes = matches!(value.as_str(), "1" | "true");
            match key.as_str() {
                "command" => parameters.command.push(value),
                "input" | "stdin" => parameters.stdin = yes,
                "output" | "stdout" => parameters.stdout = yes,
                "error" | "stderr" => parameters.stderr = yes,
                "tty" => parameters.tty = yes,
                _ => {}
            }
        }
        parameters
    }
}

/// The pairs of a query string.
pub(super) fn form(query: &str) -> Vec<(String, String)> {
    let url = reqwest::Url::parse(&format!("http://node/?{query}"));
    url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default()
}

/// Whose streams a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// Those of a command that is run in the container.
    Exec,
    /// The container's own.
    Attach,
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
/// With the pod's uid, as a kubelet's path may have it.
type LongPath = Path<(String, String, String, String)>;

pub(super) async fn exec(state: State<Serving>, path: ContainerPath, query: RawQuery, upgrade: Upgrade) -> Response {
    serve(&state, path, &query, upgrade, Door::Exec)
}

pub(super) async fn exec_of_uid(state: State<Serving>, path: LongPath, query: RawQuery, upgrade: Upgrade) -> Response {
    serve(&state, without_uid(path), &query, upgrade, Door::Exec)
}

pub(super) async fn attach(state: State<Serving>, path: ContainerPath, query: RawQuery, upgrade: Upgrade) -> Response {
    serve(&state, path, &query, upgrade, Door::Attach)
}

pub(super) async fn attach_of_uid(
    state: State<Serving>,
    path: LongPath,
    query: RawQuery,
    upgrade: Upgrade,
) -> Response {
    serve(&state, without_uid(path), &query, upgrade, Door::Attach)
}

fn without_uid(Path((namespace, pod, _uid, container)): LongPath) -> ContainerPath {
    Path((namespace, pod, container))
}

fn serve(
    serving: &Serving,
    Path((namespace, pod, container)): ContainerPath,
    RawQuery(query): &RawQuery,
    upgrade: Upgrade,
    door: Door,
) -> Response {
    let parameters = Parameters::parse(query.as_deref().unwrap_or_default());
    if door == Door::Exec && parameters.command.is_empty() {
        return (StatusCode::BAD_REQUEST, "you must specify at least 1 command").into_response();
    }
    let (runtime, id) = match find(serving, &namespace, &pod, &container, &parameters) {
        Ok(found) => found,
        Err(refusal) => return refusal.into_response(),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade.protocols([V5, V4, V1, V4_TEXT, V1_TEXT]).max_message_size(MESSAGE_MAX),
        Err(_) => {
            let message = format!("exec and attach are served over WebSocket ({V5}, {V4}) only");
            return (StatusCode::BAD_REQUEST, message).into_response();
        }
    };
    let Some(framing) = upgrade.selected_protocol().and_then(|protocol| Framing::of(protocol.to_str().ok()?)) else {
        return (StatusCode::BAD_REQUEST, format!("no known subprotocol: {V5} and {V4} are")).into_response();
    };
    upgrade.on_upgrade(move |socket| converse(socket, framing, runtime, id, parameters, door))
}

/// What a subprotocol makes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Framing {
    /// A digit and base64 instead of a byte and bytes.
    text: bool,
    /// How it ended is told as a Status; otherwise only failures are, in words.
    status: bool,
}

impl Framing {
    fn of(protocol: &str) -> Option<Framing> {
        match protocol {
            V5 | V4 => Some(Framing { text: false, status: true }),
            V4_TEXT => Some(Framing { text: true, status: true }),
            V1 => Some(Framing { text: false, status: false }),
            V1_TEXT => Some(Framing { text: true, status: false }),
            _ => None,
        }
    }

    fn message(self, channel: u8, payload: &[u8]) -> Message {
        if self.text {
            return Message::Text(format!("{channel}{}", BASE64.encode(payload)).into());
        }
        let mut frame = Vec::with_capacity(payload.len() + 1);
        frame.push(channel);
        frame.extend_from_slice(payload);
        Message::Binary(Bytes::from(frame))
    }

    /// The channel and what came on it; `None` for what is no message of this subprotocol.
    fn read(self, bytes: &Bytes) -> Option<(u8, Bytes)> {
        let (channel, payload) = bytes.split_first()?;
        if self.text {
            return Some((channel.checked_sub(b'0')?, BASE64.decode(payload).ok()?.into()));
        }
        Some((*channel, bytes.slice(1..)))
    }

    /// What is said on the error channel in the end.
    fn end(self, outcome: &Status) -> Option<Message> {
        if self.status {
            return Some(self.message(ERROR, &serde_json::to_vec(outcome).unwrap_or_default()));
        }
        let failed = outcome.status.as_deref() == Some("Failure");
        failed.then(|| self.message(ERROR, outcome.message.as_deref().unwrap_or_default().as_bytes()))
    }
}

fn find(
    serving: &Serving,
    namespace: &str,
    pod: &str,
    container: &str,
    parameters: &Parameters,
) -> Result<(Arc<dyn Runtime>, ContainerId), Refusal> {
    if !(parameters.stdin || parameters.stdout || parameters.stderr) {
        return Err((StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    let found = serving.find(namespace, pod)?;
    let Life::Running(running) = found.life(container)? else {
        return Err((StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")));
    };
    let kind = found.seen.kind_of(&running.id);
    let runtime = kind.and_then(|kind| serving.context.runtimes.get(kind)).cloned();
    let runtime = runtime.ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")))?;
    Ok((runtime, running.id.clone()))
}

async fn converse(
    socket: WebSocket,
    framing: Framing,
    runtime: Arc<dyn Runtime>,
    id: ContainerId,
    parameters: Parameters,
    door: Door,
) {
    let (sink, source) = socket.split();
    let (to_stdin, stdin) = mpsc::channel(WAITING_MAX);
    let (stdout, from_stdout) = mpsc::channel(WAITING_MAX);
    let (stderr, from_stderr) = mpsc::channel(WAITING_MAX);
    let (to_resize, resize) = mpsc::channel(WAITING_MAX);
    let request = ExecRequest {
        command: parameters.command,
        stdin: parameters.stdin,
        stdout: parameters.stdout,
        stderr: parameters.stderr && !parameters.tty,
        tty: parameters.tty,
    };
    let (to_client, frames) = mpsc::channel(WAITING_MAX);
    let io = ExecIo { stdin, stdout, stderr, resize };
    let work = async {
        let run = async {
            match door {
                Door::Exec => runtime.exec_stream(&id, request, io).await,
                Door::Attach => runtime.attach(&id, request.streams(), io).await.map(|()| 0),
            }
        };
        let out = forward(framing, STDOUT, from_stdout, to_client.clone());
        let err = forward(framing, STDERR, from_stderr, to_client.clone());
        let (result, (), ()) = futures::join!(run, out, err);
        if let Some(end) = framing.end(&outcome(door, &result)) {
            // A client that is gone does not want to know.
            drop(to_client.send(end).await);
        }
        drop(to_client);
    };
    let stdin = parameters.stdin.then_some(to_stdin);
    let conversation = async {
        let write = write(sink, frames);
        let ((), ()) = futures::join!(work, write);
    };
    // When the client goes away first, the command's streams close with it.
    tokio::select! {
        () = conversation => {}
        () = read(framing, source, stdin, to_resize) => {}
    }
}

/// Passes on what the client sends, until it goes away. That it went is seen only behind what it sent before, so a
/// program that takes nothing for `INPUT_STALL_MAX` ends the conversation, too.
async fn read(
    framing: Framing,
    mut source: SplitStream<WebSocket>,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<(u16, u16)>,
) {
    while let Some(Ok(message)) = source.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        let Some((channel, payload)) = framing.read(&bytes) else { continue };
        match channel {
            STDIN => {
                let Some(sender) = stdin.as_ref().filter(|_| !payload.is_empty()) else { continue };
                match timeout(INPUT_STALL_MAX, sender.send(payload)).await {
                    Ok(Ok(())) => {}
                    // The command reads no more; what it has to say is still to come.
                    Ok(Err(_)) => stdin = None,
                    Err(_) => return,
                }
            }
            RESIZE => {
                if let Ok(size) = serde_json::from_slice::<Size>(&payload) {
                    // Only the last size counts: one that finds the queue full is not missed.
                    let _sent = resize.try_send((size.width, size.height));
                }
            }
            CLOSE if payload.first() == Some(&STDIN) => stdin = None,
            _ => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

async fn forward(framing: Framing, channel: u8, mut from: mpsc::Receiver<Bytes>, to: mpsc::Sender<Message>) {
    while let Some(bytes) = from.recv().await {
        if to.send(framing.message(channel, &bytes)).await.is_err() {
            return;
        }
    }
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut frames: mpsc::Receiver<Message>) {
    while let Some(frame) = frames.recv().await {
        if sink.send(frame).await.is_err() {
            return;
        }
    }
    // kubectl takes an end without a status for a connection that broke (RFC 6455, 7.4.1).
    let normal = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::from_static("") };
    drop(sink.send(Message::Close(Some(normal))).await);
    drop(sink.close().await);
}

/// How the streams ended, as clients read it from the error channel.
fn outcome(door: Door, result: &Result<i32, Error>) -> Status {
    let failure = |message: String, reason: &str, causes: Option<Vec<StatusCause>>, code| Status {
        status: Some("Failure".to_owned()),
        message: Some(message),
        reason: Some(reason.to_owned()),
        details: causes.map(|causes| StatusDetails { causes: Some(causes), ..StatusDetails::default() }),
        code,
        ..Status::default()
    };
    match result {
        Ok(0) => Status { status: Some("Success".to_owned()), ..Status::default() },
        Ok(code) => {
            let cause =
                StatusCause { reason: Some("ExitCode".to_owned()), message: Some(code.to_string()), field: None };
            let message = format!("command terminated with non-zero exit code: exit status {code}");
            failure(message, "NonZeroExitCode", Some(vec![cause]), None)
        }
        Err(error) => {
            let doing = match door {
                Door::Exec => "executing command in container",
                Door::Attach => "attaching to container",
            };
            let message = format!("Internal error occurred: error {doing}: {error}");
            failure(message, "InternalError", None, Some(500))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_by_either_name() {
        let wanted = Parameters {
            command: vec!["sh".to_owned(), "-c".to_owned(), "echo a b".to_owned()],
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(Parameters::parse("command=sh&command=-c&command=echo+a%20b&input=1&output=1&tty=1"), wanted);
        assert_eq!(Parameters::parse("command=sh&command=-c&command=echo+a+b&stdin=true&stdout=true&tty=true"), wanted);
    }

    #[test]
    fn messages_of_each_subprotocol() {
        let binary = Framing::of(V1).unwrap();
        assert_eq!(binary.message(STDOUT, b"hi"), Message::Binary(Bytes::from_static(b"\x01hi")));
        assert_eq!(binary.read(&Bytes::from_static(b"\x00in")), Some((STDIN, Bytes::from_static(b"in"))));
        assert_eq!(binary.end(&outcome(Door::Exec, &Ok(0))), None);
        let text = Framing::of(V4_TEXT).unwrap();
        assert_eq!(text.message(STDOUT, b"hi"), Message::Text("1aGk=".into()));
        assert_eq!(text.read(&Bytes::from_static(b"0aGk=")), Some((STDIN, Bytes::from_static(b"hi"))));
        assert_eq!(text.read(&Bytes::from_static(b"0!")), None);
        assert!(text.end(&outcome(Door::Exec, &Ok(0))).is_some());
        assert_eq!(Framing::of("v9.channel.k8s.io"), None);
    }

    #[test]
    fn outcomes_as_clients_read_them() {
        let text = |result| serde_json::to_string(&outcome(Door::Exec, &result)).unwrap();
        assert!(text(Ok(0)).contains(r#""status":"Success""#));
        let failed = text(Ok(3));
        assert!(failed.contains(r#""reason":"NonZeroExitCode""#), "{failed}");
        assert!(failed.contains(r#"{"message":"3","reason":"ExitCode"}"#), "{failed}");
    }
}
