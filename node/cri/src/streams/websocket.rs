//! The channels of a command over WebSocket: the first byte of each message is the channel.

use bytes::{BufMut, Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL};
use tandem_runtime::{AttachRequest, ExecIo, Result};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use super::{Channel, Input, Inputs, Outputs, Refusal, Target, exit_code, resize};
use crate::error::failed;

pub(super) const V4: &str = "v4.channel.k8s.io";
/// As v4, and channel 255 says which channel has ended.
pub(super) const V5: &str = "v5.channel.k8s.io";

const CLOSE: u8 = 255;

pub(super) struct Connection {
    socket: WebSocketStream<TcpStream>,
    protocol: String,
}

pub(super) async fn open(url: &str, protocols: &[&str]) -> std::result::Result<Connection, Refusal> {
    let target = Target::parse(url).map_err(Refusal::Failed)?;
    let stream = target.connect().await.map_err(Refusal::Failed)?;
    let refused = |error: Error| Refusal::Failed(failed("exec", error));
    let mut request = format!("ws://{}{}", target.authority, target.path).into_client_request().map_err(refused)?;
    let offer = HeaderValue::from_str(&protocols.join(", ")).map_err(|error| Refusal::Failed(failed("exec", error)))?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, offer);
    let (socket, answer) = match tokio_tungstenite::client_async(request, stream).await {
        Ok(opened) => opened,
        Err(Error::Http(answer)) if is_refusal(answer.status()) => return Err(Refusal::Protocol),
        Err(Error::Protocol(_)) => return Err(Refusal::Protocol),
        Err(error) => return Err(refused(error)),
    };
    let protocol = answer.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    Ok(Connection { socket, protocol: protocol.unwrap_or_default().to_owned() })
}

/// What servers answer to a WebSocket protocol that they don't know.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED)
}

pub(super) async fn run(connection: Connection, request: AttachRequest, io: ExecIo) -> Result<i32> {
    let can_close = connection.protocol == V5;
    let (sink, source) = connection.socket.split();
    let inputs = Inputs::new(request, io.stdin, io.resize);
    let outputs = Outputs { stdout: io.stdout, stderr: io.stderr, status: Vec::new() };
    tokio::select! {
        code = read(source, outputs) => code,
        error = write(sink, inputs, can_close) => Err(error),
    }
}

async fn read(mut source: SplitStream<WebSocketStream<TcpStream>>, mut outputs: Outputs) -> Result<i32> {
    while let Some(message) = source.next().await {
        let data = match message {
            Ok(Message::Binary(data)) => data,
            Ok(Message::Text(text)) => Bytes::from(text),
            Ok(Message::Close(_)) => break,
            Ok(_) => continue,
            // Servers cut the connection once the status is sent.
            Err(_) if outputs.is_complete() => break,
            Err(error) => return Err(failed("exec", error)),
        };
        let Some(channel) = data.first().and_then(|first| channel(*first)) else { continue };
        outputs.take(channel, data.slice(1..)).await;
        if channel == Channel::Status && outputs.is_complete() {
            break;
        }
    }
    exit_code(&outputs.status)
}

fn channel(first: u8) -> Option<Channel> {
    [Channel::Stdout, Channel::Stderr, Channel::Status].into_iter().find(|channel| *channel as u8 == first)
}

/// Ends only with an error: after the last input the connection stays open for the output.
async fn write(
    mut sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    mut inputs: Inputs,
    can_close: bool,
) -> tandem_runtime::Error {
    while let Some(input) = inputs.next().await {
        let message = match input {
            Input::Data(data) => frame(Channel::Stdin as u8, &data),
            Input::End if can_close => frame(CLOSE, &[Channel::Stdin as u8]),
            Input::End => continue,
            Input::Resize(size) => frame(Channel::Resize as u8, &resize(size)),
        };
        if let Err(error) = sink.send(message).await {
            return closed(error).await;
        }
    }
    std::future::pending().await
}

/// A command may end without reading all of its input: then the status, which the reader gets, says how it went.
async fn closed(error: Error) -> tandem_runtime::Error {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_) | Error::Protocol(_) => {
            std::future::pending().await
        }
        other => failed("exec", other),
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(message.freeze())
}
