//! The loop that owns the queue and the snapshot: changes come in, pods go out to their nodes.

mod follow;
mod preempting;
mod waiting;

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tandem_api::Clock;
use tandem_client::events::Recorder;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use waiting::{Held, Waiting};

use crate::{
    Metrics, PROFILE, Profile,
    bind::{self, Error, Nomination},
    kept::Kept,
    preemption::Victim,
    queue::{Queue, Setback, Taken},
    schedule,
    snapshot::{PodInfo, Seen, Snapshot},
};

/// Writes under way at a time; nothing is scheduled while there are more.
const WRITES: usize = 128;
/// Pods scheduled before other things get their turn.
const BATCH: usize = 16;
/// A write that takes longer counts as failed.
const WRITE_MAX: Duration = Duration::from_secs(30);

/// What the scheduler needs of the process that it runs in.
pub struct Context {
    pub client: kube::Client,
    pub leadership: watch::Receiver<bool>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    /// The schedulers that this one is, by name; at least one.
    pub profiles: Vec<Profile>,
}

/// Schedules, whenever this member leads, until it is told to stop.
pub async fn run(context: Context, shutdown: CancellationToken) {
    let (recorder, events) = Recorder::start(context.client.clone(), PROFILE, context.clock.clone());
    let scheduler = Scheduler {
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        writes: JoinSet::new(),
        turn: 0,
        listed: Listed::default(),
        waiting: Waiting::default(),
        recorder,
        context,
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = scheduler.run() => {}
    }
    events.abort();
}

type Changes<K> = BoxStream<'static, watcher::Result<Event<K>>>;

fn changes<K>(client: &kube::Client) -> Changes<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher::watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff().boxed()
}

/// What has been listed since this member began to lead, and what the list under way has shown.
#[derive(Debug, Default)]
struct Listed {
    pods: bool,
    nodes: bool,
    namespaces: bool,
    seen_pods: HashSet<String>,
    seen_nodes: HashSet<String>,
    seen_namespaces: HashSet<String>,
}

impl Listed {
    fn is_complete(&self) -> bool {
        self.pods && self.nodes && self.namespaces
    }
}

/// How a write ended.
enum Written {
    /// The claims of the pod were told its node.
    Selected {
        taken: Box<Taken>,
        node: String,
        started: Instant,
        result: Result<(), Error>,
    },
    Bound {
        taken: Box<Taken>,
        node: String,
        started: Instant,
        result: Result<(), Error>,
    },
    Explained(Result<(), Error>),
    /// Pods were told to make room; those that could not be are named.
    Preempted {
        taken: Box<Taken>,
        node: String,
        victims: Vec<Victim>,
        message: String,
        failed: Vec<(String, Error)>,
    },
}

struct Scheduler {
    context: Context,
    snapshot: Snapshot,
    queue: Queue,
    writes: JoinSet<Written>,
    turn: usize,
    listed: Listed,
    waiting: Waiting,
    recorder: Recorder,
}

impl Scheduler {
    async fn run(mut self) {
        let mut leadership = self.context.leadership.clone();
        loop {
            // A list made by a follower may miss the last leader's bindings: a new leader lists again.
            let leads = *leadership.borrow_and_update();
            let mut pods: Changes<Pod> = changes(&self.context.client);
            let mut nodes: Changes<Node> = changes(&self.context.client);
            let mut namespaces: Changes<Namespace> = changes(&self.context.client);
            let mut claims: Changes<PersistentVolumeClaim> = changes(&self.context.client);
            let mut volumes: Changes<PersistentVolume> = changes(&self.context.client);
            let mut classes: Changes<StorageClass> = changes(&self.context.client);
            let mut others = follow::all(&self.context.client);
            loop {
                let ready = leads && self.is_listed() && self.writes.len() < WRITES;
                tokio::select! {
                    changed = leadership.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        self.stop().await;
                        break;
                    }
                    Some(written) = self.writes.join_next() => match written {
                        Ok(written) => self.written(written),
                        Err(error) => tracing::error!(%error, "a write of the scheduler ended"),
                    },
                    Some(change) = pods.next() => self.pod_changed(change),
                    Some(change) = nodes.next() => self.node_changed(change),
                    Some(change) = namespaces.next() => self.namespace_changed(change),
                    Some(change) = claims.next() => self.storage_changed(change, |storage| &mut storage.claims),
                    Some(change) = volumes.next() => self.storage_changed(change, |storage| &mut storage.volumes),
                    Some(change) = classes.next() => self.storage_changed(change, |storage| &mut storage.classes),
                    Some(change) = others.next() => change(&mut self.snapshot),
                    () = self.waiting.overdue() => self.give_up_waiting(),
                    () = due(&self.queue), if ready => self.schedule_batch(),
                }
                self.context.metrics.pending(self.queue.pending());
            }
        }
    }

    async fn stop(&mut self) {
        self.writes.shutdown().await;
        self.snapshot.forget_decisions();
        self.queue.land();
        self.waiting = Waiting::default();
        self.listed = Listed::default();
        self.snapshot.unlist();
    }

    fn pod_changed(&mut self, change: watcher::Result<Event<Pod>>) {
        match change {
            Ok(Event::Init) => self.listed.seen_pods.clear(),
            Ok(Event::InitApply(pod)) => {
                self.listed.seen_pods.extend(pod.metadata.uid.clone());
                self.set_pod(&pod);
            }
            Ok(Event::InitDone) => {
                let seen = std::mem::take(&mut self.listed.seen_pods);
                let known = self.queue.uids().into_iter().chain(self.snapshot.placed().cloned());
                let gone: Vec<String> = known.filter(|uid| !seen.contains(uid)).collect();
                gone.iter().for_each(|uid| self.pod_gone(uid));
                self.listed.pods = true;
            }
            Ok(Event::Apply(pod)) => self.set_pod(&pod),
            Ok(Event::Delete(pod)) => self.pod_gone(pod.metadata.uid.as_deref().unwrap_or_default()),
            Err(error) => tracing::debug!(%error, "the scheduler's view of pods retries"),
        }
    }

    fn set_pod(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.pod_gone(uid);
        }
        let info = PodInfo::of(pod);
        if info.node_name.is_some() {
            self.queue.remove(uid);
            match self.snapshot.set_pod(&info) {
                Seen::Before => {}
                Seen::New => self.queue.wake_minding(|waiting| self.snapshot.may_follow(waiting, &info)),
                Seen::Changed => self.queue.wake_minding(PodInfo::minds_others),
            }
        } else if self.is_ours(pod) {
            self.follow_nomination(&info);
            self.queue.put(info, Instant::now());
        } else {
            self.queue.remove(uid);
            if self.snapshot.nominations.remove(uid) {
                self.queue.wake();
            }
            if self.waiting.remove(uid).is_some() {
                self.snapshot.forget(uid);
            }
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.waiting.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.wake();
        }
    }

    fn node_changed(&mut self, change: watcher::Result<Event<Node>>) {
        match change {
            Ok(Event::Init) => self.listed.seen_nodes.clear(),
            Ok(Event::InitApply(node)) => {
                self.listed.seen_nodes.extend(node.metadata.name.clone());
                self.set_node(&node);
            }
            Ok(Event::InitDone) => {
                let seen = std::mem::take(&mut self.listed.seen_nodes);
                let gone = self.snapshot.node_names().into_iter().filter(|name| !seen.contains(name));
                gone.for_each(|name| self.node_gone(&name));
                self.listed.nodes = true;
            }
            Ok(Event::Apply(node)) => self.set_node(&node),
            Ok(Event::Delete(node)) => self.node_gone(node.metadata.name.as_deref().unwrap_or_default()),
            Err(error) => tracing::debug!(%error, "the scheduler's view of nodes retries"),
        }
    }

    fn set_node(&mut self, node: &Node) {
        if self.snapshot.set_node(node) {
            self.queue.wake();
        }
    }

    fn node_gone(&mut self, name: &str) {
        if self.snapshot.remove_node(name) {
            self.queue.wake();
        }
    }

    fn namespace_changed(&mut self, change: watcher::Result<Event<Namespace>>) {
        match change {
            Ok(Event::Init) => self.listed.seen_namespaces.clear(),
            Ok(Event::InitApply(namespace)) => {
                self.listed.seen_namespaces.extend(namespace.metadata.name.clone());
                self.set_namespace(&namespace);
            }
            Ok(Event::InitDone) => {
                let seen = std::mem::take(&mut self.listed.seen_namespaces);
                let gone = self.snapshot.namespace_names().into_iter().filter(|name| !seen.contains(name));
                gone.for_each(|name| self.snapshot.remove_namespace(&name));
                self.listed.namespaces = true;
            }
            Ok(Event::Apply(namespace)) => self.set_namespace(&namespace),
            Ok(Event::Delete(namespace)) => {
                self.snapshot.remove_namespace(namespace.metadata.name.as_deref().unwrap_or_default());
            }
            Err(error) => tracing::debug!(%error, "the scheduler's view of namespaces retries"),
        }
    }

    fn set_namespace(&mut self, namespace: &Namespace) {
        if self.snapshot.set_namespace(namespace) {
            self.queue.wake();
        }
    }

    fn schedule_batch(&mut self) {
        for _ in 0..BATCH {
            let started = Instant::now();
            let Some(taken) = self.queue.pop(started) else { return };
            let decided = schedule(&taken.pod, &self.snapshot, self.profile(&taken.pod), self.turn);
            self.turn = self.turn.wrapping_add(1);
            self.context.metrics.decided(started.elapsed().as_secs_f64());
            match decided {
                Ok(node) => {
                    self.snapshot.assume(&taken.pod, &node);
                    let held = Held { taken: Box::new(taken), node, started };
                    if self.snapshot.storage.to_select(&held.taken.pod, &held.node).is_empty() {
                        self.settle(held);
                    } else {
                        self.select(held);
                    }
                }
                Err(refused) => {
                    let seconds = started.elapsed().as_secs_f64();
                    self.context.metrics.attempted(&taken.pod.scheduler, "unschedulable", seconds);
                    self.refused(taken, refused);
                }
            }
        }
    }

    /// The profile of the pod's scheduler.
    fn profile(&self, pod: &PodInfo) -> &Profile {
        let profiles = &self.context.profiles;
        profiles.iter().find(|profile| profile.name == pod.scheduler).unwrap_or(&profiles[0])
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        let named = spec.scheduler_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(PROFILE);
        let is_known = self.context.profiles.iter().any(|profile| profile.name == named);
        is_known && !gated && pod.metadata.deletion_timestamp.is_none()
    }

    fn put_back(&mut self, taken: &Taken, setback: Setback, message: String, nomination: Nomination) {
        self.queue.put_back(taken, setback, Instant::now());
        self.recorder.record(bind::failed(&taken.pod, message.clone()));
        let (client, pod, now) = (self.context.client.clone(), taken.pod.clone(), self.context.clock.now());
        self.writes.spawn(async move {
            Written::Explained(within(bind::explain(&client, &pod, &message, &nomination, now)).await)
        });
    }

    fn written(&mut self, written: Written) {
        let (taken, node, started, result) = match written {
            Written::Bound { taken, node, started, result } => (taken, node, started, result),
            Written::Selected { taken, node, started, result: Ok(()) } => {
                return self.settle(Held { taken, node, started });
            }
            Written::Selected { taken, node, started, result: Err(error) } => {
                return self.give_back(&Held { taken, node, started }, format!("binding volumes: {error}"));
            }
            Written::Preempted { taken, node, victims, message, failed } => {
                return self.room_is_made(&taken, node, &victims, message, &failed);
            }
            Written::Explained(Ok(())) => return,
            Written::Explained(Err(error)) => {
                tracing::debug!(%error, "why a pod waits could not be written");
                return;
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let Err(error) = result else {
            self.context.metrics.attempted(&taken.pod.scheduler, "scheduled", seconds);
            self.context.metrics.bound(taken.queued.elapsed().as_secs_f64());
            self.recorder.record(bind::scheduled(&taken.pod, &node));
            return;
        };
        self.context.metrics.attempted(&taken.pod.scheduler, "error", seconds);
        self.snapshot.forget(&taken.pod.uid);
        self.follow_nomination(&taken.pod);
        self.queue.wake();
        if error.is_not_found() {
            self.queue.remove(&taken.pod.uid);
            self.snapshot.nominations.remove(&taken.pod.uid);
        } else if error.is_race() {
            self.queue.put_back(&taken, Setback::Error, Instant::now());
        } else {
            tracing::warn!(pod = taken.pod.name, namespace = taken.pod.namespace, attempts = taken.attempts, %error, "not bound");
            self.put_back(&taken, Setback::Error, format!("binding rejected: {error}"), Nomination::Keep);
        }
    }
}

async fn within(write: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    timeout(WRITE_MAX, write).await.unwrap_or(Err(Error::Timeout))
}

/// Resolves when the queue has, or may have, a pod to schedule.
async fn due(queue: &Queue) {
    if queue.has_next() {
        // The informers and the writes get their turn between batches.
        tokio::task::yield_now().await;
        return;
    }
    match queue.due() {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
