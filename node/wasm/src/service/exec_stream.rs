//! The streams of `exec` and `attach` while they go on: a WebSocket on the node's loopback address, behind a path that
//! only who asked for it knows.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::server::{ErrorResponse, Request, Response},
};

use crate::host::{Host, HostError};

/// An offer that nobody takes is forgotten.
const OFFER_TIME: Duration = Duration::from_secs(60);
const OFFERS: usize = 1024;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const CHUNKS: usize = 16;
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
/// In version 5: the channel whose number follows has ended.
const CLOSE: u8 = 255;

/// A client that has gone is noticed behind what it sent before: a guest that takes nothing for so long ends the
/// conversation.
const INPUT_STALL_MAX: Duration = Duration::from_secs(300);

/// What the streams are of.
pub(super) enum Work {
    Exec { command: Vec<String> },
    Attach { stdout: bool, stderr: bool },
}

struct Offer {
    container: String,
    work: Work,
    stdin: bool,
    made: Instant,
}

pub(super) struct ExecStreams {
    host: Arc<Host>,
    address: SocketAddr,
    offers: Mutex<HashMap<String, Offer>>,
}

impl ExecStreams {
    pub(super) async fn start(host: Arc<Host>) -> io::Result<Arc<ExecStreams>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let streams = Arc::new(ExecStreams { host, address, offers: Mutex::default() });
        let serving = streams.clone();
        // Runs as long as the worker.
        drop(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serving.clone().converse(stream))),
                    Err(error) => {
                        tracing::warn!(%error, "a connection for exec could not be taken");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }));
        Ok(streams)
    }

    /// The address where these streams can be had, once.
    pub(super) fn offer(&self, container: String, work: Work, stdin: bool) -> String {
        let token = self.host.new_id();
        let now = Instant::now();
        let mut offers = self.offers.lock();
        offers.retain(|_, offer| now.duration_since(offer.made) < OFFER_TIME);
        if offers.len() < OFFERS {
            offers.insert(token.clone(), Offer { container, work, stdin, made: now });
        }
        format!("http://{}/exec/{token}", self.address)
    }

    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let mut taken = None;
        #[allow(clippy::result_large_err, reason = "tungstenite's callback returns the refusal itself")]
        let accept = tokio_tungstenite::accept_hdr_async(stream, |request: &Request, mut response: Response| {
            let token = request.uri().path().strip_prefix("/exec/").unwrap_or_default();
            let protocol = protocol(request).ok_or_else(|| refuse(StatusCode::FORBIDDEN, "no known protocol"))?;
            let offer = self.offers.lock().remove(token);
            taken = Some(offer.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such command"))?);
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            Ok(response)
        });
        let accepted = tokio::time::timeout(HANDSHAKE_TIME, accept).await;
        let (Ok(Ok(socket)), Some(offer)) = (accepted, taken) else { return };
        let (mut sink, mut source) = socket.split();
        let (input, stdin) = mpsc::channel(CHUNKS);
        let stdin = offer.stdin.then_some(stdin);
        let gone = async {
            let mut input = Some(input);
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Close(_) => break,
                    Message::Binary(data) => match timeout(INPUT_STALL_MAX, feed(&mut input, &data)).await {
                        Ok(()) => {}
                        Err(_) => break,
                    },
                    _ => {}
                }
            }
        };
        tokio::select! {
            sent = self.run(&offer, stdin, &mut sink) => {
                if let Err(error) = sent {
                    tracing::debug!(%error, "the output of a command could not be sent");
                }
            }
            () = gone => {}
        }
        // The other end may have closed first.
        drop(sink.close().await);
    }

    async fn run<S>(&self, offer: &Offer, stdin: Option<mpsc::Receiver<Bytes>>, sink: &mut S) -> Result<(), S::Error>
    where
        S: Sink<Message> + Unpin,
    {
        let (stdout, mut out) = mpsc::channel(CHUNKS);
        let (stderr, mut err) = mpsc::channel(CHUNKS);
        let ended = async {
            let (host, id) = (&self.host, offer.container.as_str());
            match &offer.work {
                Work::Exec { command } => host.exec_live(id, command, stdin, stdout, stderr).await,
                Work::Attach { stdout: out, stderr: err } => {
                    let (stdout, stderr) = (Some(stdout).filter(|_| *out), Some(stderr).filter(|_| *err));
                    host.attach(id, stdin, stdout, stderr).await.map(|()| 0)
                }
            }
        };
        let send = async {
            let (mut out_open, mut err_open) = (true, true);
            while out_open || err_open {
                let (channel, chunk) = tokio::select! {
                    chunk = out.recv(), if out_open => (STDOUT, chunk),
                    chunk = err.recv(), if err_open => (STDERR, chunk),
                };
                match (chunk, channel) {
                    (Some(chunk), _) => sink.send(frame(channel, &chunk)).await?,
                    (None, STDOUT) => out_open = false,
                    (None, _) => err_open = false,
                }
            }
            Ok(())
        };
        let (ended, sent) = tokio::join!(ended, send);
        sent?;
        let status = serde_json::to_vec(&outcome(ended)).unwrap_or_default();
        sink.send(frame(STATUS, &status)).await
    }
}

/// Passes input on until its end.
async fn feed(input: &mut Option<mpsc::Sender<Bytes>>, data: &Bytes) {
    match (data.first(), input.as_ref()) {
        (Some(&STDIN), Some(sender)) => {
            // A guest that reads no more wants none.
            drop(sender.send(data.slice(1..)).await);
        }
        (Some(&CLOSE), Some(_)) if data.get(1) == Some(&STDIN) => *input = None,
        _ => {}
    }
}

fn protocol(request: &Request) -> Option<&'static str> {
    let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    PROTOCOLS.into_iter().find(|protocol| offered.split(',').any(|one| one.trim() == *protocol))
}

fn refuse(status: StatusCode, text: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(text.to_owned()));
    *response.status_mut() = status;
    response
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(Bytes::from(message))
}

/// A Kubernetes Status, as far as exec uses it.
#[derive(Serialize)]
struct Outcome {
    metadata: Empty,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

fn outcome(ended: Result<i32, HostError>) -> Outcome {
    let outcome = |status, reason, message, details| Outcome { metadata: Empty {}, status, reason, message, details };
    match ended {
        Ok(0) => outcome("Success", "", String::new(), None),
        Ok(code) => outcome(
            "Failure",
            "NonZeroExitCode",
            format!("command terminated with non-zero exit code: exit status {code}"),
            Some(Details { causes: [Cause { reason: "ExitCode", message: code.to_string() }] }),
        ),
        Err(error) => outcome("Failure", "InternalError", error.to_string(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_as_kubernetes_words_them() {
        let json = |ended| serde_json::to_string(&outcome(ended)).unwrap();
        assert_eq!(json(Ok(0)), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            json(Ok(3)),
            r#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with non-zero exit code: exit status 3","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
    }
}
