use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use parking_lot::RwLock;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::broadcast;

use super::{ContainerRecord, PodRecord, RECORD_VERSION, SandboxRecord};

/// Changes held for a listener that is behind.
const CHANGES: usize = 1024;

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Created,
    Started,
    Stopped,
    Deleted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) container: String,
    pub(crate) change: Change,
}

/// Every sandbox and container that was not removed. What is asked for is on disk before it is seen; what happened
/// cannot be refused, so it is seen at once, and written as soon as that works.
pub(crate) struct Table {
    folder: PathBuf,
    rows: RwLock<Rows>,
    changes: broadcast::Sender<Changed>,
}

#[derive(Default)]
struct Rows {
    sandboxes: BTreeMap<String, SandboxRecord>,
    containers: BTreeMap<String, ContainerRecord>,
    /// Those whose files are behind what is here.
    unwritten: BTreeSet<String>,
}

impl Table {
    /// Reads what a worker before this one left.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Table> {
        let rows = Rows {
            sandboxes: read_all(&folder.join("sandboxes"))?,
            containers: read_all(&folder.join("containers"))?,
            unwritten: BTreeSet::new(),
        };
        Ok(Table { folder, rows: RwLock::new(rows), changes: broadcast::Sender::new(CHANGES) })
    }

    pub(crate) fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    pub(crate) fn announce(&self, container: &str, change: Change) {
        // Without a listener there is nobody to tell.
        drop(self.changes.send(Changed { container: container.to_owned(), change }));
    }

    pub(crate) fn sandboxes(&self) -> Vec<SandboxRecord> {
        self.rows.read().sandboxes.values().cloned().collect()
    }

    /// The sandbox of a pod that can be used.
    pub(crate) fn ready_sandbox(&self, pod: &PodRecord) -> Option<String> {
        let rows = self.rows.read();
        let found = rows.sandboxes.values().find(|record| record.ready && record.pod == *pod);
        found.map(|record| record.id.clone())
    }

    pub(crate) fn sandbox(&self, id: &str) -> Option<SandboxRecord> {
        self.rows.read().sandboxes.get(id).cloned()
    }

    pub(crate) fn containers(&self) -> Vec<ContainerRecord> {
        self.rows.read().containers.values().cloned().collect()
    }

    pub(crate) fn container(&self, id: &str) -> Option<ContainerRecord> {
        self.rows.read().containers.get(id).cloned()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<ContainerRecord> {
        self.rows.read().containers.values().filter(|record| record.sandbox == sandbox).cloned().collect()
    }

    pub(crate) fn put_sandbox(&self, record: SandboxRecord) -> io::Result<()> {
        let mut rows = self.rows.write();
        write(&self.folder.join("sandboxes"), &record.id, &record)?;
        rows.sandboxes.insert(record.id.clone(), record);
        self.catch_up(&mut rows);
        Ok(())
    }

    pub(crate) fn put_container(&self, record: ContainerRecord) -> io::Result<()> {
        let mut rows = self.rows.write();
        write(&self.folder.join("containers"), &record.id, &record)?;
        rows.containers.insert(record.id.clone(), record);
        self.catch_up(&mut rows);
        Ok(())
    }

    /// Records what happened to a sandbox that is still there.
    pub(crate) fn update_sandbox(&self, id: &str, change: impl FnOnce(&mut SandboxRecord)) {
        let mut rows = self.rows.write();
        let Some(record) = rows.sandboxes.get_mut(id) else { return };
        change(record);
        let written = write(&self.folder.join("sandboxes"), id, &*record);
        self.settle(&mut rows, id, written);
    }

    /// Records what happened to a container that is still there.
    pub(crate) fn update_container(&self, id: &str, change: impl FnOnce(&mut ContainerRecord)) {
        let mut rows = self.rows.write();
        let Some(record) = rows.containers.get_mut(id) else { return };
        change(record);
        let written = write(&self.folder.join("containers"), id, &*record);
        self.settle(&mut rows, id, written);
    }

    /// Notes what could not be written; a write that succeeds takes along what was noted.
    fn settle(&self, rows: &mut Rows, id: &str, written: io::Result<()>) {
        match written {
            Ok(()) => {
                rows.unwritten.remove(id);
                self.catch_up(rows);
            }
            Err(error) => {
                tracing::error!(%error, id, "what happened cannot be written; a later change tries again");
                rows.unwritten.insert(id.to_owned());
            }
        }
    }

    /// Writes what could not be written before, until that fails again.
    fn catch_up(&self, rows: &mut Rows) {
        while let Some(id) = rows.unwritten.first() {
            let written = match (rows.sandboxes.get(id), rows.containers.get(id)) {
                (Some(record), _) => write(&self.folder.join("sandboxes"), id, record),
                (None, Some(record)) => write(&self.folder.join("containers"), id, record),
                (None, None) => Ok(()),
            };
            if let Err(error) = written {
                tracing::warn!(%error, id, "what happened still cannot be written");
                return;
            }
            rows.unwritten.pop_first();
        }
    }

    pub(crate) fn remove_sandbox(&self, id: &str) -> io::Result<()> {
        let mut rows = self.rows.write();
        remove(&self.folder.join("sandboxes"), id)?;
        rows.sandboxes.remove(id);
        rows.unwritten.remove(id);
        self.catch_up(&mut rows);
        Ok(())
    }

    pub(crate) fn remove_container(&self, id: &str) -> io::Result<()> {
        let mut rows = self.rows.write();
        remove(&self.folder.join("containers"), id)?;
        rows.containers.remove(id);
        rows.unwritten.remove(id);
        self.catch_up(&mut rows);
        Ok(())
    }
}

/// A file's first fact.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

fn read_all<T: DeserializeOwned>(folder: &Path) -> io::Result<BTreeMap<String, T>> {
    std::fs::create_dir_all(folder)?;
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"))
        else {
            continue;
        };
        let bytes = std::fs::read(&path)?;
        match serde_json::from_slice::<Versioned>(&bytes) {
            Ok(Versioned { version }) if version > RECORD_VERSION => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{} has format {version}; this version of tandem reads formats up to {RECORD_VERSION}",
                        path.display()
                    ),
                ));
            }
            _ => {}
        }
        match serde_json::from_slice(&bytes) {
            Ok(record) => drop(records.insert(id.to_owned(), record)),
            // Cut short when the machine went down; what it was about does not run any more.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a record cannot be read; it is set aside");
                std::fs::rename(&path, path.with_extension("unreadable"))?;
            }
        }
    }
    Ok(records)
}

fn write<T: Serialize>(folder: &Path, id: &str, record: &T) -> io::Result<()> {
    let temporary = folder.join(format!("{id}.new"));
    let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, folder.join(format!("{id}.json")))
}

fn remove(folder: &Path, id: &str) -> io::Result<()> {
    match std::fs::remove_file(folder.join(format!("{id}.json"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ContainerState, Exit, record::examples},
        *,
    };

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let table = Table::open(folder.path().to_owned()).unwrap();
        table.put_sandbox(examples::sandbox()).unwrap();
        table.put_container(examples::container(ContainerState::Created)).unwrap();
        table.update_container("c1", |record| record.state = ContainerState::Running { started_at: 7 });
        let again = Table::open(folder.path().to_owned()).unwrap();
        assert_eq!(again.sandboxes(), [examples::sandbox()]);
        assert_eq!(again.containers(), [examples::container(ContainerState::Running { started_at: 7 })]);
        again.remove_container("c1").unwrap();
        again.remove_container("c1").unwrap();
        assert!(Table::open(folder.path().to_owned()).unwrap().containers().is_empty());
    }

    #[test]
    fn what_happened_is_seen_at_once_and_written_when_that_works_again() {
        let folder = tempfile::tempdir().unwrap();
        let table = Table::open(folder.path().to_owned()).unwrap();
        let on_disk = || Table::open(folder.path().to_owned()).unwrap().containers();
        let running = examples::container(ContainerState::Running { started_at: 7 });
        let exit = Exit { code: 0, reason: "Completed".into(), message: String::new() };
        let exited = examples::container(ContainerState::Exited { started_at: 7, finished_at: 8, exit });
        table.put_sandbox(examples::sandbox()).unwrap();
        table.put_container(running.clone()).unwrap();
        // A folder in its place refuses the file as a full disk would.
        let in_the_way = folder.path().join("containers/c1.new");
        std::fs::create_dir(&in_the_way).unwrap();
        table.update_container("c1", |record| record.state = exited.state.clone());
        assert_eq!((table.containers(), on_disk()), (vec![exited.clone()], vec![running]));
        std::fs::remove_dir(&in_the_way).unwrap();
        table.update_sandbox("a1", |record| record.ready = false);
        assert_eq!(on_disk(), [exited]);
    }

    #[test]
    fn a_newer_format_is_refused_and_a_torn_file_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let table = Table::open(folder.path().to_owned()).unwrap();
        table.put_sandbox(examples::sandbox()).unwrap();
        std::fs::write(folder.path().join("containers/c9.json"), "{\"version\":1,").unwrap();
        let again = Table::open(folder.path().to_owned()).unwrap();
        assert_eq!((again.sandboxes().len(), again.containers().len()), (1, 0));
        assert!(folder.path().join("containers/c9.unreadable").exists());
        std::fs::write(folder.path().join("sandboxes/a2.json"), "{\"version\":2}").unwrap();
        let refused = Table::open(folder.path().to_owned()).err().unwrap();
        assert!(refused.to_string().contains("format 2; this version of tandem reads formats up to 1"), "{refused}");
    }
}
