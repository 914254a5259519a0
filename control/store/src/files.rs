//! The seam around the two files of a member: what the store asks of them, row by row.
//!
//! [`SqliteFiles`] is what members run on. Whoever implements the seam anew keeps its promises about what survives
//! which crash, because everything that the store promises rests on them.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt};
use tandem_api::{Key, Revision};

use crate::{
    Error,
    disk::{self, Folder, Guarded, Owner, Safety},
    log_rows::{self, LogRow, SqliteLog},
    state_rows::{self, SqliteState},
};

pub(crate) const LOG_FILE: &str = "log.sqlite";

pub(crate) const STATE_FILE: &str = "state.sqlite";

pub use crate::codec::VersionRow;

/// One step of a transaction on the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogChange {
    Append(Vec<LogRow>),
    /// Removes the entries from `from` on.
    Truncate {
        from: u64,
    },
    /// Removes the entries up to and including `through`.
    Purge {
        through: u64,
    },
    /// Sets one of the rows beside the entries.
    Meta {
        name: &'static str,
        value: String,
    },
}

/// The log, as its only writer sees it.
#[async_trait]
pub trait LogFile: Send {
    async fn meta(&mut self, name: &'static str) -> io::Result<Option<String>>;

    /// Gives every row from `from` on to `each`, in order.
    async fn scan(&mut self, from: u64, each: &mut (dyn FnMut(LogRow) -> io::Result<()> + Send)) -> io::Result<()>;

    /// One transaction: all of it, in order, or nothing. When this is `Ok`, it survives a power cut.
    async fn commit(&mut self, changes: Vec<LogChange>, guarded: &Guarded) -> io::Result<()>;

    /// Keeps what lies beside the file from growing.
    async fn checkpoint(&mut self, guarded: &Guarded) -> io::Result<()>;

    async fn close(self: Box<Self>) -> io::Result<()>;
}

/// The log, as those see it who read beside the writer.
#[async_trait]
pub trait LogRows: Send {
    /// The committed rows at `from..to`.
    async fn read(&mut self, from: u64, to: u64) -> io::Result<Vec<LogRow>>;
}

/// One transaction on the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateChange {
    /// Whether every version that was there goes first.
    pub replaces_all: bool,
    /// In the order of their revisions, all of a revision together.
    pub rows: Vec<VersionRow>,
    pub dropped: Vec<(Key, Revision)>,
    /// The one row beside the versions.
    pub row: String,
}

/// The state, as its only writer sees it.
#[async_trait]
pub trait StateRows: Send {
    /// The one row beside the versions.
    async fn row(&mut self) -> io::Result<Option<String>>;

    /// Gives every version to `each`, in the order of their revisions.
    async fn scan(&mut self, each: &mut (dyn FnMut(VersionRow) -> io::Result<()> + Send)) -> io::Result<()>;

    /// One transaction: all of it or nothing. Survives the end of the process, but not a power cut.
    async fn write(&mut self, change: StateChange) -> io::Result<()>;

    /// When this is `Ok`, everything written so far survives a power cut.
    async fn checkpoint(&mut self, guarded: &Guarded) -> io::Result<()>;

    async fn close(self: Box<Self>) -> io::Result<()>;
}

/// Where the two files of a member lie.
#[async_trait]
pub trait Files: Send + Sync + 'static {
    async fn log(&self, folder: &Path, owner: &Owner) -> Result<Box<dyn LogFile>, Error>;

    async fn log_rows(&self, folder: &Path) -> Result<Box<dyn LogRows>, Error>;

    async fn state(&self, folder: &Path, owner: &Owner) -> Result<Box<dyn StateRows>, Error>;

    /// Carries out what must not be done on a thread that drives futures.
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>>;
}

/// SQLite files in the member's folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqliteFiles;

#[async_trait]
impl Files for SqliteFiles {
    async fn log(&self, folder: &Path, owner: &Owner) -> Result<Box<dyn LogFile>, Error> {
        let connection = disk::open(folder, LOG_FILE, owner, Safety::EachCommit, log_rows::TABLES).await?;
        Ok(Box::new(SqliteLog(connection)))
    }

    async fn log_rows(&self, folder: &Path) -> Result<Box<dyn LogRows>, Error> {
        Ok(Box::new(SqliteLog(disk::open_reader(folder, LOG_FILE).await?)))
    }

    async fn state(&self, folder: &Path, owner: &Owner) -> Result<Box<dyn StateRows>, Error> {
        let connection = disk::open(folder, STATE_FILE, owner, Safety::Checkpoints, state_rows::TABLES).await?;
        Ok(Box::new(SqliteState(connection)))
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>> {
        tokio::task::spawn_blocking(work).map(|ended| ended.map_err(io::Error::other)).boxed()
    }
}

impl Folder {
    /// What `work` gives, from a thread where it may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Folder>,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (give, taken) = tokio::sync::oneshot::channel();
        // Who asked may have gone: then nobody needs the result.
        self.files.blocking(Box::new(move || drop(give.send(work())))).await?;
        taken.await.map_err(io::Error::other)?
    }
}
