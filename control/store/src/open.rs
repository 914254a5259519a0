//! Opening a member's folder: both files, raft over them, and the tasks that run beside it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures::future::BoxFuture;
use openraft::{Config, SnapshotPolicy};
use parking_lot::Mutex;
use tandem_api::{Clock, SystemClock};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use crate::{
    Disk, Error, Files, HASH_INTERVAL, Leadership, Metrics, NoPeers, OnFailure, Peers, RaftStore, Reads, Space,
    SqliteFiles, Standing, SystemDisk, WATCH_SILENCE_MAX, abort_process,
    changes::{CHANGES_MAX, Changes},
    cluster::Cluster,
    compactor::COMPACTION_INTERVAL,
    disk::{Folder, Guarded, Owner, data_error, storage_error},
    drivers::{Compaction, Report},
    files::{LOG_FILE, STATE_FILE},
    handover, hash,
    history::HistoryLimits,
    leader::{Leader, WRITES_MAX},
    log::{self, LogHandle, LogStore, Quorum},
    machine::{Core, Machine},
    network::Network,
    quorum,
    replica::Replica,
    snapshot,
    space::Reserve,
    state::{self, Opened},
    timing::{ELECTION_TIMEOUT_MAX, ELECTION_TIMEOUT_MIN, Elections, Heard},
    types::{LogId, Node},
};

/// How long a single member may take to lead and to have replayed its log.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// Its name among the members; matters only where an empty folder begins a new cluster.
    pub name: String,
    pub begin: Begin,
    pub reads: Reads,
    /// Bytes kept in reserve for a full disk ([`RESERVE_BYTES`]); 0: none, and a full disk ends the process.
    pub reserve_bytes: u64,
    pub peers: Arc<dyn Peers>,
    pub clock: Arc<dyn Clock>,
    pub disk: Arc<dyn Disk>,
    pub files: Arc<dyn Files>,
    /// When the log before a checkpoint is let go.
    pub log_limits: LogLimits,
    pub on_failure: OnFailure,
    pub metrics: Metrics,
    /// How often the leader forgets history; `None`: never.
    pub compaction: Option<Duration>,
    /// How often the leader compares what the members have applied.
    pub comparison: Duration,
    /// How long watches go on without a quorum.
    pub watch_silence: Duration,
}

impl OpenOptions {
    pub fn new(dir: impl Into<PathBuf>, node_id: u64, cluster_id: impl Into<String>) -> OpenOptions {
        OpenOptions {
            dir: dir.into(),
            node_id,
            cluster_id: cluster_id.into(),
            address: String::new(),
            name: String::new(),
            begin: Begin::Cluster,
            reads: Reads::default(),
            reserve_bytes: 0,
            peers: Arc::new(NoPeers),
            clock: Arc::new(SystemClock),
            disk: Arc::new(SystemDisk),
            files: Arc::new(SqliteFiles),
            log_limits: LogLimits::default(),
            on_failure: abort_process(),
            metrics: Metrics::default(),
            compaction: Some(COMPACTION_INTERVAL),
            comparison: HASH_INTERVAL,
            watch_silence: WATCH_SILENCE_MAX,
        }
    }
}

/// What an empty folder means. One that holds something goes on from there, whatever is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// A new cluster, with this member as its only voter.
    Cluster,
    /// A new member, whose id was given out just now ([`Change::Join`]) and was never used before.
    Member,
    /// A loss: the member has heard of its cluster before ([`Standing::Waiting`] is over), and must not vote again as who
    /// it was. Opening it fails.
    Never,
}

impl RaftStore {
    /// Opens a member's folder. A single voter leads and has replayed its log when this returns.
    pub fn open(options: OpenOptions) -> BoxFuture<'static, Result<Arc<RaftStore>, Error>> {
        Box::pin(opened(options))
    }
}

async fn opened(options: OpenOptions) -> Result<Arc<RaftStore>, Error> {
    let folder = Folder::hold(&options.dir, options.files.clone(), options.disk.clone())?;
    let room = Reserve::open(&folder.path, options.reserve_bytes);
    let (reserve, space) = room.map_err(|error| storage_error("look for room on the disk", error))?;
    snapshot::remove_leftovers(&folder).map_err(|error| storage_error("clean its folder", error))?;
    let guarded = Guarded {
        disk: options.disk.clone(),
        on_failure: options.on_failure.clone(),
        metrics: options.metrics.clone(),
        latencies: Arc::default(),
    };
    let owner = Owner { cluster: options.cluster_id.clone(), node: options.node_id };
    let alone = Arc::new(Quorum::new(options.node_id));
    let limits = HistoryLimits::default();
    let (state, log, ends) = open_files(&folder, &owner, &guarded, &alone, limits).await?;
    if options.begin == Begin::Never && ends.is_new {
        drop(log);
        return Err(lost(&folder.path, options.node_id));
    }
    if let (Ok(stored), Some(since)) = (state.row.membership(), state.row.members_since) {
        alone.applied(stored.membership(), since.index);
    }
    let machine = Machine {
        replica: Arc::new(Replica::new(state.index, options.metrics.clone())),
        state: state.file,
        folder,
        owner,
        guarded,
        limits,
        quorum: alone,
        row: Arc::new(Mutex::new(state.row)),
        leadership: Arc::new(watch::Sender::new(Leadership::default())),
    };
    let (removed, _) = watch::channel(false);
    let network = Network { peers: options.peers.clone(), removed: removed.clone() };
    let raft = Core::new(options.node_id, Arc::new(config(options.log_limits)?), network, log, machine.clone())
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
    let (space_told, space) = watch::channel(space);
    let store = started(options, machine, raft, removed, space, writers);
    store.drivers.lock().spawn(reserve.observe(space_told));
    store.await_own_leadership().await;
    Ok(Arc::new(store))
}

/// Starts what runs beside raft.
fn started(
    options: OpenOptions,
    machine: Machine,
    raft: Core,
    removed: watch::Sender<bool>,
    space: watch::Receiver<Space>,
    writers: JoinSet<()>,
) -> RaftStore {
    let (quorum_told, quorum) = watch::channel(false);
    let leadership = machine.leadership.subscribe();
    let (members_told, members) = watch::channel(Vec::new());
    let (standing_told, standing) = watch::channel(Standing::Waiting);
    let (differing_told, differing) = watch::channel(Vec::new());
    let (changes, queue) = mpsc::channel(CHANGES_MAX);
    let (reads, waiting) = Cluster::reads();
    let (heard, closing) = (Arc::new(Heard::default()), Arc::new(AtomicBool::new(false)));
    let report = Report {
        raft: raft.clone(),
        leadership: machine.leadership.clone(),
        members: members_told,
        standing: standing_told,
        removed: removed.subscribe(),
        quorum: quorum.clone(),
        confirmed: 0,
        metrics: options.metrics.clone(),
        closing: closing.clone(),
        guarded: machine.guarded.clone(),
        path: machine.folder.path.clone(),
    };
    let leader = Leader {
        raft: raft.clone(),
        reads: options.reads,
        metrics: options.metrics,
        quorum: quorum.clone(),
        changes,
        space: space.clone(),
        replica: machine.replica.clone(),
        writes: Arc::new(Semaphore::new(WRITES_MAX as usize)),
    };
    let (node, peers, alone) = (options.node_id, options.peers, machine.quorum.clone());
    let cluster = Cluster { node, peers, leader, alone, removed, reads };
    let mut drivers = JoinSet::new();
    drivers.spawn(Changes { raft: raft.clone(), queue }.run());
    drivers.spawn(cluster.clone().confirm_reads(waiting));
    drivers.spawn(quorum::observe(cluster.clone(), quorum_told, options.watch_silence));
    drivers.spawn(hash::compare(cluster.clone(), options.comparison, differing_told));
    drivers.spawn(elections(options.node_id, &raft, &machine, &heard, &standing).run());
    drivers.spawn(report.run());
    drivers.spawn(handover::hand_over_when_full(raft.clone(), space));
    let (replica, clock) = (machine.replica.clone(), options.clock);
    if let Some(interval) = options.compaction {
        drivers.spawn(Compaction { raft, replica, clock, interval }.run(leadership.clone()));
    }
    RaftStore {
        node: options.node_id,
        cluster,
        replica: machine.replica,
        state: machine.state,
        folder: machine.folder,
        leadership,
        members,
        standing,
        quorum,
        differing,
        heard,
        closing,
        drivers: Mutex::new(drivers),
        writers: Mutex::new(writers),
    }
}

fn elections(
    node: u64,
    raft: &Core,
    machine: &Machine,
    heard: &Arc<Heard>,
    standing: &watch::Receiver<Standing>,
) -> Elections {
    let latencies = machine.guarded.latencies.clone();
    Elections { node, raft: raft.clone(), latencies, heard: heard.clone(), standing: standing.clone() }
}

fn lost(path: &Path, node: u64) -> Error {
    let why = format!(
        "is empty, but member {node} was here before: it must not vote again as who it was; remove that member and join as a new one"
    );
    data_error(path, why)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn config(limits: LogLimits) -> Result<Config, Error> {
    let config = Config {
        cluster_name: "tandem".to_owned(),
        heartbeat_interval: 50,
        election_timeout_min: milliseconds(ELECTION_TIMEOUT_MIN),
        election_timeout_max: milliseconds(ELECTION_TIMEOUT_MAX),
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
        return Err(Error::Damaged { path: path.join(STATE_FILE).display().to_string(), why });
    }
    // A vote without entries is what is left when a member ended just after it had got its first snapshot.
    if applied.is_some() && log.is_new {
        return Err(data_error(&path.join(LOG_FILE), "is empty while the state is not; restore both from one backup"));
    }
    Ok(())
}

/// Makes a new member a cluster of one, and lets a single voter win its election at once.
async fn lead_alone(raft: &Core, options: &OpenOptions) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
    let initialized = raft.is_initialized().await.map_err(|error| failed(&error))?;
    if !initialized {
        if options.begin != Begin::Cluster {
            return Ok(());
        }
        let first = Node { name: options.name.clone(), ..Node::at(options.address.clone()) };
        let members = std::collections::BTreeMap::from([(options.node_id, first)]);
        raft.initialize(members).await.map_err(|error| failed(&error))?;
    } else if raft.voter_ids().eq([options.node_id]) {
        raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
    } else {
        return Ok(());
    }
    raft.wait_for_recovery(Some(RECOVERY_TIMEOUT)).await.map_err(|error| failed(&error))?;
    Ok(())
}
