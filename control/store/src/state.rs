//! The state file: every version within the horizon and the row beside them, written behind the memory in batches.
//!
//! A batch is one transaction with the log position that it brings the file to, so a restart replays the log's tail
//! and nothing else. Commits here are not synced; a checkpoint is, and only a checkpoint lets the log be purged.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tandem_api::{Key, Revision};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    Error,
    codec::VersionRow,
    disk::{self, DurableStep, Edge, Folder, Guarded, Owner, file_error},
    files::{STATE_FILE, StateChange, StateRows},
    history::HistoryLimits,
    index::Index,
    log_rows::damaged,
    metrics::shown,
    types::StateRow,
};

/// How long a change may wait in memory before it is written to the state file.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of changes that are written without waiting for the interval.
const FLUSH_BYTES: usize = 1 << 20;

/// Bytes of changes that may wait; beyond it applying waits for the disk.
pub const PENDING_BYTES_MAX: usize = 64 << 20;

/// Bytes that the write-ahead file may collect before they are checkpointed.
const WAL_BYTES_MAX: usize = 8 << 20;

/// A revision's versions are numbered within it; more operations than this do not fit into one command.
pub const OPS_MAX: usize = 1 << 16;

/// What has been applied and not yet been written.
#[derive(Debug, Default)]
struct Pending {
    /// In the order of their revisions.
    rows: Vec<VersionRow>,
    dropped: Vec<(Key, Revision)>,
    bytes: usize,
    row: StateRow,
    changed: bool,
}

enum Request {
    /// Write what is pending; `durably` also past a power cut.
    Flush { durably: bool, done: oneshot::Sender<io::Result<()>> },
    /// Write what is pending, durably, and close the file.
    Close { done: oneshot::Sender<io::Result<()>> },
    /// Replace everything with a snapshot, atomically and durably.
    Install { rows: Vec<VersionRow>, row: StateRow, done: oneshot::Sender<io::Result<()>> },
}

/// What the state machine and the writing task share.
#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    /// There is something to write.
    woken: Notify,
    /// There is room again, or nobody will ever make room.
    written: Notify,
    durable: Arc<AtomicU64>,
}

/// The state file as the state machine sees it.
#[derive(Debug)]
pub(crate) struct StateFile {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

impl StateFile {
    /// One past the newest log index that a power cut leaves in the file.
    pub(crate) fn durable(&self) -> Arc<AtomicU64> {
        self.shared.durable.clone()
    }

    /// Takes over what one entry changed. Waits when the disk is too far behind.
    pub(crate) async fn push(&self, rows: Vec<VersionRow>, dropped: Vec<(Key, Revision)>, row: StateRow) {
        let Shared { pending, woken, written, .. } = &*self.shared;
        loop {
            let written = written.notified();
            if pending.lock().bytes < PENDING_BYTES_MAX || self.requests.is_closed() {
                break;
            }
            written.await;
        }
        let mut pending = pending.lock();
        let first = !pending.changed;
        pending.bytes += rows.iter().map(VersionRow::size).sum::<usize>() + 64 * dropped.len();
        pending.rows.extend(rows);
        pending.dropped.extend(dropped);
        pending.row = row;
        pending.changed = true;
        if first || pending.bytes >= FLUSH_BYTES {
            woken.notify_one();
        }
    }

    async fn request(&self, make: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Request) -> io::Result<()> {
        let gone = || io::Error::other("the state's writer has stopped after an earlier failure");
        let (done, ended) = oneshot::channel();
        self.requests.send(make(done)).await.map_err(|_| gone())?;
        ended.await.map_err(|_| gone())?
    }

    pub(crate) async fn flush(&self, durably: bool) -> io::Result<()> {
        self.request(|done| Request::Flush { durably, done }).await
    }

    /// Nothing that is applied afterwards is written.
    pub(crate) async fn close(&self) -> io::Result<()> {
        self.request(|done| Request::Close { done }).await
    }

    /// `rows` are a whole state in the order of their revisions.
    pub(crate) async fn install(&self, rows: Vec<VersionRow>, row: StateRow) -> io::Result<()> {
        self.request(|done| Request::Install { rows, row, done }).await
    }
}

/// What was in the file, and the task that writes it.
pub(crate) struct Opened {
    pub(crate) file: Arc<StateFile>,
    pub(crate) index: Index,
    pub(crate) row: StateRow,
    pub(crate) flusher: JoinHandle<()>,
}

pub(crate) async fn open(
    folder: &Arc<Folder>,
    owner: &Owner,
    guarded: Guarded,
    limits: HistoryLimits,
) -> Result<Opened, Error> {
    let mut file = folder.files.state(&folder.path, owner).await?;
    let path = folder.path.join(STATE_FILE);
    let unreadable = |error: io::Error| file_error(&path, &error);
    let row = load_row(&mut *file).await.map_err(unreadable)?;
    let index = load_index(&mut *file, &row, limits).await.map_err(unreadable)?;
    let durable = Arc::new(AtomicU64::new(0));
    let (requests, queue) = mpsc::channel(16);
    let shared = Arc::new(Shared {
        pending: Mutex::new(Pending { row: row.clone(), ..Pending::default() }),
        woken: Notify::new(),
        written: Notify::new(),
        durable,
    });
    let mut flusher =
        Flusher { file, path, _folder: folder.clone(), guarded, shared: shared.clone(), unmoved_bytes: 0 };
    // What a crash left in the write-ahead file counts as durable only from here on.
    flusher.checkpoint(&row).await.map_err(|error| disk::storage_error("checkpoint the state", error))?;
    let flusher = tokio::spawn(flusher.run(queue));
    let file = Arc::new(StateFile { shared, requests });
    Ok(Opened { file, index, row, flusher })
}

async fn load_row(file: &mut dyn StateRows) -> io::Result<StateRow> {
    match file.row().await? {
        Some(text) => serde_json::from_str(&text).map_err(|error| {
            damaged(format!("has a damaged row state: {error}; restore a backup into an empty folder"))
        }),
        None => Ok(StateRow::default()),
    }
}

async fn load_index(file: &mut dyn StateRows, row: &StateRow, limits: HistoryLimits) -> io::Result<Index> {
    let mut index = Index::restored(limits, row.revision, row.horizons);
    let mut each = |version: VersionRow| {
        index.restore(&version.key, version.created, version.revision, version.value);
        Ok(())
    };
    file.scan(&mut each).await?;
    index.reached(row.applied.map_or(0, |applied| applied.index));
    Ok(index)
}

struct Flusher {
    file: Box<dyn StateRows>,
    path: PathBuf,
    _folder: Arc<Folder>,
    guarded: Guarded,
    shared: Arc<Shared>,
    unmoved_bytes: usize,
}

/// Why the flusher woke up.
enum Wake {
    Asked(Request),
    Changed,
    Due,
    Abandoned,
}

impl Flusher {
    /// Writes what is pending after a while, or at once when asked to, until the state machine is gone.
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut due: Option<Instant> = None;
        loop {
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let wake = tokio::select! {
                request = queue.recv() => request.map_or(Wake::Abandoned, Wake::Asked),
                () = self.shared.woken.notified() => Wake::Changed,
                () = timer => Wake::Due,
            };
            if matches!(wake, Wake::Changed) && self.shared.pending.lock().bytes < FLUSH_BYTES {
                due = due.or_else(|| Some(Instant::now() + FLUSH_INTERVAL));
                continue;
            }
            due = None;
            let closing = matches!(wake, Wake::Asked(Request::Close { .. }));
            let (result, done) = match wake {
                Wake::Abandoned => break,
                Wake::Changed | Wake::Due => (self.flush().await.map(drop), None),
                Wake::Asked(Request::Flush { durably: false, done }) => (self.flush().await.map(drop), Some(done)),
                Wake::Asked(Request::Flush { durably: true, done } | Request::Close { done }) => {
                    (self.flush_durably().await, Some(done))
                }
                Wake::Asked(Request::Install { rows, row, done }) => (self.install(rows, row).await, Some(done)),
            };
            let ended = closing || result.is_err();
            if let Err(error) = &result {
                self.guarded.fail("write the state", &self.path, error);
            }
            if let Some(done) = done {
                // Who asked may have gone: then nobody needs the answer.
                drop(done.send(result));
            }
            if ended {
                // Nothing was acknowledged from this file alone: the log has everything since its last checkpoint.
                break;
            }
        }
        queue.close();
        self.shared.written.notify_waiters();
        if let Err(error) = self.file.close().await {
            tracing::warn!(%error, "the state did not close cleanly; nothing is lost");
        }
    }

    /// One transaction with everything pending. Gives back the row that the file now holds.
    async fn flush(&mut self) -> io::Result<StateRow> {
        let Pending { rows, dropped, bytes, row, changed } = {
            let mut pending = self.shared.pending.lock();
            let row = pending.row.clone();
            std::mem::replace(&mut *pending, Pending { row, ..Pending::default() })
        };
        if !changed {
            return Ok(row);
        }
        let step = if dropped.is_empty() { DurableStep::Apply } else { DurableStep::Compaction };
        self.guarded.disk.reached(step, Edge::Before);
        self.file.write(StateChange { replaces_all: false, rows, dropped, row: saved(&row)? }).await?;
        self.guarded.disk.reached(step, Edge::After);
        self.shared.written.notify_waiters();
        self.unmoved_bytes += bytes;
        if self.unmoved_bytes >= WAL_BYTES_MAX {
            self.checkpoint(&row).await?;
        }
        Ok(row)
    }

    async fn flush_durably(&mut self) -> io::Result<()> {
        let row = self.flush().await?;
        if next_index(&row) > self.shared.durable.load(Ordering::SeqCst) {
            self.checkpoint(&row).await?;
        }
        Ok(())
    }

    /// Everything that was written survives a power cut afterwards; `row` is what was written last.
    async fn checkpoint(&mut self, row: &StateRow) -> io::Result<()> {
        self.guarded.disk.reached(DurableStep::Checkpoint, Edge::Before);
        self.file.checkpoint(&self.guarded).await?;
        self.guarded.disk.reached(DurableStep::Checkpoint, Edge::After);
        self.unmoved_bytes = 0;
        self.shared.durable.fetch_max(next_index(row), Ordering::SeqCst);
        self.guarded.metrics.state_bytes.set(shown(disk::file_size(&self.path)));
        Ok(())
    }

    async fn install(&mut self, rows: Vec<VersionRow>, row: StateRow) -> io::Result<()> {
        *self.shared.pending.lock() = Pending { row: row.clone(), ..Pending::default() };
        let change = StateChange { replaces_all: true, rows, dropped: Vec::new(), row: saved(&row)? };
        self.guarded.disk.reached(DurableStep::SnapshotInstall, Edge::Before);
        self.file.write(change).await?;
        self.guarded.disk.reached(DurableStep::SnapshotInstall, Edge::After);
        self.checkpoint(&row).await
    }
}

fn next_index(row: &StateRow) -> u64 {
    row.applied.map_or(0, |applied| applied.index + 1)
}

fn saved(row: &StateRow) -> io::Result<String> {
    serde_json::to_string(row).map_err(io::Error::other)
}
