//! The members: their disks, their processes, who runs and who is down.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tandem_api::Clock;
use tandem_store::{Begin, DiskFailure, Error, LogLimits, OnFailure, OpenOptions, RaftStore, Standing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    bugs::Bug,
    history::{History, Reign},
    network::{Network, Seat},
    twins::{Crash, Fall, TwinDisk},
    world::{self, Dice, Journal, pass_ms},
};

/// The member that begins the cluster; the others get their ids from it.
pub(crate) const FIRST: u64 = 1;

/// How often it is looked whether a member that should run does.
const SUPERVISION_MS: u64 = 200;

/// The day of a member: simulated time, and how far its clock was set wrong.
#[derive(Debug, Default)]
pub(crate) struct Day {
    wrong_ms: AtomicI64,
}

impl Day {
    pub(crate) fn set_wrong(&self, by_ms: i64) {
        self.wrong_ms.store(by_ms, Ordering::Relaxed);
    }
}

impl Clock for Day {
    fn now(&self) -> Timestamp {
        let passed_ms = i64::try_from(world::now().as_millis()).unwrap_or(0);
        let at_ms = 1_800_000_000_000 + passed_ms + self.wrong_ms.load(Ordering::Relaxed);
        Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

pub(crate) struct Member {
    pub(crate) disk: Arc<TwinDisk>,
    pub(crate) day: Arc<Day>,
    /// Counts the member's processes.
    starts: u64,
    /// It has heard of its cluster: an empty disk is a loss from now on.
    known: bool,
    /// Whether it is to be started again when it is down.
    wanted: bool,
    running: bool,
}

pub(crate) struct Changing(Arc<AtomicU64>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a run's members are set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) members: u64,
    /// How far the run grows while there are faults.
    pub(crate) members_max: u64,
    /// Clients begin together at such intervals: several writes share a commit then.
    pub(crate) beat_ms: u64,
    pub(crate) limits: LogLimits,
    pub(crate) compaction: Duration,
}

pub(crate) struct Cluster {
    pub(crate) setup: Setup,
    pub(crate) network: Arc<Network>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) history: Mutex<History>,
    pub(crate) bug: Option<Bug>,
    members: Mutex<BTreeMap<u64, Member>>,
    moments: AtomicU64,
    names: AtomicU64,
    /// How many changes of members are under way.
    changes: Arc<AtomicU64>,
    seed: u64,
    dir: PathBuf,
}

impl Cluster {
    pub(crate) fn new(seed: u64, setup: Setup, journal: Arc<Journal>, bug: Option<Bug>, dir: PathBuf) -> Arc<Cluster> {
        Arc::new(Cluster {
            setup,
            network: Network::new(Dice::new(seed, "network"), journal.clone(), bug),
            journal,
            history: Mutex::default(),
            bug,
            members: Mutex::default(),
            moments: AtomicU64::new(1),
            names: AtomicU64::new(1),
            changes: Arc::default(),
            seed,
            dir,
        })
    }

    /// The next moment of the run's history.
    pub(crate) fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }

    /// A name that no member had before.
    pub(crate) fn name(&self) -> String {
        format!("new-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn is_changing(&self) -> bool {
        self.changes.load(Ordering::Relaxed) > 0
    }

    /// Counts a change of members until it is dropped.
    pub(crate) fn changing(&self) -> Changing {
        self.changes.fetch_add(1, Ordering::Relaxed);
        Changing(self.changes.clone())
    }

    pub(crate) fn dice(&self, part: &str) -> Dice {
        Dice::new(self.seed, part)
    }

    /// Who belongs to the cluster, or did until lately.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.members.lock().keys().copied().collect()
    }

    pub(crate) fn with<T>(&self, member: u64, look: impl FnOnce(&mut Member) -> T) -> Option<T> {
        self.members.lock().get_mut(&member).map(look)
    }

    /// The member's process, if one runs and has opened its files.
    pub(crate) fn store(&self, member: u64) -> Option<(Arc<RaftStore>, CancellationToken)> {
        let Seat { store, gone } = self.network.seat(member)?;
        Some((store?, gone))
    }

    /// Who says that it leads.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| self.store(*id).is_some_and(|(store, _)| store.leadership().borrow().leader);
        self.ids().into_iter().find(leads)
    }

    /// Starts members that should run and don't, until the run ends.
    pub(crate) async fn supervise(self: Arc<Cluster>) {
        loop {
            let down: Vec<u64> = {
                let members = self.members.lock();
                members.iter().filter(|(_, member)| member.wanted && !member.running).map(|(id, _)| *id).collect()
            };
            for id in down {
                self.start(id);
            }
            pass_ms(SUPERVISION_MS).await;
        }
    }

    /// Starts a process of the member, on the disk that it has.
    pub(crate) fn start(self: &Arc<Cluster>, id: u64) {
        let gone = CancellationToken::new();
        let options = {
            let mut members = self.members.lock();
            let member = members.entry(id).or_insert_with(|| Member {
                disk: TwinDisk::new(self.dice(&format!("disk {id}")), self.journal.clone(), self.bug),
                day: Arc::default(),
                starts: 0,
                known: false,
                wanted: true,
                running: false,
            });
            (member.wanted, member.running) = (true, true);
            member.starts += 1;
            OpenOptions {
                begin: match (id, member.known) {
                    (FIRST, false) => Begin::Cluster,
                    // The planted bug is to forget that there was a disk.
                    (_, true) if self.bug != Some(Bug::ReusedId) => Begin::Never,
                    _ => Begin::Member,
                },
                name: format!("member {id}"),
                address: format!("{id}"),
                peers: self.network.wire(id, gone.clone()),
                clock: member.day.clone(),
                files: Arc::new(member.disk.attach(self.fall(id, gone.clone()))),
                on_failure: self.on_failure(id, gone.clone()),
                compaction: Some(self.setup.compaction),
                log_limits: self.setup.limits,
                ..OpenOptions::new(self.dir.join(format!("{id}-{}", member.starts)), id, "simulation")
            }
        };
        self.journal.step("start", &[id]);
        self.network.sit(id, Seat { store: None, gone: gone.clone() });
        tokio::spawn(self.clone().open(id, options, gone));
    }

    async fn open(self: Arc<Cluster>, id: u64, options: OpenOptions, gone: CancellationToken) {
        let opened = RaftStore::open(options).await;
        match opened {
            Ok(store) if gone.is_cancelled() => bury(store),
            Ok(store) => {
                self.journal.step("open", &[id]);
                self.network.sit(id, Seat { store: Some(store.clone()), gone: gone.clone() });
                tokio::spawn(self.clone().note_standing(id, store.standing(), gone.clone()));
                tokio::spawn(self.clone().note_reigns(id, store, gone));
            }
            Err(_) if gone.is_cancelled() => {}
            Err(error) => {
                if let Error::Data { why, .. } | Error::Damaged { why, .. } = &error {
                    self.journal.broken(format!("no start fails: member {id} refuses its own files: it {why}"));
                    self.with(id, |member| member.wanted = false);
                }
                self.journal.step("failed to open", &[id]);
                self.crash(id, Crash::Process);
            }
        }
    }

    /// Ends the process from within its disk.
    fn fall(self: &Arc<Cluster>, id: u64, gone: CancellationToken) -> Fall {
        let cluster = Arc::downgrade(self);
        Arc::new(move |how| {
            if let Some(cluster) = cluster.upgrade().filter(|_| !gone.is_cancelled()) {
                cluster.crash(id, how);
            }
        })
    }

    /// A disk that fails ends the process at once.
    fn on_failure(self: &Arc<Cluster>, id: u64, gone: CancellationToken) -> OnFailure {
        let cluster = Arc::downgrade(self);
        Arc::new(move |failure: &DiskFailure| {
            let Some(cluster) = cluster.upgrade().filter(|_| !gone.is_cancelled()) else { return };
            cluster.journal.hit("aborted on a failure of the disk");
            if cluster.journal.is_told() {
                world::tell(&format!("member {id} aborts: {failure}"));
            }
            cluster.crash(id, Crash::Process);
        })
    }

    /// Ends the member's process. It comes back unless [`Cluster::keep_down`] says otherwise.
    pub(crate) fn crash(&self, id: u64, how: Crash) {
        let Some(Seat { store, gone }) = self.network.seat(id) else { return };
        if gone.is_cancelled() {
            return;
        }
        self.journal.step("crash", &[id, u64::from(how == Crash::Power)]);
        gone.cancel();
        self.network.sit(id, Seat { store: None, gone });
        self.with(id, |member| {
            member.disk.crash(how);
            member.running = false;
        });
        if let Some(store) = store {
            bury(store);
        }
    }

    pub(crate) fn keep_down(&self, id: u64, down: bool) {
        self.with(id, |member| member.wanted = !down);
    }

    /// Asks the member's process to end, and waits for it.
    pub(crate) async fn stop(&self, id: u64) {
        let Some((store, gone)) = self.store(id) else { return };
        self.journal.step("stop", &[id]);
        if let Err(error) = store.shutdown().await
            && !gone.is_cancelled()
        {
            self.journal.step("failed to stop", &[id]);
            if self.journal.is_told() {
                world::tell(&format!("member {id}: {error}"));
            }
        }
        if !gone.is_cancelled() {
            self.crash(id, Crash::Process);
        }
    }

    /// What a member writes down before anything else: that it belongs to a cluster.
    async fn note_standing(
        self: Arc<Cluster>,
        id: u64,
        mut standing: watch::Receiver<Standing>,
        gone: CancellationToken,
    ) {
        let heard = tokio::select! {
            biased;
            () = gone.cancelled() => false,
            heard = standing.wait_for(|standing| *standing != Standing::Waiting) => heard.is_ok(),
        };
        if heard {
            self.with(id, |member| member.known = true);
        }
    }

    /// The member is gone for good.
    pub(crate) fn retire(&self, id: u64) {
        self.crash(id, Crash::Process);
        self.members.lock().remove(&id);
        self.journal.step("retire", &[id]);
    }

    async fn note_reigns(self: Arc<Cluster>, id: u64, store: Arc<RaftStore>, gone: CancellationToken) {
        let mut leadership = store.leadership();
        drop(store);
        loop {
            let now = *leadership.borrow_and_update();
            if now.leader && !gone.is_cancelled() {
                self.journal.step("lead", &[id, now.term]);
                self.history.lock().reigns.push(Reign { member: id, term: now.term });
            }
            tokio::select! {
                biased;
                () = gone.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// A process that has ended reaches neither disk nor network nor clients; what is left of it in memory stops.
fn bury(store: Arc<RaftStore>) {
    tokio::spawn(async move {
        // Its disk refuses everything by now.
        drop(store.shutdown().await);
    });
}
