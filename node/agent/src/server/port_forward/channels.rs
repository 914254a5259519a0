//! Clients without SPDY: they name the ports when they connect, and each port is one connection with two channels of a
//! WebSocket, for data and for errors. The first message of each channel is the port, in two bytes, the lower first.

use std::sync::Arc;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::sync::{Notify, mpsc};

use super::session::{Session, Target, WAITING_MAX, idle};
use crate::server::spdy::Frame;

pub(super) const BINARY: &str = "v4.channel.k8s.io";
pub(super) const BASE64: &str = "v4.base64.channel.k8s.io";

/// Ports of one client. In text a channel is one character, from `0` on.
const PORTS_MAX: usize = 32;

/// The ports in a query, by the kubelet's name and by the API server's.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, String> {
    let pairs = crate::server::exec::form(query);
    let named = pairs.iter().filter(|(key, _)| matches!(key.as_str(), "port" | "ports"));
    let texts = named.flat_map(|(_, value)| value.split(','));
    let parse = |text: &str| match text.parse::<u16>() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("unable to parse {text:?} as a port")),
    };
    let ports: Vec<u16> = texts.map(parse).collect::<Result<_, _>>()?;
    match ports.len() {
        0 => Err("query parameter \"port\" is required".to_owned()),
        1..=PORTS_MAX => Ok(ports),
        more => Err(format!("{more} ports are more than the {PORTS_MAX} that one client may have forwarded")),
    }
}

/// How messages name their channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Binary,
    /// The channel as a digit, and the payload as text.
    Base64,
}

impl Coding {
    fn encode(self, channel: u8, payload: &[u8]) -> Message {
        match self {
            Coding::Binary => {
                let mut message = BytesMut::with_capacity(payload.len() + 1);
                message.put_u8(channel);
                message.put_slice(payload);
                Message::Binary(message.freeze())
            }
            Coding::Base64 => {
                let mut message = String::from(char::from(b'0'.saturating_add(channel)));
                STANDARD.encode_string(payload, &mut message);
                Message::Text(message.into())
            }
        }
    }

    /// The channel and what was sent on it; `None` for what carries nothing.
    fn decode(self, message: &Message) -> Result<Option<(u8, Bytes)>, String> {
        let bytes = match message {
            Message::Binary(bytes) => bytes.clone(),
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => return Ok(None),
        };
        let Some(first) = bytes.first().copied() else { return Ok(None) };
        match self {
            Coding::Binary => Ok(Some((first, bytes.slice(1..)))),
            Coding::Base64 => {
                let payload = STANDARD.decode(bytes.get(1..).unwrap_or_default()).map_err(|why| why.to_string())?;
                Ok(Some((first.wrapping_sub(b'0'), Bytes::from(payload))))
            }
        }
    }
}

/// Forwards until all connections have ended, the client goes, or the pod ends.
pub(super) async fn run(socket: WebSocket, coding: Coding, ports: &[u16], target: Target) {
    let target = Arc::new(target);
    let (sink, source) = socket.split();
    let (out, frames) = mpsc::channel(WAITING_MAX);
    let active = Notify::new();
    let mut session = Session::new(Arc::clone(&target), out);
    let reading = async {
        for (number, port) in (0_u32..).step_by(2).zip(ports) {
            session.begin(*port, number, number + 1).await;
        }
        if let Err(why) = read(source, coding, session, &active).await {
            tracing::debug!(why, "port forwarding");
            return;
        }
        // What the connections said last is still on its way.
        std::future::pending().await
    };
    tokio::select! {
        () = reading => {}
        () = write(sink, coding, frames, &active) => {}
        () = idle(&active) => {}
        () = target.gone() => {}
    }
}

/// Ends without an error when no connection is left.
async fn read(
    mut source: SplitStream<WebSocket>,
    coding: Coding,
    mut session: Session,
    active: &Notify,
) -> Result<(), String> {
    loop {
        tokio::select! {
            some_left = session.forget_ended() => if !some_left { return Ok(()) },
            message = source.next() => {
                let message = match message {
                    None | Some(Ok(Message::Close(_))) => return Err("the client went".to_owned()),
                    Some(message) => message.map_err(|why| why.to_string())?,
                };
                active.notify_one();
                if let Some((channel, payload)) = coding.decode(&message)? {
                    session.deliver(channel.into(), false, payload).await;
                }
            }
        }
    }
}

/// Ends when nobody has anything to say any more.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    coding: Coding,
    mut frames: mpsc::Receiver<Frame>,
    active: &Notify,
) {
    while let Some(frame) = frames.recv().await {
        let Frame::Data { stream, payload, .. } = frame else { continue };
        let Ok(channel) = u8::try_from(stream) else { continue };
        if payload.is_empty() {
            continue;
        }
        if sink.send(coding.encode(channel, &payload)).await.is_err() {
            return;
        }
        active.notify_one();
    }
    let normal = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::from_static("") };
    drop(sink.send(Message::Close(Some(normal))).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_by_either_name() {
        assert_eq!(ports("port=80&port=443"), Ok(vec![80, 443]));
        assert_eq!(ports("ports=80,443&x=1"), Ok(vec![80, 443]));
        for (query, why) in
            [("", "required"), ("port=0", "> 0"), ("port=x", "unable to parse"), ("port=70000", "parse")]
        {
            assert!(ports(query).unwrap_err().contains(why), "{query}");
        }
        let many: Vec<String> = (1..=33).map(|port| port.to_string()).collect();
        assert!(ports(&format!("ports={}", many.join(","))).unwrap_err().contains("33 ports"));
    }

    #[test]
    fn channels_are_bytes_or_digits() {
        let parts = |coding: Coding, message| coding.decode(&message).unwrap();
        for coding in [Coding::Binary, Coding::Base64] {
            let message = coding.encode(3, b"\x00\xffhi");
            assert_eq!(parts(coding, message), Some((3, Bytes::from_static(b"\x00\xffhi"))));
        }
        assert_eq!(Coding::Base64.encode(1, b"hi"), Message::Text("1aGk=".into()));
        assert_eq!(parts(Coding::Binary, Message::Binary(Bytes::new())), None);
        assert!(Coding::Base64.decode(&Message::Text("1?".into())).is_err());
    }
}
