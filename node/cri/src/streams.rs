//! Running a command, or attaching to a container, with live streams: CRI gives a URL, and the streams are a connection
//! to it. Two protocols carry the same five channels. WebSocket is the simple one, but only its version 5 can say that
//! stdin has ended, and older servers (containerd 1.6 and 1.7) do not speak that; SPDY/3.1 can, and they all speak it.
//! So a command that reads stdin goes over WebSocket v5 or else SPDY, all others over WebSocket v5 or v4.

mod spdy;
mod websocket;

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tandem_runtime::{AttachRequest, ExecIo, Result};
use tokio::{net::TcpStream, sync::mpsc};

use crate::error::failed;

/// The channel numbers of WebSocket; SPDY has names for the same streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Status = 3,
    Resize = 4,
}

/// What is known of the server's protocols.
#[derive(Debug, Default)]
pub(crate) struct Dialect {
    without_v5: AtomicBool,
}

/// How opening a connection failed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The server does not speak this protocol; it used up the URL all the same.
    Protocol,
    Failed(tandem_runtime::Error),
}

/// Carries the streams of what is behind the URL that `url` asks the runtime for; each URL is good for one connection.
/// The number is the exit code of a command, and 0 at the end of what a client was attached to.
pub(crate) async fn run<U, F>(dialect: &Dialect, request: AttachRequest, io: ExecIo, url: U) -> Result<i32>
where
    U: Fn() -> F,
    F: Future<Output = Result<String>>,
{
    if !request.stdin {
        return match websocket::open(&url().await?, &[websocket::V5, websocket::V4]).await {
            Ok(connection) => websocket::run(connection, request, io).await,
            Err(Refusal::Protocol) => over_spdy(&url().await?, request, io).await,
            Err(Refusal::Failed(error)) => Err(error),
        };
    }
    if !dialect.without_v5.load(Ordering::Relaxed) {
        match websocket::open(&url().await?, &[websocket::V5]).await {
            Ok(connection) => return websocket::run(connection, request, io).await,
            Err(Refusal::Protocol) => dialect.without_v5.store(true, Ordering::Relaxed),
            Err(Refusal::Failed(error)) => return Err(error),
        }
    }
    over_spdy(&url().await?, request, io).await
}

/// As [`run`], for the streams of a container that runs.
///
/// Over WebSocket, containerd takes a client that sends no input for one whose input has ended, which ends the
/// attaching, and with `stdinOnce` the container's input (`wsstream` reads a channel that is not used as empty). Over
/// SPDY what is not asked for is not there.
pub(crate) async fn attach<U, F>(dialect: &Dialect, request: AttachRequest, io: ExecIo, url: U) -> Result<i32>
where
    U: Fn() -> F,
    F: Future<Output = Result<String>>,
{
    if request.stdin {
        return run(dialect, request, io, url).await;
    }
    match spdy::open(&url().await?).await {
        Ok(connection) => return spdy::run(connection, request, io).await,
        Err(Refusal::Protocol) => {}
        Err(Refusal::Failed(error)) => return Err(error),
    }
    match websocket::open(&url().await?, &[websocket::V5]).await {
        Ok(connection) => websocket::run(connection, request, io).await,
        Err(Refusal::Protocol) => Err(no_protocol()),
        Err(Refusal::Failed(error)) => Err(error),
    }
}

fn no_protocol() -> tandem_runtime::Error {
    failed("exec", "the runtime's streaming server speaks neither WebSocket v5 nor SPDY")
}

async fn over_spdy(url: &str, request: AttachRequest, io: ExecIo) -> Result<i32> {
    match spdy::open(url).await {
        Ok(connection) => spdy::run(connection, request, io).await,
        Err(Refusal::Protocol) => Err(no_protocol()),
        Err(Refusal::Failed(error)) => Err(error),
    }
}

/// A URL such as `http://127.0.0.1:41235/exec/TOKEN`.
struct Target<'a> {
    authority: &'a str,
    path: &'a str,
}

impl Target<'_> {
    fn parse(url: &str) -> Result<Target<'_>> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| failed("exec", format!("the runtime's streaming address {url} is not plain HTTP")))?;
        let split = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(split);
        Ok(Target { authority, path: if path.is_empty() { "/" } else { path } })
    }

    async fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.authority).await;
        stream.map_err(|source| failed("exec", format!("connect to {}: {source}", self.authority)))
    }
}

/// What the server says at the end: a Kubernetes Status.
#[derive(Deserialize)]
struct Outcome {
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// The exit code in the bytes that the status channel carried.
fn exit_code(status: &[u8]) -> Result<i32> {
    if status.is_empty() {
        return Err(failed("exec", "the connection ended before the command did"));
    }
    // Before v4 the channel carried plain text, and some failures still come that way.
    let Ok(outcome) = serde_json::from_slice::<Outcome>(status) else {
        return Err(failed("exec", String::from_utf8_lossy(status).trim()));
    };
    if outcome.status == "Success" {
        return Ok(0);
    }
    let causes = outcome.details.map(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason == "ExitCode").and_then(|cause| cause.message.parse().ok());
    match code {
        Some(code) if outcome.reason == "NonZeroExitCode" => Ok(code),
        _ => Err(failed("exec", outcome.message)),
    }
}

/// True once the status channel holds a whole Status: what follows is only the end of the connection.
fn is_complete(status: &[u8]) -> bool {
    serde_json::from_slice::<Outcome>(status).is_ok()
}

/// The size of a terminal as the resize channel carries it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

fn resize(size: (u16, u16)) -> Vec<u8> {
    serde_json::to_vec(&Size { width: size.0, height: size.1 }).unwrap_or_default()
}

/// The outputs of a command. A reader that went away does not end the command.
struct Outputs {
    stdout: mpsc::Sender<Bytes>,
    stderr: mpsc::Sender<Bytes>,
    status: Vec<u8>,
}

impl Outputs {
    async fn take(&mut self, channel: Channel, data: Bytes) {
        if data.is_empty() {
            return;
        }
        match channel {
            Channel::Stdout => drop(self.stdout.send(data).await),
            Channel::Stderr => drop(self.stderr.send(data).await),
            Channel::Status => self.status.extend_from_slice(&data),
            Channel::Stdin | Channel::Resize => {}
        }
    }

    fn is_complete(&self) -> bool {
        !self.status.is_empty() && is_complete(&self.status)
    }
}

/// What goes to the command, in the order in which it came.
enum Input {
    Data(Bytes),
    /// stdin has ended; what follows are resizes only.
    End,
    Resize((u16, u16)),
}

struct Inputs {
    stdin: Option<mpsc::Receiver<Bytes>>,
    resize: Option<mpsc::Receiver<(u16, u16)>>,
}

impl Inputs {
    fn new(request: AttachRequest, stdin: mpsc::Receiver<Bytes>, resize: mpsc::Receiver<(u16, u16)>) -> Inputs {
        Inputs { stdin: request.stdin.then_some(stdin), resize: request.tty.then_some(resize) }
    }

    /// `None` when nothing more can come.
    async fn next(&mut self) -> Option<Input> {
        loop {
            let (stdin, resize) = (&mut self.stdin, &mut self.resize);
            tokio::select! {
                data = receive(stdin), if stdin.is_some() => match data {
                    Some(data) => return Some(Input::Data(data)),
                    None => {
                        self.stdin = None;
                        return Some(Input::End);
                    }
                },
                size = receive(resize), if resize.is_some() => match size {
                    Some(size) => return Some(Input::Resize(size)),
                    None => self.resize = None,
                },
                else => return None,
            }
        }
    }
}

async fn receive<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    receiver.as_mut()?.recv().await
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(status: &str, expected: Expect) {
        expected.assert_eq(&match exit_code(status.as_bytes()) {
            Ok(code) => code.to_string(),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn the_status_channel_tells_the_exit_code() {
        check(r#"{"metadata":{},"status":"Success"}"#, expect!["0"]);
        check(
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
            expect!["3"],
        );
        check(
            r#"{"metadata":{},"status":"Failure","message":"container not running","reason":"InternalError"}"#,
            expect!["exec: container not running"],
        );
        check("no such file", expect!["exec: no such file"]);
        check("", expect!["exec: the connection ended before the command did"]);
    }

    #[test]
    fn addresses_are_taken_apart() {
        let target = Target::parse("http://127.0.0.1:4123/exec/abc").unwrap();
        assert_eq!((target.authority, target.path), ("127.0.0.1:4123", "/exec/abc"));
        assert!(Target::parse("https://127.0.0.1/exec").is_err());
    }

    #[tokio::test]
    async fn the_end_of_stdin_is_told_once() {
        let (data, stdin) = mpsc::channel(1);
        let (_size, resize) = mpsc::channel(1);
        let request = AttachRequest { stdin: true, stdout: true, stderr: true, tty: false };
        let mut inputs = Inputs::new(request, stdin, resize);
        data.send(Bytes::from_static(b"a")).await.unwrap();
        drop(data);
        assert!(matches!(inputs.next().await, Some(Input::Data(_))));
        assert!(matches!(inputs.next().await, Some(Input::End)));
        assert!(inputs.next().await.is_none());
    }
}
