//! The Node object and its Lease: that the node is there, what it has, and that it is well.
//!
//! ```text
//!  watch of the own Node ─> pod CIDR ─> network      conditions (pure) ─> status, only when it changed
//! ```

mod extended;
mod stored;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
            NodeSpec, NodeStatus, NodeSystemInfo, Taint,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde::Serialize;
use tandem_api::{NO_CONTAINERS_TAINT, WASM_RUNTIME_CLASS};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    machine::{self, Pressure},
    observed::{Kind, seconds},
    observer::Progress,
};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_PERIOD: Duration = Duration::from_secs(3);
const LEASE_SECONDS: i32 = 10;
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// A status that did not change is sent this often.
const HEARTBEAT_SECONDS: i64 = 300;
/// Until the node is ready for the first time its state is looked at this often.
const FIRST_PERIOD: Duration = Duration::from_millis(200);
/// What a restarted agent has for finding its runtimes before it calls the node not ready.
const SETTLING_SECONDS: i64 = 10;
const RETRY_PERIOD: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// As many as the node's part of the pod CIDR has light addresses for.
const PODS_MAX: u32 = 12_000;
/// Memory that pods cannot have, as a kubelet keeps it back.
pub(crate) const MEMORY_KEPT_BYTES: u64 = 100 << 20;

/// What does not change while the agent runs.
#[derive(Clone)]
pub(crate) struct Registration {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) port: u16,
    pub(crate) version: String,
    pub(crate) runtime_version: String,
}

/// What decides whether the node is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Health {
    pressure: Pressure,
    /// Why a runtime does not answer, by its name.
    runtimes: Vec<(&'static str, String)>,
    pod_cidr: Option<Ipv4Net>,
}

pub(crate) struct NodeAgent {
    context: Arc<Context>,
    registration: Registration,
    pod_cidr: watch::Sender<Option<Ipv4Net>>,
    /// Whether the API says that the node is ready; nothing until it has said.
    stored: watch::Sender<Option<bool>>,
    sent: Option<(NodeStatus, Timestamp)>,
    images: Vec<ContainerImage>,
}

#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    status: &'a NodeStatus,
}

#[derive(Debug, Serialize)]
struct LabelPatch<'a> {
    metadata: Labels<'a>,
}

#[derive(Debug, Serialize)]
struct Labels<'a> {
    labels: &'a BTreeMap<String, String>,
}

impl NodeAgent {
    pub(crate) fn new(
        context: Arc<Context>,
        registration: Registration,
        pod_cidr: watch::Sender<Option<Ipv4Net>>,
    ) -> NodeAgent {
        NodeAgent { context, registration, pod_cidr, stored: watch::channel(None).0, sent: None, images: Vec::new() }
    }

    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let lease = Box::pin(hold_lease(self.context.clone()));
        let cidr = Box::pin(follow_node(self.context.clone(), self.pod_cidr.clone(), self.stored.clone()));
        let all = futures::future::join3(Box::pin(self.report()), lease, cidr);
        shutdown.run_until_cancelled(all).await;
    }

    /// Registers the node, then keeps its status true.
    async fn report(mut self) {
        let mut health = self.pod_cidr.subscribe();
        let mut progress = self.context.observer.progress();
        let mut stored = self.stored.subscribe();
        while let Err(error) = bounded(self.register()).await {
            tracing::debug!(%error, "the node is not registered yet");
            tokio::time::sleep(RETRY_PERIOD).await;
        }
        tracing::info!(node = self.context.node_name, "registered");
        self.context.events.node("Starting", "Starting kubelet.");
        let mut was_ready = false;
        let settled = self.context.clock.now() + seconds(SETTLING_SECONDS);
        loop {
            // Remembered before it is told: what changes meanwhile is told in the next round.
            let before = answering(&progress.borrow_and_update());
            let is_stored_ready = *stored.borrow_and_update();
            if let (Some(stored), Some((sent, at))) = (is_stored_ready, &mut self.sent)
                && stored != is_ready(sent)
            {
                // Somebody thought the node dead, and does not any more when it says what it said before.
                *at = Timestamp::UNIX_EPOCH;
            }
            let now = self.context.clock.now();
            let ready = self.health().problem().is_none();
            let mut pause = if was_ready || ready { STATUS_PERIOD } else { FIRST_PERIOD };
            // An agent that was restarted finds a node that is ready, and does not say otherwise before it has looked.
            let looking =
                !ready && !was_ready && now < settled && self.sent.as_ref().is_some_and(|(sent, _)| is_ready(sent));
            match if looking { Ok(()) } else { bounded(self.send(now)).await } {
                Ok(()) => was_ready |= ready,
                Err(error) => {
                    tracing::debug!(%error, "the node's status is not reported yet");
                    pause = RETRY_PERIOD;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = health.changed() => if changed.is_err() { return },
                changed = stored.changed() => if changed.is_err() { return },
                changed = progress.wait_for(|progress| answering(progress) != before) => {
                    if changed.is_err() { return }
                }
            }
        }
    }

    fn health(&self) -> Health {
        let progress = self.context.observer.progress();
        let progress = progress.borrow();
        let errors = self.context.runtimes.all().filter_map(|(kind, runtime)| {
            let error = match progress.error(kind) {
                Some(error) => error.to_owned(),
                None if progress.has_listed(kind) => return None,
                None => "it has not answered yet".to_owned(),
            };
            Some((runtime.name(), error))
        });
        Health {
            pressure: machine::pressure(&self.context.directories.pods()),
            runtimes: errors.collect(),
            pod_cidr: *self.pod_cidr.borrow(),
        }
    }

    /// What the API says of the node, or what it is told first.
    async fn register(&mut self) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.context.client.clone());
        let labels = self.labels();
        match api.get(&self.context.node_name).await {
            Ok(node) => {
                let known = node.metadata.labels.unwrap_or_default();
                if labels.iter().any(|(key, value)| known.get(key) != Some(value)) {
                    let patch = LabelPatch { metadata: Labels { labels: &labels } };
                    api.patch(&self.context.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                }
                if let Some(cidr) = node.spec.and_then(|spec| spec.pod_cidr?.parse().ok()) {
                    publish(&self.pod_cidr, cidr);
                }
                // Times of transitions go on from there; the next status is sent in any case.
                self.sent = node.status.map(|status| (status, Timestamp::UNIX_EPOCH));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let now = self.context.clock.now();
                let node = Node {
                    metadata: ObjectMeta {
                        name: Some(self.context.node_name.clone()),
                        labels: Some(labels),
                        ..ObjectMeta::default()
                    },
                    spec: Some(NodeSpec { taints: self.taints(), ..NodeSpec::default() }),
                    status: Some(self.status(&self.health(), None, now)),
                };
                api.create(&PostParams::default(), &node).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.registration.labels.clone();
        let own = [
            ("kubernetes.io/hostname", self.context.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", machine::architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", machine::architecture()),
        ];
        labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        labels
    }

    fn taints(&self) -> Option<Vec<Taint>> {
        let bare = self.context.runtimes.get(Kind::Container).is_none();
        let taint = Taint { key: NO_CONTAINERS_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        bare.then(|| vec![taint])
    }

    /// Sends the status if it changed, or if it was not sent for long.
    async fn send(&mut self, now: Timestamp) -> Result<(), kube::Error> {
        if let Ok(Some(images)) = tokio::time::timeout(REQUEST_TIMEOUT, stored::images(&self.context)).await {
            self.images = images;
        }
        let status = self.status(&self.health(), self.sent.as_ref().map(|(status, _)| status), now);
        if let Some((sent, at)) = &self.sent
            && without_times(sent) == without_times(&status)
            && now.duration_since(*at) < seconds(HEARTBEAT_SECONDS)
        {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        let patch = Patch::Strategic(StatusPatch { status: &status });
        match api.patch_status(&self.context.node_name, &PatchParams::default(), &patch).await {
            Ok(_) => {
                self.sent = Some((status, now));
                Ok(())
            }
            // Somebody deleted the node while it was there: it registers again.
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                self.sent = None;
                self.register().await
            }
            Err(error) => Err(error),
        }
    }

    fn status(&self, health: &Health, last: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
        let size = self.context.size;
        let (disk, _) = machine::disk(&self.context.directories.pods());
        let amounts = |memory: u64| {
            let amount = |name: &str, text: String| (name.to_owned(), Quantity(text));
            BTreeMap::from([
                amount("cpu", size.cpus.to_string()),
                amount("memory", format!("{}Ki", memory / 1024)),
                amount("ephemeral-storage", format!("{}Ki", disk / 1024)),
                amount("pods", PODS_MAX.to_string()),
            ])
        };
        let address = |kind: &str, address: String| NodeAddress { address, type_: kind.to_owned() };
        NodeStatus {
            addresses: Some(vec![
                address("InternalIP", self.context.node_ip.to_string()),
                address("Hostname", self.context.node_name.clone()),
            ]),
            allocatable: Some(amounts(size.memory_bytes.saturating_sub(MEMORY_KEPT_BYTES))),
            capacity: Some(amounts(size.memory_bytes)),
            conditions: Some(health.conditions(last, now)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.registration.port) }),
            }),
            images: Some(self.images.clone()),
            node_info: Some(self.info()),
            runtime_handlers: Some(self.handlers()),
            ..NodeStatus::default()
        }
    }

    fn info(&self) -> NodeSystemInfo {
        NodeSystemInfo {
            architecture: machine::architecture().to_owned(),
            boot_id: machine::boot_id(),
            container_runtime_version: self.registration.runtime_version.clone(),
            kernel_version: machine::kernel(),
            kubelet_version: self.registration.version.clone(),
            machine_id: machine::machine_id(),
            operating_system: "linux".to_owned(),
            os_image: machine::operating_system(),
            system_uuid: machine::system_uuid(),
            ..NodeSystemInfo::default()
        }
    }

    fn handlers(&self) -> Vec<NodeRuntimeHandler> {
        let handler = |name: &str| NodeRuntimeHandler { name: Some(name.to_owned()), features: None };
        let containers = self.context.runtimes.get(Kind::Container).is_some();
        let containers = containers.then(|| handler("")).into_iter();
        containers.chain([handler(WASM_RUNTIME_CLASS)]).collect()
    }
}

impl Health {
    /// Why the node is not ready; `None` when it is.
    fn problem(&self) -> Option<String> {
        let runtimes = self.runtimes.iter().map(|(name, error)| format!("runtime {name} does not answer: {error}"));
        let network = self.pod_cidr.is_none().then(|| "the node has no pod CIDR yet".to_owned());
        let problems: Vec<String> = runtimes.chain(network).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    fn conditions(&self, last: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
        let pressures = [
            (
                "MemoryPressure",
                self.pressure.memory,
                "KubeletHasInsufficientMemory",
                "KubeletHasSufficientMemory",
                "memory",
            ),
            ("DiskPressure", self.pressure.disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "disk"),
            ("PIDPressure", self.pressure.processes, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "PID"),
        ];
        let mut conditions: Vec<NodeCondition> = pressures
            .into_iter()
            .map(|(kind, short, bad, good, what)| {
                let message = match (short, what) {
                    (true, what) => format!("kubelet has {what} pressure"),
                    (false, "disk") => "kubelet has no disk pressure".to_owned(),
                    (false, what) => format!("kubelet has sufficient {what} available"),
                };
                condition(kind, short, if short { bad } else { good }, message, last, now)
            })
            .collect();
        let problem = self.problem();
        let reason = if problem.is_none() { "KubeletReady" } else { "KubeletNotReady" };
        let ready = problem.is_none();
        let message = problem.unwrap_or_else(|| "kubelet is posting ready status".to_owned());
        conditions.push(condition("Ready", ready, reason, message, last, now));
        conditions
    }
}

fn condition(
    kind: &str,
    holds: bool,
    reason: &str,
    message: String,
    last: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let before = last.and_then(|last| last.conditions.as_ref()?.iter().find(|c| c.type_ == kind && c.status == status));
    NodeCondition {
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: before.and_then(|before| before.last_transition_time.clone()).or(Some(Time(now))),
        message: Some(message),
        reason: Some(reason.to_owned()),
        status: status.to_owned(),
        type_: kind.to_owned(),
    }
}

fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn without_times(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
        condition.last_transition_time = None;
    }
    status
}

/// Which runtimes answer, and why others don't.
fn answering(progress: &Progress) -> ([Option<String>; 2], [bool; 2]) {
    (progress.errors.clone(), progress.first_listed())
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

fn publish(sender: &watch::Sender<Option<Ipv4Net>>, cidr: Ipv4Net) {
    sender.send_if_modified(|known| {
        let changed = *known != Some(cidr);
        *known = Some(cidr);
        changed
    });
}

/// Publishes the pod CIDR that the control plane gives the node.
async fn follow_node(
    context: Arc<Context>,
    pod_cidr: watch::Sender<Option<Ipv4Net>>,
    stored: watch::Sender<Option<bool>>,
) {
    let mine = watcher::Config::default().fields(&format!("metadata.name={}", context.node_name));
    let events = watcher(Api::<Node>::all(context.client.clone()), mine).default_backoff();
    futures::pin_mut!(events);
    while let Some(event) = events.next().await {
        let node = match event {
            Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => node,
            Ok(watcher::Event::Init | watcher::Event::InitDone | watcher::Event::Delete(_)) => continue,
            Err(error) => {
                tracing::debug!(%error, "watching the own node");
                continue;
            }
        };
        // When this fails the watch breaks as well, and shows the node again.
        if let Some(patch) = node.status.as_ref().and_then(extended::patch) {
            let api: Api<Node> = Api::all(context.client.clone());
            let (name, how) = (&context.node_name, PatchParams::default());
            if let Err(error) = bounded(api.patch_status(name, &how, &Patch::Merge(&patch))).await {
                tracing::warn!(%error, "the node's extended resources are not said to be there");
            }
        }
        let is_ready = node.status.as_ref().map(is_ready);
        stored.send_if_modified(|before| std::mem::replace(before, is_ready) != is_ready);
        let text = node.spec.and_then(|spec| spec.pod_cidr);
        match text.as_deref().map(str::parse::<Ipv4Net>) {
            Some(Ok(cidr)) => publish(&pod_cidr, cidr),
            Some(Err(error)) => tracing::warn!(cidr = text, %error, "the node's pod CIDR cannot be used"),
            None => {}
        }
    }
}

/// Renews the node's lease for as long as the agent runs.
async fn hold_lease(context: Arc<Context>) {
    let mut held: Option<Lease> = None;
    loop {
        let begun = Instant::now();
        match bounded(renew(&context, held.take())).await {
            Ok(lease) => held = Some(lease),
            Err(error) => tracing::debug!(%error, "the node's lease is not renewed"),
        }
        let pause = if held.is_some() { LEASE_PERIOD } else { RETRY_PERIOD };
        tokio::time::sleep_until(begun + pause).await;
    }
}

/// Renews what is held; what is not held is read, or made.
async fn renew(context: &Context, held: Option<Lease>) -> Result<Lease, kube::Error> {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), LEASE_NAMESPACE);
    let found = match held {
        Some(lease) => Some(lease),
        None => match api.get(&context.node_name).await {
            Ok(lease) => Some(lease),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => return Err(error),
        },
    };
    let spec = LeaseSpec {
        holder_identity: Some(context.node_name.clone()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(MicroTime(context.clock.now())),
        ..LeaseSpec::default()
    };
    match found {
        Some(lease) => {
            let lease = Lease { spec: Some(spec), ..lease };
            api.replace(&context.node_name, &PostParams::default(), &lease).await
        }
        None => {
            let node = Api::<Node>::all(context.client.clone()).get(&context.node_name).await?;
            let owner = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: context.node_name.clone(),
                uid: node.metadata.uid.unwrap_or_default(),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                name: Some(context.node_name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: Some(vec![owner]).filter(|owners| owners.iter().all(|owner| !owner.uid.is_empty())),
                ..ObjectMeta::default()
            };
            api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
        }
    }
}

#[cfg(test)]
mod tests;
