//! The disk: the folder with its lock, the two SQLite files with their settings, and the seam around durable commits.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use tokio::time::Instant;

use crate::{Error, files::Files, log_rows::damaged, metrics::Metrics, timing::Latencies};

/// The layout of both files that this release writes, and the newest that it reads.
pub const FORMAT: i64 = 2;

/// Marks the files as ours (`PRAGMA application_id`, "tndm").
const APPLICATION_ID: i64 = 0x746e_646d;

/// How long a statement waits for another connection of this process to let go of a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What was to be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// A group of log entries, votes, truncations: one transaction, one fsync.
    LogCommit,
    /// Moves the log's write-ahead file into its database file.
    LogCheckpoint,
    /// Moves the state's write-ahead file into its database file.
    StateCheckpoint,
}

/// What changes what a member finds when it is started again. Each is whole or did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DurableStep {
    /// A vote is saved.
    Vote,
    /// Entries are written to the log.
    Append,
    /// The list of members, as an entry of the log.
    Membership,
    /// Entries that another leader does not have are taken out of the log.
    Truncate,
    /// Entries that the state file holds durably leave the log.
    Purge,
    /// What was applied is written to the state file.
    Apply,
    /// Forgotten versions are deleted from the state file.
    Compaction,
    /// The state file is made durable.
    Checkpoint,
    /// A snapshot is written to its file, before it has its name.
    SnapshotBuild,
    /// The file gets its name.
    SnapshotRename,
    /// A snapshot replaces the state.
    SnapshotInstall,
}

impl DurableStep {
    pub const ALL: [DurableStep; 11] = [
        DurableStep::Vote,
        DurableStep::Append,
        DurableStep::Membership,
        DurableStep::Truncate,
        DurableStep::Purge,
        DurableStep::Apply,
        DurableStep::Compaction,
        DurableStep::Checkpoint,
        DurableStep::SnapshotBuild,
        DurableStep::SnapshotRename,
        DurableStep::SnapshotInstall,
    ];
}

/// Which side of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    Before,
    After,
}

/// The seam through which everything goes that ends in fsync. Tests count, delay and fail it.
pub trait Disk: Send + Sync + 'static {
    /// Told on both sides of each step, so that a test can end the process there.
    fn reached(&self, _step: DurableStep, _edge: Edge) {}

    /// Carries out `commit`; when this is `Ok`, its effect survives a power cut.
    fn commit<'a>(&'a self, what: Durable, commit: BoxFuture<'a, io::Result<()>>) -> BoxFuture<'a, io::Result<()>>;
}

/// The machine's disk as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn commit<'a>(&'a self, _: Durable, commit: BoxFuture<'a, io::Result<()>>) -> BoxFuture<'a, io::Result<()>> {
        commit
    }
}

/// An I/O error after which nothing on disk can be trusted to be what was acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} in {path}: {source}")]
pub struct DiskFailure {
    pub operation: &'static str,
    pub path: String,
    pub source: io::Error,
}

/// What happens then. The store never retries: an fsync that failed once may succeed without having written.
pub type OnFailure = Arc<dyn Fn(&DiskFailure) + Send + Sync>;

/// Ends the process at once, so that a restart reads what is really there.
pub fn abort_process() -> OnFailure {
    Arc::new(|failure| {
        tracing::error!(error = %failure, "the disk failed; ending the process, because what is not on disk must not be acknowledged");
        std::process::abort();
    })
}

/// The disk with what watches over it.
#[derive(Clone)]
pub struct Guarded {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) on_failure: OnFailure,
    pub(crate) metrics: Metrics,
    pub(crate) latencies: Arc<Latencies>,
}

impl Guarded {
    /// Carries out what ends in fsync, and notes how long it took.
    pub async fn commit(&self, what: Durable, commit: BoxFuture<'_, io::Result<()>>) -> io::Result<()> {
        let begun = Instant::now();
        let ended = self.disk.commit(what, commit).await;
        let took = begun.elapsed();
        self.metrics.fsync_seconds.observe(took.as_secs_f64());
        if what == Durable::LogCommit {
            self.latencies.note(took);
        }
        ended
    }

    /// Tells of a failure, once, where it happened.
    pub(crate) fn fail(&self, operation: &'static str, path: &Path, source: &io::Error) {
        let source = io::Error::new(source.kind(), source.to_string());
        (self.on_failure)(&DiskFailure { operation, path: path.display().to_string(), source });
    }
}

pub(crate) fn io_error(error: sqlx::Error) -> io::Error {
    match error {
        sqlx::Error::Io(error) => error,
        other if is_damage(&other) => io::Error::new(io::ErrorKind::InvalidData, other),
        other => io::Error::other(other),
    }
}

/// Whether SQLite says that the file is not what it wrote (`SQLITE_CORRUPT`, `SQLITE_NOTADB`).
fn is_damage(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    code.is_some_and(|code| [11, 26].contains(&(code & 0xff)))
}

/// Damage is told apart from everything else that may be wrong with a file: who is damaged cannot be repaired, only
/// replaced.
pub(crate) fn file_error(path: &Path, error: &io::Error) -> Error {
    let (path, why) = (path.display().to_string(), error.to_string());
    if error.kind() == io::ErrorKind::InvalidData { Error::Damaged { path, why } } else { Error::Data { path, why } }
}

/// The folder of one member, held by this process alone as long as this lives.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) disk: Arc<dyn Disk>,
    _lock: File,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Folder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Folder {
    pub(crate) fn hold(path: &Path, files: Arc<dyn Files>, disk: Arc<dyn Disk>) -> Result<Arc<Folder>, Error> {
        let storage = |operation| move |error: io::Error| storage_error(operation, error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(storage("make its folder"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(storage("open its lock file"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Arc::new(Folder { path: path.to_owned(), files, disk, _lock: lock })),
            Err(TryLockError::WouldBlock) => {
                Err(data_error(path, "is in use by another process; stop that one first, or choose another folder"))
            }
            Err(TryLockError::Error(error)) => Err(storage_error("lock its folder", error)),
        }
    }

    /// Makes names in the folder durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_folder(&self.path)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(crate) fn data_error(path: &Path, why: impl Into<String>) -> Error {
    Error::Data { path: path.display().to_string(), why: why.into() }
}

pub(crate) fn storage_error(operation: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Storage { operation, source: Arc::new(source) }
}

/// Who owns a folder; written at its creation, compared ever after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub cluster: String,
    pub node: u64,
}

/// How much a commit of a file must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Each commit survives a power cut (`synchronous=FULL`).
    EachCommit,
    /// Commits survive the process; only checkpoints survive a power cut (`synchronous=NORMAL`).
    Checkpoints,
}

/// Opens, and where needed creates, one of the files. `tables` makes its tables beside `meta`.
pub(crate) async fn open(
    folder: &Path,
    name: &str,
    owner: &Owner,
    safety: Safety,
    tables: &'static str,
) -> Result<SqliteConnection, Error> {
    let path = folder.join(name);
    // Created by hand so that SQLite's companion files inherit the mode: nobody else may read what is stored.
    let created = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    created.map_err(|error| storage_error("create its files", error))?;
    let synchronous = match safety {
        Safety::EachCommit => SqliteSynchronous::Full,
        Safety::Checkpoints => SqliteSynchronous::Normal,
    };
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        // Checkpoints happen where they are counted, never inside a commit.
        .pragma("wal_autocheckpoint", "0")
        .pragma("journal_size_limit", "16777216")
        .disable_statement_logging();
    let mut connection = options.connect().await.map_err(|error| unreadable(&path, &error))?;
    check_format(&mut connection, &path, owner, tables).await?;
    check_pages(&mut connection, &path).await?;
    assert_settings(&mut connection, &path, safety).await?;
    sync_folder(folder).map_err(|error| storage_error("make its folder durable", error))?;
    Ok(connection)
}

/// A second connection that only reads.
pub(crate) async fn open_reader(folder: &Path, name: &str) -> Result<SqliteConnection, Error> {
    let path = folder.join(name);
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging();
    options.connect().await.map_err(|error| unreadable(&path, &error))
}

fn unreadable(path: &Path, error: &sqlx::Error) -> Error {
    let why = format!("cannot be opened ({error}); restore a backup into an empty folder if it is damaged");
    if is_damage(error) { Error::Damaged { path: path.display().to_string(), why } } else { data_error(path, why) }
}

async fn pragma(connection: &mut SqliteConnection, query: &'static str) -> Result<String, sqlx::Error> {
    let row = sqlx::query(query).fetch_one(connection).await?;
    row.try_get::<String, _>(0).or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()))
}

async fn check_format(
    connection: &mut SqliteConnection,
    path: &Path,
    owner: &Owner,
    tables: &'static str,
) -> Result<(), Error> {
    let failed = |error: sqlx::Error| unreadable(path, &error);
    let format: i64 = pragma(connection, "PRAGMA user_version").await.map_err(failed)?.parse().unwrap_or_default();
    let application: i64 =
        pragma(connection, "PRAGMA application_id").await.map_err(failed)?.parse().unwrap_or_default();
    let existing: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await.map_err(failed)?;
    if existing == 0 {
        return create(connection, owner, tables).await.map_err(failed);
    }
    if application != APPLICATION_ID {
        return Err(data_error(path, "is a database of something else; choose another folder"));
    }
    if format > FORMAT {
        let why = format!(
            "was written by a newer release (format {format}, this one knows up to {FORMAT}); run that release, or restore a backup into an empty folder"
        );
        return Err(data_error(path, why));
    }
    if format < FORMAT {
        // The rows of the older format are read as they are, and rewritten one by one as they change.
        let upgraded = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA user_version = {FORMAT}")));
        upgraded.execute(&mut *connection).await.map_err(failed)?;
    }
    let torn = |error: io::Error| file_error(path, &error);
    let found = Owner {
        cluster: read_meta(connection, "cluster").await.map_err(torn)?.unwrap_or_default(),
        node: read_meta(connection, "node").await.map_err(torn)?.and_then(|node| node.parse().ok()).unwrap_or(0),
    };
    if found.cluster != owner.cluster {
        let why = format!(
            "belongs to cluster {}, not to {}; choose that cluster's folder or an empty one",
            found.cluster, owner.cluster
        );
        return Err(data_error(path, why));
    }
    if found.node != owner.node {
        let why = format!(
            "belongs to member {}, not to {}; a member never takes over another one's folder",
            found.node, owner.node
        );
        return Err(data_error(path, why));
    }
    Ok(())
}

/// Rows have checksums of their own; what holds them together is checked by SQLite.
async fn check_pages(connection: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    let found = pragma(connection, "PRAGMA quick_check(1)").await.map_err(|error| unreadable(path, &error))?;
    if found == "ok" {
        return Ok(());
    }
    let why = format!("is damaged: {found}; restore a backup into an empty folder");
    Err(Error::Damaged { path: path.display().to_string(), why })
}

async fn create(connection: &mut SqliteConnection, owner: &Owner, tables: &'static str) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        .execute(&mut *transaction)
        .await?;
    sqlx::raw_sql(tables).execute(&mut *transaction).await?;
    write_meta(&mut transaction, "cluster", &owner.cluster).await?;
    write_meta(&mut transaction, "node", &owner.node.to_string()).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}"
    )))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// The settings on which every promise of the store rests: a wrong one must be seen at the start, not after a power cut.
async fn assert_settings(connection: &mut SqliteConnection, path: &Path, safety: Safety) -> Result<(), Error> {
    let synchronous = match safety {
        Safety::EachCommit => "2",
        Safety::Checkpoints => "1",
    };
    let expected = [
        ("PRAGMA journal_mode", "wal"),
        ("PRAGMA synchronous", synchronous),
        ("PRAGMA auto_vacuum", "2"),
        ("PRAGMA wal_autocheckpoint", "0"),
    ];
    for (query, wanted) in expected {
        let found = pragma(connection, query).await.map_err(|error| unreadable(path, &error))?;
        if found != wanted {
            return Err(data_error(path, format!("does not take a setting: {query} is {found} instead of {wanted}")));
        }
    }
    Ok(())
}

/// Stands between a row beside the tables and its checksum. Rows of format 1 have none.
const SEAL: &str = "\n";

fn sealed(name: &str, value: &str) -> String {
    format!("{value}{SEAL}{:08x}", crc32fast::hash(format!("{name}={value}").as_bytes()))
}

fn unsealed(name: &str, row: String) -> io::Result<String> {
    match row.rsplit_once(SEAL) {
        Some((value, _)) if sealed(name, value) == row => Ok(value.to_owned()),
        Some(_) => Err(damaged(format!("has a damaged row {name}; restore a backup into an empty folder"))),
        None => Ok(row),
    }
}

pub(crate) async fn read_meta(connection: &mut SqliteConnection, name: &'static str) -> io::Result<Option<String>> {
    let query = sqlx::query_scalar("SELECT value FROM meta WHERE name = ?").bind(name);
    let row: Option<String> = query.fetch_optional(connection).await.map_err(io_error)?;
    row.map(|row| unsealed(name, row)).transpose()
}

pub(crate) async fn write_meta(
    connection: &mut SqliteConnection,
    name: &'static str,
    value: &str,
) -> Result<(), sqlx::Error> {
    let query = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    sqlx::query(query).bind(name).bind(sealed(name, value)).execute(connection).await?;
    Ok(())
}

/// Moves the write-ahead file into the database file and empties it. Not `Ok` unless all of it was moved.
pub(crate) async fn checkpoint(connection: &mut SqliteConnection) -> io::Result<()> {
    let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await.map_err(io_error)?;
    match row.try_get::<i64, _>(0) {
        Ok(0) => Ok(()),
        _ => Err(io::Error::other("a reader kept the write-ahead file from being emptied")),
    }
}

/// Moves what no reader needs into the database file, so that the write-ahead file can begin anew.
pub(crate) async fn checkpoint_passively(connection: &mut SqliteConnection) -> io::Result<()> {
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await.map_err(io_error)?;
    Ok(())
}

/// Free pages that a file keeps for what comes next: 4 MiB.
const KEPT_PAGES: i64 = 1024;

/// Free pages that go back to the file system at once: 8 MiB, a few milliseconds.
const RETURNED_PAGES: i64 = 2048;

/// Gives free pages back to the file system, a few at a time, as part of the transaction that made them free.
pub(crate) async fn shrink(connection: &mut SqliteConnection) -> io::Result<()> {
    let free: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&mut *connection).await.map_err(io_error)?;
    let excess = (free - KEPT_PAGES).min(RETURNED_PAGES);
    if excess > 0 {
        let query = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA incremental_vacuum({excess})")));
        query.execute(connection).await.map_err(io_error)?;
    }
    Ok(())
}

pub(crate) fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
