//! A node with fake runtimes and the test API, whose agent can be ended and started again.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use parking_lot::Mutex;
use tandem_api::{Settings, SystemClock};
use tandem_client::events::Recorder;
use tandem_runtime::{AddressClass, Addresses, Fake, Program, Sandbox};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::api::TestApi;
use crate::{
    cgroup::Hierarchies,
    config::Directories,
    context::Context,
    events::Events,
    fields::NodeSize,
    images::Images,
    metrics::Metrics,
    objects::Objects,
    observer::Observer,
    registry::{Endpoint, Registries, Resolver},
    runtimes::Runtimes,
    services::Services,
    supervisor::{Pods, Supervisor},
    usage::Usage,
    volumes::Volumes,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Addresses in the order in which they are asked for.
#[derive(Default)]
struct Counted(Mutex<BTreeMap<String, Ipv4Addr>>);

#[async_trait]
impl Addresses for Counted {
    async fn allocate(&self, owner: &str, _class: AddressClass) -> tandem_runtime::Result<Ipv4Addr> {
        let mut given = self.0.lock();
        let next = Ipv4Addr::new(10, 128, 16, u8::try_from(given.len() + 1).unwrap());
        Ok(*given.entry(owner.to_owned()).or_insert(next))
    }

    async fn release(&self, owner: &str) -> tandem_runtime::Result<()> {
        self.0.lock().remove(owner);
        Ok(())
    }
}

pub(crate) struct TestNode {
    pub(crate) api: Arc<TestApi>,
    pub(crate) containers: Arc<Fake>,
    pub(crate) components: Arc<Fake>,
    addresses: Arc<Counted>,
    directory: tempfile::TempDir,
    registry: String,
}

/// A running agent. Dropping it ends it as if it were killed.
pub(crate) struct TestAgent {
    pub(crate) context: Arc<Context>,
    pub(crate) pods: Pods,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl TestAgent {
    pub(crate) async fn end(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Says of images named `component-…` that they are components, and of all others but `missing` that they are not.
async fn registry() -> String {
    use axum::{Router, extract::Path, http::StatusCode, response::IntoResponse, routing::get};
    let manifest = |Path((_, name, _)): Path<(String, String, String)>| async move {
        match name.split_once('-').map_or(name.as_str(), |(kind, _)| kind) {
            "component" => r#"{"layers":[{"mediaType":"application/wasm"}]}"#.into_response(),
            "missing" => StatusCode::NOT_FOUND.into_response(),
            _ => "{}".into_response(),
        }
    };
    let router = Router::new().route("/v2/{space}/{name}/manifests/{tag}", get(manifest));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

impl TestNode {
    pub(crate) async fn new() -> TestNode {
        drop(rustls::crypto::ring::default_provider().install_default());
        let clock = Arc::new(SystemClock);
        TestNode {
            api: TestApi::new(),
            containers: Arc::new(Fake::new("containerd", clock.clone())),
            components: Arc::new(Fake::new("wasm", clock)),
            addresses: Arc::default(),
            directory: tempfile::tempdir().unwrap(),
            registry: registry().await,
        }
    }

    /// The image `image/NAME:1` runs this program, in either runtime.
    pub(crate) fn offer(&self, name: &str, program: Program) {
        for runtime in [&self.containers, &self.components] {
            runtime.offer(&format!("image/{name}:1"), program.clone());
        }
    }

    pub(crate) fn context(&self) -> Context {
        let client = self.api.client();
        let clock = Arc::new(SystemClock);
        let runtimes = Runtimes { containers: Some(self.containers.clone()), components: self.components.clone() };
        let directories = Directories::new(self.directory.path());
        let (recorder, _) = Recorder::start(client.clone(), "kubelet", clock.clone());
        let events = Events::new(recorder, "n1");
        let objects = Arc::new(Objects::new(client.clone()));
        let endpoint = Endpoint { url: self.registry.clone(), authority: None, identity: None };
        let registries = Registries { cluster: None, mirrors: [("docker.io".to_owned(), vec![endpoint])].into() };
        let resolver = Resolver::new(registries);
        let (services, follower) = Services::new(directories.services_cache());
        tokio::spawn(follower.run(client.clone(), CancellationToken::new()));
        Context {
            room: crate::resize::Room::default(),
            node_name: "n1".to_owned(),
            node_ip: Ipv4Addr::new(192, 0, 2, 1),
            size: NodeSize { cpus: 2, memory_bytes: 1 << 30 },
            clock: clock.clone(),
            settings: Settings::default(),
            runtimes: runtimes.clone(),
            observer: Observer::new(runtimes.clone()),
            addresses: self.addresses.clone(),
            light_namespace: "/run/netns/light".into(),
            cgroup_root: "/tandem-test".to_owned(),
            hierarchies: Hierarchies::none(),
            images: Images::new(runtimes, resolver, objects.clone(), events.clone(), clock.clone()),
            volumes: Volumes::new(directories.clone(), objects.clone(), client.clone(), "n1", clock),
            events,
            services,
            objects,
            directories,
            http: reqwest::Client::new(),
            metrics: Arc::new(Metrics::new(prometheus_client::registry::Registry::default())),
            usage: Usage::new(crate::usage::WINDOW, Arc::new(std::collections::HashMap::new)),
            patches: Semaphore::new(4),
            client,
        }
    }

    pub(crate) fn start(&self) -> TestAgent {
        let context = Arc::new(self.context());
        let shutdown = CancellationToken::new();
        let pods = Pods::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(context.observer.clone().run(shutdown.clone()));
        tasks.spawn(Supervisor::new(context.clone(), pods.clone(), shutdown.clone()).run());
        TestAgent { context, pods, tasks, shutdown }
    }

    pub(crate) fn sandboxes(&self) -> Vec<Sandbox> {
        self.containers.sandboxes().into_iter().chain(self.components.sandboxes()).collect()
    }

    /// Waits until the API's objects and the runtimes satisfy `wanted`.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&TestNode) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut changes = self.api.changes();
        loop {
            if wanted(self) {
                return;
            }
            // Runtimes change without telling the API; asking again soon is cheap.
            let soon = Instant::now() + Duration::from_millis(20);
            let woken = timeout_at(soon.min(deadline), changes.changed()).await;
            if woken.is_err() && Instant::now() >= deadline {
                panic!(
                    "{what} did not come to be: {:#?}\n{:#?}\n{:#?}",
                    self.api.pod("web").map(|pod| pod.status),
                    self.sandboxes(),
                    self.api.events()
                );
            }
        }
    }

    pub(crate) async fn until_pod(&self, what: &str, wanted: impl Fn(&Pod) -> bool) {
        self.until(what, |node| node.api.pod("web").is_some_and(|pod| wanted(&pod))).await;
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    crate::pod::condition_is_true(pod.status.as_ref(), "Ready")
}

/// The state of the pod's first main container.
pub(crate) fn state(pod: &Pod) -> ContainerState {
    let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first().cloned());
    status.and_then(|status| status.state).unwrap_or_default()
}

pub(crate) fn waiting(pod: &Pod) -> String {
    state(pod).waiting.and_then(|waiting| waiting.reason).unwrap_or_default()
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|status| Some(status.container_statuses.as_ref()?.first()?.restart_count))
        .unwrap_or(-1)
}
