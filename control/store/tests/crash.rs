//! What is found after the process ended at any step that changes what is on disk.
//!
//! A child process runs a cluster of three, and ends itself (`abort`) on one side of one step, wherever in the cluster
//! that step comes. The parent opens what is left: everything that the child had printed as acknowledged must be there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command as Process, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use support::{
    cluster::{Cluster, leader_of, settled},
    eventually, key,
};
use tandem_store::{
    Aim, Begin, Change, Command, Consistency, Disk, Durable, DurableStep, Edge, Expect, Member, RaftStore, Reply, Role,
    Storage, SystemDisk,
};

const CHILD_DIR: &str = "TANDEM_STORE_CRASH_DIR";
const CHILD_POINT: &str = "TANDEM_STORE_CRASH_POINT";

/// Which time a step comes is the last: not the first, which may be before anything was acknowledged.
const TIMES: u64 = 2;

const SIGABRT: i32 = 6;

/// Ends the process at one point.
struct Crashing {
    point: String,
    left: AtomicU64,
}

impl Disk for Crashing {
    fn reached(&self, step: DurableStep, edge: Edge) {
        if format!("{step:?}-{edge:?}") == self.point && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            say(&format!("hit {}", self.point));
            std::process::abort();
        }
    }

    fn commit<'a>(&'a self, _: Durable, commit: BoxFuture<'a, io::Result<()>>) -> BoxFuture<'a, io::Result<()>> {
        commit
    }
}

/// One write, so that lines of an ended process are whole or missing.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

async fn put(store: &Arc<RaftStore>, name: &str) -> bool {
    let written = store.write(Command::put(key(name), Bytes::from(vec![7; 200]), Expect::Any)).await;
    match written {
        Ok(Reply::Done { revision }) => say(&format!("ack {name} {revision}")),
        Ok(other) => panic!("{other:?}"),
        Err(_) => return false,
    }
    true
}

/// The child: everything that makes steps, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_crashes() {
    let (Ok(dir), Ok(point)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_POINT)) else { return };
    let disk = Arc::new(Crashing { point, left: AtomicU64::new(TIMES) });
    let cluster = Cluster::at(Path::new(&dir), disk).await;
    let mut members = vec![cluster.open(1, Begin::Cluster).await];
    while members.len() < 3 {
        let new = cluster.join(&members[0], Aim::Vote).await;
        members.push(new);
    }
    settled(&members[0], 3).await;
    for round in 0..u64::MAX {
        for count in 0..60 {
            put(&members[count % 3], &format!("{round}-a{count}")).await;
            // A key that is written over and over has history to forget.
            put(&members[0], "again").await;
        }
        // What the leader writes while it is alone is taken back later, and what it misses comes as a snapshot.
        let alone = leader_of(&members).await;
        cluster.isolate(alone.id());
        let lost = (0..5).map(|count| {
            let (alone, name) = (alone.clone(), format!("{round}-lost{count}"));
            tokio::spawn(async move { put(&alone, &name).await })
        });
        let lost: Vec<_> = lost.collect();
        let others: Vec<_> = members.iter().filter(|member| member.id() != alone.id()).cloned().collect();
        let new = leader_of(&others).await;
        for count in 0..120 {
            put(&new, &format!("{round}-b{count}")).await;
        }
        futures::future::join_all(lost).await;
        cluster.heal();
        eventually("it to catch up", async || alone.revision() >= new.revision()).await;
        let leader = leader_of(&members).await;
        let name = format!("listener-{round}");
        let joined = leader.change(Change::Join { name: name.clone(), address: name, aim: Aim::Listen }).await;
        if let Ok(member) = joined {
            drop(leader.change(Change::Remove { member }).await);
        }
    }
}

/// Runs the child until it ends at `point`; what it had acknowledged.
fn crash(dir: &Path, point: &str) -> BTreeMap<String, u64> {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["child_that_crashes", "--exact", "--nocapture"])
        .env(CHILD_DIR, dir)
        .env(CHILD_POINT, point)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let (mut acknowledged, mut hit) = (BTreeMap::new(), false);
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if let Some((name, revision)) = line.strip_prefix("ack ").and_then(|ack| ack.split_once(' ')) {
            acknowledged.insert(name.to_owned(), revision.parse().unwrap());
        }
        hit |= line.strip_prefix("hit ") == Some(point);
    }
    let status = child.wait().unwrap();
    assert!(hit && status.signal() == Some(SIGABRT), "{point} was not reached: {status}");
    acknowledged
}

/// Opens what is left, all members, and shows that it is all there and goes on.
async fn check(dir: &Path, point: &str, acknowledged: &BTreeMap<String, u64>) {
    let cluster = Cluster::at(dir, Arc::new(SystemDisk)).await;
    let ids: Vec<u64> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
        .collect();
    let mut members = Vec::new();
    for id in ids {
        members.push(cluster.open(id, if id == 1 { Begin::Cluster } else { Begin::Member }).await);
    }
    let leader = leader_of(&members).await;
    for (name, revision) in acknowledged.iter().filter(|(name, _)| *name != "again") {
        let stored = leader.get(&key(name), Consistency::Linearizable).await.unwrap();
        assert_eq!(stored.map(|stored| stored.revision.0), Some(*revision), "{name} after {point}");
    }
    let newest = acknowledged.values().copied().max().unwrap_or(0);
    assert!(leader.revision().0 >= newest, "{point}");
    eventually("a write", async || put(&leader_of(&members).await, "after").await).await;
    eventually("no half changed list of members", async || {
        let listed = leader_of(&members).await.list_members().await;
        // Who was given an id and had no time to begin stays one who listens.
        let begun = |member: &&Member| members.iter().any(|store| store.id() == member.id);
        listed.iter().filter(begun).all(|member| member.role != Role::Learner)
    })
    .await;
    eventually("all to be the same", async || {
        let hashes: Vec<_> = members.iter().map(|member| member.hashes().last().copied()).collect();
        hashes.iter().all(|hash| *hash == hashes[0])
    })
    .await;
    drop(leader);
    for member in members {
        cluster.stop(member).await;
    }
}

async fn every_side_of(steps: &[DurableStep]) {
    for step in steps {
        for edge in [Edge::Before, Edge::After] {
            let point = format!("{step:?}-{edge:?}");
            let dir = support::memory_dir();
            let acknowledged = crash(dir.path(), &point);
            check(dir.path(), &point, &acknowledged).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_survives_a_crash_at_each_of_its_steps() {
    every_side_of(&DurableStep::ALL[..5]).await;
}
