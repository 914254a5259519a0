//! The frames of SPDY/3.1: how Kubernetes' clients carry the streams of forwarded ports over one connection.
//!
//! Only bytes and frames, no connection: what a peer sends is bounded and checked here, what it means is decided
//! elsewhere. Kubernetes' library (`moby/spdystream`) neither keeps nor grants windows, so neither can we: a client
//! that is to wait is not read from.

mod headers;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(super) use headers::Headers;

const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
const HEAD_BYTES: usize = 8;
const FIN: u8 = 1;
/// The longest control frame that is accepted. Data frames may be as long as they like: they are handed on in parts.
const CONTROL_MAX_BYTES: usize = 16 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Status codes of `RST_STREAM`.
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const REFUSED_STREAM: u32 = 3;
pub(super) const INTERNAL_ERROR: u32 = 6;

/// What makes a connection unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("a frame of SPDY version {0}")]
    Version(u16),
    #[error("a control frame of type {kind} with {bytes} bytes")]
    Length { kind: u16, bytes: usize },
    #[error("a control frame of type {0}")]
    Kind(u16),
    #[error(transparent)]
    Headers(#[from] headers::Error),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream { stream: u32, fin: bool, headers: Headers },
    SynReply { stream: u32, fin: bool, headers: Headers },
    RstStream { stream: u32, status: u32 },
    Settings,
    Ping(u32),
    GoAway { last: u32, status: u32 },
    Headers { stream: u32, fin: bool, headers: Headers },
    WindowUpdate { stream: u32, delta: u32 },
    Data { stream: u32, fin: bool, payload: Bytes },
}

/// The part of a data frame that has not come yet.
#[derive(Clone, Copy, Debug)]
struct Rest {
    stream: u32,
    fin: bool,
    bytes: usize,
}

/// Bytes to frames. After an error nothing that follows can be understood.
#[derive(Default)]
pub(super) struct Decoder {
    waiting: BytesMut,
    data: Option<Rest>,
    headers: headers::Reader,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next frame, or the part of a data frame that is there; `None` while more has to come.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Error> {
        if let Some(rest) = self.data {
            return Ok(self.part(rest));
        }
        let Some(head) = self.waiting.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let mut head = &head[..];
        let (first, second) = (head.get_u32(), head.get_u32());
        let [flags, ..] = second.to_be_bytes();
        let fin = flags & FIN != 0;
        let bytes = (second & 0x00ff_ffff) as usize;
        if first & CONTROL == 0 {
            self.waiting.advance(HEAD_BYTES);
            return Ok(self.part(Rest { stream: first, fin, bytes }));
        }
        let [_, _, high, low] = first.to_be_bytes();
        let kind = u16::from_be_bytes([high, low]);
        match ((first & !CONTROL) >> 16) as u16 {
            VERSION => {}
            other => return Err(Error::Version(other)),
        }
        if bytes > CONTROL_MAX_BYTES {
            return Err(Error::Length { kind, bytes });
        }
        if self.waiting.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        self.waiting.advance(HEAD_BYTES);
        let payload = self.waiting.split_to(bytes);
        self.control(kind, fin, &payload).map(Some)
    }

    fn part(&mut self, rest: Rest) -> Option<Frame> {
        let bytes = rest.bytes.min(self.waiting.len());
        let left = rest.bytes - bytes;
        self.data = (left > 0).then_some(Rest { bytes: left, ..rest });
        if bytes == 0 && left > 0 {
            return None;
        }
        // A copy: a part that waits must not keep all that came with it.
        let payload = Bytes::copy_from_slice(&self.waiting[..bytes]);
        self.waiting.advance(bytes);
        Some(Frame::Data { stream: rest.stream, fin: rest.fin && left == 0, payload })
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: &[u8]) -> Result<Frame, Error> {
        let bytes = payload.len();
        let mut word = || payload.try_get_u32().map_err(|_| Error::Length { kind, bytes });
        let number = |word: u32| word & !CONTROL;
        Ok(match kind {
            SYN_STREAM => {
                let stream = number(word()?);
                word()?;
                // Priority and slot.
                let block = payload.get(2..).ok_or(Error::Length { kind, bytes })?;
                Frame::SynStream { stream, fin, headers: self.headers.read(block)? }
            }
            SYN_REPLY => {
                let stream = number(word()?);
                Frame::SynReply { stream, fin, headers: self.headers.read(payload)? }
            }
            HEADERS => {
                let stream = number(word()?);
                Frame::Headers { stream, fin, headers: self.headers.read(payload)? }
            }
            RST_STREAM => Frame::RstStream { stream: number(word()?), status: word()? },
            SETTINGS => Frame::Settings,
            PING => Frame::Ping(word()?),
            GOAWAY => Frame::GoAway { last: number(word()?), status: word()? },
            WINDOW_UPDATE => Frame::WindowUpdate { stream: number(word()?), delta: number(word()?) },
            other => return Err(Error::Kind(other)),
        })
    }
}

/// Frames to bytes.
#[derive(Default)]
pub(super) struct Encoder {
    headers: headers::Writer,
}

impl Encoder {
    pub(super) fn encode(&mut self, frame: &Frame) -> Bytes {
        let mut payload = BytesMut::new();
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                payload.put_u32(*stream);
                payload.put_slice(&[0; 6]);
                payload.put_slice(&self.headers.write(headers));
                control(SYN_STREAM, *fin, &payload)
            }
            Frame::SynReply { stream, fin, headers } => {
                payload.put_u32(*stream);
                payload.put_slice(&self.headers.write(headers));
                control(SYN_REPLY, *fin, &payload)
            }
            Frame::Headers { stream, fin, headers } => {
                payload.put_u32(*stream);
                payload.put_slice(&self.headers.write(headers));
                control(HEADERS, *fin, &payload)
            }
            Frame::RstStream { stream, status } => control(RST_STREAM, false, &words(&[*stream, *status])),
            Frame::Settings => control(SETTINGS, false, &words(&[0])),
            Frame::Ping(id) => control(PING, false, &words(&[*id])),
            Frame::GoAway { last, status } => control(GOAWAY, false, &words(&[*last, *status])),
            Frame::WindowUpdate { stream, delta } => control(WINDOW_UPDATE, false, &words(&[*stream, *delta])),
            Frame::Data { stream, fin, payload } => framed(*stream, *fin, payload),
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn control(kind: u16, fin: bool, payload: &[u8]) -> Bytes {
    framed(CONTROL | u32::from(VERSION) << 16 | u32::from(kind), fin, payload)
}

fn framed(first: u32, fin: bool, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    frame.put_u32(first);
    frame.put_u32(u32::from(u8::from(fin) & FIN) << 24 | u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests;
