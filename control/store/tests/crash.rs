//! What is found after all members ended at any step that changes what is on disk.
//!
//! One cluster of three works and makes every step, on a disk that can lose its power. On either side of each step,
//! wherever in the cluster it comes, the disks of all members are copied as they would be found after an end at that
//! moment. Each copy is then started: everything that had been acknowledged must be there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "the disk of the test sits below SQLite, whose interface is C")]

#[path = "support/power.rs"]
mod power;
mod support;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use power::End;
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{
    cluster::{Cluster, leader_of, settled},
    eventually, key,
};
use tandem_api::Key;
use tandem_store::{
    Aim, Begin, Change, Command, Consistency, Disk, Durable, DurableStep, Edge, Error, Expect, Member, RaftStore,
    Reply, Role, Storage, SystemDisk,
};

/// A key that is written over and over has history to forget.
const AGAIN: &str = "again";

/// By its name, the revision of each write that was acknowledged.
type Acknowledged = BTreeMap<String, u64>;
type Point = (DurableStep, Edge, End);

/// The first time that a step comes the power goes; with this variable, which the long tests set, the second time it is
/// the process that ends.
const ALL_ENDS: &str = "TANDEM_CRASH_ALL_ENDS";

fn ends() -> &'static [End] {
    if std::env::var_os(ALL_ENDS).is_some() { &[End::Power, End::Process] } else { &[End::Power] }
}

fn all_points() -> Vec<Point> {
    let sides = [Edge::Before, Edge::After];
    let of_step = |step| sides.into_iter().flat_map(move |edge| ends().iter().map(move |end| (step, edge, *end)));
    DurableStep::ALL.into_iter().flat_map(of_step).collect()
}

/// Copies the disks at each point.
struct Copying {
    from: PathBuf,
    to: PathBuf,
    acknowledged: Mutex<Acknowledged>,
    /// Nothing before anything was acknowledged.
    cuts: Mutex<Option<Cuts>>,
}

struct Cuts {
    random: StdRng,
    taken: BTreeMap<Point, Acknowledged>,
}

impl Copying {
    fn folder(&self, (step, edge, end): Point) -> PathBuf {
        self.to.join(format!("{step:?}-{edge:?}-{end:?}"))
    }

    fn begin(&self) {
        *self.cuts.lock() = Some(Cuts { random: StdRng::seed_from_u64(1), taken: BTreeMap::new() });
    }

    fn missing(&self) -> Vec<Point> {
        let cuts = self.cuts.lock();
        let taken = |point: &Point| cuts.as_ref().is_some_and(|cuts| cuts.taken.contains_key(point));
        all_points().into_iter().filter(|point| !taken(point)).collect()
    }
}

impl Disk for Copying {
    fn reached(&self, step: DurableStep, edge: Edge) {
        let mut cuts = self.cuts.lock();
        let Some(Cuts { random, taken }) = &mut *cuts else { return };
        let Some(end) = ends().iter().copied().find(|end| !taken.contains_key(&(step, edge, *end))) else { return };
        // What is acknowledged while the disks are copied may be missing there.
        let acknowledged = self.acknowledged.lock().clone();
        let to = self.folder((step, edge, end));
        power::image_below(&self.from, &to, end, random);
        copy_snapshots(&self.from, &to, random);
        taken.insert((step, edge, end), acknowledged);
    }

    fn commit<'a>(&'a self, _: Durable, commit: BoxFuture<'a, io::Result<()>>) -> BoxFuture<'a, io::Result<()>> {
        commit
    }
}

/// Snapshots on their way do not go through SQLite; what is found of them is any beginning.
fn copy_snapshots(from: &Path, to: &Path, random: &mut StdRng) {
    for member in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        for file in std::fs::read_dir(&member).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            // It may be gone by now: then nothing of it is found.
            let Ok(bytes) = std::fs::read(&file) else { continue };
            if name.starts_with("snapshot") {
                let length = random.random_range(0..=bytes.len());
                std::fs::write(to.join(member.file_name().unwrap()).join(name), &bytes[..length]).unwrap();
            }
        }
    }
}

async fn put(store: &Arc<RaftStore>, name: &str, acknowledged: &Mutex<Acknowledged>) -> bool {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // A value that is there already is not written again.
    let value = format!("{:200}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let written = store.write(Command::put(key(name), Bytes::from(value), Expect::Any)).await;
    match written {
        Ok(Reply::Done { revision }) => drop(acknowledged.lock().insert(name.to_owned(), revision.0)),
        Ok(other) => panic!("{other:?}"),
        Err(_) => return false,
    }
    true
}

/// Everything that makes steps, again and again until each was made often enough.
async fn work(cluster: &Cluster, members: &[Arc<RaftStore>], disk: &Arc<Copying>) {
    let acknowledged = &disk.acknowledged;
    let mut round = 0;
    eventually("every step to be made", async || {
        round += 1;
        for count in 0..60 {
            put(&members[count % 3], &format!("{round}-a{count}"), acknowledged).await;
            put(&members[0], AGAIN, acknowledged).await;
        }
        if round == 1 {
            disk.begin();
        }
        // What the leader writes while it is alone is taken back later, and what it misses comes as a snapshot.
        let alone = leader_of(members).await;
        cluster.isolate(alone.id());
        let lost = (0..5).map(|count| {
            let (alone, disk, name) = (alone.clone(), disk.clone(), format!("{round}-lost{count}"));
            tokio::spawn(async move { put(&alone, &name, &disk.acknowledged).await })
        });
        let lost: Vec<_> = lost.collect();
        let others: Vec<_> = members.iter().filter(|member| member.id() != alone.id()).cloned().collect();
        let new = leader_of(&others).await;
        for count in 0..120 {
            put(&new, &format!("{round}-b{count}"), acknowledged).await;
        }
        futures::future::join_all(lost).await;
        cluster.heal();
        eventually("it to catch up", async || alone.revision() >= new.revision()).await;
        listen(cluster, &members[0], disk).await;
        disk.missing().is_empty()
    })
    .await;
}

/// A new member, for which the log does not reach back far enough, comes and goes.
async fn listen(cluster: &Cluster, via: &Arc<RaftStore>, disk: &Copying) {
    let listener = cluster.join(via, Aim::Listen).await;
    eventually("it to have everything", async || listener.revision() >= via.revision()).await;
    let member = listener.id();
    eventually("it to be removed", async || match via.change(Change::Remove { member }).await {
        Ok(_) => true,
        // It was, and the answer was lost.
        Err(error) => matches!(error, Error::Denied(_)),
    })
    .await;
    cluster.stop(listener).await;
    // Not while somebody looks into it.
    let _cuts = disk.cuts.lock();
    power::forget(&cluster.path(member));
    std::fs::remove_dir_all(cluster.path(member)).unwrap();
}

/// Opens what is left, all members, and shows that it is all there and goes on.
async fn check(dir: &Path, voters: &[u64], acknowledged: &Acknowledged) {
    let at = dir.file_name().unwrap().to_string_lossy().into_owned();
    let cluster = Cluster::at(dir, Arc::new(SystemDisk)).await;
    let ids =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap());
    let (mut members, mut listeners) = (Vec::new(), Vec::new());
    for id in ids.collect::<Vec<u64>>() {
        if voters.contains(&id) {
            // With its files gone it would not start.
            members.push(cluster.open(id, Begin::Never).await);
        } else {
            listeners.push(cluster.open(id, Begin::Member).await);
        }
    }
    assert_eq!(members.len(), voters.len(), "{at}");
    let leader = leader_of(&members).await;
    let page = leader.list(&Key::from_raw(""), Consistency::Linearizable, None, 0).await.unwrap();
    let found: BTreeMap<&str, u64> = page.items.iter().map(|stored| (stored.key.as_str(), stored.revision.0)).collect();
    for (name, revision) in acknowledged {
        let stored = found.get(key(name).as_str()).copied();
        let there = if name == AGAIN { stored >= Some(*revision) } else { stored == Some(*revision) };
        assert!(there, "{name} at {revision} was acknowledged before {at}, and is {stored:?}");
    }
    let mut revisions: Vec<u64> = found.values().copied().collect();
    revisions.sort_unstable();
    assert!(revisions.is_sorted_by(|one, next| one < next), "{at}: a revision belongs to one write");
    assert!(revisions.last().copied().unwrap_or(0).max(acknowledged[AGAIN]) <= page.revision.0, "{at}");
    let after = Mutex::default();
    for member in &members {
        let name = format!("after-{}", member.id());
        eventually("a write", async || put(member, &name, &after).await).await;
        let seen = member.get(&key(&name), Consistency::Linearizable).await.unwrap();
        assert!(seen.is_some_and(|stored| stored.revision > page.revision), "{at}");
    }
    eventually("no half changed list of members, and who listens to have everything", async || {
        let listed = leader_of(&members).await.list_members().await;
        let votes = |member: &Member| member.role != Role::Learner;
        let mut heard = listeners.iter().filter(|store| listed.iter().any(|member| member.id == store.id()));
        listed.iter().all(|member| votes(member) == voters.contains(&member.id))
            && heard.all(|store| store.revision() >= members[0].revision())
    })
    .await;
    eventually("all to be the same", async || {
        let hashes: Vec<_> = members.iter().map(|member| member.hashes().last().copied()).collect();
        hashes.iter().all(|hash| *hash == hashes[0])
    })
    .await;
    drop(leader);
    for member in members.into_iter().chain(listeners) {
        cluster.stop(member).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_by_an_end_at_any_step() {
    power::install();
    let (working, copies) = (support::memory_dir(), support::memory_dir());
    let (from, to) = (working.path().to_owned(), copies.path().to_owned());
    let disk = Arc::new(Copying { from: from.clone(), to, acknowledged: Mutex::default(), cuts: Mutex::default() });
    let voters: Vec<u64> = {
        let cluster = Cluster::at(&from, disk.clone()).await;
        let mut members = vec![cluster.open(1, Begin::Cluster).await];
        while members.len() < 3 {
            let new = cluster.join(&members[0], Aim::Vote).await;
            members.push(new);
        }
        settled(&members[0], 3).await;
        work(&cluster, &members, &disk).await;
        let voters = members.iter().map(|member| member.id()).collect();
        for member in members {
            cluster.stop(member).await;
        }
        voters
    };
    power::forget(&from);
    let taken = disk.cuts.lock().take().unwrap().taken;
    assert_eq!(taken.len(), all_points().len(), "each side of each step, with each end");
    for (point, acknowledged) in taken {
        let dir = disk.folder(point);
        check(&dir, &voters, &acknowledged).await;
        power::forget(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
