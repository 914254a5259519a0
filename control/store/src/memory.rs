//! The store without a disk and without other members: for tests of everything above it.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tandem_api::{Key, Revision};

use crate::{
    Command, Consistency, Error, Metrics, Page, Reply, Storage, Stored, WatchItem, history::HistoryLimits,
    replica::Replica,
};

/// The term of everything that is written to a [`MemoryStore`].
pub const MEMORY_TERM: u64 = 1;

/// A [`Storage`] that forgets everything when it is dropped.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    replica: Arc<Replica>,
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore { replica: Arc::new(Replica::with_limits(HistoryLimits::default(), Metrics::default())) }
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

#[async_trait]
impl Storage for MemoryStore {
    async fn get(&self, key: &Key, at: Consistency) -> Result<Option<Stored>, Error> {
        self.replica.get(key, at).await
    }

    async fn list(&self, prefix: &Key, at: Consistency, from: Option<&Key>, limit: usize) -> Result<Page, Error> {
        self.replica.list(prefix, at, from, limit).await
    }

    fn count(&self, prefix: &Key, after: &Key, at: Revision) -> Result<usize, Error> {
        self.replica.count(prefix, after, at)
    }

    async fn write(&self, command: Command) -> Result<Reply, Error> {
        Ok(self.replica.apply(MEMORY_TERM, 0, &command).outcome.reply)
    }

    fn watch(&self, prefix: &Key, after: Revision) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        self.replica.watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.replica.revision()
    }
}
