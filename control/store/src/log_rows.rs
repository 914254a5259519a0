//! Entries as rows of the log file, each with a checksum over all of it.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, LazyLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use openraft::{EntryPayload, entry::RaftEntry};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteRow};

use crate::{
    codec::{self, Proposal},
    disk::{self, Durable, Guarded, io_error},
    files::{LogChange, LogFile, LogRows},
    types::{Entry, Members, Position},
};

pub(crate) const TABLES: &str = "CREATE TABLE entries (
    position INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    payload BLOB NOT NULL,
    checksum INTEGER NOT NULL
)";

const BLANK: i64 = 0;
const COMMAND: i64 = 1;
const MEMBERS: i64 = 2;

/// How many rows one statement inserts; a batch is cut into these, largest first.
const INSERT_SIZES: [usize; 3] = [64, 8, 1];

static INSERTS: LazyLock<[String; 3]> =
    LazyLock::new(|| INSERT_SIZES.map(|rows| insert_of("entries (position, term, kind, payload, checksum)", 5, rows)));

/// `INSERT INTO target VALUES (?, ?), (?, ?)` with so many columns and rows.
pub(crate) fn insert_of(target: &str, columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    let mut text = format!("INSERT INTO {target} VALUES ");
    for count in 0..rows {
        let _ = write!(text, "{}{row}", if count == 0 { "" } else { ", " });
    }
    text
}

/// An entry as it lies on disk, and as it goes to other members: one checksum from end to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    pub position: i64,
    pub term: i64,
    pub kind: i64,
    pub payload: Bytes,
    /// Over all of the above.
    pub checksum: u32,
}

/// SQLite's integers are signed; positions, terms and revisions stay far below their limit.
pub(crate) fn integer(number: u64) -> io::Result<i64> {
    i64::try_from(number).map_err(|_| io::Error::other(format!("{number} is too large for the file")))
}

pub(crate) fn natural(number: i64) -> io::Result<u64> {
    u64::try_from(number).map_err(|_| damaged(format!("{number} is negative")))
}

pub(crate) fn damaged(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn checksum(position: i64, term: i64, kind: i64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for number in [position, term, kind] {
        hasher.update(&number.to_be_bytes());
    }
    hasher.update(payload);
    hasher.finalize()
}

impl LogRow {
    pub(crate) fn size(&self) -> usize {
        48 + self.payload.len()
    }

    pub(crate) fn of(entry: &Entry) -> io::Result<LogRow> {
        let (kind, payload) = match &entry.payload {
            EntryPayload::Blank => (BLANK, Bytes::new()),
            EntryPayload::Normal(proposal) => (COMMAND, Bytes::from(codec::encode(&proposal.0))),
            EntryPayload::Membership(membership) => {
                (MEMBERS, serde_json::to_vec(&Members::from(membership)).map_err(io::Error::other)?.into())
            }
        };
        let Position { term, index } = entry.log_id().into();
        let (position, term) = (integer(index)?, integer(term)?);
        let checksum = checksum(position, term, kind, &payload);
        Ok(LogRow { position, term, kind, payload, checksum })
    }

    pub(crate) fn entry(self) -> io::Result<Entry> {
        let LogRow { position, term, kind, payload, checksum: stored } = self;
        if checksum(position, term, kind, &payload) != stored {
            return Err(damaged(format!(
                "is damaged: entry {position} does not have its checksum; restore a backup into an empty folder"
            )));
        }
        let refused = |why: String| damaged(format!("has an entry {position} that {why}"));
        let newer = |why: String| {
            let why = format!("has an entry {position} that {why}; run the newer release");
            io::Error::new(io::ErrorKind::Unsupported, why)
        };
        let payload = match kind {
            BLANK => EntryPayload::Blank,
            COMMAND => {
                let command = codec::decode(payload).map_err(|error| match error {
                    codec::DecodeError::Newer { .. } => newer(error.to_string()),
                    codec::DecodeError::Damaged(_) => refused(error.to_string()),
                })?;
                EntryPayload::Normal(Proposal(Arc::new(command)))
            }
            MEMBERS => {
                let members: Members =
                    serde_json::from_slice(&payload).map_err(|error| refused(format!("is damaged: {error}")))?;
                EntryPayload::Membership(members.restore().map_err(|why| refused(why.to_owned()))?)
            }
            other => return Err(newer(format!("is of kind {other}"))),
        };
        let id = Position { term: natural(term)?, index: natural(position)? };
        Ok(Entry { log_id: id.into(), payload })
    }

    fn from_sqlite(row: &SqliteRow) -> Result<LogRow, sqlx::Error> {
        Ok(LogRow {
            position: row.try_get(0)?,
            term: row.try_get(1)?,
            kind: row.try_get(2)?,
            payload: row.try_get::<Vec<u8>, _>(3)?.into(),
            checksum: row.try_get(4)?,
        })
    }
}

async fn insert(connection: &mut SqliteConnection, rows: Vec<LogRow>) -> Result<(), sqlx::Error> {
    let mut rows = rows.into_iter();
    for (size, statement) in INSERT_SIZES.into_iter().zip(INSERTS.iter()) {
        while rows.len() >= size {
            let mut query = sqlx::query(statement.as_str());
            for LogRow { position, term, kind, payload, checksum } in rows.by_ref().take(size) {
                query = query.bind(position).bind(term).bind(kind).bind(Vec::from(payload)).bind(i64::from(checksum));
            }
            query.execute(&mut *connection).await?;
        }
    }
    Ok(())
}

async fn delete_from(connection: &mut SqliteConnection, from: u64) -> io::Result<()> {
    let query = sqlx::query("DELETE FROM entries WHERE position >= ?").bind(integer(from)?);
    query.execute(connection).await.map_err(io_error)?;
    Ok(())
}

async fn delete_through(connection: &mut SqliteConnection, last: u64) -> io::Result<()> {
    let query = sqlx::query("DELETE FROM entries WHERE position <= ?").bind(integer(last)?);
    query.execute(connection).await.map_err(io_error)?;
    Ok(())
}

const COLUMNS: &str = "SELECT position, term, kind, payload, checksum FROM entries WHERE position >= ?";

/// The log in SQLite, for its writer or for a reader.
pub(crate) struct SqliteLog(pub(crate) SqliteConnection);

async fn carry_out(connection: &mut SqliteConnection, change: LogChange) -> io::Result<()> {
    match change {
        LogChange::Append(rows) => insert(connection, rows).await.map_err(io_error),
        LogChange::Truncate { from } => delete_from(connection, from).await,
        LogChange::Purge { through } => {
            delete_through(connection, through).await?;
            disk::shrink(connection).await
        }
        LogChange::Meta { name, value } => disk::write_meta(connection, name, &value).await.map_err(io_error),
    }
}

#[async_trait]
impl LogFile for SqliteLog {
    async fn meta(&mut self, name: &'static str) -> io::Result<Option<String>> {
        disk::read_meta(&mut self.0, name).await
    }

    async fn scan(&mut self, from: u64, each: &mut (dyn FnMut(LogRow) -> io::Result<()> + Send)) -> io::Result<()> {
        let query = format!("{COLUMNS} ORDER BY position");
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(query)).bind(integer(from)?).fetch(&mut self.0);
        while let Some(row) = rows.try_next().await.map_err(io_error)? {
            each(LogRow::from_sqlite(&row).map_err(io_error)?)?;
        }
        Ok(())
    }

    async fn commit(&mut self, changes: Vec<LogChange>, guarded: &Guarded) -> io::Result<()> {
        let mut transaction = self.0.begin().await.map_err(io_error)?;
        for change in changes {
            carry_out(&mut transaction, change).await?;
        }
        let commit = async move { transaction.commit().await.map_err(io_error) };
        guarded.commit(Durable::LogCommit, commit.boxed()).await
    }

    async fn checkpoint(&mut self, guarded: &Guarded) -> io::Result<()> {
        guarded.commit(Durable::LogCheckpoint, disk::checkpoint_passively(&mut self.0).boxed()).await
    }

    async fn close(self: Box<Self>) -> io::Result<()> {
        self.0.close().await.map_err(io_error)
    }
}

#[async_trait]
impl LogRows for SqliteLog {
    async fn read(&mut self, from: u64, to: u64) -> io::Result<Vec<LogRow>> {
        let query = format!("{COLUMNS} AND position < ? ORDER BY position");
        let query = sqlx::query(sqlx::AssertSqlSafe(query)).bind(integer(from)?).bind(integer(to)?);
        let rows = query.fetch_all(&mut self.0).await.map_err(io_error)?;
        rows.iter().map(|row| LogRow::from_sqlite(row).map_err(io_error)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{expect, expect_file};
    use tandem_api::Key;

    use super::*;
    use crate::{Command, Expect, types::Node};

    fn entry(index: u64, payload: EntryPayload<Proposal, u64, Node>) -> Entry {
        Entry { log_id: Position { term: 3, index }.into(), payload }
    }

    fn samples() -> [Entry; 3] {
        let command = Command::put(Key::from_raw("/core/pods/default/a"), Bytes::from_static(b"v"), Expect::Absent);
        let members: BTreeMap<u64, Node> = BTreeMap::from([(1, Node::at("10.0.0.1:6443"))]);
        [
            entry(0, EntryPayload::Membership(members.into())),
            entry(1, EntryPayload::Blank),
            entry(2, EntryPayload::Normal(Proposal(Arc::new(command)))),
        ]
    }

    /// Position, term, kind, payload, checksum. Logs of older releases are read with these.
    #[test]
    fn the_row_layout_is_frozen() {
        let mut shown = String::new();
        for entry in samples() {
            let row = LogRow::of(&entry).unwrap();
            let payload: String = row.payload.iter().map(|byte| format!("{byte:02x}")).collect();
            let LogRow { position, term, kind, checksum, .. } = row;
            let _ = writeln!(shown, "{position} {term} {kind} {payload} {checksum:08x}");
            assert_eq!(row.entry().unwrap(), entry);
        }
        expect_file!["../tests/golden/log-row-v1.txt"].assert_eq(&shown);
    }

    #[test]
    fn rows_that_cannot_be_read_say_what_to_do() {
        let sealed = |kind, payload: Vec<u8>| {
            let checksum = checksum(7, 3, kind, &payload);
            LogRow { position: 7, term: 3, kind, payload: payload.into(), checksum }
        };
        let newer = sealed(COMMAND, vec![0, 9]);
        let foreign = sealed(5, Vec::new());
        let cut = sealed(COMMAND, vec![0, 1, 0]);
        let flipped = LogRow { term: 4, ..sealed(BLANK, Vec::new()) };
        let shown: Vec<String> =
            [newer, foreign, cut, flipped].into_iter().map(|row| row.entry().unwrap_err().to_string()).collect();
        expect![[r#"
            has an entry 7 that has a command of version 9, and this release knows up to 1; run the newer release
            has an entry 7 that is of kind 5; run the newer release
            has an entry 7 that is damaged: cut short
            is damaged: entry 7 does not have its checksum; restore a backup into an empty folder"#]]
        .assert_eq(&shown.join("\n"));
    }
}
