//! The replicated byte store: keys, values and revisions, nothing else.
//!
//! ```text
//!   write ──> raft log (SQLite, one writer task, group commit) ──> apply (pure) ──> watch fan-out
//!                                                                    │
//!   get, list <── index and recent history in memory <───────────────┴──> objects (SQLite, written behind)
//! ```
//!
//! The store never parses a value, and `apply` reads no clock, no randomness and no environment.

mod answer;
mod apply;
mod calls;
mod changes;
mod cluster;
mod codec;
mod command;
mod compactor;
pub mod conformance;
mod damage;
mod disk;
mod drivers;
mod files;
mod handover;
mod hash;
mod history;
mod index;
mod leader;
mod log;
mod log_rows;
mod log_writer;
mod machine;
mod members;
mod memory;
mod metrics;
mod network;
mod open;
mod quorum;
mod raft;
mod replica;
mod runtime;
mod snapshot;
mod space;
mod state;
mod state_rows;
#[cfg(test)]
mod suite;
mod timing;
mod types;
mod watch;
pub mod wire;

pub use changes::PROMOTION_LAG_MAX;
pub use cluster::LEADER_WAIT;
pub use command::{COMMAND_VERSION, Command, Expect, Op, Reply, Stored};
pub use compactor::COMPACTION_INTERVAL;
pub use damage::{QUARANTINES_MAX, quarantine};
pub use disk::{
    Disk, DiskFailure, Durable, DurableStep, Edge, FORMAT, Guarded, OnFailure, Owner, SystemDisk, abort_process,
};
pub use files::{Files, LogChange, LogFile, LogRows, SqliteFiles, StateChange, StateRows, VersionRow};
pub use handover::HANDOVER_TIMEOUT;
pub use hash::{HASH_INTERVAL, HASH_MARK_ENTRIES, HASH_MARKS_MAX, StateHash, first_difference};
pub use history::{HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX};
pub use leader::{CHANGE_TIMEOUT, Reads, WRITE_TIMEOUT, WRITES_MAX};
pub use log::LOG_CACHE_BYTES_MAX;
pub use log_rows::LogRow;
pub use members::{Change, MEMBERS_MAX, Member, Role, Standing};
pub use memory::{MEMORY_TERM, MemoryStore};
pub use metrics::Metrics;
pub use network::{Answer, Call, NoPeers, PeerError, Peers, Refusal, Written};
pub use open::{Begin, LogLimits, OpenOptions};
pub use quorum::{QUORUM_SILENCE, WATCH_SILENCE_MAX};
pub use raft::{COMMAND_BYTES_MAX, Leadership, RaftStore};
pub use runtime::Runtime;
pub use space::{RESERVE_BYTES, Space};
pub use state::{FLUSH_INTERVAL, OPS_MAX, PENDING_BYTES_MAX};
pub use timing::{ELECTION_TIMEOUT_LIMIT, ELECTION_TIMEOUT_MAX, ELECTION_TIMEOUT_MIN};
pub use types::{Aim, Node, TypeConfig};
pub use watch::{PROGRESS_INTERVAL, WATCH_LAG_MAX};

use bytes::Bytes;
use futures::stream::BoxStream;
use tandem_api::{Key, Revision};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began, on any member.
    Linearizable,
    /// Whatever this member has applied (`resourceVersion=0`).
    Any,
    /// At least this revision; waits up to [`FRESHNESS_WAIT`] for it, then [`Error::TooNew`].
    AtLeast(Revision),
    /// The state as it was at exactly this revision; [`Error::Compacted`] where history no longer reaches it.
    Exactly(Revision),
}

/// How long [`Consistency::AtLeast`] waits for a revision that this member has not applied yet.
pub const FRESHNESS_WAIT: std::time::Duration = std::time::Duration::from_secs(3);

/// Part of a listing, in key order, as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<Stored>,
    /// The store's revision at which the whole listing holds.
    pub revision: Revision,
    /// Whether keys of the prefix follow the last item.
    pub more: bool,
}

/// One change, in revision order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub revision: Revision,
    /// The new value; `None` when the key was deleted.
    pub value: Option<Bytes>,
    /// What the key held before; `None` when it is new.
    pub previous: Option<Stored>,
}

/// What a watch delivers: changes, and word that nothing of interest happened up to a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    Event(std::sync::Arc<Event>),
    /// Every event up to this revision has been delivered.
    Progress(Revision),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("revision {requested} has been compacted; history begins after {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    #[error("revision {requested} is not here yet; this member is at {current}")]
    TooNew { requested: Revision, current: Revision },
    /// No leader, or no quorum. Nothing was done.
    #[error("the store has no leader that can commit: {0}")]
    Unavailable(String),
    /// It was begun, and nobody knows whether it happened or still will.
    #[error("the store does not know whether it happened: {0}")]
    Unknown(String),
    /// A change of members that must not be.
    #[error("{0}")]
    Denied(String),
    /// This member was removed from its cluster.
    #[error("member {member} was removed from its cluster; empty its folder and join as a new member")]
    Removed { member: u64 },
    /// The watcher fell behind by more than its buffer and was cut off.
    #[error("the watch fell too far behind")]
    Overrun,
    /// The disk has no room for more. What is there can be deleted.
    #[error("the disk is full; delete something, or make room on the disk")]
    Full,
    #[error("the data in {path} {why}")]
    Data { path: String, why: String },
    /// What is on disk is not what was written. The member must not go on with it; [`quarantine`] keeps it aside.
    #[error("the data in {path} {why}")]
    Damaged { path: String, why: String },
    #[error("storage failed while it was to {operation}: {source}")]
    Storage { operation: &'static str, source: std::sync::Arc<dyn std::error::Error + Send + Sync> },
}

/// The store as the API server sees it. One suite ([`conformance`]) holds for every implementation.
///
/// Revisions begin at 1 and go up by one with every command that changes a key. An answered write is on disk (where
/// there is one) and visible to every read on the same member.
#[async_trait::async_trait]
pub trait Storage: Send + Sync + 'static {
    async fn get(&self, key: &Key, at: Consistency) -> Result<Option<Stored>, Error>;

    /// The keys below `prefix`, beginning after `from` (exclusive), at most `limit` of them (0: all).
    async fn list(&self, prefix: &Key, at: Consistency, from: Option<&Key>, limit: usize) -> Result<Page, Error>;

    /// How many keys of the prefix follow `after` at the revision of a page. It looks at all of them.
    fn count(&self, prefix: &Key, after: &Key, at: Revision) -> Result<usize, Error>;

    async fn write(&self, command: Command) -> Result<Reply, Error>;

    /// Every change below `prefix` after revision `after`, once each, in order; all watchers see the same order.
    /// [`Error::Compacted`] when `after` is older than history; [`WatchItem::Progress`] comes once at the end of the
    /// replay, and about every second while only other keys change. Ends with an error item when the watcher falls
    /// behind ([`Error::Overrun`]), and when the member shuts down or has had no quorum for [`WATCH_SILENCE_MAX`]
    /// ([`Error::Unavailable`]); until there is one again no watch begins. To be polled within tokio.
    fn watch(&self, prefix: &Key, after: Revision) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error>;

    /// The newest revision that this member has applied.
    fn revision(&self) -> Revision;
}
