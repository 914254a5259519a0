//! Entries as rows of the log file, each with a checksum over all of it.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use futures::TryStreamExt;
use openraft::{EntryPayload, entry::RaftEntry};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use crate::{
    codec::{self, Proposal},
    disk::io_error,
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

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogRow {
    pub(crate) position: i64,
    term: i64,
    kind: i64,
    payload: Vec<u8>,
    checksum: u32,
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
            EntryPayload::Blank => (BLANK, Vec::new()),
            EntryPayload::Normal(proposal) => (COMMAND, codec::encode(&proposal.0)),
            EntryPayload::Membership(membership) => {
                (MEMBERS, serde_json::to_vec(&Members::from(membership)).map_err(io::Error::other)?)
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
        let payload = match kind {
            BLANK => EntryPayload::Blank,
            COMMAND => {
                let command = codec::decode(Bytes::from(payload)).map_err(|error| match error {
                    codec::DecodeError::Newer { .. } => refused(format!("{error}; run the newer release")),
                    codec::DecodeError::Damaged(_) => refused(error.to_string()),
                })?;
                EntryPayload::Normal(Proposal(Arc::new(command)))
            }
            MEMBERS => {
                let members: Members =
                    serde_json::from_slice(&payload).map_err(|error| refused(format!("is damaged: {error}")))?;
                EntryPayload::Membership(members.restore().map_err(|why| refused(why.to_owned()))?)
            }
            other => return Err(refused(format!("is of kind {other}; run the newer release"))),
        };
        let id = Position { term: natural(term)?, index: natural(position)? };
        Ok(Entry { log_id: id.into(), payload })
    }

    fn from_sqlite(row: &SqliteRow) -> Result<LogRow, sqlx::Error> {
        Ok(LogRow {
            position: row.try_get(0)?,
            term: row.try_get(1)?,
            kind: row.try_get(2)?,
            payload: row.try_get(3)?,
            checksum: row.try_get(4)?,
        })
    }
}

pub(crate) async fn insert(connection: &mut SqliteConnection, rows: Vec<LogRow>) -> Result<(), sqlx::Error> {
    let mut rows = rows.into_iter();
    for (size, statement) in INSERT_SIZES.into_iter().zip(INSERTS.iter()) {
        while rows.len() >= size {
            let mut query = sqlx::query(statement.as_str());
            for LogRow { position, term, kind, payload, checksum } in rows.by_ref().take(size) {
                query = query.bind(position).bind(term).bind(kind).bind(payload).bind(i64::from(checksum));
            }
            query.execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// The entries at `from..to`.
pub(crate) async fn read(connection: &mut SqliteConnection, from: u64, to: u64) -> io::Result<Vec<Entry>> {
    let query = "SELECT position, term, kind, payload, checksum FROM entries \
                 WHERE position >= ? AND position < ? ORDER BY position";
    let rows =
        sqlx::query(query).bind(integer(from)?).bind(integer(to)?).fetch_all(connection).await.map_err(io_error)?;
    rows.iter().map(|row| LogRow::from_sqlite(row).map_err(io_error)?.entry()).collect()
}

/// Gives every entry from `from` on to `each`, and fails where one is missing or damaged.
pub(crate) async fn scan(connection: &mut SqliteConnection, from: u64, mut each: impl FnMut(Entry)) -> io::Result<()> {
    let query = "SELECT position, term, kind, payload, checksum FROM entries WHERE position >= ? ORDER BY position";
    let mut rows = sqlx::query(query).bind(integer(from)?).fetch(connection);
    let mut expected = from;
    while let Some(row) = rows.try_next().await.map_err(io_error)? {
        let entry = LogRow::from_sqlite(&row).map_err(io_error)?.entry()?;
        if entry.index() != expected {
            return Err(damaged(format!(
                "is damaged: entry {expected} is missing; restore a backup into an empty folder"
            )));
        }
        expected += 1;
        each(entry);
    }
    Ok(())
}

pub(crate) async fn delete_from(connection: &mut SqliteConnection, from: u64) -> io::Result<()> {
    let query = sqlx::query("DELETE FROM entries WHERE position >= ?").bind(integer(from)?);
    query.execute(connection).await.map_err(io_error)?;
    Ok(())
}

pub(crate) async fn delete_through(connection: &mut SqliteConnection, last: u64) -> io::Result<()> {
    let query = sqlx::query("DELETE FROM entries WHERE position <= ?").bind(integer(last)?);
    query.execute(connection).await.map_err(io_error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{expect, expect_file};
    use openraft::BasicNode;
    use tandem_api::Key;

    use super::*;
    use crate::{Command, Expect};

    fn entry(index: u64, payload: EntryPayload<Proposal, u64, BasicNode>) -> Entry {
        Entry { log_id: Position { term: 3, index }.into(), payload }
    }

    fn samples() -> [Entry; 3] {
        let command = Command::put(Key::from_raw("/core/pods/default/a"), Bytes::from_static(b"v"), Expect::Absent);
        let members: BTreeMap<u64, BasicNode> = BTreeMap::from([(1, BasicNode::new("10.0.0.1:6443"))]);
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
            LogRow { position: 7, term: 3, kind, payload, checksum }
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
