//! A control-plane member, put together: store, API server, registry of images, controllers, scheduler.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use axum::Router;
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use tandem_api::{Clock, Entropy, Identity, Settings, SystemClock, SystemEntropy};
use tandem_apiserver::{ApiServer, ImageKinds, ReadyCheck, TlsDialer};
use tandem_client::{
    Kubeconfig, in_process,
    k8s_openapi::api::core::v1::ConfigMap,
    kube::{
        self, Api,
        api::{ObjectMeta, Patch, PatchParams},
    },
    kubeconfig,
};
use tandem_pki::{CertificateRequest, Leaf, Pki, Usage, write_private};
use tandem_store::{Leadership, OpenOptions, RaftStore};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    certificates::{self, ServerCertificate},
    cli::MemberFlags,
    data::{self, DataFolder},
    join::NodeFiles,
    settings,
    signer::ClusterSigner,
};

/// Where nodes that join read the cluster's settings.
pub(crate) const SETTINGS_NAMESPACE: &str = "kube-public";
pub(crate) const SETTINGS_NAME: &str = "tandem-settings";
pub(crate) const SETTINGS_KEY: &str = "settings.json";

/// The one voter of a cluster that starts. Ids are never used twice, so members that join later get others.
const FIRST_MEMBER: u64 = 1;
/// What still runs this long after the end began is left behind.
const STOP_MAX: Duration = Duration::from_millis(900);

/// A member that answers.
pub(crate) struct ControlPlane {
    pub(crate) router: Router,
    pub(crate) settings: Settings,
    pub(crate) pki: Arc<Pki>,
    pub(crate) administrator: Leaf,
    /// The URL for kubectl.
    pub(crate) server: String,
    /// Where this member is reached from its own machine.
    pub(crate) local: SocketAddr,
    /// Whether `/readyz` may say ok; for `up` that takes a node, too.
    pub(crate) node_ready: Arc<AtomicBool>,
    store: Arc<RaftStore>,
    tasks: JoinSet<()>,
    clock: Arc<dyn Clock>,
}

struct Parts {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    pki: Arc<Pki>,
    store: Arc<RaftStore>,
    settings: Settings,
    metrics: Arc<Mutex<MetricsRegistry>>,
}

/// Takes what a member needs before anything is written, and then its folder: a start that is refused leaves nothing.
pub(crate) async fn take(folder: &Path, flags: &MemberFlags) -> anyhow::Result<(DataFolder, TcpListener)> {
    settings::from_flags(&flags.settings)?;
    match listen(flags.listen).await {
        Ok(listener) => Ok((DataFolder::open(folder)?, listener)),
        // A folder in use is the better reason: whoever uses it has the port, too.
        Err(error) if data::is_data(folder) => DataFolder::open(folder).and(Err(error)),
        Err(error) => Err(error),
    }
}

/// Starts a member. It answers requests when this returns.
pub(crate) async fn start(
    data: &DataFolder,
    flags: &MemberFlags,
    listener: TcpListener,
    machine: IpAddr,
    shutdown: CancellationToken,
) -> anyhow::Result<ControlPlane> {
    let parts = open(data, flags).await?;
    let listens = flags.listen.ip();
    // Endpoints may not name a loopback address; each node's forwarder finds the member in any case.
    let outside = if listens.is_loopback() { machine } else { reachable(listens, machine) };
    let advertise = flags.advertise.unwrap_or(outside);
    let certificate =
        ServerCertificate::issue(parts.pki.clone(), &parts.settings, &[listens, advertise, machine], &*parts.clock)?;
    let node_ready = Arc::new(AtomicBool::new(false));
    let known = Arc::new(KnownImages(OnceLock::new()));
    let api = api_server(&parts, node_ready.clone(), known.clone())?;
    let images = image_registry(data, &api, &parts)?;
    // The API server asks the registry of images, whose index is objects of the API server: one of them comes first.
    let _first = known.0.set(images.clone());
    let router = api.layers(images.router());
    api.bootstrap().await.context("the cluster's first objects could not be made")?;

    let mut tasks = JoinSet::new();
    let tls = tandem_apiserver::tls::server_config(certificate.clone(), parts.pki.cluster.certificate())?;
    tasks.spawn(serve(listener, tls, router.clone(), shutdown.clone()));
    tasks.spawn(certificate.keep_fresh(parts.clock.clone(), shutdown.clone()));
    tasks.spawn(images.run(shutdown.clone()));
    let leads = follow_leadership(parts.store.leadership(), &mut tasks, shutdown.clone());
    let port = flags.listen.port();
    controllers(&parts, &router, leads, SocketAddr::new(advertise, port), &mut tasks, &shutdown);
    publish_settings(&router, &parts.settings).await?;

    let local = SocketAddr::new(reachable(listens, Ipv4Addr::LOCALHOST.into()), port);
    let shown = if flags.advertise.is_some() { advertise } else { local.ip() };
    let server = format!("https://{}", SocketAddr::new(shown, port));
    let administrator = write_kubeconfig(data, &parts, &server)?;
    let Parts { pki, store, settings, clock, .. } = parts;
    Ok(ControlPlane { router, settings, pki, administrator, server, local, node_ready, store, tasks, clock })
}

impl ControlPlane {
    /// Writes the certificates of the node in this process.
    pub(crate) fn issue_node(&self, files: &NodeFiles, name: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let user = format!("system:node:{name}");
        let client = certificates::client(&self.pki, &user, &["system:nodes"], &*self.clock)?;
        let request = CertificateRequest {
            common_name: &user,
            organizations: &["system:nodes"],
            dns_names: &[name.to_owned()],
            addresses: &[address.into()],
            usage: Usage::Server,
        };
        let server = self.pki.cluster.issue(&request, self.clock.now())?;
        write_private(&files.authority, self.pki.cluster.certificate().as_bytes())?;
        write_private(&files.client_key, client.key.as_bytes())?;
        write_private(&files.client_certificate, client.certificate.as_bytes())?;
        write_private(&files.server_key, server.key.as_bytes())?;
        write_private(&files.server_certificate, server.certificate.as_bytes())?;
        Ok(())
    }

    /// Waits for what was told to stop, then closes the store.
    pub(crate) async fn stop(mut self) {
        let ended = timeout(STOP_MAX, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if let Err(error) = self.store.shutdown().await {
            tracing::error!(%error, "the store was not closed in order; its log has everything");
        }
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}: is the port in use? Choose another with --listen"))
}

/// An address that others can use: not one that means "all of them".
fn reachable(address: IpAddr, otherwise: IpAddr) -> IpAddr {
    if address.is_unspecified() { otherwise } else { address }
}

async fn open(data: &DataFolder, flags: &MemberFlags) -> anyhow::Result<Parts> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let pki = Arc::new(Pki::open(&data.pki(), clock.now())?);
    let metrics = Arc::new(Mutex::new(MetricsRegistry::default()));
    let cluster = data.cluster_id(&*entropy)?;
    let mut options = OpenOptions::new(data.store(), FIRST_MEMBER, cluster);
    options.metrics = tandem_store::Metrics::register(&mut metrics.lock());
    let store = RaftStore::open(options).await.context("the store cannot be opened")?;
    let settings = settings::settle(&*store, &flags.settings).await?;
    Ok(Parts { clock, entropy, pki, store, settings, metrics })
}

fn image_registry(data: &DataFolder, api: &ApiServer, parts: &Parts) -> anyhow::Result<Arc<tandem_images::Registry>> {
    let folder = data.images();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let client = in_process(api.router(), Identity::controller("image"));
    let registry = tandem_images::Registry::open(tandem_images::Config {
        index: Arc::new(tandem_images::ObjectIndex::new(client)),
        folder,
        clock: parts.clock.clone(),
        verifier: None,
        limits: tandem_images::Limits::default(),
    });
    Ok(Arc::new(registry.context("the registry's folder cannot be opened")?))
}

fn api_server(parts: &Parts, node_ready: Arc<AtomicBool>, images: Arc<KnownImages>) -> anyhow::Result<ApiServer> {
    let masters = [tandem_api::groups::MASTERS];
    let client = certificates::client(&parts.pki, "kube-apiserver-kubelet-client", &masters, &*parts.clock)?;
    let nodes = TlsDialer::new(parts.pki.cluster.certificate(), &client.certificate, &client.key)?;
    let node = ReadyCheck {
        name: "node".to_owned(),
        check: Arc::new(move || {
            if node_ready.load(Ordering::Relaxed) { Ok(()) } else { Err("the node is not ready yet".to_owned()) }
        }),
    };
    Ok(ApiServer::new(tandem_apiserver::Config {
        storage: parts.store.clone(),
        leadership: parts.store.leadership(),
        registry: Arc::new(tandem_registry::Registry::builtin()),
        settings: parts.settings.clone(),
        clock: parts.clock.clone(),
        entropy: parts.entropy.clone(),
        service_account_key: Some(parts.pki.service_accounts.clone()),
        nodes: Some(Arc::new(nodes)),
        images: Some(images),
        ready: vec![node],
        metrics: parts.metrics.clone(),
    }))
}

/// The registry of images, once it is there.
struct KnownImages(OnceLock<Arc<tandem_images::Registry>>);

#[async_trait]
impl ImageKinds for KnownImages {
    async fn is_component(&self, image: &str) -> bool {
        let Some(registry) = self.0.get() else { return false };
        match registry.known(image).await {
            Ok(known) => known.is_some_and(|known| known.kind == tandem_images::Kind::Component),
            Err(error) => {
                tracing::warn!(%error, image, "look up an image");
                false
            }
        }
    }
}

async fn serve(listener: TcpListener, tls: rustls::ServerConfig, router: Router, shutdown: CancellationToken) {
    if let Err(error) = tandem_apiserver::serve(listener, tls, router, shutdown).await {
        tracing::error!(%error, "the API server ended");
    }
}

/// Leader or not, without the term: what controllers and scheduler ask.
fn follow_leadership(
    mut store: watch::Receiver<Leadership>,
    tasks: &mut JoinSet<()>,
    shutdown: CancellationToken,
) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(store.borrow().leader);
    tasks.spawn(async move {
        loop {
            tokio::select! {
                changed = store.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
            let leads = store.borrow_and_update().leader;
            sender.send_if_modified(|current| std::mem::replace(current, leads) != leads);
        }
    });
    receiver
}

fn controllers(
    parts: &Parts,
    router: &Router,
    leads: watch::Receiver<bool>,
    advertise: SocketAddr,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) {
    let api = router.clone();
    let client_for = move |name: &str| -> kube::Client { in_process(api.clone(), Identity::controller(name)) };
    let context = tandem_controllers::Context {
        client_for: Arc::new(client_for),
        reader: in_process(router.clone(), Identity::controller("generic-garbage-collector")),
        leadership: leads.clone(),
        settings: parts.settings.clone(),
        clock: parts.clock.clone(),
        metrics: tandem_controllers::Metrics::register(&mut parts.metrics.lock()),
        ca_pem: parts.pki.cluster.certificate().to_owned(),
        signer: Arc::new(ClusterSigner { pki: parts.pki.clone(), clock: parts.clock.clone() }),
        advertise,
        node_grace: tandem_controllers::NODE_GRACE,
    };
    tasks.spawn(tandem_controllers::run(context, shutdown.clone()));
    let context = tandem_scheduler::Context {
        client: in_process(router.clone(), Identity::scheduler()),
        leadership: leads,
        clock: parts.clock.clone(),
        metrics: tandem_scheduler::Metrics::register(&mut parts.metrics.lock()),
    };
    tasks.spawn(tandem_scheduler::run(context, shutdown.clone()));
}

async fn publish_settings(router: &Router, settings: &Settings) -> anyhow::Result<()> {
    let client = in_process(router.clone(), Identity::administrator());
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some(SETTINGS_NAME.to_owned()), ..ObjectMeta::default() },
        data: Some([(SETTINGS_KEY.to_owned(), serde_json::to_string(settings)?)].into()),
        ..ConfigMap::default()
    };
    let maps = Api::<ConfigMap>::namespaced(client, SETTINGS_NAMESPACE);
    let params = PatchParams::apply("tandem").force();
    maps.patch(SETTINGS_NAME, &params, &Patch::Apply(&map))
        .await
        .context("the cluster's settings cannot be published")?;
    Ok(())
}

fn write_kubeconfig(data: &DataFolder, parts: &Parts, server: &str) -> anyhow::Result<Leaf> {
    let masters = [tandem_api::groups::MASTERS];
    let administrator = certificates::client(&parts.pki, "kubernetes-admin", &masters, &*parts.clock)?;
    let content = Kubeconfig {
        name: "tandem",
        server,
        authority: parts.pki.cluster.certificate(),
        certificate: &administrator.certificate,
        key: &administrator.key,
    };
    write_private(&data.admin_kubeconfig(), kubeconfig(&content).as_bytes())?;
    Ok(administrator)
}
