use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking};

use crate::{
    durable,
    index::{Entry, Index, IndexError},
    name::{Reference, Repository},
};

const FORMAT: u32 = 1;

type Entries = BTreeMap<(Repository, Reference), Entry>;

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    entries: Vec<Entry>,
}

/// The index of a registry without a cluster around it: one file, replaced as a whole.
#[derive(Debug)]
pub struct FileIndex {
    path: PathBuf,
    entries: Arc<Mutex<Arc<Entries>>>,
    /// One writer at a time; readers never wait for the disk.
    writer: AsyncMutex<()>,
}

impl FileIndex {
    pub fn open(path: &Path) -> Result<FileIndex, IndexError> {
        let entries = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::new(),
            Err(source) => return Err(IndexError::File { operation: "open its file", source }),
            Ok(bytes) => read(path, &bytes)?,
        };
        Ok(FileIndex {
            path: path.to_owned(),
            entries: Arc::new(Mutex::new(Arc::new(entries))),
            writer: AsyncMutex::new(()),
        })
    }

    fn snapshot(&self) -> Arc<Entries> {
        Arc::clone(&self.entries.lock())
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Entries) -> T + Send) -> Result<T, IndexError> {
        let _writer = self.writer.lock().await;
        let mut next = (*self.snapshot()).clone();
        let outcome = change(&mut next);
        let next = Arc::new(next);
        let (path, written) = (self.path.clone(), Arc::clone(&next));
        let failed = |source| IndexError::File { operation: "write its file", source };
        let write = spawn_blocking(move || {
            let document = Document { format: FORMAT, entries: written.values().cloned().collect() };
            durable::write(&path.with_extension("next"), &path, &serde_json::to_vec(&document)?)
        });
        write.await.map_err(io::Error::other).flatten().map_err(failed)?;
        *self.entries.lock() = next;
        Ok(outcome)
    }
}

fn read(path: &Path, bytes: &[u8]) -> Result<Entries, IndexError> {
    let path = path.display().to_string();
    let document: Document = match serde_json::from_slice(bytes) {
        Ok(document) => document,
        Err(source) => return Err(IndexError::Format { path, source }),
    };
    if document.format != FORMAT {
        return Err(IndexError::Version { path, found: document.format, expected: FORMAT });
    }
    Ok(document.entries.into_iter().map(|entry| ((entry.repository.clone(), entry.reference.clone()), entry)).collect())
}

#[async_trait]
impl Index for FileIndex {
    async fn get(&self, repository: &Repository, reference: &Reference) -> Result<Option<Entry>, IndexError> {
        Ok(self.snapshot().get(&(repository.clone(), reference.clone())).cloned())
    }

    async fn list(&self, repository: &Repository) -> Result<Vec<Entry>, IndexError> {
        Ok(self.snapshot().values().filter(|entry| entry.repository == *repository).cloned().collect())
    }

    async fn repositories(&self) -> Result<Vec<Repository>, IndexError> {
        let mut names: Vec<Repository> = self.snapshot().keys().map(|(repository, _)| repository.clone()).collect();
        names.dedup();
        Ok(names)
    }

    async fn put(&self, entry: Entry) -> Result<(), IndexError> {
        self.change(|entries| {
            entries.insert((entry.repository.clone(), entry.reference.clone()), entry);
        })
        .await
    }

    async fn delete(&self, repository: &Repository, reference: &Reference) -> Result<bool, IndexError> {
        self.change(|entries| entries.remove(&(repository.clone(), reference.clone())).is_some()).await
    }
}
