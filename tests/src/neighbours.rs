//! How much a component notices of others that loop for ever on the same node.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::time::{MissedTickBehavior, interval};

use crate::{cluster::Daemon, http_client, root};

/// A request each so often: a load that leaves the node idle most of the time.
const PACE: Duration = Duration::from_millis(3);
/// Requests of one phase; their 99th percentile is the sixth slowest.
const REQUESTS: usize = 500;
/// The first requests of a phase open the connection and let the loops begin.
const WARM_UP: usize = 20;

/// The 99th percentiles of two phases that followed each other at once.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub alone: Duration,
    pub beside_loops: Duration,
}

impl Pair {
    pub fn ratio(&self) -> f64 {
        self.beside_loops.as_secs_f64() / self.alone.as_secs_f64()
    }
}

/// Measures a component beside four others, each of which may use half a core.
pub fn neighbour_pairs(cluster: &Daemon, count: usize) -> Vec<Pair> {
    cluster.read(&["apply", "-f", &root().join("tests/scripts/loops.yaml").display().to_string()]);
    cluster.read(&["rollout", "status", "deployment/loops", "--timeout=60s"]);
    cluster.read(&["wait", "--for=condition=Ready", "pod/quick", "--timeout=60s"]);
    let neighbour = cluster.read(&["get", "pod", "quick", "-o", "jsonpath={.status.podIP}"]);
    let loops = cluster.read(&["get", "pods", "-l", "app=loops", "-o", "jsonpath={.items[*].status.podIP}"]);
    let loops: Vec<String> = loops.split(' ').map(|address| format!("http://{address}:8080/loop")).collect();
    let url = format!("http://{neighbour}:8080/");
    let pairs = cluster.machine.inside(async move { pairs(&url, &loops, count).await });
    pairs.expect("every request to the neighbour is answered")
}

/// Measures so many pairs, one after the other, the first phase of every second pair being the one with loops: what
/// else happens on the machine is then the same for both.
async fn pairs(neighbour: &str, loops: &[String], count: usize) -> reqwest::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for turn in 0..count {
        let (alone, beside_loops);
        if turn % 2 == 0 {
            alone = p99(neighbour).await?;
            beside_loops = beside(neighbour, loops).await?;
        } else {
            beside_loops = beside(neighbour, loops).await?;
            alone = p99(neighbour).await?;
        }
        pairs.push(Pair { alone, beside_loops });
    }
    Ok(pairs)
}

/// The middle one of the pairs' ratios.
pub fn median_ratio(pairs: &[Pair]) -> f64 {
    let mut ratios: Vec<f64> = pairs.iter().map(Pair::ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn p99(url: &str) -> reqwest::Result<Duration> {
    let client = http_client();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut times = Vec::with_capacity(REQUESTS);
    for request in 0..WARM_UP + REQUESTS {
        pace.tick().await;
        let began = Instant::now();
        client.get(url).send().await?.error_for_status()?.bytes().await?;
        if request >= WARM_UP {
            times.push(began.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times[REQUESTS * 99 / 100])
}

/// The same while others loop. Their requests are given up at the end, and so they end.
async fn beside(url: &str, loops: &[String]) -> reqwest::Result<Duration> {
    let client = http_client();
    let looping = try_join_all(loops.iter().map(async |url| client.get(url).send().await.map(drop)));
    tokio::select! {
        measured = p99(url) => measured,
        ended = looping => {
            ended?;
            panic!("a loop has ended");
        }
    }
}
