//! Row 20: all watchers lose their connections at once, and list and watch anew while others write.
//!
//! Each connection carries some watches, as a node's or a controller's does, and each watch is a streaming list of one
//! namespace (KEP-3157), which begins with everything that is there.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tandem_tests::{
    https::{Access, Connection},
    machine::inside,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE,
    client::{Client, Common, pause},
    members::Members,
    objects,
};

const CONNECTIONS: usize = if cfg!(debug_assertions) { 20 } else { 500 };
const WATCHES: usize = 10;
const NAMESPACES: usize = if cfg!(debug_assertions) { 10 } else { 250 };
/// Of each namespace.
const OBJECTS: usize = if cfg!(debug_assertions) { 50 } else { 200 };
const VALUE_BYTES: usize = 256;
const FILLERS: usize = 16;

const WRITERS: usize = 4;
/// A writer begins a write so often.
const PACE: Duration = Duration::from_millis(20);

/// What all watchers of a round have in common.
struct Herd {
    access: Access,
    round: usize,
    /// Watches that have delivered everything that was there.
    synced: AtomicUsize,
    /// Watches that have delivered the change that was made after that.
    told: AtomicUsize,
    /// Answers 429 and 503, each of which says when to come again.
    refused: AtomicUsize,
    unconnected: AtomicUsize,
}

/// Fills the cluster, and cuts all watchers off so often.
pub(crate) fn run(members: &Members, rounds: usize) {
    let (access, servers) = (Access::of(members.kubeconfig()), members.addresses());
    let pids: Vec<u32> = members.daemons.iter().filter_map(tandem_tests::cluster::Daemon::pid).collect();
    assert_eq!(pids.len(), servers.len(), "all members run");
    let ran = pids.clone();
    let place = members.clients.namespace();
    members.clients.inside(async move {
        fill(&access, &servers).await;
        let (cluster, mut watchers) = (Cluster { access, servers, pids: ran, place }, JoinSet::new());
        for round in 0..=rounds {
            watchers = once(&cluster, round, watchers).await;
        }
    });
    let after: Vec<u32> = members.daemons.iter().filter_map(tandem_tests::cluster::Daemon::pid).collect();
    assert_eq!(after, pids, "a member has ended");
}

struct Cluster {
    access: Access,
    servers: Vec<SocketAddr>,
    pids: Vec<u32>,
    /// Where clients are.
    place: PathBuf,
}

fn client(access: &Access, servers: &[SocketAddr], place: usize) -> Client {
    let (_, servers) = watch::channel(servers.to_vec());
    Client::new(Common { access: access.clone(), servers, tally: Arc::default() }, place)
}

fn namespace(number: usize) -> String {
    format!("herd-{number}")
}

async fn fill(access: &Access, servers: &[SocketAddr]) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut fillers = JoinSet::new();
    for filler in 0..FILLERS {
        let (mut client, next) = (client(access, servers, filler), next.clone());
        fillers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= NAMESPACES {
                    return;
                }
                let name = namespace(number);
                let body = format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
                client.insist(Method::POST, "/api/v1/namespaces", &body.into()).await;
                for object in 1..OBJECTS {
                    let body = objects::map(&format!("object-{object}"), &"x".repeat(VALUE_BYTES), None);
                    client.insist(Method::POST, &objects::path(&name, ""), &body).await;
                }
                // The last one is made by a controller.
                client.insist(Method::GET, &objects::path(&name, "kube-root-ca.crt"), &Bytes::new()).await;
            }
        });
    }
    fillers.join_all().await;
}

/// Cuts the watchers of the round before off, and lets others come in their place.
async fn once(cluster: &Cluster, round: usize, mut before: JoinSet<()>) -> JoinSet<()> {
    let Cluster { access, servers, pids, .. } = cluster;
    let herd = Arc::new(Herd {
        access: access.clone(),
        round,
        synced: AtomicUsize::new(0),
        told: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        unconnected: AtomicUsize::new(0),
    });
    let resident: Vec<u64> = pids.iter().map(|pid| memory(*pid, "VmRSS")).collect();
    for pid in pids {
        // The highest value so far is forgotten (proc(5)).
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("root may");
    }
    let stop = CancellationToken::new();
    let writers = cluster.write(&stop);
    before.shutdown().await;
    let (began, mut watchers) = (Instant::now(), JoinSet::new());
    for number in 0..CONNECTIONS {
        watchers.spawn(herd.clone().connection(servers[number % servers.len()], number));
    }
    reached(&herd.synced, &mut watchers).await;
    let synced = began.elapsed();
    stop.cancel();
    let mut times = writers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let mut client = client(access, servers, 0);
    for number in 0..NAMESPACES {
        let (path, body) =
            (objects::path(&namespace(number), "object-1"), objects::map("object-1", &herd.mark(), None));
        client.insist(Method::PUT, &path, &body).await;
    }
    reached(&herd.told, &mut watchers).await;
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    let grown = pids.iter().zip(resident).map(|(pid, before)| memory(*pid, "VmHWM").saturating_sub(before));
    println!(
        "20 {} watches on {} objects begin at once: all are synced after {:.1} s (goal 30), {} writes took \
         {:.0} ms at the median, {:.0} ms at p99 (goal 200), a member grew by {} MB at most (goal 512); {} answers said \
         when to come again, {} connections were tried again",
        CONNECTIONS * WATCHES,
        NAMESPACES * OBJECTS,
        synced.as_secs_f64(),
        times.len(),
        at(50),
        at(99),
        grown.max().unwrap_or_default() / 1_000,
        herd.refused.load(Ordering::Relaxed),
        herd.unconnected.load(Ordering::Relaxed),
    );
    watchers
}

/// Waits until all watches have got so far.
async fn reached(number: &AtomicUsize, watchers: &mut JoinSet<()>) {
    let ends = Instant::now() + DEADLINE;
    while number.load(Ordering::Relaxed) < CONNECTIONS * WATCHES {
        if let Some(ended) = watchers.try_join_next() {
            ended.expect("a watcher goes on");
            panic!("a watcher has ended");
        }
        assert!(Instant::now() < ends, "{} of {}", number.load(Ordering::Relaxed), CONNECTIONS * WATCHES);
        pause().await;
    }
}

impl Cluster {
    /// Writes from a thread of its own: what is measured is not how long clients take to read their lists.
    fn write(&self, stop: &CancellationToken) -> JoinHandle<Vec<Duration>> {
        let clients: Vec<Client> = (0..WRITERS).map(|writer| client(&self.access, &self.servers, writer)).collect();
        let (place, stop) = (self.place.clone(), stop.clone());
        std::thread::spawn(move || {
            inside(&place, async move {
                let writers =
                    clients.into_iter().enumerate().map(|(number, client)| write(client, number, stop.clone()));
                join_all(writers).await.concat()
            })
        })
    }
}

/// A writer that is alone with its object, and how long each write took.
async fn write(mut client: Client, number: usize, stop: CancellationToken) -> Vec<Duration> {
    let (name, mut times, mut pace) = (format!("writer-{number}"), Vec::new(), interval(PACE));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    client.insist(Method::POST, &objects::path("default", ""), &objects::map(&name, "", None)).await;
    while !stop.is_cancelled() {
        pace.tick().await;
        let began = Instant::now();
        let body = objects::map(&name, &times.len().to_string(), None);
        client.insist(Method::PUT, &objects::path("default", &name), &body).await;
        times.push(began.elapsed());
    }
    times
}

/// A value of a process's status, in kilobytes.
fn memory(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the member runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("a number of kilobytes")
}

impl Herd {
    /// What tells the change that this round makes.
    fn mark(&self) -> String {
        format!("round-{}", self.round)
    }

    async fn connection(self: Arc<Herd>, server: SocketAddr, number: usize) {
        let mut connection = loop {
            match Connection::open(&self.access, server).await {
                Ok(connection) => break connection,
                Err(_) => count_up(&self.unconnected),
            }
            pause().await;
        };
        let mut bodies = Vec::new();
        for watch in 0..WATCHES {
            let namespace = namespace((number * WATCHES + watch) % NAMESPACES);
            bodies.push(self.follow(self.begin(&mut connection, server, &namespace).await));
        }
        join_all(bodies).await;
    }

    async fn begin(&self, connection: &mut Connection, server: SocketAddr, namespace: &str) -> Incoming {
        let base = objects::path(namespace, "");
        let path =
            format!("{base}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
        loop {
            let begun = connection.begin(server, Method::GET, &path, Bytes::new()).await;
            let response = begun.expect("a member that runs answers");
            if response.status().is_success() {
                return response.into_body();
            }
            let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
            assert!(busy.contains(&response.status()), "{response:?}");
            let after = response.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            count_up(&self.refused);
            sleep(Duration::from_secs(after.expect("a refusal says when to come again"))).await;
        }
    }

    /// Reads what a watch delivers, as long as the connection is there.
    async fn follow(&self, mut body: Incoming) {
        let (mut rest, mut there, mut synced, mark) = (Vec::new(), 0, false, self.mark());
        loop {
            let frame = timeout(DEADLINE, body.frame()).await.expect("bookmarks come at least");
            let data = frame.expect("a watch goes on").expect("a connection stays").into_data();
            rest.extend_from_slice(&data.unwrap_or_default());
            let mut read = 0;
            while let Some(length) = rest[read..].iter().position(|byte| *byte == b'\n') {
                let line = &rest[read..read + length];
                read += length + 1;
                let has = |part: &str| line.windows(part.len()).any(|found| found == part.as_bytes());
                if line.starts_with(br#"{"type":"ADDED""#) && !synced {
                    there += 1;
                } else if line.starts_with(br#"{"type":"BOOKMARK""#) && !synced && has("initial-events-end") {
                    assert_eq!(there, OBJECTS, "what was there when the watch began");
                    synced = true;
                    count_up(&self.synced);
                } else if line.starts_with(br#"{"type":"MODIFIED""#) && has(&mark) {
                    count_up(&self.told);
                } else {
                    assert!(line.starts_with(br#"{"type":"BOOKMARK""#), "{}", String::from_utf8_lossy(line));
                }
            }
            rest.drain(..read);
        }
    }
}

fn count_up(number: &AtomicUsize) {
    number.fetch_add(1, Ordering::Relaxed);
}
