//! The frozen log format: what is proposed, and what it is answered with.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tandem_api::{Key, Revision};

/// The only command format that this version writes and applies.
pub const COMMAND_VERSION: u16 = 1;

/// One entry of the replicated log. All of it happens at one revision, or none of it.
///
/// Expectations are checked against the state before the command; of several operations on one key the last one counts.
/// A command that would leave everything as it is (same bytes, key already absent) makes no revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub version: u16,
    /// The term of the leader whose work this is: the command fails when that term has passed.
    pub fence: Option<u64>,
    pub ops: Vec<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Put {
        key: Key,
        value: Bytes,
        expect: Expect,
    },
    Delete {
        key: Key,
        expect: Expect,
    },
    /// Forgets history: reads as of a revision older than `before`, and watches from one older than `watches`, end in
    /// [`crate::Error::Compacted`]. The two horizons never go back, and `watches` never passes `before`.
    Compact {
        before: Revision,
        watches: Revision,
    },
}

/// What must be true of a key for its operation, and so the whole command, to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    Any,
    Absent,
    At(Revision),
}

/// How a command ended. A mismatch is an answer, never an error: an error would stop the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// `revision` is the command's own, or, when nothing changed, the newest one among its keys.
    Done { revision: Revision },
    /// `current` is what the key of operation `op` holds instead of what was expected.
    Mismatch { op: usize, current: Option<Stored> },
    /// The command's fence is older than the term in which it was applied.
    Fenced { term: u64 },
    /// The command's version is not known here; nothing was changed.
    Unsupported { version: u16 },
}

/// A value with its key and the revisions at which it was made and last written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub key: Key,
    pub value: Bytes,
    pub created: Revision,
    pub revision: Revision,
}

impl Command {
    pub fn put(key: Key, value: Bytes, expect: Expect) -> Command {
        Command { version: COMMAND_VERSION, fence: None, ops: vec![Op::Put { key, value, expect }] }
    }

    pub fn delete(key: Key, expect: Expect) -> Command {
        Command { version: COMMAND_VERSION, fence: None, ops: vec![Op::Delete { key, expect }] }
    }

    /// Forgets what is older than `before`, for reads and watches alike.
    pub fn compact(before: Revision) -> Command {
        Command::horizons(before, before)
    }

    /// Forgets what is older than `before` for reads and older than `watches` for watches.
    pub fn horizons(before: Revision, watches: Revision) -> Command {
        Command { version: COMMAND_VERSION, fence: None, ops: vec![Op::Compact { before, watches }] }
    }

    #[must_use]
    pub fn fenced(mut self, term: u64) -> Command {
        self.fence = Some(term);
        self
    }
}
