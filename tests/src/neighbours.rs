//! How much a component notices of others that loop for ever on the same node.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use tokio::time::{MissedTickBehavior, interval};

use crate::{cluster::Daemon, http_client, root};

/// A request each so often: a load that leaves the node idle most of the time.
const PACE: Duration = Duration::from_millis(3);
/// The first requests of a phase open the connection.
const WARM_UP: usize = 20;
/// Requests of a window; their 99th percentile is the sixth slowest.
const REQUESTS: usize = 500;

/// What a paced client sees in a phase, from its beginning on: 99th percentiles of windows that last a second and a half.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// In which the loops begin.
    pub first: Duration,
    pub later: Duration,
}

/// Who waits for the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A thread that the kernel runs as soon as there is something to do (`SCHED_FIFO`): it sees what a client on another
    /// machine would, the time until the node has answered.
    Elsewhere,
    /// A thread like any other of this machine: it waits for a core beside the loops itself, before it sends and before
    /// it reads.
    OnTheNode,
}

/// Phases that followed each other at once.
#[derive(Clone, Copy, Debug)]
pub struct Phases {
    pub alone: Windows,
    pub beside_loops: Windows,
    /// Beside processes that loop at the lowest priority, one for each core: what cores that are never idle cost on this
    /// machine, whoever keeps them busy. On a virtual machine that is much, because its host takes them away.
    pub beside_processes: Windows,
}

/// The neighbour of four components that loop, each of which may use half a core.
pub fn measure(cluster: &Daemon, count: usize, by: Client) -> Vec<Phases> {
    cluster.read(&["apply", "-f", &root().join("tests/scripts/loops.yaml").display().to_string()]);
    cluster.read(&["rollout", "status", "deployment/loops", "--timeout=60s"]);
    cluster.read(&["wait", "--for=condition=Ready", "pod/quick", "--timeout=60s"]);
    let neighbour = cluster.read(&["get", "pod", "quick", "-o", "jsonpath={.status.podIP}"]);
    let loops = cluster.read(&["get", "pods", "-l", "app=loops", "-o", "jsonpath={.items[*].status.podIP}"]);
    let loops: Vec<String> = loops.split(' ').map(|address| format!("http://{address}:8080/loop")).collect();
    let url = format!("http://{neighbour}:8080/");
    let measured = cluster.machine.inside(async move {
        if by == Client::Elsewhere {
            run_at_once();
        }
        rounds(&url, &loops, count).await
    });
    measured.expect("every request to the neighbour is answered")
}

/// Lets this thread run before all others; processes that it starts are as any.
fn run_at_once() {
    let thread = rustix::thread::gettid().to_string();
    let status = Command::new("chrt").args(["--reset-on-fork", "--fifo", "--pid", "1", &thread]).status();
    assert!(status.is_ok_and(|status| status.success()), "a real-time priority needs root and util-linux");
}

/// Measures so many rounds, one after the other, every second one backwards: what else happens on the machine is then
/// the same for all phases.
async fn rounds(neighbour: &str, loops: &[String], count: usize) -> reqwest::Result<Vec<Phases>> {
    let mut rounds = Vec::new();
    for turn in 0..count {
        let (alone, beside_loops, beside_processes);
        if turn % 2 == 0 {
            alone = paced(neighbour).await?;
            beside_loops = beside(neighbour, loops).await?;
            beside_processes = beside_busy_cores(neighbour).await?;
        } else {
            beside_processes = beside_busy_cores(neighbour).await?;
            beside_loops = beside(neighbour, loops).await?;
            alone = paced(neighbour).await?;
        }
        rounds.push(Phases { alone, beside_loops, beside_processes });
    }
    Ok(rounds)
}

/// The middle one of the rounds' ratios between two phases.
pub fn median_ratio(rounds: &[Phases], of: fn(&Phases) -> Duration, to: fn(&Phases) -> Duration) -> f64 {
    let mut ratios: Vec<f64> =
        rounds.iter().map(|phases| of(phases).as_secs_f64() / to(phases).as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processes that end with this.
struct Busy(Vec<Child>);

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

async fn beside_busy_cores(url: &str) -> reqwest::Result<Windows> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let one = || Command::new("nice").args(["-n", "19", "sh", "-c", "while :; do :; done"]).spawn();
    let _busy = Busy((0..cores).map(|_| one().expect("nice is installed")).collect());
    paced(url).await
}

async fn paced(url: &str) -> reqwest::Result<Windows> {
    let client = http_client();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut times = Vec::with_capacity(WARM_UP + 2 * REQUESTS);
    for _ in 0..WARM_UP + 2 * REQUESTS {
        pace.tick().await;
        let began = Instant::now();
        client.get(url).send().await?.error_for_status()?.bytes().await?;
        times.push(began.elapsed());
    }
    let (first, later) = times[WARM_UP..].split_at(REQUESTS);
    Ok(Windows { first: p99(first), later: p99(later) })
}

fn p99(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// The same while others loop. Their requests are given up at the end, and so they end.
async fn beside(url: &str, loops: &[String]) -> reqwest::Result<Windows> {
    let client = http_client();
    let looping = try_join_all(loops.iter().map(async |url| client.get(url).send().await.map(drop)));
    tokio::select! {
        measured = paced(url) => measured,
        ended = looping => {
            ended?;
            panic!("a loop has ended");
        }
    }
}
