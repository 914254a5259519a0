//! What the worker does: containers from their records to running guests, and back after a restart.

mod annotations;
mod create;
mod exec;
mod running;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::StreamExt;
use parking_lot::Mutex;
use tandem_api::{Clock, Entropy};

pub(crate) use create::ContainerRequest;
pub(crate) use running::Running;

use crate::{
    engine::{Compiler, Engine, Lanes, NodeMemory, Program},
    images::{Images, Registries},
    network::Sockets,
    notices::Notices,
    state::{Change, ContainerRecord, ContainerState, Exit, Kind, ResourceRecord, SandboxRecord, Table},
};

/// Containers that are brought back at the same time.
const RESTORING: usize = 16;
/// Beyond the grace period, until a stopped container must be gone.
const STOP_SLACK: Duration = Duration::from_secs(10);
const KILLED: i32 = 137;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("{0} is not known here")]
    NotFound(String),
    /// Can never work as asked.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    #[error("{0} took too long")]
    Timeout(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the host is made of.
pub(crate) struct HostParts {
    pub(crate) folder: PathBuf,
    pub(crate) engine: Arc<Engine>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) compiler: Compiler,
    pub(crate) sockets: Arc<dyn Sockets>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

pub(crate) struct Host {
    pub(crate) engine: Arc<Engine>,
    pub(crate) images: Images,
    pub(crate) table: Table,
    pub(crate) notices: Notices,
    lanes: Arc<Lanes>,
    memory: Arc<NodeMemory>,
    compiler: Compiler,
    sockets: Arc<dyn Sockets>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    registries: PathBuf,
    running: Mutex<HashMap<String, Arc<Running>>>,
    /// Of containers that were created and not started yet.
    prepared: Mutex<HashMap<String, Arc<Program>>>,
    /// One program for all containers of a file.
    programs: Mutex<HashMap<String, Weak<Program>>>,
}

impl Host {
    pub(crate) fn open(parts: HostParts) -> io::Result<Arc<Host>> {
        let HostParts { folder, engine, lanes, compiler, sockets, clock, entropy } = parts;
        Ok(Arc::new(Host {
            engine,
            images: Images::open(folder.join("images"))?,
            table: Table::open(folder.join("state"))?,
            notices: Notices::default(),
            lanes,
            memory: NodeMemory::of_this_machine(),
            compiler,
            sockets,
            clock,
            entropy,
            registries: folder.join("registries.json"),
            running: Mutex::default(),
            prepared: Mutex::default(),
            programs: Mutex::default(),
        }))
    }

    /// Nanoseconds since 1970, as CRI counts.
    pub(crate) fn now(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// An id as container runtimes make them.
    pub(crate) fn new_id(&self) -> String {
        let mut bytes = [0; 32];
        self.entropy.fill(&mut bytes);
        hex::encode(bytes)
    }

    /// How registries are reached; read each time, since whoever starts the host may change it.
    pub(crate) fn registries(&self) -> io::Result<Registries> {
        match std::fs::read(&self.registries) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Registries::new()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn running(&self, id: &str) -> Option<Arc<Running>> {
        self.running.lock().get(id).cloned()
    }

    pub(crate) fn container(&self, id: &str) -> Result<ContainerRecord, HostError> {
        self.table.container(id).ok_or_else(|| HostError::NotFound(format!("container {id}")))
    }

    /// Brings back what ran when the worker before this one ended: servers go on, commands cannot.
    pub(crate) async fn restore(self: &Arc<Self>) {
        let left: Vec<ContainerRecord> = self
            .table
            .containers()
            .into_iter()
            .filter(|record| matches!(record.state, ContainerState::Running { .. }))
            .collect();
        let count = left.len();
        let began = Instant::now();
        futures::stream::iter(left)
            .for_each_concurrent(RESTORING, |record| async move {
                let id = record.id.clone();
                let restored = match record.kind {
                    Kind::Http => self.run(&record).await,
                    Kind::Command => Err(HostError::Failed("the wasm host restarted".to_owned())),
                };
                if let Err(error) = restored {
                    self.exited(&id, Exit { code: KILLED, reason: "Error".to_owned(), message: error.to_string() });
                }
            })
            .await;
        if count > 0 {
            tracing::info!(containers = count, took = ?began.elapsed(), "containers of the worker before are back");
        }
    }

    /// Lets go of listeners that no container has any more.
    pub(crate) async fn close_orphans(&self, kept: Vec<String>) {
        for key in kept {
            if self.running(&key).is_none()
                && let Err(error) = self.sockets.close(&key).await
            {
                tracing::warn!(%error, key, "a listener could not be closed");
            }
        }
    }

    /// Makes a sandbox; the same pod's gets the same one as long as it is ready.
    pub(crate) fn create_sandbox(&self, record: SandboxRecord) -> Result<String, HostError> {
        if let Some(known) = self.table.ready_sandbox(&record.pod) {
            return Ok(known);
        }
        let id = record.id.clone();
        self.table.put_sandbox(record)?;
        Ok(id)
    }

    pub(crate) async fn start(self: &Arc<Self>, id: &str) -> Result<(), HostError> {
        let record = self.container(id)?;
        match record.state {
            ContainerState::Running { .. } => return Ok(()),
            ContainerState::Exited { .. } => {
                return Err(HostError::Failed(format!("container {id} has exited; a container starts once")));
            }
            ContainerState::Created => {}
        }
        self.run(&record).await?;
        let started_at = self.now();
        self.table.update_container(id, |record| {
            // A command may have ended already.
            if record.state == ContainerState::Created {
                record.state = ContainerState::Running { started_at };
            }
        });
        self.table.announce(id, Change::Started);
        Ok(())
    }

    pub(crate) async fn stop(&self, id: &str, grace: Duration) -> Result<(), HostError> {
        self.container(id)?;
        if let Some(running) = self.running(id) {
            running.ask_to_stop(grace);
            let ended = tokio::time::timeout(grace + STOP_SLACK, running.ended()).await;
            ended.map_err(|_| HostError::Timeout("stopping the container"))?;
        }
        let is_running = |record: ContainerRecord| matches!(record.state, ContainerState::Running { .. });
        if self.table.container(id).is_some_and(is_running) {
            // Nobody keeps it, so nobody else would record its end.
            let message = "the container was recorded as running, and was not".to_owned();
            self.exited(id, Exit { code: KILLED, reason: "Error".to_owned(), message });
        }
        Ok(())
    }

    /// Removing what is gone is no error.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), HostError> {
        if self.table.container(id).is_none() {
            return Ok(());
        }
        self.stop(id, Duration::ZERO).await?;
        self.prepared.lock().remove(id);
        self.table.remove_container(id)?;
        self.table.announce(id, Change::Deleted);
        Ok(())
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<(), HostError> {
        let Some(sandbox) = self.table.sandbox(id) else { return Ok(()) };
        for container in self.table.containers_of(id) {
            self.stop(&container.id, Duration::ZERO).await?;
        }
        if sandbox.ready {
            self.table.update_sandbox(id, |sandbox| sandbox.ready = false);
        }
        Ok(())
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), HostError> {
        self.stop_sandbox(id).await?;
        for container in self.table.containers_of(id) {
            self.remove(&container.id).await?;
        }
        Ok(self.table.remove_sandbox(id)?)
    }

    pub(crate) fn update_resources(&self, id: &str, resources: ResourceRecord) -> Result<(), HostError> {
        self.container(id)?;
        self.table.update_container(id, |record| record.resources = resources);
        if let Some(running) = self.running(id) {
            running.memory.set_limit(u64::try_from(resources.memory_bytes).ok().filter(|bytes| *bytes > 0));
            running.cpu.set_limit(resources.cpu_quota_us, resources.cpu_period_us, Instant::now());
        }
        Ok(())
    }

    /// Removes an image that no container needs for its next start.
    pub(crate) fn remove_image(&self, reference: &str) -> Result<(), HostError> {
        let Some(image) = self.images.find(reference) else { return Ok(()) };
        let needed = |record: &ContainerRecord| {
            record.image.id == image.id && !matches!(record.state, ContainerState::Exited { .. })
        };
        if let Some(record) = self.table.containers().iter().find(|record| needed(record)) {
            return Err(HostError::Failed(format!("image {reference} is in use by container {}", record.id)));
        }
        self.images.remove(&image.id)?;
        if self.images.file_is_gone(&image.file) {
            self.compiler.forget(&image.file)?;
        }
        Ok(())
    }

    /// Records that a container has ended.
    fn exited(&self, id: &str, exit: Exit) {
        let finished_at = self.now();
        self.table.update_container(id, |record| {
            let started_at = match record.state.started_at() {
                0 => finished_at,
                at => at,
            };
            record.state = ContainerState::Exited { started_at, finished_at, exit };
        });
        let running = self.running.lock().remove(id);
        self.table.announce(id, Change::Stopped);
        if let Some(running) = running {
            running.log.live.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, SocketAddr},
        os::fd::OwnedFd,
        path::Path,
    };

    use async_trait::async_trait;
    use tandem_api::{FixedClock, SeededEntropy};

    use super::*;
    use crate::{engine::Compiling, network::SocketKind, state::examples};

    /// A network that has no sockets.
    struct Unconnected;

    #[async_trait]
    impl Sockets for Unconnected {
        async fn listener(&self, _key: &str, _inside: Option<&Path>, _address: SocketAddr) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn close(&self, _key: &str) -> io::Result<()> {
            Ok(())
        }

        async fn outgoing(&self, _inside: &Path, _kind: SocketKind, _source: Option<IpAddr>) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn host(folder: &Path) -> Arc<Host> {
        let engine = Arc::new(Engine::new().unwrap());
        let lanes = Lanes::start(engine.ticker().clone(), 1, None).unwrap();
        let compiling = Compiling { program: PathBuf::from("/nonexistent"), arguments: Vec::new() };
        let compiler = Compiler::new(&engine, folder.join("cache"), compiling).unwrap();
        Host::open(HostParts {
            folder: folder.to_owned(),
            engine,
            lanes,
            compiler,
            sockets: Arc::new(Unconnected),
            clock: Arc::new(FixedClock::new(jiff::Timestamp::UNIX_EPOCH)),
            entropy: Arc::new(SeededEntropy::new(1)),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_pod_whose_container_is_gone_can_be_stopped_while_nothing_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let host = host(folder.path());
        host.table.put_sandbox(examples::sandbox()).unwrap();
        host.table.put_container(examples::container(ContainerState::Running { started_at: 7 })).unwrap();
        // Folders in their places refuse the files as a full disk would.
        for name in ["sandboxes/a1.new", "containers/c1.new"] {
            std::fs::create_dir(folder.path().join("state").join(name)).unwrap();
        }
        host.stop_sandbox("a1").await.unwrap();
        let state = host.container("c1").unwrap().state;
        assert!(matches!(state, ContainerState::Exited { started_at: 7, .. }), "{state:?}");
        assert!(!host.table.sandbox("a1").unwrap().ready);
        host.remove_sandbox("a1").await.unwrap();
        assert_eq!((host.table.sandboxes().len(), host.table.containers().len()), (0, 0));
    }
}
