//! The raft log as openraft sees it. Entries can be read at once; the writer task makes them durable.
//!
//! ```text
//!   append, save_vote, truncate, purge ──> queue ──> writer task ──> one transaction, one fsync ──> callbacks
//!        │
//!        └──> recent entries in memory <── readers (older ones: a reading connection)
//! ```

use std::{
    collections::VecDeque,
    io,
    ops::{Bound, RangeBounds},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    Error,
    disk::{Folder, Guarded, Owner, file_error},
    files::{LOG_FILE, LogRows},
    log_rows::{LogRow, damaged},
    log_writer::{self, Saved, Work, Writer},
    types::{Entry, LogId, Membership, TypeConfig, Vote},
};

/// Bytes of entries that stay in memory after they are on disk, so that applying and replicating read no file.
pub const LOG_CACHE_BYTES_MAX: usize = 4 << 20;

/// Work that may wait for the writer; beyond it raft itself waits.
const QUEUE_MAX: usize = 4096;

/// Whether this member alone is the quorum, known before anything that changes it can be sent to anyone.
#[derive(Debug)]
pub(crate) struct Quorum {
    node: u64,
    /// One past the index of the newest membership in the log that names other voters; 0: none.
    shared: AtomicU64,
    /// One past the index of the newest applied membership of this member alone.
    alone: AtomicU64,
}

impl Quorum {
    pub(crate) fn new(node: u64) -> Quorum {
        Quorum { node, shared: AtomicU64::new(0), alone: AtomicU64::new(0) }
    }

    fn is_alone(&self, membership: &Membership) -> bool {
        membership.get_joint_config().len() == 1 && membership.voter_ids().eq([self.node])
    }

    pub(crate) fn logged(&self, membership: &Membership, index: u64) {
        if !self.is_alone(membership) {
            self.shared.fetch_max(index + 1, Ordering::SeqCst);
        }
    }

    pub(crate) fn applied(&self, membership: &Membership, index: u64) {
        if self.is_alone(membership) {
            self.alone.fetch_max(index + 1, Ordering::SeqCst);
        } else {
            self.logged(membership, index);
        }
    }

    /// Nobody else can commit anything: what is applied here is all that was ever acknowledged.
    pub(crate) fn is_here_alone(&self) -> bool {
        self.alone.load(Ordering::SeqCst) > self.shared.load(Ordering::SeqCst)
    }
}

/// The entries in memory and the ends of the log.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Consecutive entries; the last is the last of the log.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Entries up to here are on disk (one past the last).
    flushed: u64,
    purged: Option<LogId>,
    last: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl Recent {
    fn first_cached(&self) -> u64 {
        self.entries.front().map_or_else(|| self.next_index(), RaftEntry::index)
    }

    fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += cost(&entry);
        self.last = Some(entry.log_id());
        self.entries.push_back(entry);
    }

    fn evict(&mut self) {
        while self.bytes > LOG_CACHE_BYTES_MAX {
            let Some(entry) = self.entries.front().filter(|entry| entry.index() < self.flushed) else { break };
            self.bytes -= cost(entry);
            self.entries.pop_front();
        }
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        let next = last.map_or(0, |last| last.index + 1);
        if next >= self.next_index() {
            return;
        }
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.index() >= next) {
            self.bytes -= cost(&entry);
        }
        self.flushed = self.flushed.min(next);
        self.last = last.or(self.purged).max(self.purged);
    }

    fn purge(&mut self, upto: LogId) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.index() <= upto.index) {
            self.bytes -= cost(&entry);
        }
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
    }
}

fn cost(entry: &Entry) -> usize {
    128 + match &entry.payload {
        EntryPayload::Normal(proposal) => crate::codec::size_of(&proposal.0),
        EntryPayload::Blank | EntryPayload::Membership(_) => 64,
    }
}

/// What readers, writer and raft share of the log.
pub(crate) struct Shared {
    recent: Mutex<Recent>,
    quorum: Arc<Quorum>,
    reader: tokio::sync::Mutex<Option<Box<dyn LogRows>>>,
    folder: Arc<Folder>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Shared {
    /// The entry that everything up to is known to be committed, for the writer to save along with what it writes.
    pub(crate) fn committed(&self) -> Option<LogId> {
        self.recent.lock().committed
    }

    pub(crate) fn flushed(&self, next_index: u64) {
        let mut recent = self.recent.lock();
        recent.flushed = recent.flushed.max(next_index).min(recent.next_index());
        recent.evict();
    }

    /// The entries at `from..to`, as far as the log has them.
    async fn read(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = from;
        loop {
            let until = {
                let recent = self.recent.lock();
                let to = to.min(recent.next_index());
                next = next.max(recent.first_index());
                if next >= recent.first_cached() {
                    let skip = usize::try_from(next - recent.first_cached()).unwrap_or(usize::MAX);
                    entries.extend(recent.entries.iter().skip(skip).take_while(|entry| entry.index() < to).cloned());
                    return Ok(entries);
                }
                recent.first_cached().min(to)
            };
            if next >= until {
                return Ok(entries);
            }
            let older = self.read_file(next, until).await?;
            if older.is_empty() && !entries.is_empty() {
                // Purged meanwhile: what follows would leave a hole.
                return Ok(entries);
            }
            next = older.last().map_or(until, |last| last.index() + 1);
            entries.extend(older);
        }
    }

    async fn read_file(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let mut reader = self.reader.lock().await;
        let rows = match &mut *reader {
            Some(rows) => rows,
            vacant => {
                let Folder { path, files, .. } = &*self.folder;
                let opened = files.log_rows(path).await.map_err(io::Error::other)?;
                vacant.insert(opened)
            }
        };
        rows.read(from, to).await?.into_iter().map(LogRow::entry).collect()
    }
}

/// The writing side, which raft owns.
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    work: mpsc::Sender<Work>,
    /// One past the newest index that the state file has made durable; entries beyond it must not be purged.
    durable: Option<Arc<AtomicU64>>,
}

/// The log's other ends, for who opened it.
pub(crate) struct LogHandle {
    pub(crate) writer: JoinHandle<()>,
    pub(crate) purged: Option<LogId>,
    /// Nothing was ever promised from this log: no vote, no entry.
    pub(crate) is_new: bool,
}

/// Opens the log and checks every entry in it.
pub(crate) async fn open(
    folder: &Arc<Folder>,
    owner: &Owner,
    guarded: Guarded,
    quorum: Arc<Quorum>,
    durable: Option<Arc<AtomicU64>>,
) -> Result<(LogStore, LogHandle), Error> {
    let mut file = folder.files.log(&folder.path, owner).await?;
    let path = folder.path.join(LOG_FILE);
    let unreadable = |error: io::Error| file_error(&path, &error);
    let Saved { vote, purged, committed } = log_writer::load(&mut *file).await.map_err(unreadable)?;
    let mut recent = Recent { purged, last: purged, vote, committed, ..Recent::default() };
    let from = recent.first_index();
    let mut each = |row: LogRow| {
        let (entry, expected) = (row.entry()?, recent.next_index());
        if entry.index() != expected {
            let why = format!("is damaged: entry {expected} is missing; restore a backup into an empty folder");
            return Err(damaged(why));
        }
        if let EntryPayload::Membership(membership) = &entry.payload {
            quorum.logged(membership, entry.index());
        }
        recent.push(entry);
        recent.flushed = recent.next_index();
        recent.evict();
        Ok(())
    };
    file.scan(from, &mut each).await.map_err(unreadable)?;
    let (purged, next_index) = (recent.purged, recent.next_index());
    let is_new = recent.vote.is_none() && recent.last.is_none();
    let shared = Arc::new(Shared {
        recent: Mutex::new(recent),
        quorum,
        reader: tokio::sync::Mutex::new(None),
        folder: folder.clone(),
    });
    let (work, queue) = mpsc::channel(QUEUE_MAX);
    let writer = Writer::new(file, folder.clone(), shared.clone(), guarded, committed, next_index);
    let writer = tokio::spawn(writer.run(queue));
    Ok((LogStore { shared, work, durable }, LogHandle { writer, purged, is_new }))
}

fn writer_gone<T>(_: T) -> io::Error {
    io::Error::other("the log's writer has stopped after an earlier failure")
}

impl LogStore {
    async fn done(&self, make: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Work) -> io::Result<()> {
        let (done, ended) = oneshot::channel();
        self.work.send(make(done)).await.map_err(writer_gone)?;
        ended.await.map_err(writer_gone)?
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.0.read(from, to).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.recent.lock().vote)
    }
}

/// Reads the log beside the writer.
#[derive(Clone, Debug)]
pub(crate) struct LogReader(Arc<Shared>);

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let recent = self.shared.recent.lock();
        Ok(LogState { last_purged_log_id: recent.purged, last_log_id: recent.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.shared.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.done(|done| Work::Vote { vote, done }).await?;
        self.shared.recent.lock().vote = Some(vote);
        Ok(())
    }

    /// Kept in memory until the writer writes anyway: losing it costs a restarted member freshness, not correctness.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.recent.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.recent.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut recent = self.shared.recent.lock();
            for entry in &entries {
                if let EntryPayload::Membership(membership) = &entry.payload {
                    self.shared.quorum.logged(membership, entry.index());
                }
                recent.push(entry.clone());
            }
        }
        self.work.send(Work::Append { entries, callback }).await.map_err(writer_gone)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.shared.recent.lock().truncate_after(last);
        self.done(|done| Work::Truncate { from: last.map_or(0, |last| last.index + 1), done }).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        if let Some(durable) = &self.durable
            && upto.index >= durable.load(Ordering::SeqCst)
        {
            let why = format!("entry {} was to be purged before the state file had it durably", upto.index);
            return Err(io::Error::other(why));
        }
        self.shared.recent.lock().purge(upto);
        self.done(|done| Work::Purge { upto, done }).await
    }
}
