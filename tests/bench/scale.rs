use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode};
use tandem_tests::{
    cluster::Daemon,
    https::{Access, Connection},
    machine::{Network, inside},
    until,
};
use tokio::task::JoinSet;

use crate::{
    etcd::Etcds,
    report::{Goal, Report, median},
};

const CLIENTS: [usize; 4] = [1, 16, 64, 256];
const SPAN: Duration = Duration::from_secs(5);
const VALUE_BYTES: usize = 256;
const OBJECTS: u64 = 100_000;
const FILLERS: usize = 64;
const PAGE: usize = 500;
const PAGES: usize = 100;
const RETRY_AFTER: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(60);

/// What one run of a number of clients measured.
struct Rate {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Creates through the API by more and more clients, on one and on three members, beside etcd's puts in the same run.
pub(crate) fn clients(report: &mut Report, network: &Network) -> anyhow::Result<()> {
    for members in [1u8, 3] {
        let mut daemons = vec![Daemon::control(network.machine(50 + members), "one")];
        for more in 1..members {
            let joined = Daemon::member(network.machine(50 + members + more), &daemons[0], &format!("m{more}"), &[]);
            daemons.push(joined);
        }
        let etcds = Etcds::start(network, 60 + members, members)?;
        for clients in CLIENTS {
            let ours = ours(&daemons, clients)?;
            let theirs = theirs(&etcds, clients)?;
            let of = |what: &str| format!("{what}, {members} members, {clients} clients");
            report.figure(&of("API creates/s"), ours.per_second, "/s", Goal::None);
            report.figure(&of("API creates, median"), ours.p50_ms, "ms", Goal::None);
            report.figure(&of("API creates, p99"), ours.p99_ms, "ms", Goal::None);
            report.figure(&of("etcd puts/s"), theirs.per_second, "/s", Goal::None);
            report.figure(&of("etcd puts, median"), theirs.p50_ms, "ms", Goal::None);
            report.figure(&of("etcd puts, p99"), theirs.p99_ms, "ms", Goal::None);
            report.figure(&of("creates per put"), ours.per_second / theirs.per_second, "", Goal::AtLeast(0.5));
        }
    }
    Ok(())
}

/// Each client goes to one member, and writes as fast as it is answered.
async fn rate<F, W>(clients: usize, client: F) -> anyhow::Result<Rate>
where
    F: Fn(usize) -> W,
    W: Future<Output = anyhow::Result<Vec<Duration>>> + Send + 'static,
{
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(client(number));
    }
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    Ok(Rate { per_second, p50_ms: at(50), p99_ms: at(99) })
}

fn address(daemon: &Daemon) -> SocketAddr {
    SocketAddr::new(daemon.machine.address.into(), 6443)
}

fn ours(daemons: &[Daemon], clients: usize) -> anyhow::Result<Rate> {
    let access = Access::of(daemons[0].kubeconfig());
    let servers: Vec<SocketAddr> = daemons.iter().map(address).collect();
    inside(&daemons[0].machine.namespace(), async move {
        rate(clients, |number| {
            let (access, server) = (access.clone(), servers[number % servers.len()]);
            async move {
                let (mut connection, mut times) = (connect(&access, server).await?, Vec::new());
                let began = Instant::now();
                for count in 0u64.. {
                    let asked = Instant::now();
                    if asked.duration_since(began) > SPAN {
                        break;
                    }
                    create(&mut connection, server, &format!("scale-{clients}-{number}-{count}")).await?;
                    times.push(asked.elapsed());
                }
                Ok(times)
            }
        })
        .await
    })
}

async fn connect(access: &Access, server: SocketAddr) -> anyhow::Result<Connection> {
    Connection::open(access, server).await.map_err(|failure| anyhow::anyhow!("{failure:?}"))
}

async fn create(connection: &mut Connection, server: SocketAddr, name: &str) -> anyhow::Result<()> {
    let value = "x".repeat(VALUE_BYTES);
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"value":"{value}"}}}}"#
    );
    let path = "/api/v1/namespaces/default/configmaps";
    let body = Bytes::from(body);
    loop {
        let answer = connection.ask(server, Method::POST, path, body.clone()).await;
        let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        if answer.status != StatusCode::TOO_MANY_REQUESTS {
            anyhow::ensure!(answer.status.is_success(), "{answer:?}");
            return Ok(());
        }
        // So many writes are not taken at a time, and clients are told when to come again.
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

fn theirs(etcds: &Etcds, clients: usize) -> anyhow::Result<Rate> {
    let servers = etcds.urls();
    inside(&etcds.namespace(), async move {
        let client = tandem_tests::http_client();
        rate(clients, |number| {
            let (client, url) = (client.clone(), format!("{}/v3/kv/put", servers[number % servers.len()]));
            async move {
                let mut times = Vec::new();
                let began = Instant::now();
                let value = STANDARD.encode("x".repeat(VALUE_BYTES));
                for count in 0u64.. {
                    let asked = Instant::now();
                    if asked.duration_since(began) > SPAN {
                        break;
                    }
                    let key = STANDARD.encode(format!("scale-{clients}-{number}-{count}"));
                    let body = format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}");
                    client.post(&url).body(body).send().await?.error_for_status()?.bytes().await?;
                    times.push(asked.elapsed());
                }
                Ok(times)
            }
        })
        .await
    })
}

/// A member that holds very many objects.
pub(crate) fn objects(report: &mut Report, network: &Network) -> anyhow::Result<()> {
    let mut daemon = Daemon::control(network.machine(59), "one");
    let (access, server) = (Access::of(daemon.kubeconfig()), address(&daemon));
    let began = Instant::now();
    let acknowledged = inside(&daemon.machine.namespace(), fill(access.clone(), server))?;
    let rate = OBJECTS as f64 / began.elapsed().as_secs_f64();
    report.figure("100,000 objects, filled by 64 clients", rate, "/s", Goal::AtLeast(3000.0));
    let stall = acknowledged.windows(2).map(|pair| pair[1].duration_since(pair[0])).max().unwrap_or_default();
    report.figure(
        "100,000 objects, longest write stall while filling",
        stall.as_secs_f64() * 1e3,
        "ms",
        Goal::AtMost(100.0),
    );
    report.figure("100,000 objects, resident memory", resident_megabytes(&daemon)?, "MB", Goal::AtMost(400.0));
    let mut pages = inside(&daemon.machine.namespace(), list(access, server))?;
    pages.sort_by(f64::total_cmp);
    report.figure("100,000 objects, a page of 500, median", median(pages.clone()), "ms", Goal::None);
    let slow = pages.get(pages.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    report.figure("100,000 objects, a page of 500, p99", slow, "ms", Goal::AtMost(50.0));
    daemon.kill();
    let began = Instant::now();
    daemon.start();
    report.figure("100,000 objects, killed, start to ready", began.elapsed().as_secs_f64(), "s", Goal::AtMost(1.0));
    report.figure("100,000 objects, resident memory after the start", resident_megabytes(&daemon)?, "MB", Goal::None);
    Ok(())
}

/// Creates all objects; gives back when each was acknowledged.
async fn fill(access: Access, server: SocketAddr) -> anyhow::Result<Vec<Instant>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..FILLERS {
        let (access, next) = (access.clone(), next.clone());
        tasks.spawn(async move {
            let (mut connection, mut times) = (connect(&access, server).await?, Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= OBJECTS {
                    return anyhow::Ok(times);
                }
                create(&mut connection, server, &format!("object-{number}")).await?;
                times.push(Instant::now());
            }
        });
    }
    let mut acknowledged = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        acknowledged.extend(ended??);
    }
    acknowledged.sort_unstable();
    Ok(acknowledged)
}

/// How long each page of a listing took, in milliseconds.
async fn list(access: Access, server: SocketAddr) -> anyhow::Result<Vec<f64>> {
    let mut connection = connect(&access, server).await?;
    let (mut times, mut token) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let path = format!("/api/v1/namespaces/default/configmaps?limit={PAGE}&continue={token}");
        let asked = Instant::now();
        let answer = connection.ask(server, Method::GET, &path, Bytes::new()).await;
        let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        times.push(asked.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(answer.status.is_success(), "{answer:?}");
        let text = String::from_utf8_lossy(&answer.body);
        let found = text.split("\"continue\":\"").nth(1).and_then(|rest| rest.split('"').next());
        token = found.unwrap_or_default().to_owned();
    }
    Ok(times)
}

fn resident_megabytes(daemon: &Daemon) -> anyhow::Result<f64> {
    let pid = daemon.pid().map(|pid| pid.to_string()).unwrap_or_default();
    let path = PathBuf::from("/proc").join(pid).join("status");
    let kilobytes = until("the process tells its size", DEADLINE, || {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        number.ok_or(text)
    });
    Ok(kilobytes / 1e3)
}
