//! Versions as rows of the state file, each with a checksum over all of it.

use std::{io, sync::LazyLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use sqlx::{Connection, Row, SqliteConnection};
use tandem_api::{Key, Revision};

use crate::{
    codec::VersionRow,
    disk::{self, Durable, Guarded, io_error},
    files::{StateChange, StateRows},
    log_rows::{damaged, insert_of, integer, natural},
    state::OPS_MAX,
};

/// `id` is the revision times [`OPS_MAX`] plus the place within the revision: rows lie in the order of history.
pub(crate) const TABLES: &str = "CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    created INTEGER NOT NULL,
    value BLOB,
    checksum INTEGER NOT NULL
)";

const INSERT_SIZES: [usize; 3] = [64, 8, 1];

static INSERTS: LazyLock<[String; 3]> =
    LazyLock::new(|| INSERT_SIZES.map(|rows| insert_of("versions (id, key, created, value, checksum)", 5, rows)));

/// Numbers the versions within each revision.
#[derive(Debug, Default)]
struct Position {
    revision: Revision,
    next: usize,
}

impl Position {
    fn id(&mut self, revision: Revision) -> io::Result<i64> {
        if revision != self.revision {
            *self = Position { revision, next: 0 };
        }
        let place = self.next;
        self.next += 1;
        if place >= OPS_MAX {
            return Err(io::Error::other("a revision has more versions than the file can number"));
        }
        integer(revision.0.saturating_mul(OPS_MAX as u64).saturating_add(place as u64))
    }
}

/// `rows` are in the order of their revisions, all of a revision together.
async fn insert(connection: &mut SqliteConnection, rows: Vec<VersionRow>) -> io::Result<()> {
    let mut position = Position::default();
    let mut rows = rows.into_iter();
    for (size, statement) in INSERT_SIZES.into_iter().zip(INSERTS.iter()) {
        while rows.len() >= size {
            let mut query = sqlx::query(statement.as_str());
            for row in rows.by_ref().take(size) {
                let (id, checksum) = (position.id(row.revision)?, row.checksum());
                query = query
                    .bind(id)
                    .bind(row.key.as_str().to_owned())
                    .bind(integer(row.created.0)?)
                    .bind(row.value.map(Vec::from))
                    .bind(i64::from(checksum));
            }
            query.execute(&mut *connection).await.map_err(io_error)?;
        }
    }
    Ok(())
}

/// The state in SQLite.
pub(crate) struct SqliteState(pub(crate) SqliteConnection);

#[async_trait]
impl StateRows for SqliteState {
    async fn row(&mut self) -> io::Result<Option<String>> {
        disk::read_meta(&mut self.0, "state").await
    }

    async fn scan(&mut self, each: &mut (dyn FnMut(VersionRow) -> io::Result<()> + Send)) -> io::Result<()> {
        let query = "SELECT id, key, created, value, checksum FROM versions ORDER BY id";
        let mut rows = sqlx::query(query).fetch(&mut self.0);
        while let Some(found) = rows.try_next().await.map_err(io_error)? {
            let id = natural(found.try_get(0).map_err(io_error)?)?;
            let value: Option<Vec<u8>> = found.try_get(3).map_err(io_error)?;
            let version = VersionRow {
                key: Key::from_raw(found.try_get::<String, _>(1).map_err(io_error)?),
                revision: Revision(id / OPS_MAX as u64),
                created: Revision(natural(found.try_get(2).map_err(io_error)?)?),
                value: value.map(Bytes::from),
            };
            if i64::from(version.checksum()) != found.try_get::<i64, _>(4).map_err(io_error)? {
                return Err(damaged(format!(
                    "is damaged: {} at revision {} does not have its checksum; restore a backup into an empty folder",
                    version.key, version.revision
                )));
            }
            each(version)?;
        }
        Ok(())
    }

    async fn write(&mut self, change: StateChange) -> io::Result<()> {
        let StateChange { replaces_all, rows, dropped, row } = change;
        let mut transaction = self.0.begin().await.map_err(io_error)?;
        if replaces_all {
            sqlx::query("DELETE FROM versions").execute(&mut *transaction).await.map_err(io_error)?;
        }
        insert(&mut transaction, rows).await?;
        for (key, revision) in &dropped {
            let first = integer(revision.0.saturating_mul(OPS_MAX as u64))?;
            let query = sqlx::query("DELETE FROM versions WHERE id >= ? AND id < ? AND key = ?");
            let query = query.bind(first).bind(first + OPS_MAX as i64).bind(key.as_str());
            query.execute(&mut *transaction).await.map_err(io_error)?;
        }
        disk::write_meta(&mut transaction, "state", &row).await.map_err(io_error)?;
        if !dropped.is_empty() {
            disk::shrink(&mut transaction).await?;
        }
        transaction.commit().await.map_err(io_error)
    }

    async fn checkpoint(&mut self, guarded: &Guarded) -> io::Result<()> {
        guarded.commit(Durable::StateCheckpoint, disk::checkpoint(&mut self.0).boxed()).await
    }

    async fn close(self: Box<Self>) -> io::Result<()> {
        self.0.close().await.map_err(io_error)
    }
}
