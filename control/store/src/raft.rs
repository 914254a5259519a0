//! The replicated store: opens the folder, runs raft over it, and answers from what this member has applied.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{FutureExt, stream::BoxStream};
use openraft::{
    BasicNode, Config, Raft, ReadPolicy, SnapshotPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError},
    storage::Snapshot,
};
use parking_lot::Mutex;
use tandem_api::{Clock, Key, Revision, SystemClock};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    Answer, COMMAND_VERSION, Call, Command, Consistency, Disk, Error, Files, Metrics, NoPeers, OnFailure, Page,
    PeerError, Peers, Reply, SqliteFiles, Storage, Stored, SystemDisk, WatchItem, abort_process,
    codec::{self, Proposal},
    compactor::{self, COMPACTION_INTERVAL, Mark},
    disk::{Folder, Guarded, Owner, data_error, storage_error},
    files::{LOG_FILE, STATE_FILE},
    history::HistoryLimits,
    log::{self, LogHandle, LogStore, Quorum},
    machine::Machine,
    metrics::shown,
    network::Network,
    replica::Replica,
    snapshot::{self, SnapshotData, SnapshotFile},
    state::{self, OPS_MAX, Opened, StateFile},
    types::{LogId, TypeConfig},
};

/// How long a write waits for its reply; after that it may or may not happen.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that one command may take in the log.
pub const COMMAND_BYTES_MAX: usize = 16 << 20;

/// How long a single member may take to lead and to have replayed its log.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a shutdown waits for the files to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the log gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Entries after which the state file is checkpointed and the log before it let go.
    pub checkpoint_entries: u64,
    /// Entries that stay in the log behind a checkpoint, for members that are a little behind.
    pub kept_entries: u64,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits { checkpoint_entries: 5_000, kept_entries: 1_000 }
    }
}

/// What a member is opened with. [`OpenOptions::new`] gives everything a value that fits one machine.
#[derive(Clone)]
pub struct OpenOptions {
    /// The store's own folder; made where it does not exist.
    pub dir: PathBuf,
    /// Never used again for another folder, and never 0.
    pub node_id: u64,
    /// The id that the data folder has for its cluster: the files of another one are refused.
    pub cluster_id: String,
    /// Where other members reach this one.
    pub address: String,
    /// Whether an empty folder begins a new cluster with this member as its only voter. Otherwise it waits to be added.
    pub bootstrap: bool,
    pub peers: Arc<dyn Peers>,
    pub clock: Arc<dyn Clock>,
    pub disk: Arc<dyn Disk>,
    pub files: Arc<dyn Files>,
    pub on_failure: OnFailure,
    pub metrics: Metrics,
    /// How often the leader forgets history; `None`: never.
    pub compaction: Option<Duration>,
    /// When the log before a checkpoint is let go.
    pub log_limits: LogLimits,
}

impl OpenOptions {
    pub fn new(dir: impl Into<PathBuf>, node_id: u64, cluster_id: impl Into<String>) -> OpenOptions {
        OpenOptions {
            dir: dir.into(),
            node_id,
            cluster_id: cluster_id.into(),
            address: String::new(),
            bootstrap: true,
            peers: Arc::new(NoPeers),
            clock: Arc::new(SystemClock),
            disk: Arc::new(SystemDisk),
            files: Arc::new(SqliteFiles),
            on_failure: abort_process(),
            metrics: Metrics::default(),
            compaction: Some(COMPACTION_INTERVAL),
            log_limits: LogLimits::default(),
        }
    }
}

/// Whether this member leads. Work of a leader carries `term` as its fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leader: bool,
    pub term: u64,
}

type Core = Raft<TypeConfig, Machine>;

/// One member of the replicated store. Dropping it without [`RaftStore::shutdown`] loses nothing that was answered.
pub struct RaftStore {
    raft: Core,
    replica: Arc<Replica>,
    state: Arc<StateFile>,
    folder: Arc<Folder>,
    quorum: Arc<Quorum>,
    metrics: Metrics,
    leadership: watch::Receiver<Leadership>,
    closing: Arc<AtomicBool>,
    /// Ended when the store is dropped.
    drivers: Mutex<JoinSet<()>>,
    /// End by themselves once raft has let go of them.
    writers: Mutex<JoinSet<()>>,
}

impl RaftStore {
    /// Opens a member's folder. A single voter leads and has replayed its log when this returns.
    pub async fn open(options: OpenOptions) -> Result<Arc<RaftStore>, Error> {
        let owner = Owner { cluster: options.cluster_id.clone(), node: options.node_id };
        let folder = Folder::hold(&options.dir, options.files.clone())?;
        snapshot::remove_leftovers(&folder).map_err(|error| storage_error("clean its folder", error))?;
        let guarded = Guarded {
            disk: options.disk.clone(),
            on_failure: options.on_failure.clone(),
            metrics: options.metrics.clone(),
        };
        let quorum = Arc::new(Quorum::new(options.node_id));
        let limits = HistoryLimits::default();
        let (state, log, ends) = open_files(&folder, &owner, &guarded, &quorum, limits).await?;
        if let (Ok(stored), Some(since)) = (state.row.membership(), state.row.members_since) {
            quorum.applied(stored.membership(), since.index);
        }
        let replica = Arc::new(Replica::new(state.index, options.metrics.clone()));
        let machine = Machine {
            replica: replica.clone(),
            state: state.file.clone(),
            folder: folder.clone(),
            owner,
            guarded: guarded.clone(),
            limits,
            quorum: quorum.clone(),
            row: Arc::new(Mutex::new(state.row)),
        };
        let network = Network(options.peers.clone());
        let raft = Core::new(options.node_id, Arc::new(config(options.log_limits)?), network, log, machine)
            .await
            .map_err(|error| storage_error("start raft", error))?;
        let mut writers = JoinSet::new();
        for writer in [ends.writer, state.flusher] {
            writers.spawn(async move {
                if let Err(error) = writer.await {
                    tracing::error!(%error, "a writer of the store ended badly");
                }
            });
        }
        lead_alone(&raft, &options).await?;
        let closing = Arc::new(AtomicBool::new(false));
        let (told, leadership) = watch::channel(Leadership::default());
        let mut drivers = JoinSet::new();
        let path = folder.path.clone();
        let failed = move |error: &std::io::Error| guarded.fail("run raft", &path, error);
        drivers.spawn(report(raft.clone(), told, options.metrics.clone(), closing.clone(), failed));
        if let Some(interval) = options.compaction {
            let compaction =
                Compaction { raft: raft.clone(), replica: replica.clone(), clock: options.clock, interval };
            drivers.spawn(compaction.run(leadership.clone()));
        }
        let store = RaftStore {
            raft,
            replica,
            state: state.file,
            folder,
            quorum,
            metrics: options.metrics,
            leadership,
            closing,
            drivers: Mutex::new(drivers),
            writers: Mutex::new(writers),
        };
        store.await_own_leadership().await;
        Ok(Arc::new(store))
    }

    /// Who leads, as far as this member knows.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// A voter that is alone has won its election before `open` returns; wait until its watchers are told as well.
    async fn await_own_leadership(&self) {
        if self.quorum.is_here_alone() {
            // The sender lives in a driver of this store.
            drop(self.leadership.clone().wait_for(|leadership| leadership.leader).await);
        }
    }

    /// Answers another member. `Call::Snapshot` names a file that the transport has received in full.
    pub async fn answer(&self, call: Call) -> Result<Answer, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        match call {
            Call::Append(request) => {
                self.raft.append_entries(request).await.map(Answer::Append).map_err(|error| failed(&error))
            }
            Call::Vote(request) => self.raft.vote(request).await.map(Answer::Vote).map_err(|error| failed(&error)),
            Call::PreVote(request) => {
                self.raft.pre_vote(request).await.map(Answer::PreVote).map_err(|error| failed(&error))
            }
            Call::Transfer(request) => {
                self.raft.handle_transfer_leader(request).await.map(Answer::Transfer).map_err(|error| failed(&error))
            }
            Call::Snapshot { vote, file } => {
                let folder = self.folder.clone();
                let received =
                    self.folder.blocking(move || SnapshotFile::receive(&folder, &mut std::fs::File::open(file)?));
                let file = received.await.map_err(|error| storage_error("keep a snapshot", error))?;
                let meta = file.meta().map_err(|error| storage_error("read a snapshot", error))?;
                let snapshot = Snapshot { meta, snapshot: SnapshotData::File(file) };
                let answer = self.raft.install_full_snapshot(vote, snapshot).await;
                answer.map(Answer::Snapshot).map_err(|error| failed(&error))
            }
        }
    }

    /// Makes `member` a listener first and then, when it has caught up, one of the voters.
    pub async fn add_voter(&self, member: u64, address: &str) -> Result<(), Error> {
        let refused = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        let node = BasicNode::new(address);
        self.raft.add_learner(member, node, true).await.map_err(|error| refused(&error))?;
        let voters: std::collections::BTreeSet<u64> = self.raft.voter_ids().chain([member]).collect();
        self.raft.change_membership(voters, false).await.map_err(|error| refused(&error))?;
        Ok(())
    }

    /// Stops taking part, writes down what is applied, and closes its files. The folder is free once this is dropped.
    pub async fn shutdown(&self) -> Result<(), Error> {
        if self.closing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.replica.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        let closed = self.state.close().await;
        drop(std::mem::take(&mut *self.drivers.lock()));
        let writers = std::mem::take(&mut *self.writers.lock());
        if tokio::time::timeout(CLOSE_TIMEOUT, writers.join_all()).await.is_err() {
            tracing::warn!("the store's files took too long to close; nothing is lost");
        }
        closed.map_err(|error| storage_error("write the state", error))
    }

    /// Makes sure that a read now sees everything that was acknowledged before.
    async fn linearize(&self) -> Result<(), Error> {
        if self.quorum.is_here_alone() {
            return Ok(());
        }
        let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(WRITE_TIMEOUT, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::Unavailable(error.to_string())),
            Err(_) => Err(Error::Unavailable("a quorum did not confirm the leader in time".to_owned())),
        }
    }
}

fn config(limits: LogLimits) -> Result<Config, Error> {
    let config = Config {
        cluster_name: "tandem".to_owned(),
        heartbeat_interval: 50,
        election_timeout_min: 250,
        election_timeout_max: 350,
        // From writing the snapshot to its end; a small one on a slow line takes seconds.
        install_snapshot_timeout: 60_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(limits.checkpoint_entries),
        max_in_snapshot_log_to_keep: limits.kept_entries,
        purge_batch_size: 256,
        enable_pre_vote: Some(true),
        // A restarted leader stands for election like everybody: its term is a new one, and so is its fence.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| storage_error("configure raft", error))
}

/// Opens both files, or neither: a folder that is refused is let go at once.
async fn open_files(
    folder: &Arc<Folder>,
    owner: &Owner,
    guarded: &Guarded,
    quorum: &Arc<Quorum>,
    limits: HistoryLimits,
) -> Result<(Opened, LogStore, LogHandle), Error> {
    let state = state::open(folder, owner, guarded.clone(), limits).await?;
    let durable = Some(state.file.durable());
    let applied = state.row.applied.map(Into::into);
    let refused = match log::open(folder, owner, guarded.clone(), quorum.clone(), durable).await {
        Ok((log, ends)) => match check_together(&folder.path, applied, &ends) {
            Ok(()) => return Ok((state, log, ends)),
            Err(error) => {
                drop(log);
                drop(ends.writer.await);
                error
            }
        },
        Err(error) => error,
    };
    drop(state.file);
    drop(state.flusher.await);
    Err(refused)
}

/// The state must begin where the log does, or earlier in it.
fn check_together(path: &Path, applied: Option<LogId>, log: &LogHandle) -> Result<(), Error> {
    let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
    if next(applied) < next(log.purged) {
        let why = format!(
            "is behind its log: entries {} to {} are missing; restore a backup into an empty folder",
            next(applied),
            next(log.purged) - 1
        );
        return Err(data_error(&path.join(STATE_FILE), why));
    }
    if applied.is_some() && log.last.is_none() && log.purged.is_none() {
        return Err(data_error(&path.join(LOG_FILE), "is empty while the state is not; restore both from one backup"));
    }
    Ok(())
}

/// Makes a new member a cluster of one, and lets a single voter win its election at once.
async fn lead_alone(raft: &Core, options: &OpenOptions) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
    let initialized = raft.is_initialized().await.map_err(|error| failed(&error))?;
    if !initialized {
        if !options.bootstrap {
            return Ok(());
        }
        let members = BTreeMap::from([(options.node_id, BasicNode::new(options.address.clone()))]);
        raft.initialize(members).await.map_err(|error| failed(&error))?;
    } else if raft.voter_ids().eq([options.node_id]) {
        raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
    } else {
        return Ok(());
    }
    raft.wait_for_recovery(Some(RECOVERY_TIMEOUT)).await.map_err(|error| failed(&error))?;
    Ok(())
}

/// Tells who leads whenever that changes, and of the end of raft when nobody asked for it: it ends by itself only when
/// its storage failed, and then the process must not pretend to be a member any longer.
async fn report(
    raft: Core,
    told: watch::Sender<Leadership>,
    metrics: Metrics,
    closing: Arc<AtomicBool>,
    failed: impl Fn(&std::io::Error),
) {
    let mut server = raft.server_metrics();
    loop {
        let (leadership, alone) = {
            let server = server.borrow_watched();
            let leader = server.state.is_leader() && server.vote.committed;
            let only_member = server.membership_config.membership().nodes().map(|(id, _)| *id).eq([server.id]);
            (Leadership { leader, term: server.vote.leader_id.term }, leader && only_member)
        };
        // Who leads nobody needs no clock: no heartbeats, no elections, no work while nothing happens.
        raft.runtime_config().tick(!alone);
        metrics.term.set(shown(leadership.term));
        metrics.leader.set(i64::from(leadership.leader));
        told.send_if_modified(|before| std::mem::replace(before, leadership) != leadership);
        if server.changed().await.is_err() {
            told.send_replace(Leadership { leader: false, ..leadership });
            let why = raft.metrics().borrow_watched().running_state.clone().err();
            if let Some(why) = why.filter(|_| !closing.load(Ordering::SeqCst)) {
                failed(&std::io::Error::other(why.to_string()));
            }
            return;
        }
    }
}

struct Compaction {
    raft: Core,
    replica: Arc<Replica>,
    clock: Arc<dyn Clock>,
    interval: Duration,
}

impl Compaction {
    /// At every interval the leader moves the horizons, and every member frees what lies behind them.
    async fn run(self, leadership: watch::Receiver<Leadership>) {
        let mut ticks = tokio::time::interval(self.interval);
        let mut marks: VecDeque<Mark> = VecDeque::new();
        let mut last: Option<Command> = None;
        loop {
            ticks.tick().await;
            let now = self.clock.now();
            let planned = compactor::plan(&marks, now, self.interval);
            compactor::note(&mut marks, Mark { at: now, revision: self.replica.revision() });
            let Leadership { leader, term } = *leadership.borrow();
            if let Some(command) = planned.filter(|command| leader && last.as_ref() != Some(command)) {
                last = Some(command.clone());
                if let Err(error) = self.raft.client_write(Proposal(Arc::new(command.fenced(term)))).await {
                    tracing::info!(%error, "history was not compacted this time");
                    last = None;
                }
            }
            // Between two entries, so that whoever writes waits for one slice at most.
            while let Ok(true) = self.raft.with_state_machine(|machine| machine.trim().boxed()).await {}
        }
    }
}

#[async_trait]
impl Storage for RaftStore {
    async fn get(&self, key: &Key, at: Consistency) -> Result<Option<Stored>, Error> {
        if at == Consistency::Linearizable {
            self.linearize().await?;
        }
        self.replica.get(key, at).await
    }

    async fn list(&self, prefix: &Key, at: Consistency, from: Option<&Key>, limit: usize) -> Result<Page, Error> {
        if at == Consistency::Linearizable {
            self.linearize().await?;
        }
        self.replica.list(prefix, at, from, limit).await
    }

    async fn write(&self, command: Command) -> Result<Reply, Error> {
        if command.version != COMMAND_VERSION {
            return Ok(Reply::Unsupported { version: command.version });
        }
        if command.ops.len() > OPS_MAX || codec::size_of(&command) > COMMAND_BYTES_MAX {
            let why = format!("a command has at most {OPS_MAX} operations and {COMMAND_BYTES_MAX} bytes");
            return Err(storage_error("propose a command", std::io::Error::other(why)));
        }
        let begun = Instant::now();
        let written = tokio::time::timeout(WRITE_TIMEOUT, self.raft.client_write(Proposal(Arc::new(command)))).await;
        match written {
            Ok(Ok(response)) => {
                self.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
                Ok(response.data)
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(error)))) => {
                Err(Error::Unavailable(error.to_string()))
            }
            Ok(Err(error)) => Err(Error::Unavailable(error.to_string())),
            Err(_) => Err(Error::Unavailable("no quorum confirmed the write in time; it may happen yet".to_owned())),
        }
    }

    fn watch(&self, prefix: &Key, after: Revision) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        self.replica.watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.replica.revision()
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Error {
        Error::Unavailable(error.to_string())
    }
}
