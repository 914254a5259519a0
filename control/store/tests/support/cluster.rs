//! Several members in one process. Every call goes through its encoding, as it does over a connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tandem_store::{
    Aim, Answer, Begin, Call, Change, Disk, Error, LogLimits, Member, OpenOptions, PeerError, Peers, RaftStore, Role,
    wire::{self, Route},
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::{TestDisk, eventually, memory_dir, options, released};

/// What goes wrong on the way from one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing arrives, and nobody hears of it.
    Lost,
    /// Forwarded commands arrive, and their answers are lost with the connection.
    NoReply,
    /// What the other member has applied looks different.
    WrongHash,
}

#[derive(Default)]
pub(crate) struct Wires {
    members: Mutex<BTreeMap<u64, Arc<RaftStore>>>,
    faults: Mutex<BTreeMap<(u64, u64), Fault>>,
    healed: Notify,
}

pub(crate) struct Wire {
    from: u64,
    wires: Arc<Wires>,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, member: u64, _: &str, call: Call) -> Result<Answer, PeerError> {
        let unsent = |why: &str| PeerError::unsent(member, why);
        let unanswered = |why: String| PeerError::unanswered(member, why);
        let route = Route { from: self.from, to: member };
        let (head, _) = wire::encode_call(route, &call).map_err(|error| unsent(&error.to_string()))?;
        if self.fault(member) == Some(Fault::Lost) {
            return Err(self.lost(member).await);
        }
        let store = self.wires.members.lock().get(&member).cloned().ok_or_else(|| unsent("nobody listens"))?;
        let answer = match &call {
            Call::Snapshot { file, .. } => store.serve(&head, tokio::fs::File::open(file).await.unwrap()).await,
            _ => store.serve(&head, tokio::io::empty()).await,
        };
        match (self.fault(member), call) {
            (Some(Fault::Lost), _) => Err(self.lost(member).await),
            (Some(Fault::WrongHash), Call::Hash) => match wire::decode_answer(&answer) {
                Ok(Answer::Hash(mut hashes)) => {
                    hashes.iter_mut().for_each(|hash| hash.hash ^= 1);
                    Ok(Answer::Hash(hashes))
                }
                other => panic!("{other:?}"),
            },
            (Some(Fault::NoReply), Call::Write(_)) => Err(unanswered("the connection was cut".to_owned())),
            _ => wire::decode_answer(&answer).map_err(|error| unanswered(error.to_string())),
        }
    }
}

impl Wire {
    /// A connection that carries nothing is noticed when it could carry something again.
    async fn lost(&self, member: u64) -> PeerError {
        loop {
            let healed = self.wires.healed.notified();
            if self.fault(member) != Some(Fault::Lost) {
                return PeerError::unanswered(member, "the connection was lost");
            }
            healed.await;
        }
    }

    fn fault(&self, member: u64) -> Option<Fault> {
        self.wires.faults.lock().get(&(self.from, member)).copied()
    }
}

pub(crate) struct Cluster {
    dir: PathBuf,
    /// Removed with the cluster, unless somebody else is to find it.
    _removed: Option<tempfile::TempDir>,
    /// The disk of all members, where they have none of their own.
    disk: Option<Arc<dyn Disk>>,
    disks: Mutex<BTreeMap<u64, Arc<TestDisk>>>,
    limits: LogLimits,
    compaction: Option<Duration>,
    wires: Arc<Wires>,
    adjust: fn(&mut OpenOptions),
    /// Elections are about time: one cluster of a test program runs at once.
    _turn: SemaphorePermit<'static>,
}

static TURN: Semaphore = Semaphore::const_new(1);

impl Cluster {
    /// A cluster of one, and its member.
    pub(crate) async fn begin() -> (Cluster, Arc<RaftStore>) {
        Cluster::begin_adjusted(|_| ()).await
    }

    async fn begin_adjusted(adjust: fn(&mut OpenOptions)) -> (Cluster, Arc<RaftStore>) {
        let turn = TURN.acquire().await.unwrap();
        let dir = memory_dir();
        let defaults = options(dir.path());
        let cluster = Cluster {
            dir: dir.path().to_owned(),
            _removed: Some(dir),
            disk: None,
            disks: Mutex::default(),
            limits: defaults.log_limits,
            compaction: defaults.compaction,
            wires: Arc::default(),
            adjust,
            _turn: turn,
        };
        let first = cluster.open(1, Begin::Cluster).await;
        (cluster, first)
    }

    /// A cluster in a folder that may hold one already, with a log that is let go and history that is forgotten soon.
    pub(crate) async fn at(dir: &Path, disk: Arc<dyn Disk>) -> Cluster {
        Cluster {
            dir: dir.to_owned(),
            _removed: None,
            disk: Some(disk),
            disks: Mutex::default(),
            limits: LogLimits { checkpoint_entries: 40, kept_entries: 5 },
            compaction: Some(Duration::from_millis(50)),
            wires: Arc::default(),
            adjust: |_| (),
            _turn: TURN.acquire().await.unwrap(),
        }
    }

    /// A cluster of so many voters. The first one leads.
    pub(crate) async fn of(voters: usize) -> (Cluster, Vec<Arc<RaftStore>>) {
        Cluster::of_adjusted(voters, |_| ()).await
    }

    /// The same, with options that differ from the usual ones.
    pub(crate) async fn of_adjusted(voters: usize, adjust: fn(&mut OpenOptions)) -> (Cluster, Vec<Arc<RaftStore>>) {
        let (cluster, first) = Cluster::begin_adjusted(adjust).await;
        let mut members = vec![first];
        while members.len() < voters {
            members.push(cluster.join(&members[0], Aim::Vote).await);
        }
        settled(&members[0], voters).await;
        (cluster, members)
    }

    pub(crate) fn path(&self, member: u64) -> PathBuf {
        self.dir.join(member.to_string())
    }

    /// The member's own disk, from now on.
    fn disk_of(&self, member: u64) -> Arc<TestDisk> {
        self.disks.lock().entry(member).or_default().clone()
    }

    /// Each commit of the member takes so much longer.
    pub(crate) fn slow_down(&self, member: u64, latency: Duration) {
        self.disk_of(member).set_latency(latency);
    }

    pub(crate) fn options(&self, member: u64, begin: Begin) -> OpenOptions {
        let mut options = OpenOptions {
            node_id: member,
            name: format!("m{member}"),
            address: member.to_string(),
            begin,
            disk: self.disk.clone().unwrap_or_else(|| self.disk_of(member)),
            log_limits: self.limits,
            compaction: self.compaction,
            peers: Arc::new(Wire { from: member, wires: self.wires.clone() }),
            ..options(&self.path(member))
        };
        (self.adjust)(&mut options);
        options
    }

    pub(crate) async fn open(&self, member: u64, begin: Begin) -> Arc<RaftStore> {
        let store = RaftStore::open(self.options(member, begin)).await.unwrap();
        self.wires.members.lock().insert(member, store.clone());
        store
    }

    /// A new member, through `via`, which may be any other.
    pub(crate) async fn join(&self, via: &Arc<RaftStore>, aim: Aim) -> Arc<RaftStore> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let name = format!("new-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
        let mut id = None;
        eventually("a new member", async || {
            match via.change(Change::Join { name: name.clone(), address: name.clone(), aim }).await {
                Ok(given) => id = Some(given),
                // Asked for twice, it is given another id.
                Err(Error::Unavailable(_) | Error::Unknown(_)) => (),
                Err(error) => panic!("{error}"),
            }
            id.is_some()
        })
        .await;
        self.open(id.unwrap(), Begin::Member).await
    }

    /// Takes a member's process away: it answers nobody, and neither can it ask.
    pub(crate) async fn stop(&self, store: Arc<RaftStore>) {
        let id = store.id();
        self.wires.members.lock().remove(&id);
        store.shutdown().await.unwrap();
        released(store, &self.path(id)).await;
    }

    pub(crate) fn break_wire(&self, from: u64, to: u64, fault: Fault) {
        self.wires.faults.lock().insert((from, to), fault);
    }

    /// Cuts a member off from all others, in both directions.
    pub(crate) fn isolate(&self, member: u64) {
        let others: BTreeSet<u64> = self.wires.members.lock().keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != member) {
            self.break_wire(member, other, Fault::Lost);
            self.break_wire(other, member, Fault::Lost);
        }
    }

    pub(crate) fn heal(&self) {
        self.wires.faults.lock().clear();
        self.wires.healed.notify_waiters();
    }
}

/// Waits until so many members vote, and nothing is left to change.
pub(crate) async fn settled(through: &Arc<RaftStore>, voters: usize) -> Vec<Member> {
    let mut members = Vec::new();
    eventually("the members to be settled", async || {
        members = through.list_members().await;
        members.len() == voters && members.iter().all(|member| member.role != Role::Learner)
    })
    .await;
    members
}

/// The member that leads, as soon as there is one.
pub(crate) async fn leader_of(members: &[Arc<RaftStore>]) -> Arc<RaftStore> {
    let leads = |store: &&Arc<RaftStore>| store.leadership().borrow().leader && store.has_quorum();
    eventually("a leader", async || members.iter().any(|store| leads(&store))).await;
    members.iter().find(leads).unwrap().clone()
}
