//! The one task that writes the log. What is queued while a commit is on its way shares the next one.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc};

use openraft::{entry::RaftEntry, storage::IOFlushed};
use tokio::sync::{mpsc, oneshot};

use crate::{
    disk::{self, DurableStep, Edge, Folder, Guarded},
    files::{LOG_FILE, LogChange, LogFile},
    log::Shared,
    log_rows::{LogRow, damaged},
    metrics::shown,
    types::{Entry, LogId, Position, SavedVote, TypeConfig, Vote},
};

/// How much queued work one transaction takes at most.
const BATCH_MAX: usize = 1024;

/// Bytes that the write-ahead file may collect before they are moved into the database file.
const WAL_BYTES_MAX: usize = 4 << 20;

type Done = oneshot::Sender<io::Result<()>>;

pub(crate) enum Work {
    Append { entries: Vec<Entry>, callback: IOFlushed<TypeConfig> },
    Vote { vote: Vote, done: Done },
    Truncate { from: u64, done: Done },
    Purge { upto: LogId, done: Done },
}

/// Who waits for a piece of work to be durable.
enum Waiting {
    Callback(IOFlushed<TypeConfig>),
    Done(Done),
}

impl Waiting {
    fn end(self, result: io::Result<()>) {
        match self {
            Waiting::Callback(callback) => callback.io_completed(result),
            // Who asked has gone: raft is shutting down.
            Waiting::Done(done) => drop(done.send(result)),
        }
    }
}

/// What lies beside the entries.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
}

async fn load_row<T: serde::de::DeserializeOwned>(file: &mut dyn LogFile, name: &'static str) -> io::Result<Option<T>> {
    let text = file.meta(name).await?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| damaged(format!("has a damaged row {name}: {error}; restore a backup into an empty folder")))
}

fn saved(name: &'static str, row: &impl serde::Serialize) -> io::Result<LogChange> {
    Ok(LogChange::Meta { name, value: serde_json::to_string(row).map_err(io::Error::other)? })
}

pub(crate) async fn load(file: &mut dyn LogFile) -> io::Result<Saved> {
    Ok(Saved {
        vote: load_row::<SavedVote>(file, "vote").await?.map(Into::into),
        purged: load_row::<Position>(file, "purged").await?.map(Into::into),
        committed: load_row::<Position>(file, "committed").await?.map(Into::into),
    })
}

pub(crate) struct Writer {
    file: Box<dyn LogFile>,
    folder: Arc<Folder>,
    shared: Arc<Shared>,
    guarded: Guarded,
    committed: Option<LogId>,
    /// One past the last entry on disk, as far as this task has written.
    next_index: u64,
    unmoved_bytes: usize,
}

impl Writer {
    pub(crate) fn new(
        file: Box<dyn LogFile>,
        folder: Arc<Folder>,
        shared: Arc<Shared>,
        guarded: Guarded,
        committed: Option<LogId>,
        next_index: u64,
    ) -> Writer {
        Writer { file, folder, shared, guarded, committed, next_index, unmoved_bytes: 0 }
    }

    fn path(&self) -> PathBuf {
        self.folder.path.join(LOG_FILE)
    }

    /// Writes until nobody is left who could ask for it, or until the disk fails.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let mut waiting = Vec::with_capacity(batch.len());
            let written = self.write(&mut batch, &mut waiting).await;
            if let Err(error) = &written {
                self.guarded.fail("write the log", &self.path(), error);
            }
            for one in waiting {
                one.end(written.as_ref().copied().map_err(again));
            }
            if written.is_err() {
                return refuse(queue).await;
            }
            if let Err(error) = self.move_wal().await {
                self.guarded.fail("checkpoint the log", &self.path(), &error);
                return refuse(queue).await;
            }
        }
        if let Err(error) = self.close().await {
            tracing::warn!(%error, "the log did not close cleanly; nothing is lost");
        }
    }

    /// One transaction with all of the batch, in order, and one durable commit.
    async fn write(&mut self, batch: &mut Vec<Work>, waiting: &mut Vec<Waiting>) -> io::Result<()> {
        let batch: Vec<(Step, Waiting)> = batch.drain(..).map(split).collect();
        let (work, callbacks): (Vec<Step>, Vec<Waiting>) = batch.into_iter().unzip();
        waiting.extend(callbacks);
        let committed = self.shared.committed();
        let Writer { file, guarded, next_index, unmoved_bytes, .. } = self;
        let mut changes = Vec::new();
        let steps: BTreeSet<DurableStep> = work.iter().map(Step::durable).collect();
        for piece in work {
            match piece {
                Step::Append(entries) => {
                    *next_index = entries.last().map_or(*next_index, |last| last.index() + 1);
                    let rows = entries.iter().map(LogRow::of).collect::<io::Result<Vec<LogRow>>>()?;
                    *unmoved_bytes += rows.iter().map(LogRow::size).sum::<usize>();
                    changes.push(LogChange::Append(rows));
                }
                Step::Vote(vote) => changes.push(saved("vote", &SavedVote::from(vote))?),
                Step::Truncate(from) => {
                    *next_index = from.min(*next_index);
                    changes.push(LogChange::Truncate { from });
                }
                Step::Purge(upto) => {
                    *next_index = (*next_index).max(upto.index + 1);
                    changes.push(saved("purged", &Position::from(upto))?);
                    changes.push(LogChange::Purge { through: upto.index });
                }
            }
        }
        // Never ahead of the entries themselves: a restart applies up to it.
        let known = committed.filter(|id| id.index < *next_index);
        if let Some(id) = known.filter(|_| known != self.committed) {
            changes.push(saved("committed", &Position::from(id))?);
        }
        steps.iter().for_each(|step| guarded.disk.reached(*step, Edge::Before));
        file.commit(changes, guarded).await?;
        steps.iter().for_each(|step| guarded.disk.reached(*step, Edge::After));
        self.committed = known.or(self.committed);
        self.shared.flushed(self.next_index);
        Ok(())
    }

    async fn move_wal(&mut self) -> io::Result<()> {
        let wal = self.folder.path.join(format!("{LOG_FILE}-wal"));
        self.guarded.metrics.wal_bytes.set(shown(disk::file_size(&wal)));
        if self.unmoved_bytes < WAL_BYTES_MAX {
            return Ok(());
        }
        self.unmoved_bytes = 0;
        self.file.checkpoint(&self.guarded).await?;
        self.guarded.metrics.log_bytes.set(shown(disk::file_size(&self.path())));
        Ok(())
    }

    async fn close(mut self) -> io::Result<()> {
        let committed = self.shared.committed();
        if let Some(id) = committed.filter(|id| committed != self.committed && id.index < self.next_index) {
            self.file.commit(vec![saved("committed", &Position::from(id))?], &self.guarded).await?;
        }
        self.file.close().await
    }
}

/// The work of a piece, apart from who waits for it.
enum Step {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(u64),
    Purge(LogId),
}

impl Step {
    fn durable(&self) -> DurableStep {
        match self {
            Step::Append(entries) if entries.iter().any(|entry| entry.get_membership().is_some()) => {
                DurableStep::Membership
            }
            Step::Append(_) => DurableStep::Append,
            Step::Vote(_) => DurableStep::Vote,
            Step::Truncate(_) => DurableStep::Truncate,
            Step::Purge(_) => DurableStep::Purge,
        }
    }
}

fn split(work: Work) -> (Step, Waiting) {
    match work {
        Work::Append { entries, callback } => (Step::Append(entries), Waiting::Callback(callback)),
        Work::Vote { vote, done } => (Step::Vote(vote), Waiting::Done(done)),
        Work::Truncate { from, done } => (Step::Truncate(from), Waiting::Done(done)),
        Work::Purge { upto, done } => (Step::Purge(upto), Waiting::Done(done)),
    }
}

fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// After a failure every further write is refused: later bytes must not become durable where earlier ones did not.
async fn refuse(mut queue: mpsc::Receiver<Work>) {
    while let Some(work) = queue.recv().await {
        split(work).1.end(Err(io::Error::other("the log failed earlier and takes no more")));
    }
}
