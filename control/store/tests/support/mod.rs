//! What the tests of the replicated store share.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod cluster;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command as Process, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::Connection;
use tandem_api::Key;
use tandem_store::{
    Command, Disk, DiskFailure, Durable, Error, Expect, OnFailure, OpenOptions, RaftStore, Reply, Storage,
};
use tokio::{sync::mpsc, time::Instant};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn key(name: &str) -> Key {
    Key::object("", "pods", Some("default"), name)
}

pub(crate) fn options(dir: &Path) -> OpenOptions {
    let on_failure: OnFailure = Arc::new(|failure: &DiskFailure| panic!("{failure}"));
    OpenOptions { on_failure, ..OpenOptions::new(dir, 1, "test") }
}

pub(crate) async fn open(dir: &Path) -> Arc<RaftStore> {
    RaftStore::open(options(dir)).await.unwrap()
}

/// A folder in memory, for tests that are about something else than the disk.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("tdt-store").tempdir_in(base).unwrap()
}

/// A failure hook that tells a test instead of ending its process.
pub(crate) fn recorder() -> (OnFailure, mpsc::UnboundedReceiver<String>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let on_failure: OnFailure = Arc::new(move |failure: &DiskFailure| drop(sender.send(failure.to_string())));
    (on_failure, receiver)
}

/// Drops the store and opens its folder again as soon as the old one has let go of it.
pub(crate) async fn reopened(store: Arc<RaftStore>, dir: &Path) -> Arc<RaftStore> {
    drop(store);
    let deadline = Instant::now() + DEADLINE;
    loop {
        match RaftStore::open(options(dir)).await {
            Ok(store) => return store,
            Err(Error::Data { why, .. }) if why.starts_with("is in use") && Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until nobody holds the folder.
pub(crate) async fn released(store: Arc<RaftStore>, dir: &Path) {
    drop(store);
    let lock = std::fs::File::open(dir.join("lock")).unwrap();
    eventually("the folder to be let go", async || lock.try_lock().is_ok()).await;
}

/// How long something may take that is to take `goal` on a machine that does nothing else, which `TANDEM_QUIET_MACHINE`
/// says this one is: otherwise ten times as long.
pub(crate) fn allowed(goal: Duration) -> Duration {
    if std::env::var_os("TANDEM_QUIET_MACHINE").is_some() { goal } else { goal * 10 }
}

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::task::yield_now().await;
    }
}

/// Counts durable commits, makes them slow, and fails them on demand.
#[derive(Default)]
pub(crate) struct TestDisk {
    latency: Mutex<Duration>,
    counts: Mutex<BTreeMap<String, usize>>,
    commits: AtomicUsize,
    failing: Mutex<Option<Durable>>,
}

impl TestDisk {
    pub(crate) fn slow(latency: Duration) -> TestDisk {
        TestDisk { latency: Mutex::new(latency), ..TestDisk::default() }
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        *self.latency.lock() = latency;
    }

    pub(crate) fn commits(&self) -> usize {
        self.commits.load(Ordering::SeqCst)
    }

    pub(crate) fn of(&self, what: Durable) -> usize {
        self.counts.lock().get(&format!("{what:?}")).copied().unwrap_or(0)
    }

    pub(crate) fn fail_next(&self, what: Durable) {
        *self.failing.lock() = Some(what);
    }
}

impl Disk for TestDisk {
    fn commit<'a>(&'a self, what: Durable, commit: BoxFuture<'a, io::Result<()>>) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if self.failing.lock().take_if(|failing| *failing == what).is_some() {
                return Err(io::Error::other("the test's disk is broken"));
            }
            *self.counts.lock().entry(format!("{what:?}")).or_default() += 1;
            self.commits.fetch_add(1, Ordering::SeqCst);
            let latency = *self.latency.lock();
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            commit.await
        })
    }
}

pub(crate) async fn execute(dir: &Path, file: &str, statement: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join(file));
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

pub(crate) async fn first_log_entry(dir: &Path) -> i64 {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("log.sqlite"));
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let first = sqlx::query_scalar("SELECT min(position) FROM entries").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    first
}

const CHILD_DIR: &str = "TANDEM_STORE_TEST_CHILD_DIR";
const CHILD_ROUND: &str = "TANDEM_STORE_TEST_CHILD_ROUND";

/// Runs this test binary once more as a writer, and kills it after so many answered writes. Gives back what it had
/// printed: the name and the revision of each answered write.
pub(crate) fn write_until_killed(
    dir: &Path,
    round: u64,
    acks: usize,
) -> (BTreeMap<String, u64>, std::process::ExitStatus) {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["child_that_writes", "--exact", "--nocapture"])
        .env(CHILD_DIR, dir)
        .env(CHILD_ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = BTreeMap::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut killed = false;
    // What was printed before the kill counts too, so the pipe is read to its end.
    while let Some(Ok(line)) = lines.next() {
        let Some(ack) = line.strip_prefix("ack ") else { continue };
        let (name, revision) = ack.split_once(' ').unwrap();
        seen.insert(name.to_owned(), revision.parse().unwrap());
        if seen.len() >= acks && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    (seen, child.wait().unwrap())
}

pub(crate) async fn write_until_told_otherwise() {
    let (Ok(dir), Ok(round)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_ROUND)) else { return };
    let store = open(Path::new(&dir)).await;
    let writers = (0..16u64).map(|writer| {
        let (store, round) = (store.clone(), round.clone());
        tokio::spawn(async move {
            for count in 0..u64::MAX {
                let name = format!("{round}-{writer}-{count}");
                let command = Command::put(key(&name), Bytes::from(vec![7; 300]), Expect::Absent);
                let Reply::Done { revision } = store.write(command).await.unwrap() else { panic!("refused") };
                let mut out = io::stdout().lock();
                // One write, so that lines of a killed process are whole or missing.
                out.write_all(format!("ack {name} {revision}\n").as_bytes()).unwrap();
                out.flush().unwrap();
            }
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
}
