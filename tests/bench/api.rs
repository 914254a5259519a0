use std::{
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tandem_client::{
    k8s_openapi::api::core::v1::ConfigMap,
    kube::{
        Api, Client,
        api::{ObjectMeta, PostParams},
    },
};
use tandem_tests::cluster::Daemon;
use tokio::task::JoinSet;

use crate::report::{Goal, Report};

const SPAN: Duration = Duration::from_secs(5);
const CLIENTS: usize = 64;
const VALUE_BYTES: usize = 256;

/// Durable creates through the API, beside etcd's puts on the same disk; one client and many.
/// `store` is what the store alone wrote with as many writers.
pub(crate) fn writes(report: &mut Report, cluster: &Daemon, store: f64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut etcd = Etcd::start(cluster, folder.path())?;
    let mut rates = Vec::new();
    for clients in [1, CLIENTS] {
        let kubeconfig = cluster.kubeconfig().to_owned();
        let ours = cluster.machine.inside(async move {
            let client = tandem_client::from_kubeconfig(&kubeconfig).await?;
            rate(clients, move |writer, index| create(client.clone(), format!("bench-{clients}-{writer}-{index}")))
                .await
        })?;
        let theirs = cluster.machine.inside(async move {
            let client = tandem_tests::http_client();
            rate(clients, move |writer, index| put(client.clone(), format!("bench-{clients}-{writer}-{index}"))).await
        })?;
        report.figure(&format!("API creates/s, {clients} clients"), ours, "/s", Goal::None);
        report.figure(&format!("etcd puts/s, {clients} clients, same run"), theirs, "/s", Goal::None);
        report.figure(&format!("API creates per etcd put, {clients} clients"), ours / theirs, "", Goal::AtLeast(0.5));
        if clients == CLIENTS {
            report.figure("store alone per etcd put, 64 clients", store / theirs, "", Goal::AtLeast(1.0));
        }
        rates.push(ours);
    }
    report.figure("API creates, 64 clients to one", rates[1] / rates[0], "", Goal::None);
    etcd.stop();
    Ok(())
}

async fn rate<F, W>(clients: usize, write: F) -> anyhow::Result<f64>
where
    F: Fn(usize, u64) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for writer in 0..clients {
        let (done, write) = (done.clone(), write.clone());
        tasks.spawn(async move {
            let mut index = 0;
            while began.elapsed() < SPAN {
                write(writer, index).await?;
                index += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

async fn create(client: Client, name: String) -> anyhow::Result<()> {
    let object = ConfigMap {
        metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
        data: Some([("value".to_owned(), "x".repeat(VALUE_BYTES))].into()),
        ..ConfigMap::default()
    };
    Api::<ConfigMap>::default_namespaced(client).create(&PostParams::default(), &object).await?;
    Ok(())
}

/// etcd's own JSON gateway, so that both are spoken to in JSON over HTTP.
async fn put(client: reqwest::Client, key: String) -> anyhow::Result<()> {
    let value = STANDARD.encode("x".repeat(VALUE_BYTES));
    let body = format!("{{\"key\":\"{}\",\"value\":\"{value}\"}}", STANDARD.encode(key));
    client.post("http://127.0.0.1:2379/v3/kv/put").body(body).send().await?.error_for_status()?;
    Ok(())
}

struct Etcd(Child);

impl Etcd {
    fn start(cluster: &Daemon, folder: &Path) -> anyhow::Result<Etcd> {
        let mut command = cluster.machine.command("etcd");
        command.arg("--data-dir").arg(folder.join("etcd")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("etcd is not installed: run `scripts/setup bench`")?;
        tandem_tests::until("etcd answers", Duration::from_secs(20), || {
            let output = cluster.machine.shell("curl -s --fail http://127.0.0.1:2379/health");
            if output.status.success() { Ok(()) } else { Err(output) }
        });
        Ok(Etcd(child))
    }

    fn stop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ended = self.0.kill().and_then(|()| self.0.wait().map(drop));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
