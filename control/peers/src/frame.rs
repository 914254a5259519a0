//! What goes over a connection: a length, a kind, and what belongs to the kind. Integers are big-endian.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// The version of this protocol. What is carried has a version of its own.
pub const VERSION: u16 = 1;

/// The largest frame: the largest call, and what stands around it.
pub const FRAME_BYTES_MAX: usize = tandem_store::wire::FRAME_BYTES_MAX + 64;

/// The largest frame before both sides have greeted each other.
pub(crate) const GREETING_BYTES_MAX: usize = 1024;

/// Room that is made for a frame at once: a length alone gets nobody more memory than that.
const ROOM: usize = 256 << 10;

const HEAD: usize = 4;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Heartbeats and votes.
    Control,
    /// Entries of the log.
    Log,
    /// What clients of other members want.
    Forward,
    /// One file.
    Transfer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Hello { version: u16, lane: Lane },
    Welcome { version: u16 },
    Refused { why: String },
    Call { id: u64, body: Bytes },
    Answer { id: u64, body: Bytes },
    Failure { id: u64, why: String },
    Ping,
    Pong,
    Begin { length: u64, header: Bytes },
    Chunk(Bytes),
    End,
}

const HELLO: u8 = 0;
const WELCOME: u8 = 1;
const REFUSED: u8 = 2;
const CALL: u8 = 3;
const ANSWER: u8 = 4;
const FAILURE: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const BEGIN: u8 = 8;
const CHUNK: u8 = 9;
const END: u8 = 10;

/// Reads and writes frames up to a size.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) bytes_max: usize,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { bytes_max: GREETING_BYTES_MAX }
    }
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

impl Encoder<Frame> for Frames {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> io::Result<()> {
        let begin = out.len();
        out.put_u32(0);
        match frame {
            Frame::Hello { version, lane } => {
                out.put_u8(HELLO);
                out.put_u16(version);
                out.put_u8(lane.number());
            }
            Frame::Welcome { version } => {
                out.put_u8(WELCOME);
                out.put_u16(version);
            }
            Frame::Refused { why } => {
                out.put_u8(REFUSED);
                out.put_slice(why.as_bytes());
            }
            Frame::Call { id, body } => put_body(out, CALL, id, &body),
            Frame::Answer { id, body } => put_body(out, ANSWER, id, &body),
            Frame::Failure { id, why } => put_body(out, FAILURE, id, why.as_bytes()),
            Frame::Ping => out.put_u8(PING),
            Frame::Pong => out.put_u8(PONG),
            Frame::Begin { length, header } => put_body(out, BEGIN, length, &header),
            Frame::Chunk(bytes) => {
                out.put_u8(CHUNK);
                out.put_slice(&bytes);
            }
            Frame::End => out.put_u8(END),
        }
        let length = out.len() - begin - HEAD;
        if length > self.bytes_max {
            out.truncate(begin);
            return Err(malformed("a frame is larger than what both sides agreed on"));
        }
        let head = u32::try_from(length).map_err(io::Error::other)?;
        out[begin..begin + HEAD].copy_from_slice(&head.to_be_bytes());
        Ok(())
    }
}

fn put_body(out: &mut BytesMut, kind: u8, id: u64, body: &[u8]) {
    out.reserve(9 + body.len());
    out.put_u8(kind);
    out.put_u64(id);
    out.put_slice(body);
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(head) = input.first_chunk::<HEAD>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*head)).map_err(io::Error::other)?;
        if length > self.bytes_max {
            return Err(malformed("a frame is larger than what both sides agreed on"));
        }
        if input.len() < HEAD + length {
            input.reserve((HEAD + length - input.len()).min(ROOM));
            return Ok(None);
        }
        input.advance(HEAD);
        frame(input.split_to(length).freeze()).map(Some)
    }
}

fn frame(mut bytes: Bytes) -> io::Result<Frame> {
    let short = |_| malformed("a frame is cut short");
    let kind = bytes.try_get_u8().map_err(short)?;
    let frame = match kind {
        HELLO => {
            let (version, lane) = (bytes.try_get_u16().map_err(short)?, bytes.try_get_u8().map_err(short)?);
            let lane = Lane::of(lane).ok_or_else(|| malformed("a lane of an unknown kind"))?;
            Frame::Hello { version, lane }
        }
        WELCOME => Frame::Welcome { version: bytes.try_get_u16().map_err(short)? },
        REFUSED => Frame::Refused { why: text(&mut bytes) },
        CALL => Frame::Call { id: bytes.try_get_u64().map_err(short)?, body: rest(&mut bytes) },
        ANSWER => Frame::Answer { id: bytes.try_get_u64().map_err(short)?, body: rest(&mut bytes) },
        FAILURE => Frame::Failure { id: bytes.try_get_u64().map_err(short)?, why: text(&mut bytes) },
        PING => Frame::Ping,
        PONG => Frame::Pong,
        BEGIN => Frame::Begin { length: bytes.try_get_u64().map_err(short)?, header: rest(&mut bytes) },
        CHUNK => Frame::Chunk(rest(&mut bytes)),
        END => Frame::End,
        _ => return Err(malformed("a frame of an unknown kind")),
    };
    // A later version may say more in its greeting; nothing else may be longer than it is.
    if bytes.is_empty() || kind == HELLO || kind == WELCOME {
        Ok(frame)
    } else {
        Err(malformed("bytes follow a frame"))
    }
}

fn rest(bytes: &mut Bytes) -> Bytes {
    std::mem::take(bytes)
}

fn text(bytes: &mut Bytes) -> String {
    String::from_utf8_lossy(&rest(bytes)).into_owned()
}

impl Lane {
    const ALL: [Lane; 4] = [Lane::Control, Lane::Log, Lane::Forward, Lane::Transfer];

    fn number(self) -> u8 {
        match self {
            Lane::Control => 0,
            Lane::Log => 1,
            Lane::Forward => 2,
            Lane::Transfer => 3,
        }
    }

    fn of(number: u8) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| lane.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wide() -> Frames {
        Frames { bytes_max: FRAME_BYTES_MAX }
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let body = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (any::<u16>(), 0u8..4)
                .prop_map(|(version, lane)| Frame::Hello { version, lane: Lane::of(lane).unwrap_or(Lane::Log) }),
            any::<u16>().prop_map(|version| Frame::Welcome { version }),
            "[ -~]{0,40}".prop_map(|why| Frame::Refused { why }),
            (any::<u64>(), body()).prop_map(|(id, body)| Frame::Call { id, body }),
            (any::<u64>(), body()).prop_map(|(id, body)| Frame::Answer { id, body }),
            (any::<u64>(), "[ -~]{0,40}").prop_map(|(id, why)| Frame::Failure { id, why }),
            Just(Frame::Ping),
            Just(Frame::Pong),
            (any::<u64>(), body()).prop_map(|(length, header)| Frame::Begin { length, header }),
            body().prop_map(Frame::Chunk),
            Just(Frame::End),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in prop::collection::vec(any_frame(), 1..6), cut in 1usize..40) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                wide().encode(frame.clone(), &mut wire).unwrap();
            }
            let (mut reader, mut buffer, mut seen) = (wide(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = reader.decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = wide().decode(&mut buffer) {}
        }
    }

    #[test]
    fn a_length_alone_gets_no_memory() {
        let claim = u32::try_from(FRAME_BYTES_MAX).unwrap();
        let mut buffer = BytesMut::from(&claim.to_be_bytes()[..]);
        assert!(wide().decode(&mut buffer).unwrap().is_none());
        assert!(buffer.capacity() <= 2 * ROOM, "{}", buffer.capacity());
        let mut buffer = BytesMut::from(&(claim + 1).to_be_bytes()[..]);
        assert!(wide().decode(&mut buffer).is_err());
        let mut buffer = BytesMut::from(&claim.to_be_bytes()[..]);
        assert!(Frames::default().decode(&mut buffer).is_err(), "strangers may send little");
    }

    #[test]
    fn what_is_too_large_is_not_sent() {
        let mut out = BytesMut::new();
        let body = Bytes::from(vec![0; GREETING_BYTES_MAX]);
        assert!(Frames::default().encode(Frame::Chunk(body), &mut out).is_err());
        assert!(out.is_empty());
    }
}
