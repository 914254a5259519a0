//! One run: members and clients from a seed, faults for a minute, peace, and then the judgement.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tandem_api::Key;
use tandem_store::{Aim, Consistency, LogLimits, Storage};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    bugs::Bug,
    clients::{self, Client},
    cluster::{self, Cluster, Setup},
    history::{Delivered, Final, Item, Outcome},
    invariants,
    nemesis::{self, Fault, Nemesis},
    world::{self, Dice, Journal, pass_ms},
};

/// Until then there are faults.
const FAULTS_END: Duration = Duration::from_secs(55);

/// Whatever is still being caused or mended by then is given up.
const FAULTS_OVERTIME: Duration = Duration::from_secs(65);

/// Until then clients work in any case.
const WORK_END: Duration = Duration::from_secs(60);

/// A run in which fewer writes were acknowledged shows nothing.
pub const ACKNOWLEDGED_MIN: u64 = 2_000;

/// How long healing may take, once nothing is broken any more.
const HEALING_MAX: Duration = Duration::from_secs(30);

/// When a run has not brought together enough writes by then, it ends without.
const WORK_MAX: Duration = Duration::from_secs(180);

const CLIENTS: u64 = 24;

/// What became of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub bug: Option<String>,
    pub members: u64,
    pub seconds: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub events: u64,
    pub faults: u64,
    /// Equal for two runs of a seed.
    pub trace: u64,
    pub hits: BTreeMap<String, u64>,
    pub violations: Vec<String>,
}

/// Runs a seed to its end. The process is good for one run.
pub fn run(seed: u64, bug: Option<Bug>, told: bool, dir: &Path) -> Report {
    let journal = Arc::new(Journal::new(told));
    let mut report = world::run(seed, simulate(seed, bug, journal.clone(), dir));
    report.hits = journal.hits().into_iter().map(|(what, count)| (what.to_owned(), count)).collect();
    report.trace = journal.hash();
    report
}

fn setup(seed: u64) -> Setup {
    let mut dice = Dice::new(seed, "setup");
    let checkpoint_entries = dice.between(50, 800);
    Setup {
        members: *dice.pick(&[1, 3, 3, 3, 3, 3]),
        members_max: *dice.pick(&[3, 3, 3, 3, 4, 5]),
        beat_ms: dice.between(15, 60),
        limits: LogLimits { checkpoint_entries, kept_entries: dice.between(5, checkpoint_entries) },
        compaction: Duration::from_millis(dice.between(1_500, 20_000)),
    }
}

async fn simulate(seed: u64, bug: Option<Bug>, journal: Arc<Journal>, dir: &Path) -> Report {
    let setup = setup(seed);
    let cluster = Cluster::new(seed, setup, journal.clone(), bug, dir.to_owned());
    let mut background = JoinSet::new();
    cluster.start(cluster::FIRST);
    background.spawn(cluster.clone().supervise());
    while (cluster.ids().len() as u64) < setup.members {
        nemesis::grow(&cluster, Aim::Vote).await;
    }
    let (stop, busy) = watch::channel(true);
    let mut working = JoinSet::new();
    for number in 0..CLIENTS {
        working.spawn(Client::new(&cluster, number).run(busy.clone()));
    }
    for (number, resource) in ["pods", "configmaps", "leases", "pods"].into_iter().enumerate() {
        let (name, prefix) = (format!("watcher {number}"), Key::prefix("", resource, None));
        background.spawn(clients::follow(cluster.clone(), name, cluster::FIRST, prefix, false));
    }
    let mut nemeses: JoinSet<()> = (0..2).map(|number| Nemesis::new(&cluster, number).run(FAULTS_END)).collect();
    let mut accompanied = BTreeSet::new();
    loop {
        for member in cluster.ids().into_iter().filter(|id| accompanied.insert(*id)) {
            working.spawn(clients::work(cluster.clone(), member, busy.clone()));
            let name = format!("follower of {member}");
            background.spawn(clients::follow(cluster.clone(), name, member, Key::from_raw(""), true));
        }
        match tokio::time::timeout(Duration::from_millis(20), nemeses.join_next()).await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            // What a fault waits for may need that the others end.
            Err(_) if world::now() > FAULTS_OVERTIME => nemeses.abort_all(),
            Err(_) => {}
        }
    }
    heal(&cluster);
    while world::now() < WORK_END || (acknowledged(&cluster) < ACKNOWLEDGED_MIN && world::now() < WORK_MAX) {
        pass_ms(100).await;
    }
    stop.send_replace(false);
    while working.join_next().await.is_some() {}
    check_liveness(&cluster).await;
    background.abort_all();
    judge(&cluster, seed)
}

fn acknowledged(cluster: &Cluster) -> u64 {
    let history = cluster.history.lock();
    history.writes.iter().filter(|write| matches!(write.outcome, Outcome::Done(_))).count() as u64
}

/// Nothing is broken any more.
fn heal(cluster: &Arc<Cluster>) {
    cluster.journal.step("heal", &[]);
    cluster.network.change(|weather| *weather = crate::network::Weather::default());
    for id in cluster.ids() {
        cluster.keep_down(id, false);
        cluster.with(id, |member| {
            member.disk.set_slowness(Duration::ZERO);
            member.disk.set_full(false);
            member.disk.clear_traps();
        });
    }
}

/// After healing a client's write succeeds, and every member and every watch comes to the same revision.
async fn check_liveness(cluster: &Arc<Cluster>) {
    let deadline = world::now() + HEALING_MAX;
    let mut client = Client::new(cluster, CLIENTS);
    while !client.insist().await {
        if world::now() > deadline {
            return cluster.journal.broken("liveness: no write succeeds after healing".to_owned());
        }
        pass_ms(50).await;
    }
    loop {
        let revisions: Vec<Option<u64>> =
            cluster.ids().into_iter().map(|id| cluster.store(id).map(|(store, _)| store.revision().0)).collect();
        let newest = revisions.iter().flatten().max().copied().unwrap_or(0);
        let same = revisions.iter().all(|revision| *revision == Some(newest));
        if same && followed(cluster, newest) {
            break;
        }
        if world::now() > deadline {
            let told = format!("liveness: members and their watches don't catch up after healing: {revisions:?}");
            cluster.journal.broken(told);
            break;
        }
        pass_ms(50).await;
    }
    for id in cluster.ids() {
        let Some((store, _)) = cluster.store(id) else { continue };
        let Ok(page) = store.list(&Key::from_raw(""), Consistency::Any, None, 0).await else { continue };
        let items = page.items.iter().map(|stored| Item {
            key: stored.key.as_str().into(),
            revision: stored.revision.0,
            value: String::from_utf8_lossy(&stored.value).into(),
        });
        let hashes = store.hashes().into_iter().map(|hash| (hash.index, hash.hash)).collect();
        let last = Final { member: id, revision: page.revision.0, items: items.collect(), hashes };
        cluster.history.lock().finals.push(last);
    }
}

/// Whether some watch of everything has delivered up to `newest`, on each member.
fn followed(cluster: &Cluster, newest: u64) -> bool {
    let history = cluster.history.lock();
    cluster.ids().into_iter().all(|id| {
        history.watches.iter().rev().filter(|watch| watch.member == id && watch.prefix.is_empty()).any(|watch| {
            watch.delivered.last().is_some_and(|delivered| match delivered {
                Delivered::Change(change) => change.revision >= newest,
                Delivered::Progress(revision) => *revision >= newest,
            })
        })
    })
}

fn judge(cluster: &Cluster, seed: u64) -> Report {
    let history = std::mem::take(&mut *cluster.history.lock());
    let mut violations: Vec<String> = invariants::check(&history)
        .into_iter()
        .map(|broken| format!("{}: {}", broken.invariant, broken.what))
        .collect();
    violations.extend(cluster.journal.take_broken());
    let writes =
        |wanted: fn(&Outcome) -> bool| history.writes.iter().filter(|write| wanted(&write.outcome)).count() as u64;
    let hits = cluster.journal.hits();
    Report {
        seed,
        bug: cluster.bug.map(|bug| bug.name().to_owned()),
        members: cluster.ids().len() as u64,
        seconds: world::now().as_secs(),
        acknowledged: writes(|outcome| matches!(outcome, Outcome::Done(_))),
        unknown: writes(|outcome| matches!(outcome, Outcome::Unknown)),
        reads: history.reads.len() as u64,
        events: history.watches.iter().map(|watch| watch.delivered.len() as u64).sum(),
        faults: Fault::ALL.iter().filter_map(|fault| hits.get(fault.name())).sum(),
        violations,
        ..Report::default()
    }
}
