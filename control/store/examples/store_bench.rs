//! How many durable writes a second one member answers, with one writer and with 64, and how late 1,000 watches are
//! at 1,000 writes a second: one JSON line each.
//!
//! `store_bench DIR [SECONDS]` works in a new folder below DIR, so that DIR chooses the disk.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use serde::Serialize;
use tandem_api::{Key, Revision};
use tandem_store::{Command, Disk, Durable, Expect, OpenOptions, RaftStore, Reply, Storage, WatchItem};

/// About the size of a small pod.
const VALUE_BYTES: usize = 1024;

const KEYS: u64 = 1_000;

#[derive(Serialize)]
struct Line {
    benchmark: &'static str,
    writers: usize,
    value_bytes: usize,
    seconds: f64,
    writes: usize,
    writes_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    fsyncs_per_1000_writes: f64,
}

#[derive(Serialize)]
struct FanOutLine {
    benchmark: &'static str,
    watchers: usize,
    writes: usize,
    writes_per_second: f64,
    events: usize,
    events_lost: usize,
    late_ms_p50: f64,
    late_ms_max: f64,
}

#[derive(Default)]
struct CountingDisk(AtomicUsize);

impl Disk for CountingDisk {
    fn commit<'a>(
        &'a self,
        _: Durable,
        commit: BoxFuture<'a, std::io::Result<()>>,
    ) -> BoxFuture<'a, std::io::Result<()>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        commit
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: store_bench DIR [SECONDS]")?;
    let seconds: f64 = arguments.next().map_or(Ok(5.0), |text| text.parse())?;
    let dir = Path::new(&dir).join(format!("store-bench-{}", std::process::id()));
    let measured = measure_all(&dir, Duration::from_secs_f64(seconds)).await;
    std::fs::remove_dir_all(&dir)?;
    measured
}

async fn measure_all(dir: &Path, length: Duration) -> Result<(), Failure> {
    for writers in [1, 64] {
        let disk = Arc::new(CountingDisk::default());
        let options = OpenOptions::new(dir.join(writers.to_string()), 1, "bench");
        let store = RaftStore::open(OpenOptions { disk: disk.clone(), ..options }).await?;
        let before = disk.0.load(Ordering::Relaxed);
        let begun = Instant::now();
        let mut latencies = write(&store, writers, length).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let fsyncs = disk.0.load(Ordering::Relaxed) - before;
        store.shutdown().await?;
        latencies.sort_unstable();
        let line = Line {
            benchmark: "store_write",
            writers,
            value_bytes: VALUE_BYTES,
            seconds,
            writes: latencies.len(),
            writes_per_second: latencies.len() as f64 / seconds,
            p50_ms: at(&latencies, 0.5),
            p99_ms: at(&latencies, 0.99),
            fsyncs_per_1000_writes: fsyncs as f64 * 1_000.0 / latencies.len().max(1) as f64,
        };
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&line)?)?;
    }
    let line = fan_out(&dir.join("watch"), length).await?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&line)?)?;
    Ok(())
}

/// The latency that this share of the sorted ones does not pass, in milliseconds.
fn at(sorted: &[Duration], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).map_or(0.0, |took| took.as_secs_f64() * 1e3)
}

/// Every watcher sees every write; how long after its proposal, its fsync included, the event came.
async fn fan_out(dir: &Path, length: Duration) -> Result<FanOutLine, Failure> {
    const WATCHERS: usize = 1_000;
    const PER_SECOND: u32 = 1_000;
    let store = RaftStore::open(OpenOptions::new(dir, 1, "bench")).await?;
    let writes = (length.as_secs_f64() * f64::from(PER_SECOND)) as usize;
    let begun = Instant::now();
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|_| {
            let mut watch = store.watch(&Key::prefix("", "pods", None), Revision::ZERO)?;
            Ok(tokio::spawn(async move {
                let mut late = Vec::with_capacity(writes);
                while late.len() < writes {
                    let Some(Ok(item)) = watch.next().await else { break };
                    let WatchItem::Event(event) = item else { continue };
                    let stamp = event.value.as_deref().and_then(|value| value.get(..8)?.try_into().ok());
                    let sent = Duration::from_nanos(stamp.map_or(0, u64::from_be_bytes));
                    late.push(begun.elapsed().saturating_sub(sent));
                }
                late
            }))
        })
        .collect::<Result<_, tandem_store::Error>>()?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let mut writing = tokio::task::JoinSet::new();
    let started = Instant::now();
    for count in 0..writes {
        ticks.tick().await;
        let mut value = vec![b'x'; VALUE_BYTES];
        value[..8].copy_from_slice(&(begun.elapsed().as_nanos() as u64).to_be_bytes());
        let key = Key::object("", "pods", Some("bench"), &(count as u64 % KEYS).to_string());
        let store = store.clone();
        writing.spawn(async move { store.write(Command::put(key, Bytes::from(value), Expect::Any)).await });
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut late = Vec::new();
    for watcher in watchers {
        late.extend(tokio::time::timeout(Duration::from_secs(30), watcher).await??);
    }
    store.shutdown().await?;
    late.sort_unstable();
    Ok(FanOutLine {
        benchmark: "store_watch",
        watchers: WATCHERS,
        writes,
        writes_per_second: writes as f64 / seconds,
        events: late.len(),
        events_lost: WATCHERS * writes - late.len(),
        late_ms_p50: at(&late, 0.5),
        late_ms_max: at(&late, 1.0),
    })
}

/// Writes from `writers` tasks at once for that long; how long each answered write took.
async fn write(store: &Arc<RaftStore>, writers: usize, length: Duration) -> Result<Vec<Duration>, Failure> {
    let (next, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let tasks = (0..writers).map(|_| {
        let (store, next) = (store.clone(), next.clone());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while begun.elapsed() < length {
                let count = next.fetch_add(1, Ordering::Relaxed);
                let mut value = vec![b'x'; VALUE_BYTES];
                value[..8].copy_from_slice(&count.to_be_bytes());
                let key = Key::object("", "pods", Some("bench"), &(count % KEYS).to_string());
                let asked = Instant::now();
                let reply = store.write(Command::put(key, Bytes::from(value), Expect::Any)).await?;
                if !matches!(reply, Reply::Done { .. }) {
                    return Err(format!("a write was answered {reply:?}").into());
                }
                latencies.push(asked.elapsed());
            }
            Ok::<_, Failure>(latencies)
        })
    });
    let mut all = Vec::new();
    for latencies in futures::future::try_join_all(tasks).await? {
        all.extend(latencies?);
    }
    Ok(all)
}
