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

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use axum::Router;
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use tandem_api::{ApiError, Clock, Entropy, Identity, Reason, Settings, SystemClock, SystemEntropy};
use tandem_apiserver::{ApiServer, Front, ImageKinds, OtherProtocol, ReadyCheck, TlsDialer};
use tandem_client::{
    Kubeconfig, in_process,
    k8s_openapi::api::core::v1::ConfigMap,
    kube::{
        self, Api,
        api::{ObjectMeta, Patch, PatchParams},
    },
    kubeconfig,
};
use tandem_peers::{Network, StoreAnswerer, Thread};
use tandem_pki::{CertificateRequest, Leaf, MemberName, Pki, Usage, write_private};
use tandem_store::{Change, OpenOptions, RaftStore, Standing};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    certificates::{self, ServerCertificate},
    cli::{AutoscalingFlags, JoinFlags, MemberFlags},
    data::{self, DataFolder},
    elsewhere::OtherRegistries,
    join::NodeFiles,
    leading,
    member::{self, Record},
    members::{self, Membership},
    recovery, settings,
    terminal::Progress,
};

/// What to do about a member whose files are not what it wrote.
const DAMAGED: &str = "the store is damaged, and this member does not start with it. Where there are other members, \
    put a new one in its place: `tandem control --data-dir EMPTY-FOLDER --join URL --token TOKEN --replace ID`";

/// Where nodes that join read the cluster's settings.
pub(crate) const SETTINGS_NAMESPACE: &str = "kube-public";
pub(crate) const SETTINGS_NAME: &str = "tandem-settings";
pub(crate) const SETTINGS_KEY: &str = "settings.json";

/// What still runs this long after the end began is left behind.
const STOP_MAX: Duration = Duration::from_millis(1_300);
/// How long handing over the lead may take before the member goes without it.
const HAND_OVER_MAX: Duration = Duration::from_millis(600);
/// How often a member that waits for the others looks again.
const LOOK: Duration = Duration::from_millis(50);
/// After this long the terminal is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

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
    clock: Arc<dyn Clock>,
    running: Running,
}

/// What has to be stopped in order.
struct Running {
    store: Arc<RaftStore>,
    /// Where the store and the connections of members live.
    thread: Thread,
    /// Ends what answers clients, once the lead was handed over.
    closing: CancellationToken,
    /// Ends what answers other members, once everybody is answered.
    parting: CancellationToken,
    tasks: JoinSet<()>,
}

struct Parts {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    pki: Arc<Pki>,
    store: Arc<RaftStore>,
    settings: Settings,
    metrics: Arc<Mutex<MetricsRegistry>>,
    autoscaling: AutoscalingFlags,
}

/// How and where a member is started.
pub(crate) struct Start<'a> {
    pub(crate) data: &'a DataFolder,
    pub(crate) flags: &'a MemberFlags,
    pub(crate) join: &'a JoinFlags,
    /// The machine's address, for others.
    pub(crate) machine: IpAddr,
    pub(crate) progress: &'a Progress,
}

impl Start<'_> {
    /// Where others reach this member.
    fn advertised(&self) -> SocketAddr {
        let listens = self.flags.listen.ip();
        // Endpoints may not name a loopback address; each node's forwarder finds the member in any case.
        let outside = if listens.is_loopback() { self.machine } else { reachable(listens, self.machine) };
        SocketAddr::new(self.flags.advertise.unwrap_or(outside), self.flags.listen.port())
    }
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
    start: Start<'_>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<ControlPlane> {
    let Start { data, flags, .. } = start;
    let record = member::ensure(data, flags.name(), start.join, start.advertised()).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let pki = Arc::new(Pki::open(&data.pki(), clock.now())?);
    let metrics = Arc::new(Mutex::new(MetricsRegistry::default()));
    let cluster = data.cluster_id(&SystemEntropy)?;
    let opening = Opening {
        start: &start,
        pki: &pki,
        cluster: &cluster,
        clock: &*clock,
        metrics: tandem_store::Metrics::register(&mut metrics.lock()),
    };
    let Opened { mut running, identity, record } = opening.open(record).await?;
    record.settled(data)?;

    // Other members are answered from now on: without them nothing is known that clients could be answered with.
    let front = Arc::new(OnceLock::new());
    running.listen(listener, identity.clone(), front.clone());
    running.tasks.spawn(certificates::renew_identity(pki.clone(), identity, clock.clone(), shutdown.clone()));
    running.tasks.spawn(recovery::remember(running.store.members(), record.id, data.others(), shutdown.clone()));
    let store = running.store.clone();
    let waiting = Waiting { store: &store, progress: start.progress, shutdown: &shutdown };
    waiting.for_settings().await?;
    let settings = settings::settle(&*store, &flags.settings).await?;
    let parts = Parts {
        clock,
        entropy: Arc::new(SystemEntropy),
        pki,
        store: store.clone(),
        settings,
        metrics,
        autoscaling: flags.autoscaling,
    };
    let Made { api, router, node_ready } = front_of(&start, &parts, cluster, &front, &mut running, &shutdown)?;
    waiting.for_quorum(&api, &router, &parts.settings, &record).await?;
    move_to(&store, flags.name(), start.advertised()).await?;
    let port = flags.listen.port();
    let local = SocketAddr::new(reachable(flags.listen.ip(), Ipv4Addr::LOCALHOST.into()), port);
    let shown = flags.advertise.unwrap_or(local.ip());
    let server = format!("https://{}", SocketAddr::new(shown, port));
    let administrator = write_kubeconfig(data, &parts, &server)?;
    let Parts { pki, settings, clock, .. } = parts;
    Ok(ControlPlane { router, settings, pki, administrator, server, local, node_ready, clock, running })
}

/// What a store is opened with.
struct Opening<'a> {
    start: &'a Start<'a>,
    pki: &'a Arc<Pki>,
    cluster: &'a str,
    clock: &'a dyn Clock,
    metrics: tandem_store::Metrics,
}

/// A member with its store.
struct Opened {
    running: Running,
    identity: Arc<tandem_peers::Identity>,
    record: Record,
}

impl Opening<'_> {
    /// Opens the store. A member whose files are damaged comes back as a new one, where others take it in.
    async fn open(&self, record: Record) -> anyhow::Result<Opened> {
        let data = self.start.data;
        let record = if record.is_replacing() { recovery::set_aside(data, record, self.clock)? } else { record };
        let error = match self.try_open(&record).await {
            Ok((running, identity)) => return Ok(Opened { running, identity, record }),
            Err(error) => error,
        };
        if !matches!(error.downcast_ref(), Some(tandem_store::Error::Damaged { .. })) {
            return Err(error);
        }
        self.start.progress.note(&format!("{error:#}; the other members are asked to take this one in anew"));
        let masters = [tandem_api::groups::MASTERS];
        let damaged = recovery::Damaged {
            data,
            record,
            name: self.start.flags.name(),
            address: self.start.advertised(),
            authority: self.pki.cluster.certificate(),
            leaf: certificates::client(self.pki, "system:member", &masters, self.clock)?,
            clock: self.clock,
        };
        let record = match damaged.become_new().await {
            Ok(record) => record,
            Err(why) => return Err(error.context(format!("{DAMAGED} ({why:#})"))),
        };
        let (running, identity) = self.try_open(&record).await?;
        Ok(Opened { running, identity, record })
    }

    async fn try_open(&self, record: &Record) -> anyhow::Result<(Running, Arc<tandem_peers::Identity>)> {
        let Start { data, flags, .. } = self.start;
        let name = MemberName { id: record.id, cluster: self.cluster.to_owned() };
        let leaf = name.issue(&self.pki.members, self.clock.now())?;
        let identity = Arc::new(tandem_peers::Identity::new(name, &leaf, self.pki.members.certificate())?);
        let mut options = OpenOptions::new(data.store(), record.id, self.cluster.to_owned());
        options.metrics = self.metrics.clone();
        options.reserve_bytes = tandem_store::RESERVE_BYTES;
        let address = self.start.advertised().to_string();
        (options.begin, options.address, options.name) = (record.begin(), address, flags.name());
        Ok((Running::open(options, &identity).await?, identity))
    }
}

/// What clients meet.
struct Made {
    api: ApiServer,
    router: Router,
    node_ready: Arc<AtomicBool>,
}

/// Puts together what clients meet, and lets them in.
fn front_of(
    start: &Start<'_>,
    parts: &Parts,
    cluster: String,
    front: &OnceLock<Front>,
    running: &mut Running,
    shutdown: &CancellationToken,
) -> anyhow::Result<Made> {
    let (data, advertised) = (start.data, start.advertised());
    let addresses = [start.flags.listen.ip(), advertised.ip(), start.machine];
    let certificate = ServerCertificate::issue(parts.pki.clone(), &parts.settings, &addresses, &*parts.clock)?;
    let node_ready = Arc::new(AtomicBool::new(false));
    let known = Arc::new(KnownImages(OnceLock::new()));
    let api = api_server(parts, start.flags, node_ready.clone(), known.clone())?;
    let members = leading::addresses(parts.store.members(), advertised, &mut running.tasks, shutdown.clone());
    let images = image_registry(data, &api, parts, advertised, members.clone())?;
    // The API server asks the registry of images, whose index is objects of the API server: one of them comes first.
    let _first = known.0.set(images.clone());
    let membership = Membership {
        store: parts.store.clone(),
        cluster,
        keys: data.pki(),
        data: data.store(),
        images: data.images(),
        listens: start.flags.listen,
        certificate: certificate.clone(),
        authority: parts.pki.cluster.certificate().to_owned(),
    };
    let router = api.layers(images.router().merge(members::router(membership)));
    let tls = tandem_apiserver::tls::server_config(certificate.clone(), parts.pki.cluster.certificate())?;
    let _first = front.set(Front { tls: Arc::new(tls), router: router.clone() });
    running.tasks.spawn(certificate.keep_fresh(parts.clock.clone(), shutdown.clone()));
    running.tasks.spawn(images.run(shutdown.clone()));
    let (leads, term) = leading::follow(parts.store.leadership(), &mut running.tasks, shutdown.clone());
    let work = leading::Work {
        api: &api,
        router: &router,
        leads,
        term,
        members,
        differing: parts.store.differing(),
        settings: &parts.settings,
        clock: &parts.clock,
        metrics: &parts.metrics,
        pki: &parts.pki,
        schedulers: settings::schedulers(start.flags.scheduler_config.as_deref())?,
        autoscaler_period: parts.autoscaling.horizontal_pod_autoscaler_sync_period,
    };
    work.start(&mut running.tasks, shutdown);
    Ok(Made { api, router, node_ready })
}

impl Running {
    /// Opens the store on threads of its own.
    async fn open(mut options: OpenOptions, identity: &Arc<tandem_peers::Identity>) -> anyhow::Result<Running> {
        let thread = Thread::start().context("cannot start threads")?;
        options.peers = Network::new(identity.clone(), thread.handle());
        let store = thread.spawn(RaftStore::open(options)).await?.context("the store cannot be opened")?;
        let (closing, parting) = (CancellationToken::new(), CancellationToken::new());
        Ok(Running { store, thread, closing, parting, tasks: JoinSet::new() })
    }

    fn listen(&mut self, listener: TcpListener, identity: Arc<tandem_peers::Identity>, front: Arc<OnceLock<Front>>) {
        let answerer = Arc::new(StoreAnswerer(self.store.clone()));
        let server = tandem_peers::Server::new(identity, answerer, self.thread.handle(), self.parting.clone());
        let take = Arc::new(move |start, from| server.take(start, from));
        let members = OtherProtocol { name: tandem_peers::ALPN, take };
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            if let Err(error) = tandem_apiserver::serve_beside(listener, front, Some(members), closing).await {
                tracing::error!(%error, "the API server ended");
            }
        });
    }

    async fn stop(mut self) {
        // Clients are answered until another member leads: what they write now is passed on to it.
        let store = self.store.clone();
        let handing = self.thread.spawn(async move { store.hand_over().await });
        if timeout(HAND_OVER_MAX, handing).await.is_err() {
            tracing::warn!("no other member took over the lead in time");
        }
        self.closing.cancel();
        let ended = timeout(STOP_MAX, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        let store = self.store.clone();
        match self.thread.spawn(async move { store.shutdown().await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the store was not closed in order; its log has everything"),
            Err(error) => tracing::error!(%error, "the store was not closed in order; its log has everything"),
        }
        // Not before: the last answers, to clients and to other members, wait for what the new leader sends.
        self.parting.cancel();
    }
}

/// What a member of several waits for before it can answer clients.
struct Waiting<'a> {
    store: &'a RaftStore,
    progress: &'a Progress,
    shutdown: &'a CancellationToken,
}

impl Waiting<'_> {
    /// A new member learns the settings from the others; the founder makes them; all others have them.
    async fn for_settings(&self) -> anyhow::Result<()> {
        let alone = || self.store.members().borrow().len() == 1 && self.store.leadership().borrow().leader;
        self.until("the other members send what the cluster holds", async || {
            Ok((alone() || settings::are_known(self.store).await?).then_some(()))
        })
        .await
    }

    /// Makes what every cluster has, as soon as anything can be written.
    async fn for_quorum(
        &self,
        api: &ApiServer,
        router: &Router,
        settings: &Settings,
        record: &Record,
    ) -> anyhow::Result<()> {
        let store = self.store;
        self.until("a quorum of the members is there", async || {
            if !store.has_quorum() {
                return Ok(None);
            }
            match first_objects(api, router, settings).await {
                Ok(()) => Ok(Some(())),
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
        if record.is_joining() {
            let what = "this member has caught up and votes";
            self.until(what, async || Ok((*store.standing().borrow() == Standing::Voter).then_some(()))).await?;
            self.progress.done(&format!("member {}: {what}", record.id));
        }
        Ok(())
    }

    async fn until(&self, what: &str, mut look: impl AsyncFnMut() -> anyhow::Result<Option<()>>) -> anyhow::Result<()> {
        let began = tokio::time::Instant::now();
        let mut told = false;
        while look().await?.is_none() {
            if *self.store.standing().borrow() == Standing::Removed {
                bail!(removed(self.store.id()));
            }
            if !told && began.elapsed() > PATIENCE {
                told = true;
                self.progress.note(&format!("waiting until {what}"));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.shutdown.cancelled() => bail!("stopped before {what}"),
            }
        }
        Ok(())
    }
}

/// Tells the others where this member is, should that have changed since it last ran.
async fn move_to(store: &RaftStore, name: String, address: SocketAddr) -> anyhow::Result<()> {
    let (member, address) = (store.id(), address.to_string());
    let known = store.members().borrow().iter().find(|other| other.id == member).cloned();
    if known.is_none_or(|known| (known.name, known.address) == (name.clone(), address.clone())) {
        return Ok(());
    }
    store
        .change(Change::Move { member, name, address })
        .await
        .context("the other members cannot be told this address")?;
    Ok(())
}

/// What is said to whoever runs a member that is none any longer.
fn removed(member: u64) -> String {
    format!(
        "member {member} was removed from its cluster, and its data folder is of no use any more. To come back as a new \
         member: empty the folder, then `tandem control --data-dir DIR --listen ADDRESS --join URL --token TOKEN` \
         (`tandem token create --role control` on a member prints the token)"
    )
}

/// Whether it is only that the members have not found each other yet.
fn is_passing(error: &anyhow::Error) -> bool {
    if let Some(error) = error.downcast_ref::<ApiError>() {
        return matches!(error.reason, Reason::ServiceUnavailable | Reason::Timeout);
    }
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if matches!(status.code, 503 | 504))
}

impl ControlPlane {
    /// Resolves, with what to say, when this member has been removed from its cluster.
    pub(crate) fn until_removed(&self) -> impl Future<Output = anyhow::Error> + Send + 'static {
        let (mut standing, member) = (self.running.store.standing(), self.running.store.id());
        async move {
            let told = standing.wait_for(|standing| *standing == Standing::Removed).await.is_ok();
            if !told {
                std::future::pending::<()>().await;
            }
            anyhow::anyhow!(removed(member))
        }
    }

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

    /// Hands over, waits for what was told to stop, then closes the store.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
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

fn image_registry(
    data: &DataFolder,
    api: &ApiServer,
    parts: &Parts,
    own: SocketAddr,
    members: watch::Receiver<Vec<SocketAddr>>,
) -> anyhow::Result<Arc<tandem_images::Registry>> {
    let masters = [tandem_api::groups::MASTERS];
    let leaf = certificates::client(&parts.pki, "system:member", &masters, &*parts.clock)?;
    let others = OtherRegistries::new(parts.pki.cluster.certificate(), &leaf, own, members)?;
    let folder = data.images();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let client = in_process(api.router(), Identity::controller("image"));
    let registry = tandem_images::Registry::open(tandem_images::Config {
        index: Arc::new(tandem_images::ObjectIndex::new(client)),
        folder,
        clock: parts.clock.clone(),
        verifier: None,
        others: Some(Arc::new(others)),
        limits: tandem_images::Limits::default(),
    });
    Ok(Arc::new(registry.context("the registry's folder cannot be opened")?))
}

fn api_server(
    parts: &Parts,
    flags: &MemberFlags,
    node_ready: Arc<AtomicBool>,
    images: Arc<KnownImages>,
) -> anyhow::Result<ApiServer> {
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
        endpoints: Arc::new(tandem_apiserver::Outward),
        pki: Some(parts.pki.clone()),
        images: Some(images),
        audit: flags.audit.open(&parts.clock, &parts.metrics)?,
        ready: vec![node],
        quorum: Some(parts.store.quorum()),
        metric_resolution: parts.autoscaling.metric_resolution,
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

/// What every cluster has, made by whoever comes first.
async fn first_objects(api: &ApiServer, router: &Router, settings: &Settings) -> anyhow::Result<()> {
    api.bootstrap().await.context("the cluster's first objects could not be made")?;
    publish_settings(router, settings).await
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
