//! Calls and answers as bytes, for the connections between members.
//!
//! ```text
//!   call:    version, kind, postcard(from, to, body)   followed by the bytes of a snapshot, if it is one
//!   answer:  version, kind, postcard(body)
//! ```
//!
//! Every body is a struct of our own, so that another openraft release cannot change what travels; golden files freeze
//! them. Entries travel as they lie in the log, under the same checksum.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Answer, COMMAND_BYTES_MAX, Call, Refusal,
    codec::{self, DecodeError},
    log_rows::LogRow,
    types::{Entry, LogId, Position, SavedVote, TypeConfig, Vote},
};

/// The version that this release speaks, and the only one that it understands.
pub const WIRE_VERSION: u8 = 1;

/// Bytes that a call or an answer may have, without the snapshot that may follow: one command of the largest size, or
/// as many entries as are sent at once.
pub const FRAME_BYTES_MAX: usize = COMMAND_BYTES_MAX + (1 << 20);

/// Bytes that a snapshot may have.
pub const SNAPSHOT_BYTES_MAX: u64 = 64 << 30;

/// Why bytes are not a call or an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("is of version {found}, and this release speaks {WIRE_VERSION}")]
    Version { found: u8 },
    #[error("is of the unknown kind {kind}")]
    Kind { kind: u8 },
    #[error("is damaged: {0}")]
    Damaged(String),
    #[error("has {bytes} bytes; {most} are the most")]
    TooLarge { bytes: u64, most: u64 },
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Refusal {
        match error {
            WireError::Version { .. } => Refusal::Version { known: WIRE_VERSION },
            WireError::Kind { kind } => Refusal::Kind { kind },
            other => Refusal::Damaged(other.to_string()),
        }
    }
}

/// Who asks whom. Connections are authenticated by the transport; this keeps a call from the wrong member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// 0: somebody who is not a member yet.
    pub from: u64,
    /// 0: whoever lives at the address.
    pub to: u64,
}

/// A call that came over the wire.
#[derive(Debug)]
pub struct Received {
    pub route: Route,
    pub call: Call,
    /// How many bytes of a snapshot follow. They are to be kept in a file, and the call is to name it.
    pub body_bytes: u64,
}

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const PRE_VOTE: u8 = 3;
const TRANSFER: u8 = 4;
const SNAPSHOT: u8 = 5;
const WRITE: u8 = 6;
const READ_INDEX: u8 = 7;
const CHANGE: u8 = 8;
const MEMBERS: u8 = 9;
const HASH: u8 = 10;
/// Of answers only.
const REFUSED: u8 = 0;

#[derive(Serialize, Deserialize)]
struct WireAppend {
    vote: SavedVote,
    previous: Option<Position>,
    entries: Vec<LogRow>,
    committed: Option<Position>,
}

#[derive(Serialize, Deserialize)]
struct WireVote {
    vote: SavedVote,
    last: Option<Position>,
    transfer: bool,
}

#[derive(Serialize, Deserialize)]
struct WireTransfer {
    from: SavedVote,
    to: u64,
    last: Option<Position>,
}

#[derive(Serialize, Deserialize)]
struct WireSnapshot {
    vote: SavedVote,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
enum WireAppended {
    Success,
    Partly(Option<Position>),
    Conflict,
    HigherVote(SavedVote),
}

#[derive(Serialize, Deserialize)]
struct WireVoted {
    vote: SavedVote,
    granted: bool,
    last: Option<Position>,
}

#[derive(Serialize, Deserialize)]
enum WireTransferred {
    Done,
    VoteChanged { expected: SavedVote, actual: SavedVote },
    NotFlushed { expected: Option<Position>, actual: Option<Position> },
}

fn position(id: Option<LogId>) -> Option<Position> {
    id.map(Into::into)
}

fn log_id(position: Option<Position>) -> Option<LogId> {
    position.map(Into::into)
}

fn damaged(why: impl std::fmt::Display) -> WireError {
    WireError::Damaged(why.to_string())
}

fn frame(kind: u8, body: &impl Serialize) -> Result<Bytes, WireError> {
    let bytes = postcard::to_extend(body, vec![WIRE_VERSION, kind]).map_err(damaged)?;
    check_size(bytes.len() as u64, FRAME_BYTES_MAX as u64)?;
    Ok(bytes.into())
}

fn check_size(bytes: u64, most: u64) -> Result<(), WireError> {
    if bytes > most { Err(WireError::TooLarge { bytes, most }) } else { Ok(()) }
}

/// The version is checked before anything that may differ between versions is looked at.
fn opened(frame: &[u8]) -> Result<(u8, &[u8]), WireError> {
    check_size(frame.len() as u64, FRAME_BYTES_MAX as u64)?;
    match frame {
        [WIRE_VERSION, kind, body @ ..] => Ok((*kind, body)),
        [found, _, ..] => Err(WireError::Version { found: *found }),
        _ => Err(damaged("cut short")),
    }
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged("bytes follow it")),
        Err(error) => Err(damaged(error)),
    }
}

/// The head of a call, and how many bytes of a snapshot's file are to follow it.
pub fn encode_call(route: Route, call: &Call) -> Result<(Bytes, u64), WireError> {
    let framed = match call {
        Call::Append(request) => frame(APPEND, &(route, wire_append(request)?)),
        Call::Vote(request) => frame(VOTE, &(route, wire_vote(request))),
        Call::PreVote(request) => frame(PRE_VOTE, &(route, wire_vote(request))),
        Call::Transfer(request) => {
            let last = position(request.last_log_id().copied());
            let body = WireTransfer { from: (*request.from_leader()).into(), to: *request.to_node_id(), last };
            frame(TRANSFER, &(route, body))
        }
        Call::Snapshot { vote, file } => {
            let bytes = std::fs::metadata(file).map_err(damaged)?.len();
            check_size(bytes, SNAPSHOT_BYTES_MAX)?;
            return Ok((frame(SNAPSHOT, &(route, WireSnapshot { vote: (*vote).into(), bytes }))?, bytes));
        }
        Call::Write(command) => frame(WRITE, &(route, Bytes::from(codec::encode(command)))),
        Call::ReadIndex => frame(READ_INDEX, &(route, ())),
        Call::Change(change) => frame(CHANGE, &(route, change)),
        Call::Members => frame(MEMBERS, &(route, ())),
        Call::Hash => frame(HASH, &(route, ())),
    };
    Ok((framed?, 0))
}

fn wire_append(request: &AppendEntriesRequest<TypeConfig>) -> Result<WireAppend, WireError> {
    Ok(WireAppend {
        vote: request.vote.into(),
        previous: position(request.prev_log_id),
        entries: request.entries.iter().map(LogRow::of).collect::<io::Result<_>>().map_err(damaged)?,
        committed: position(request.leader_commit),
    })
}

fn wire_vote(request: &VoteRequest<TypeConfig>) -> WireVote {
    let VoteRequest { vote, last_log_id, leadership_transfer } = request;
    WireVote { vote: (*vote).into(), last: position(*last_log_id), transfer: *leadership_transfer }
}

/// Reads a call. One that names a snapshot has an empty path until its bytes have been received.
pub fn decode_call(frame: &[u8]) -> Result<Received, WireError> {
    let (kind, bytes) = opened(frame)?;
    let mut body_bytes = 0;
    let (route, call) = match kind {
        APPEND => {
            let (route, append) = body(bytes)?;
            (route, Call::Append(append_of(append)?))
        }
        VOTE => {
            let (route, vote) = body(bytes)?;
            (route, Call::Vote(vote_of(vote)))
        }
        PRE_VOTE => {
            let (route, vote) = body(bytes)?;
            (route, Call::PreVote(vote_of(vote)))
        }
        TRANSFER => {
            let (route, WireTransfer { from, to, last }) = body(bytes)?;
            (route, Call::Transfer(TransferLeaderRequest::new(from.into(), to, log_id(last))))
        }
        SNAPSHOT => {
            let (route, WireSnapshot { vote, bytes }) = body(bytes)?;
            check_size(bytes, SNAPSHOT_BYTES_MAX)?;
            body_bytes = bytes;
            (route, Call::Snapshot { vote: vote.into(), file: PathBuf::new() })
        }
        WRITE => {
            let (route, command): (Route, Bytes) = body(bytes)?;
            let command = codec::decode(command).map_err(|error: DecodeError| damaged(error))?;
            (route, Call::Write(Arc::new(command)))
        }
        READ_INDEX => (plain(bytes)?, Call::ReadIndex),
        CHANGE => {
            let (route, change) = body(bytes)?;
            (route, Call::Change(change))
        }
        MEMBERS => (plain(bytes)?, Call::Members),
        HASH => (plain(bytes)?, Call::Hash),
        kind => return Err(WireError::Kind { kind }),
    };
    Ok(Received { route, call, body_bytes })
}

fn plain(bytes: &[u8]) -> Result<Route, WireError> {
    body::<(Route, ())>(bytes).map(|(route, ())| route)
}

fn append_of(append: WireAppend) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let WireAppend { vote, previous, entries, committed } = append;
    Ok(AppendEntriesRequest {
        vote: vote.into(),
        prev_log_id: log_id(previous),
        // Each payload was copied out of the frame: what is kept of an entry must not keep the whole frame.
        entries: entries.into_iter().map(LogRow::entry).collect::<io::Result<Vec<Entry>>>().map_err(damaged)?,
        leader_commit: log_id(committed),
    })
}

fn vote_of(vote: WireVote) -> VoteRequest<TypeConfig> {
    let WireVote { vote, last, transfer } = vote;
    VoteRequest { leadership_transfer: transfer, ..VoteRequest::new(vote.into(), log_id(last)) }
}

pub fn encode_answer(answer: &Answer) -> Result<Bytes, WireError> {
    match answer {
        Answer::Append(appended) => frame(APPEND, &wire_appended(appended)),
        Answer::Vote(voted) => frame(VOTE, &wire_voted(voted)),
        Answer::PreVote(voted) => frame(PRE_VOTE, &wire_voted(voted)),
        Answer::Transfer(transferred) => frame(
            TRANSFER,
            &match transferred {
                Ok(()) => WireTransferred::Done,
                Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                    WireTransferred::VoteChanged { expected: (*expected).into(), actual: (*actual).into() }
                }
                Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                    WireTransferred::NotFlushed { expected: position(*expected), actual: position(*actual) }
                }
            },
        ),
        Answer::Snapshot(SnapshotResponse { vote }) => frame(SNAPSHOT, &SavedVote::from(*vote)),
        Answer::Write(written) => frame(WRITE, written),
        Answer::ReadIndex(index) => frame(READ_INDEX, index),
        Answer::Change(member) => frame(CHANGE, member),
        Answer::Members(members) => frame(MEMBERS, members),
        Answer::Hash(hash) => frame(HASH, hash),
        Answer::Refused(refusal) => frame(REFUSED, refusal),
    }
}

fn wire_appended(appended: &AppendEntriesResponse<TypeConfig>) -> WireAppended {
    match appended {
        AppendEntriesResponse::Success => WireAppended::Success,
        AppendEntriesResponse::PartialSuccess(last) => WireAppended::Partly(position(*last)),
        AppendEntriesResponse::Conflict => WireAppended::Conflict,
        AppendEntriesResponse::HigherVote(vote) => WireAppended::HigherVote((*vote).into()),
    }
}

fn wire_voted(voted: &VoteResponse<TypeConfig>) -> WireVoted {
    let VoteResponse { vote, vote_granted, last_log_id } = voted;
    WireVoted { vote: (*vote).into(), granted: *vote_granted, last: position(*last_log_id) }
}

pub fn decode_answer(frame: &[u8]) -> Result<Answer, WireError> {
    let (kind, bytes) = opened(frame)?;
    Ok(match kind {
        APPEND => Answer::Append(match body(bytes)? {
            WireAppended::Success => AppendEntriesResponse::Success,
            WireAppended::Partly(last) => AppendEntriesResponse::PartialSuccess(log_id(last)),
            WireAppended::Conflict => AppendEntriesResponse::Conflict,
            WireAppended::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        }),
        VOTE => Answer::Vote(voted_of(body(bytes)?)),
        PRE_VOTE => Answer::PreVote(voted_of(body(bytes)?)),
        TRANSFER => Answer::Transfer(match body(bytes)? {
            WireTransferred::Done => Ok(()),
            WireTransferred::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            WireTransferred::NotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed { expected: log_id(expected), actual: log_id(actual) })
            }
        }),
        SNAPSHOT => Answer::Snapshot(SnapshotResponse::new(Vote::from(body::<SavedVote>(bytes)?))),
        WRITE => Answer::Write(body(bytes)?),
        READ_INDEX => Answer::ReadIndex(body(bytes)?),
        CHANGE => Answer::Change(body(bytes)?),
        MEMBERS => Answer::Members(body(bytes)?),
        HASH => Answer::Hash(body(bytes)?),
        REFUSED => Answer::Refused(body(bytes)?),
        kind => return Err(WireError::Kind { kind }),
    })
}

fn voted_of(voted: WireVoted) -> VoteResponse<TypeConfig> {
    let WireVoted { vote, granted, last } = voted;
    VoteResponse::new(Vote::from(vote), log_id(last), granted)
}

#[cfg(test)]
mod tests;
