//! The replicated store on a real disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use support::{TestDisk, execute, key, open, options, released, reopened};
use tandem_api::{Clock, Key, Revision};
use tandem_store::{
    Command, Consistency, Durable, Error, Expect, Metrics, OpenOptions, RaftStore, Reply, Storage, WatchItem,
    conformance,
};

async fn put(store: &Arc<RaftStore>, name: &str, value: &str) -> Revision {
    let reply = store.write(Command::put(key(name), Bytes::from(value.to_owned()), Expect::Any)).await.unwrap();
    let Reply::Done { revision } = reply else { panic!("{reply:?}") };
    revision
}

async fn value(store: &Arc<RaftStore>, name: &str, at: Consistency) -> Option<String> {
    let stored = store.get(&key(name), at).await.unwrap();
    stored.map(|stored| String::from_utf8(stored.value.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicU64::new(0);
    conformance::run(conformance::Place::Leader, || {
        let path = dir.path().join(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst).to_string());
        async move { open(&path).await as Arc<dyn Storage> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let term = store.leadership().borrow().term;
    for count in 0..10 {
        put(&store, "a", &count.to_string()).await;
    }
    put(&store, "b", "kept").await;
    store.write(Command::delete(key("a"), Expect::Any)).await.unwrap();
    store.write(Command::horizons(Revision(5), Revision(3))).await.unwrap();
    store.shutdown().await.unwrap();
    let store = reopened(store, dir.path()).await;

    assert!(store.leadership().borrow().leader);
    assert!(store.leadership().borrow().term > term, "a new leadership has a new fence");
    assert_eq!(store.revision(), Revision(12));
    assert_eq!(value(&store, "a", Consistency::Linearizable).await, None);
    assert_eq!(value(&store, "b", Consistency::Linearizable).await.as_deref(), Some("kept"));
    assert_eq!(value(&store, "a", Consistency::Exactly(Revision(7))).await.as_deref(), Some("6"));
    let compacted = store.get(&key("a"), Consistency::Exactly(Revision(4))).await;
    assert!(matches!(compacted, Err(Error::Compacted { compacted: Revision(5), .. })), "{compacted:?}");
    assert!(matches!(store.watch(&key("a"), Revision(2)), Err(Error::Compacted { compacted: Revision(3), .. })));
    let mut watch = store.watch(&Key::prefix("", "pods", None), Revision(3)).unwrap();
    let mut replayed = Vec::new();
    while let Some(Ok(WatchItem::Event(event))) = watch.next().await {
        let previous = event.previous.as_ref().map(|stored| stored.revision.0);
        replayed.push((event.revision.0, event.value.is_some(), previous));
    }
    let expected: Vec<(u64, bool, Option<u64>)> = (4..=10)
        .map(|revision| (revision, true, Some(revision - 1)))
        .chain([(11, true, None), (12, false, Some(10))])
        .collect();
    assert_eq!(replayed, expected);
    assert_eq!(put(&store, "a", "again").await, Revision(13));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_restarts_lose_nothing_although_nobody_shuts_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    for round in 0..5 {
        for count in 0..20 {
            put(&store, &format!("{round}-{count}"), "x").await;
        }
        store = reopened(store, dir.path()).await;
        let page = store.list(&Key::prefix("", "pods", None), Consistency::Linearizable, None, 0).await.unwrap();
        assert_eq!((page.items.len(), page.revision), ((round + 1) * 20, Revision((round as u64 + 1) * 20)));
    }
}

/// The promise behind every write: what was answered is there after `kill -9`, in the middle of everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = std::collections::BTreeMap::new();
    for round in 0..3u64 {
        let (acks, _) = support::write_until_killed(dir.path(), round, 150);
        assert!(acks.len() >= 150, "too little traffic to show anything: {}", acks.len());
        acknowledged.extend(acks);
        let store = open(dir.path()).await;
        for (name, revision) in &acknowledged {
            let stored = store.get(&key(name), Consistency::Linearizable).await.unwrap();
            assert_eq!(stored.map(|stored| stored.revision.0), Some(*revision), "{name} after round {round}");
        }
        assert!(store.revision().0 >= acknowledged.values().copied().max().unwrap());
        store.shutdown().await.unwrap();
        support::released(store, dir.path()).await;
    }
}

/// The other half of the test above: what runs in the process that is killed. Does nothing unless it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes() {
    support::write_until_told_otherwise().await;
}

/// 64 writers share their fsyncs: the goal is fewer than 50 for 1,000 answered writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_share_fsyncs() {
    const WRITERS: u64 = 64;
    const WRITES: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TestDisk::slow(Duration::from_millis(3)));
    let store = RaftStore::open(OpenOptions { disk: disk.clone(), ..options(dir.path()) }).await.unwrap();
    let before = disk.commits();
    let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let writers = (0..WRITERS).map(|_| {
        let (store, next) = (store.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let count = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                if count >= WRITES {
                    break;
                }
                put(&store, &count.to_string(), "x").await;
            }
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
    assert_eq!(store.revision(), Revision(WRITES));
    let fsyncs = disk.commits() - before;
    assert!(fsyncs < 50, "{fsyncs} fsyncs for {WRITES} writes");
    assert!(fsyncs >= WRITES as usize / WRITERS as usize, "{fsyncs} fsyncs cannot carry {WRITES} writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fsync_is_told_and_never_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TestDisk::default());
    let (on_failure, mut failures) = support::recorder();
    let options = OpenOptions { disk: disk.clone(), on_failure, ..options(dir.path()) };
    let store = RaftStore::open(options).await.unwrap();
    put(&store, "a", "kept").await;
    disk.fail_next(Durable::LogCommit);
    let refused = store.write(Command::put(key("b"), Bytes::from_static(b"x"), Expect::Any)).await;
    assert!(matches!(refused, Err(Error::Unavailable(_) | Error::Unknown(_))), "{refused:?}");
    let failure = failures.recv().await.unwrap();
    assert!(failure.contains("cannot write the log in") && failure.contains("log.sqlite"), "{failure}");
    let later = store.write(Command::put(key("c"), Bytes::from_static(b"x"), Expect::Any)).await;
    assert!(matches!(later, Err(Error::Unavailable(_) | Error::Unknown(_))), "{later:?}");

    let store = reopened(store, dir.path()).await;
    assert_eq!(value(&store, "a", Consistency::Linearizable).await.as_deref(), Some("kept"));
    assert_eq!(value(&store, "c", Consistency::Linearizable).await, None);
}

/// openraft panics in such a later call, which nobody should see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_while_raft_ends_harms_no_later_one() {
    for polls in 1..40 {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(TestDisk::default());
        let (on_failure, mut failures) = support::recorder();
        let options = OpenOptions { disk: disk.clone(), on_failure, ..options(dir.path()) };
        let store = RaftStore::open(options).await.unwrap();
        disk.fail_next(Durable::LogCommit);
        let mut first = store.write(Command::put(key("b"), Bytes::from_static(b"x"), Expect::Any));
        for _ in 0..polls {
            if futures::poll!(&mut first).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(first);
        failures.recv().await.unwrap();
        let later = store.write(Command::put(key("c"), Bytes::from_static(b"x"), Expect::Any)).await;
        assert!(matches!(later, Err(Error::Unavailable(_) | Error::Unknown(_))), "{later:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_checkpoint_is_told_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TestDisk::default());
    let (on_failure, mut failures) = support::recorder();
    let options = OpenOptions { disk: disk.clone(), on_failure, ..options(dir.path()) };
    let store = RaftStore::open(options).await.unwrap();
    put(&store, "a", "kept").await;
    disk.fail_next(Durable::StateCheckpoint);
    let closed = store.shutdown().await;
    assert!(matches!(closed, Err(Error::Storage { operation: "write the state", .. })), "{closed:?}");
    let failure = failures.recv().await.unwrap();
    assert!(failure.contains("cannot write the state in") && failure.contains("state.sqlite"), "{failure}");
    let store = reopened(store, dir.path()).await;
    assert_eq!(value(&store, "a", Consistency::Linearizable).await.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_history_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(tandem_api::FixedClock::new(jiff::Timestamp::UNIX_EPOCH));
    let interval = Duration::from_millis(50);
    let store =
        RaftStore::open(OpenOptions { clock: clock.clone(), compaction: Some(interval), ..options(dir.path()) })
            .await
            .unwrap();
    for count in 0..40u64 {
        let value = Bytes::from(vec![u8::try_from(count).unwrap(); 1 << 20]);
        store.write(Command::put(key("a"), value, Expect::Any)).await.unwrap();
    }
    let size = || std::fs::metadata(dir.path().join("state.sqlite")).unwrap().len();
    support::eventually("the history to be on disk", async || size() > 30 << 20).await;
    support::eventually("its space to be given back", async || {
        clock.advance(interval);
        put(&store, "b", &clock.now().to_string()).await;
        size() < 15 << 20
    })
    .await;
    assert_eq!(store.get(&key("a"), Consistency::Any).await.unwrap().unwrap().value[..4], [39; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let store = RaftStore::open(OpenOptions { metrics, ..options(dir.path()) }).await.unwrap();
    put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    let watch = store.watch(&key("a"), Revision::ZERO).unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let wanted = [
        "tandem_store_revision 2",
        "tandem_store_leader 1",
        "tandem_store_term 1",
        "tandem_store_applied_index 3",
        "tandem_store_watchers 1",
        "tandem_store_commit_duration_seconds_count 2",
        "# TYPE tandem_store_fsync_duration_seconds histogram",
        "# TYPE tandem_store_state_size_bytes gauge",
        "tandem_store_quorum 1",
        "tandem_store_differing_members 0",
        "tandem_store_lag_entries 0",
    ];
    for line in wanted {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let wal = text.lines().find_map(|line| line.strip_prefix("tandem_store_wal_size_bytes ")).unwrap();
    assert!(wal.parse::<u64>().unwrap() > 0, "the log's write-ahead file is never empty while it is open");
    drop(watch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_let_go_behind_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(TestDisk::default());
    let store = RaftStore::open(OpenOptions { disk: disk.clone(), ..options(dir.path()) }).await.unwrap();
    for round in 0..110u64 {
        let writes = (0..100).map(|count| {
            let store = store.clone();
            async move { put(&store, &format!("{}", count % 50), &format!("{round}-{count}")).await }
        });
        futures::future::join_all(writes).await;
    }
    assert!(disk.of(Durable::StateCheckpoint) >= 2);
    store.shutdown().await.unwrap();
    support::released(store, dir.path()).await;
    let first = support::first_log_entry(dir.path()).await;
    assert!(first > 3_000, "the log still begins at {first}");
    let store = open(dir.path()).await;
    assert_eq!(store.revision(), Revision(11_000));
    assert_eq!(value(&store, "49", Consistency::Linearizable).await.as_deref(), Some("109-99"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_forgets_history_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(tandem_api::FixedClock::new(jiff::Timestamp::UNIX_EPOCH));
    let interval = Duration::from_millis(20);
    let store =
        RaftStore::open(OpenOptions { clock: clock.clone(), compaction: Some(interval), ..options(dir.path()) })
            .await
            .unwrap();
    let mut newest = Revision::ZERO;
    support::eventually("history to be forgotten", async || {
        newest = put(&store, "a", &format!("{}", newest.0)).await;
        clock.advance(interval);
        matches!(store.watch(&key("a"), Revision::ZERO), Err(Error::Compacted { .. }))
            && matches!(store.get(&key("a"), Consistency::Exactly(Revision(1))).await, Err(Error::Compacted { .. }))
    })
    .await;
    assert_eq!(value(&store, "a", Consistency::Exactly(newest)).await, Some(format!("{}", newest.0 - 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, "a", "x").await;
    let shown = |result: Result<Arc<RaftStore>, Error>| {
        let error = result.err().map(|error| error.to_string()).unwrap_or_default();
        error.replace(&dir.path().display().to_string(), "DIR")
    };

    let held = RaftStore::open(options(dir.path())).await;
    let expected = "the data in DIR is in use by another process; stop that one first, or choose another folder";
    assert_eq!(shown(held), expected);
    store.shutdown().await.unwrap();
    support::released(store, dir.path()).await;

    let other = OpenOptions { cluster_id: "other".to_owned(), ..options(dir.path()) };
    let expected = "the data in DIR/state.sqlite belongs to cluster test, not to other; choose that cluster's folder or an empty one";
    assert_eq!(shown(RaftStore::open(other).await), expected);

    let other = OpenOptions { node_id: 2, ..options(dir.path()) };
    let expected =
        "the data in DIR/state.sqlite belongs to member 1, not to 2; a member never takes over another one's folder";
    assert_eq!(shown(RaftStore::open(other).await), expected);

    support::execute(dir.path(), "log.sqlite", "PRAGMA user_version = 3").await;
    let expected = "the data in DIR/log.sqlite was written by a newer release (format 3, this one knows up to 2); run that release, or restore a backup into an empty folder";
    assert_eq!(shown(RaftStore::open(options(dir.path())).await), expected);
    support::execute(dir.path(), "log.sqlite", "PRAGMA user_version = 2").await;

    support::execute(dir.path(), "log.sqlite", "UPDATE entries SET payload = X'00' WHERE position = 2").await;
    let expected = "the data in DIR/log.sqlite is damaged: entry 2 does not have its checksum; restore a backup into an empty folder";
    assert_eq!(shown(RaftStore::open(options(dir.path())).await), expected);

    std::fs::write(dir.path().join("state.sqlite"), "this is not a database, whatever its name says, and long enough")
        .unwrap();
    let refused = shown(RaftStore::open(options(dir.path())).await);
    assert!(refused.starts_with("the data in DIR/state.sqlite cannot be opened"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let value = Bytes::from(vec![0; tandem_store::COMMAND_BYTES_MAX]);
    let refused = store.write(Command::put(key("a"), value, Expect::Any)).await;
    assert!(matches!(refused, Err(Error::Storage { .. })), "{refused:?}");
    let value = Bytes::from(vec![0; 3 << 20]);
    store.write(Command::put(key("a"), value, Expect::Any)).await.unwrap();
}

/// A new member that ends just after it got its first snapshot has a state, a vote, and no entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_holds_a_vote_and_nothing_else_goes_with_a_state() {
    let dir = support::memory_dir();
    let store = open(dir.path()).await;
    put(&store, "a", "1").await;
    store.shutdown().await.unwrap();
    released(store, dir.path()).await;
    execute(dir.path(), "log.sqlite", "DELETE FROM entries; DELETE FROM meta WHERE name = 'committed'").await;
    let store = open(dir.path()).await;
    assert_eq!(&store.get(&key("a"), Consistency::Linearizable).await.unwrap().unwrap().value[..], b"1");
    put(&store, "b", "2").await;
    store.shutdown().await.unwrap();
    released(store, dir.path()).await;

    // Without a vote it is another log, or none.
    let gone = "DELETE FROM entries; DELETE FROM meta WHERE name IN ('committed', 'purged', 'vote')";
    execute(dir.path(), "log.sqlite", gone).await;
    let refused = RaftStore::open(options(dir.path())).await.err().unwrap().to_string();
    assert!(refused.contains("is empty while the state is not"), "{refused}");
}
