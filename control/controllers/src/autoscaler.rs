//! HorizontalPodAutoscaler: as many replicas as the measured use asks for.
//!
//! ```text
//!  every 15 s: Snapshot ─ scale subresource of the target, its pods, metrics.k8s.io, the past ─┐
//!      ^                                                                                       v
//!      │           custom.metrics.k8s.io, external.metrics.k8s.io: custom.rs                     │
//!      └── Past: recommendations and rescales of the last hour <── plan ─> scale, Events, status
//!                                                                    ├─ metrics.rs, replicas.rs: use -> replicas
//!                                                                    ├─ limits.rs: windows and rates
//!                                                                    └─ zero.rs: when the last pod may go
//!  A node's mark that somebody waits for a workload at zero is planned for at once.
//! ```
//! The past is kept in memory, as in Kubernetes: a new leader begins with what is, and so scales nothing down before the
//! stabilization window has passed.
//!
//! <https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/#algorithm-details>

mod custom;
mod limits;
mod metrics;
mod plan;
mod replicas;
mod target;
mod usage;
mod zero;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec},
    core::v1::Pod,
};
use kube::{Api, api::ListParams};
use parking_lot::Mutex;
use tandem_api::WAKE_ANNOTATION;

use crate::{
    Cache, Change, Error, Input, Key, action::Plan, cache::Delta, driver::Reconcile, guarded::Guarded, object,
};
use limits::Past;
use metrics::Taken;
use target::Target;
use usage::PodMetrics;

/// Kubernetes' `--horizontal-pod-autoscaler-sync-period`.
pub const PERIOD: Duration = Duration::from_secs(15);

/// Everything that `plan` may look at.
#[derive(Debug)]
pub(crate) struct Snapshot {
    autoscaler: Arc<HorizontalPodAutoscaler>,
    /// What is scaled, or why that is not known.
    target: Result<Target, String>,
    /// The pods of the target, or why they are not known.
    pods: Result<Vec<Pod>, Unknown>,
    /// What these pods use, or why that is not known.
    usage: Result<Vec<PodMetrics>, String>,
    /// What other APIs say of each metric of the autoscaler that they have.
    measured: Vec<Option<Taken>>,
    /// The requests that the pods answer now, where the last of them may be taken away and anybody knows.
    in_flight: Option<i64>,
    /// All autoscalers that scale some of these pods, where there is more than this one.
    rivals: Vec<Key>,
    past: Past,
    /// Why the last plan could not be performed.
    failure: Option<String>,
    /// Time between two plans.
    period: Duration,
}

impl Snapshot {
    /// Whether the target has no replicas because of the autoscaler, not of a user.
    fn asleep(&self) -> bool {
        let conditions = self.autoscaler.status.as_ref().and_then(|status| status.conditions.as_deref());
        let done = self.past.asked.as_ref().is_some_and(|asked| asked.to == 0);
        done || zero::is_asleep(conditions.unwrap_or_default())
    }
}

/// Why the pods of a target are not known: the reason is that of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unknown {
    event: &'static str,
    message: String,
}

/// What is remembered of an autoscaler from one plan to the next.
#[derive(Debug, Default)]
struct Memory {
    /// Of the autoscaler: another one may come by the same name.
    uid: Option<String>,
    past: Past,
    /// The pods of its target, by uid.
    pods: BTreeSet<String>,
    /// When it is planned again, and what was planned: autoscalers have no generation.
    due: Option<(Timestamp, HorizontalPodAutoscalerSpec)>,
}

pub(crate) struct Autoscalers {
    period: Duration,
    /// As many as there are autoscalers.
    memories: Mutex<HashMap<Key, Memory>>,
}

impl Reconcile for Autoscalers {
    type Key = Key;

    const NAME: &'static str = "horizontal-pod-autoscaler";
    const WORKERS: usize = 8;

    async fn ready(&self, cache: &Cache) {
        cache.fresh(&["HorizontalPodAutoscaler"]).await;
    }

    fn keys(&self, cache: &Cache) -> Vec<Key> {
        cache.autoscalers.keys()
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            // Its status changes with every plan.
            Change::HorizontalPodAutoscaler(Delta { old: Some(old), new: Some(new) })
                if old.spec == new.spec && !is_marked(new) =>
            {
                Vec::new()
            }
            Change::HorizontalPodAutoscaler(delta) => vec![delta.key()],
            _ => Vec::new(),
        }
    }

    async fn plan(&self, input: &Input<'_>, key: &Key) -> Result<Plan, Error> {
        let Some(autoscaler) = input.cache.autoscalers.get(key) else {
            self.memories.lock().remove(key);
            return Ok(Plan::default());
        };
        if object::is_deleting(&autoscaler.metadata) {
            return Ok(Plan::default());
        }
        let uid = autoscaler.metadata.uid.clone();
        let due =
            self.memories.lock().get(key).filter(|memory| memory.uid == uid).and_then(|memory| memory.due.clone());
        if let Some((at, of)) = due
            && of == autoscaler.spec
            && at > input.now
            && input.failure.is_none()
            && !is_marked(&autoscaler)
        {
            return Ok(Plan { actions: Vec::new(), requeue: Some(object::until(at, input.now)) });
        }
        let snapshot = self.snapshot(input, key, autoscaler.clone()).await;
        let pods = snapshot.pods.iter().flatten().map(|pod| object::uid(&pod.metadata).to_owned()).collect();
        let (plan, past) = plan::plan(&snapshot, input.now);
        let due = input.now.checked_add(self.period).ok().map(|at| (at, autoscaler.spec.clone()));
        self.memories.lock().insert(key.clone(), Memory { uid, past, pods, due });
        Ok(plan)
    }
}

/// Whether a node asks to wake the workload.
fn is_marked(autoscaler: &HorizontalPodAutoscaler) -> bool {
    object::annotation(&autoscaler.metadata, WAKE_ANNOTATION).is_some()
}

impl Autoscalers {
    pub(crate) fn new(period: Duration) -> Autoscalers {
        Autoscalers { period, memories: Mutex::default() }
    }

    async fn snapshot(&self, input: &Input<'_>, key: &Key, autoscaler: Arc<HorizontalPodAutoscaler>) -> Snapshot {
        let client = input.client;
        let target = target::find(client, &autoscaler).await;
        let selector = target.as_ref().ok().and_then(Target::selector);
        let (mut measured, mut in_flight) = (Vec::new(), None);
        let (pods, usage) = match selector {
            // Somebody waits, and nothing that could be measured changes what is done for him.
            _ if is_marked(&autoscaler) => (Ok(Vec::new()), Ok(Vec::new())),
            Some(selector) => {
                let spec = &autoscaler.spec;
                for metric in spec.metrics.iter().flatten() {
                    measured.push(custom::read(client, key, metric, selector).await);
                }
                if spec.min_replicas == Some(0) && target.as_ref().is_ok_and(|target| target.wanted() > 0) {
                    in_flight = custom::in_flight(client, key, selector).await;
                }
                (pods(client, key, selector).await, usage::read(client, key, selector).await)
            }
            None => {
                (Err(Unknown { event: "SelectorRequired", message: "selector is required".to_owned() }), Ok(Vec::new()))
            }
        };
        let mine: BTreeSet<&str> = pods.iter().flatten().map(|pod| object::uid(&pod.metadata)).collect();
        let memories = self.memories.lock();
        let mut rivals: Vec<Key> = memories
            .iter()
            .filter(|(other, memory)| {
                *other != key && other.namespace == key.namespace && memory.pods.iter().any(|pod| mine.contains(&**pod))
            })
            .map(|(other, _)| other.clone())
            .collect();
        if !rivals.is_empty() {
            rivals.push(key.clone());
            rivals.sort();
        }
        let mine = memories.get(key).filter(|memory| memory.uid == autoscaler.metadata.uid);
        let past = mine.map(|memory| memory.past.clone()).unwrap_or_default();
        let failure = input.failure.map(|failure| failure.message.clone());
        Snapshot { autoscaler, target, pods, usage, measured, in_flight, rivals, past, failure, period: self.period }
    }
}

/// The pods that a selector means, as the API reads it.
async fn pods(client: &kube::Client, key: &Key, selector: &str) -> Result<Vec<Pod>, Unknown> {
    let api = Api::<Guarded<Pod>>::namespaced(client.clone(), &key.namespace);
    match api.list(&ListParams::default().labels(selector).match_any()).await {
        Ok(list) => Ok(list.items.into_iter().filter_map(Guarded::sound).collect()),
        Err(error) => {
            let error = Error::from(error);
            let message = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            Err(Unknown { event: "InvalidSelector", message })
        }
    }
}

#[cfg(test)]
mod tests;
