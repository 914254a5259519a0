use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tandem_client::{
    from_kubeconfig_at,
    k8s_openapi::api::core::v1::ConfigMap,
    kube::{
        Api, Client,
        api::{ObjectMeta, PostParams},
    },
};
use tandem_tests::{
    cluster::Daemon,
    machine::{Network, inside},
    until,
};
use tokio::{sync::OnceCell, task::JoinSet};

use crate::{
    etcd::Etcds,
    report::{Goal, Report, median},
};

/// How often the leader is killed.
const ROUNDS: usize = 10;
const WRITERS: usize = 16;
/// A client gives a member this long before it asks the next one.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long the load runs before the kill, and after it.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);
const DEADLINE: Duration = Duration::from_secs(60);

/// Three members each of Tandem and of etcd, the leader killed again and again under the same load: the longest time
/// without an acknowledged write.
pub(crate) fn kills(report: &mut Report, network: &Network) -> anyhow::Result<()> {
    let ours = tandem(network)?;
    let theirs = etcd(network)?;
    let figures = |gaps: &[f64]| (median(gaps.to_vec()), gaps.iter().copied().fold(0.0, f64::max));
    let ((middle, longest), (etcd_middle, etcd_longest)) = (figures(&ours), figures(&theirs));
    report.figure("leader killed, longest gap in acks, median of 10", middle, "s", Goal::AtMost(0.7));
    report.figure("leader killed, longest gap in acks, maximum", longest, "s", Goal::AtMost(1.0));
    report.figure("etcd's leader killed, same load, median", etcd_middle, "s", Goal::None);
    report.figure("etcd's leader killed, same load, maximum", etcd_longest, "s", Goal::None);
    report.figure("gap as part of etcd's, median", middle / etcd_middle, "", Goal::AtMost(0.6));
    Ok(())
}

/// One way to write a key through one of three members.
trait Writes: Clone + Send + Sync + 'static {
    fn write(&self, member: usize, name: String) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Writes from many clients, each going from member to member, until told to stop: when each write was acknowledged.
async fn load(writes: impl Writes, round: usize, stop: Arc<AtomicBool>) -> Vec<Instant> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (writes, stop) = (writes.clone(), stop.clone());
        writers.spawn(async move {
            let (mut acks, mut member) = (Vec::new(), writer % 3);
            for count in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let written =
                    tokio::time::timeout(PATIENCE, writes.write(member, format!("k{round}-{writer}-{count}")));
                match written.await {
                    Ok(Ok(())) => acks.push(Instant::now()),
                    // A member that refuses at once is not asked again and again without a pause.
                    Ok(Err(_)) => {
                        member = (member + 1) % 3;
                        tokio::time::sleep(PATIENCE / 30).await;
                    }
                    Err(_) => member = (member + 1) % 3,
                }
            }
            acks
        });
    }
    writers.join_all().await.concat()
}

/// The longest time between two acknowledged writes while `kill` happened, in seconds.
fn gap(namespace: PathBuf, writes: impl Writes, round: usize, kill: impl FnOnce()) -> anyhow::Result<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let running = std::thread::spawn(move || inside(&namespace, load(writes, round, stopped)));
    wait(BEFORE);
    let at = Instant::now();
    kill();
    wait(AFTER);
    stop.store(true, Ordering::Relaxed);
    let mut acks = running.join().map_err(|_| anyhow::anyhow!("the load ended badly"))?;
    acks.sort();
    anyhow::ensure!(acks.last().is_some_and(|last| *last > at), "nothing was acknowledged after the kill");
    let near = acks.windows(2).filter(|pair| pair[1] > at);
    Ok(near.map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).fold(0.0, f64::max))
}

#[allow(clippy::disallowed_methods, reason = "a load runs for a time")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

/// A client of each member, all with the certificate of one. They are made where they are used: they belong to that
/// runtime.
#[derive(Clone)]
struct Members {
    kubeconfig: PathBuf,
    servers: Vec<(String, Arc<OnceCell<Client>>)>,
}

impl Writes for Members {
    async fn write(&self, member: usize, name: String) -> anyhow::Result<()> {
        let metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, ..ConfigMap::default() };
        let (server, client) = &self.servers[member];
        let client = client.get_or_try_init(|| from_kubeconfig_at(&self.kubeconfig, Some(server))).await?;
        Api::<ConfigMap>::default_namespaced(client.clone()).create(&PostParams::default(), &map).await?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Listed {
    items: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    name: String,
    role: String,
}

fn tandem(network: &Network) -> anyhow::Result<Vec<f64>> {
    let names = ["one", "two", "three"];
    let one = Daemon::control(network.machine(41), names[0]);
    let two = Daemon::member(network.machine(42), &one, names[1], &[]);
    let three = Daemon::member(network.machine(43), &one, names[2], &[]);
    let mut members = [one, two, three];
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let leading = until("all three to vote and one to lead", DEADLINE, || leader(&members[round % 3], &names));
        let other = &members[(leading + 1) % 3];
        let (namespace, clients) = (other.machine.namespace(), clients(other, &members));
        gaps.push(gap(namespace, clients, round, || members[leading].kill())?);
        members[leading].start();
    }
    Ok(gaps)
}

fn leader(asked: &Daemon, names: &[&str]) -> Result<usize, String> {
    let output = asked.tandem(&["member", "list", "-o", "json", "--data-dir", &asked.data_dir()]);
    let Listed { items } = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let voters = items.iter().filter(|member| member.role != "learner").count();
    let leader = items.iter().find(|member| member.role == "leader");
    let place = leader.and_then(|leader| names.iter().position(|name| *name == leader.name));
    place.filter(|_| voters == names.len()).ok_or_else(|| format!("{items:?}"))
}

fn clients(from: &Daemon, members: &[Daemon]) -> Members {
    let server = |member: &Daemon| (format!("https://{}:6443", member.machine.address), Arc::default());
    Members { kubeconfig: from.kubeconfig().to_owned(), servers: members.iter().map(server).collect() }
}

/// etcd's own JSON gateway, so that both are spoken to in JSON over HTTP.
#[derive(Clone)]
struct Gateway {
    client: reqwest::Client,
    servers: Vec<String>,
}

impl Writes for Gateway {
    async fn write(&self, member: usize, name: String) -> anyhow::Result<()> {
        let key = STANDARD.encode(name);
        let url = format!("{}/v3/kv/put", self.servers[member]);
        let body = format!("{{\"key\":\"{key}\",\"value\":\"{key}\"}}");
        self.client.post(url).body(body).send().await?.error_for_status()?;
        Ok(())
    }
}

fn etcd(network: &Network) -> anyhow::Result<Vec<f64>> {
    let mut etcds = Etcds::start(network, 44, 3)?;
    let servers = etcds.urls();
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let leading = etcds.leader();
        let namespace = etcds.members[(leading + 1) % 3].machine.namespace();
        let gateway = Gateway { client: reqwest::Client::builder().build()?, servers: servers.clone() };
        gaps.push(gap(namespace, gateway, round, || etcds.members[leading].kill())?);
        etcds.members[leading].start()?;
    }
    Ok(gaps)
}
