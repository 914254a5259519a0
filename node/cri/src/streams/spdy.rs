//! The channels of a command over SPDY/3.1, as much of it as that takes: open a stream for each channel, send and
//! receive data, half-close. Headers are sent as zlib blocks that are stored, not compressed, and the server's are
//! skipped, for they say nothing that we need; so no compressor is needed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tandem_runtime::{AttachRequest, ExecIo, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Channel, Input, Inputs, Outputs, Refusal, Target, exit_code, resize};
use crate::error::failed;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// The longest frame that is accepted; the servers' own buffers are 32 KiB.
const FRAME_LIMIT: usize = 1 << 20;

type Stream = TokioIo<Upgraded>;

pub(super) struct Connection {
    stream: Stream,
    /// Carries the stream for as long as it is there.
    _task: AbortOnDropHandle<()>,
}

pub(super) async fn run(connection: Connection, request: AttachRequest, io: ExecIo) -> Result<i32> {
    let (source, mut sink) = tokio::io::split(connection.stream);
    let streams = Streams::new(request);
    sink.write_all(&streams.opening()).await.map_err(|error| failed("exec", error))?;
    let inputs = Inputs::new(request, io.stdin, io.resize);
    let outputs = Outputs { stdout: io.stdout, stderr: io.stderr, status: Vec::new() };
    let (pings, replies) = mpsc::channel(1);
    tokio::select! {
        code = read(source, &streams, outputs, pings) => code,
        never = write(sink, &streams, inputs, replies) => match never {},
    }
}

pub(super) async fn open(url: &str) -> std::result::Result<Connection, Refusal> {
    let failure = |error: &dyn std::fmt::Display| Refusal::Failed(failed("exec", error));
    let target = Target::parse(url).map_err(Refusal::Failed)?;
    let stream = TokioIo::new(target.connect().await.map_err(Refusal::Failed)?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| failure(&error))?;
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "exec connection");
        }
    }));
    let request = Request::post(target.path)
        .header(header::HOST, target.authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", super::websocket::V4)
        .body(Empty::<Bytes>::new())
        .map_err(|error| failure(&error))?;
    let answer = match sender.send_request(request).await {
        Ok(answer) => answer,
        // Servers of WebSocket alone hang up on whoever does not begin with GET.
        Err(error) if error.is_incomplete_message() || error.is_canceled() => return Err(Refusal::Protocol),
        Err(error) => return Err(failure(&error)),
    };
    let status = answer.status();
    if super::websocket::is_refusal(status) || status == StatusCode::METHOD_NOT_ALLOWED {
        return Err(Refusal::Protocol);
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(failure(&format!("{status}: {}", String::from_utf8_lossy(&body).trim())));
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(|error| failure(&error))?;
    Ok(Connection { stream: TokioIo::new(upgraded), _task: task })
}

/// Which stream carries which channel. A client's streams have odd numbers.
struct Streams(Vec<Channel>);

impl Streams {
    fn new(request: AttachRequest) -> Streams {
        let wanted = [
            (Channel::Status, true),
            (Channel::Stdin, request.stdin),
            (Channel::Stdout, request.stdout),
            (Channel::Stderr, request.stderr && !request.tty),
            (Channel::Resize, request.tty),
        ];
        Streams(wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(channel, _)| channel).collect())
    }

    fn number(&self, wanted: Channel) -> Option<u32> {
        let index = self.0.iter().position(|channel| *channel == wanted)?;
        u32::try_from(index * 2 + 1).ok()
    }

    fn channel(&self, number: u32) -> Option<Channel> {
        let index = usize::try_from(number.checked_sub(1)? / 2).ok()?;
        self.0.get(index).copied()
    }

    /// The frames that open all streams.
    fn opening(&self) -> Bytes {
        let mut frames = BytesMut::new();
        for (index, channel) in self.0.iter().enumerate() {
            let name = match channel {
                Channel::Stdin => "stdin",
                Channel::Stdout => "stdout",
                Channel::Stderr => "stderr",
                Channel::Status => "error",
                Channel::Resize => "resize",
            };
            let headers = stored(&header_block("streamtype", name), index == 0);
            let mut payload = BytesMut::new();
            payload.put_u32(self.number(*channel).unwrap_or_default());
            payload.put_u32(0);
            payload.put_u16(0);
            payload.put_slice(&headers);
            frames.put_slice(&control(SYN_STREAM, 0, &payload));
        }
        frames.freeze()
    }
}

fn header_block(name: &str, value: &str) -> Bytes {
    let mut block = BytesMut::new();
    block.put_u32(1);
    for text in [name, value] {
        block.put_u32(u32::try_from(text.len()).unwrap_or_default());
        block.put_slice(text.as_bytes());
    }
    block.freeze()
}

/// All headers of a connection are one zlib stream, flushed after each frame: here a stored block with the data, and
/// an empty one, at which a reader hands out what it has.
fn stored(data: &[u8], first: bool) -> Bytes {
    let length = u16::try_from(data.len()).unwrap_or_default();
    let mut out = BytesMut::new();
    if first {
        out.put_slice(&[0x78, 0x01]);
    }
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.put_slice(data);
    out.put_slice(&[0, 0, 0, 0xff, 0xff]);
    out.freeze()
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + payload.len());
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap_or_default());
    frame.put_slice(payload);
    frame.freeze()
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + payload.len());
    frame.put_u32(stream);
    frame.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap_or_default());
    frame.put_slice(payload);
    frame.freeze()
}

#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Data {
        stream: u32,
        payload: Bytes,
    },
    Ping(Bytes),
    /// The server ends the connection.
    GoAway,
    Reset {
        stream: u32,
    },
    Other,
}

/// `None` at the end of the connection.
async fn next_frame(source: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Option<Frame>> {
    let mut head = [0; 8];
    match source.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut rest = &head[..];
    let (first, second) = (rest.get_u32(), rest.get_u32());
    let length = (second & 0x00ff_ffff) as usize;
    if length > FRAME_LIMIT {
        return Err(std::io::Error::other(format!("a SPDY frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    source.read_exact(&mut payload).await?;
    let mut payload = Bytes::from(payload);
    if first & 0x8000_0000 == 0 {
        return Ok(Some(Frame::Data { stream: first, payload }));
    }
    Ok(Some(match (first & 0xffff) as u16 {
        PING => Frame::Ping(payload),
        GOAWAY => Frame::GoAway,
        RST_STREAM if payload.len() >= 4 => Frame::Reset { stream: payload.get_u32() },
        _ => Frame::Other,
    }))
}

async fn read(
    mut source: ReadHalf<Stream>,
    streams: &Streams,
    mut outputs: Outputs,
    pings: mpsc::Sender<Bytes>,
) -> Result<i32> {
    loop {
        match next_frame(&mut source).await {
            Ok(Some(Frame::Data { stream, payload })) => {
                let Some(channel) = streams.channel(stream) else { continue };
                outputs.take(channel, payload).await;
                if channel == Channel::Status && outputs.is_complete() {
                    break;
                }
            }
            // An unanswered one is sent again; a full queue means that an answer is on its way.
            Ok(Some(Frame::Ping(payload))) => drop(pings.try_send(payload)),
            Ok(Some(Frame::Reset { stream })) if streams.channel(stream) == Some(Channel::Status) => break,
            Ok(Some(Frame::Reset { .. } | Frame::Other)) => {}
            Ok(Some(Frame::GoAway) | None) => break,
            Err(error) => return Err(failed("exec", error)),
        }
    }
    exit_code(&outputs.status)
}

/// Never ends by itself: a command may end without reading its input, and only the reader learns how it went.
async fn write(
    mut sink: WriteHalf<Stream>,
    streams: &Streams,
    mut inputs: Inputs,
    mut replies: mpsc::Receiver<Bytes>,
) -> std::convert::Infallible {
    loop {
        let frame = tokio::select! {
            Some(ping) = replies.recv() => Some(control(PING, 0, &ping)),
            input = inputs.next() => match input {
                Some(input) => input_frame(streams, input),
                None => break,
            },
        };
        if let Some(frame) = frame
            && sink.write_all(&frame).await.is_err()
        {
            return std::future::pending().await;
        }
    }
    while let Some(ping) = replies.recv().await {
        if sink.write_all(&control(PING, 0, &ping)).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

fn input_frame(streams: &Streams, input: Input) -> Option<Bytes> {
    Some(match input {
        Input::Data(payload) => data(streams.number(Channel::Stdin)?, 0, &payload),
        Input::End => data(streams.number(Channel::Stdin)?, FIN, &[]),
        Input::Resize(size) => data(streams.number(Channel::Resize)?, 0, &resize(size)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_a_zlib_stream_of_stored_blocks() {
        assert_eq!(
            stored(b"ab", true),
            Bytes::from_static(&[0x78, 0x01, 0, 2, 0, 0xfd, 0xff, b'a', b'b', 0, 0, 0, 0xff, 0xff])
        );
        assert_eq!(stored(b"", false).first(), Some(&0));
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let mut bytes = data(5, FIN, b"hello").to_vec();
        bytes.extend_from_slice(&control(PING, 0, &[0, 0, 0, 2]));
        bytes.extend_from_slice(&control(GOAWAY, 0, &[0; 8]));
        let mut source = &bytes[..];
        let frames = [
            Some(Frame::Data { stream: 5, payload: Bytes::from_static(b"hello") }),
            Some(Frame::Ping(Bytes::from_static(&[0, 0, 0, 2]))),
            Some(Frame::GoAway),
            None,
        ];
        for frame in frames {
            assert_eq!(next_frame(&mut source).await.unwrap(), frame);
        }
    }

    #[test]
    fn streams_have_odd_numbers_in_the_order_in_which_they_open() {
        let request = AttachRequest { stdin: true, stdout: true, stderr: true, tty: true };
        let streams = Streams::new(request);
        assert_eq!(streams.number(Channel::Status), Some(1));
        assert_eq!(streams.number(Channel::Stdin), Some(3));
        assert_eq!(streams.number(Channel::Stderr), None);
        assert_eq!(streams.channel(7), Some(Channel::Resize));
        assert_eq!(streams.channel(8), None.or(streams.channel(7)));
        assert_eq!(streams.channel(0), None);
    }
}
