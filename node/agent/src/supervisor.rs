//! Which pods this node has to look after: one worker for each.
//!
//! A pod comes from the API, from the disk (so that the node starts without a control plane), or from a sandbox that
//! nobody knows any more, which is then removed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use tandem_runtime::{Notice, State};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    disk,
    observed::{Kind, SeenSandbox},
    pod,
    sandbox::NODE_ANNOTATION,
    worker::{Desired, Worker},
};

pub(crate) struct Supervisor {
    context: Arc<Context>,
    workers: HashMap<String, watch::Sender<Desired>>,
    running: JoinSet<String>,
    /// Pods that are gone from the node although the API still has their object.
    finished: BTreeSet<String>,
    /// The API has told of every pod of this node at least once.
    complete: bool,
    /// Pods of the list that is being read.
    listed: BTreeSet<String>,
    shutdown: CancellationToken,
    pods: Pods,
}

/// The pods of the node, for the node's server. The supervisor alone writes it, and nobody holds it across an await.
#[derive(Clone, Default)]
pub(crate) struct Pods(Arc<Mutex<HashMap<String, Arc<Pod>>>>);

impl Pods {
    fn put(&self, pod: Arc<Pod>) {
        self.0.lock().insert(pod::uid(&pod).to_owned(), pod);
    }

    fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.lock().values().cloned().collect()
    }

    /// The pod of this name; of several, the newest that is not being deleted.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.0.lock();
        let named = pods.values().filter(|pod| pod::namespace(pod) == namespace && pod::name(pod) == name);
        named.max_by_key(|pod| (!pod::deleted(pod), pod.metadata.creation_timestamp.clone())).cloned()
    }
}

type Events = BoxStream<'static, watcher::Result<watcher::Event<Pod>>>;

impl Supervisor {
    /// `pods` is where others find the node's pods.
    pub(crate) fn new(context: Arc<Context>, pods: Pods, shutdown: CancellationToken) -> Supervisor {
        Supervisor {
            context,
            workers: HashMap::new(),
            running: JoinSet::new(),
            finished: BTreeSet::new(),
            complete: false,
            listed: BTreeSet::new(),
            shutdown,
            pods,
        }
    }

    pub(crate) async fn run(mut self) {
        for pod in self.cached() {
            self.set(pod);
        }
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.context.node_name));
        let mut events: Events = watcher(Api::<Pod>::all(self.context.client.clone()), mine).default_backoff().boxed();
        let notices = self.context.runtimes.all().map(|(_, runtime)| runtime.notices());
        let mut notices = futures::stream::select_all(notices);
        let mut progress = self.context.observer.progress();
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = events.next() => match event {
                    Some(event) => self.event(event),
                    None => break,
                },
                Some(joined) = self.running.join_next() => self.ended(joined),
                Some(notice) = notices.next() => self.notice(&notice),
                changed = progress.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.adopt_strays();
                    self.count();
                }
            }
        }
        // Workers end by themselves with the same token; what they look after goes on.
        while self.running.join_next().await.is_some() {}
    }

    fn cached(&self) -> Vec<Pod> {
        let Ok(entries) = std::fs::read_dir(self.context.directories.pods()) else { return Vec::new() };
        let uids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        uids.filter_map(|uid| disk::read_json(&self.context.directories.pod_cache(&uid))).collect()
    }

    fn event(&mut self, event: watcher::Result<watcher::Event<Pod>>) {
        match event {
            Err(error) => tracing::debug!(%error, "watching the node's pods"),
            Ok(watcher::Event::Init) => self.listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                self.listed.insert(pod::uid(&pod).to_owned());
                self.set(pod);
            }
            Ok(watcher::Event::InitDone) => {
                self.complete = true;
                let missing = self.workers.keys().filter(|uid| !self.listed.contains(*uid)).cloned();
                for uid in missing.collect::<Vec<_>>() {
                    self.gone(&uid);
                }
                self.finished.retain(|uid| self.listed.contains(uid));
                self.adopt_strays();
            }
            Ok(watcher::Event::Apply(pod)) => self.set(pod),
            Ok(watcher::Event::Delete(pod)) => {
                self.finished.remove(pod::uid(&pod));
                self.gone(pod::uid(&pod));
            }
        }
    }

    fn set(&mut self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        let uid = pod::uid(&pod).to_owned();
        if self.finished.contains(&uid) {
            return;
        }
        let desired = Desired { pod: Arc::new(pod), gone: false };
        self.pods.put(desired.pod.clone());
        match self.workers.get(&uid) {
            Some(worker) => drop(worker.send_replace(desired)),
            None => self.spawn(uid, desired),
        }
    }

    fn gone(&mut self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            worker.send_modify(|desired| desired.gone = true);
        }
    }

    fn spawn(&mut self, uid: String, desired: Desired) {
        let (sender, receiver) = watch::channel(desired);
        let worker = Worker::new(self.context.clone(), receiver);
        self.running.spawn(worker.run(self.shutdown.clone()));
        self.workers.insert(uid, sender);
    }

    fn ended(&mut self, joined: Result<String, JoinError>) {
        match joined {
            Ok(uid) => {
                let worker = self.workers.remove(&uid);
                self.pods.remove(&uid);
                // Its object may outlive it: finalizers hold it, and nothing is left to do here.
                if worker.is_some_and(|worker| !worker.borrow().gone) {
                    self.finished.insert(uid);
                }
            }
            Err(error) => tracing::error!(%error, "the worker of a pod ended badly"),
        }
    }

    /// Sandboxes of this node's agent whose pod neither the API nor the disk knows: they are removed.
    fn adopt_strays(&mut self) {
        if !self.complete {
            return;
        }
        let mut strays = Vec::new();
        self.context.observer.visit(|seen| {
            let node = seen.sandbox.annotations.get(NODE_ANNOTATION);
            let mine = node.is_some_and(|node| *node == self.context.node_name);
            if mine && !self.workers.contains_key(&seen.sandbox.pod.uid) {
                strays.push(stray(seen));
            }
        });
        for pod in strays {
            let uid = pod::uid(&pod).to_owned();
            if !self.workers.contains_key(&uid) {
                tracing::info!(uid, pod = pod::name(&pod), "removing a pod that is not in the API");
                self.spawn(uid, Desired { pod: Arc::new(pod), gone: true });
            }
        }
    }

    fn notice(&self, notice: &Notice) {
        let mut found = None;
        self.context.observer.visit(|seen| {
            if let Some(container) = seen.sandbox.containers.iter().find(|container| container.id == notice.container) {
                found = Some((container.name.clone(), seen.sandbox.pod.uid.clone()));
            }
        });
        let Some((container, uid)) = found else { return };
        let Some(worker) = self.workers.get(&uid) else { return };
        let pod = worker.borrow().pod.clone();
        let name = Some(container.as_str());
        if notice.warning {
            self.context.events.warning(&pod, name, &notice.reason, notice.message.clone());
        } else {
            self.context.events.normal(&pod, name, &notice.reason, notice.message.clone());
        }
    }

    fn count(&self) {
        let mut pods = BTreeSet::new();
        let mut running = [(Kind::Container, 0), (Kind::Component, 0)];
        self.context.observer.visit(|seen| {
            if seen.sandbox.ready {
                pods.insert(seen.sandbox.pod.uid.clone());
            }
            let states = seen.sandbox.containers.iter().map(|container| &container.state);
            let count = states.filter(|state| matches!(state, State::Running { .. })).count();
            running.iter_mut().filter(|(kind, _)| *kind == seen.kind).for_each(|(_, sum)| *sum += count);
        });
        self.context.metrics.set_running(pods.len(), &running);
    }
}

/// As much of a pod as its sandbox tells.
fn stray(seen: &SeenSandbox) -> Pod {
    let reference = &seen.sandbox.pod;
    let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
    pod.metadata.name = Some(reference.name.clone());
    pod.metadata.namespace = Some(reference.namespace.clone());
    pod.metadata.uid = Some(reference.uid.clone());
    pod
}
