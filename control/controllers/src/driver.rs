//! The one loop of all controllers: caches -> view -> plan -> writes -> caches.
//!
//! ```text
//!  change ─> wakes() ─> Queue ─> view() ─> plan() ─> Executor ─> API ─> informers ─┐
//!                         ^                                                        │
//!                         └────────── done, when the caches have seen the writes <─┘
//! ```
//! A wake-up says which key, never why. Only the leader acts; followers keep their caches and queues warm.

use std::{collections::HashMap, fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tandem_api::Clock;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Controller, Input,
    action::Plan,
    cache::{Cache, Change, Key},
    execute::{Error, Executor, Failure, Outcome},
    queue::Queue,
};

/// How long a key waits for the caches to show its writes before it is planned from what they have.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// For controllers whose mistakes could not be undone.
const SETTLE_SERIAL_MAX: Duration = Duration::from_secs(60);
/// A plan that takes longer to perform has failed, and is made again.
pub(crate) const PERFORM_MAX: Duration = Duration::from_secs(60);

/// What the loop needs of a controller, whatever its keys are.
pub(crate) trait Reconcile: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + Ord + fmt::Debug + fmt::Display + Send + Sync + 'static;

    const NAME: &'static str;
    const WORKERS: usize;

    /// Told once which queue it fills, for controllers that have changes of their own to listen to.
    fn attach(&self, _queue: &Arc<Queue<Self::Key>>) {}

    /// Resolves when everything that plans are made from is known.
    fn ready(&self, cache: &Cache) -> impl Future<Output = ()> + Send;
    fn keys(&self, cache: &Cache) -> Vec<Self::Key>;
    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Self::Key>;
    fn plan(&self, input: &Input<'_>, key: &Self::Key) -> impl Future<Output = Result<Plan, Error>> + Send;
}

impl<C: Controller> Reconcile for C {
    type Key = Key;

    const NAME: &'static str = C::NAME;
    const WORKERS: usize = C::WORKERS;

    async fn ready(&self, cache: &Cache) {
        cache.fresh(C::READS).await;
    }

    fn keys(&self, cache: &Cache) -> Vec<Key> {
        Controller::keys(self, cache)
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        Controller::wakes(self, cache, change)
    }

    async fn plan(&self, input: &Input<'_>, key: &Key) -> Result<Plan, Error> {
        let Some(parent) = C::store(input.cache).get(key) else { return Ok(self.absent(input.cache, key)) };
        let view = self.view(input, parent).await?;
        Ok(C::plan(&view, input.now))
    }
}

pub(crate) struct Driver<R: Reconcile> {
    pub(crate) reconcile: Arc<R>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) queue: Arc<Queue<R::Key>>,
    pub(crate) executor: Executor,
    pub(crate) leadership: watch::Receiver<bool>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) failures: Mutex<HashMap<R::Key, Failure>>,
    pub(crate) perform_max: Duration,
}

impl<R: Reconcile> Driver<R> {
    /// Runs until it is told to stop. Work in progress is dropped at the moment that leadership is lost.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut leadership = self.leadership.clone();
        loop {
            let began = tokio::select! {
                () = shutdown.cancelled() => return,
                began = leadership.wait_for(|leads| *leads) => began.is_ok(),
            };
            if !began {
                return;
            }
            tracing::debug!(controller = R::NAME, "leads");
            let mut working = JoinSet::new();
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = leadership.wait_for(|leads| !*leads) => {}
                () = self.clone().lead(&mut working) => {}
            }
            working.shutdown().await;
            self.failures.lock().clear();
        }
    }

    async fn lead(self: Arc<Self>, working: &mut JoinSet<()>) {
        self.reconcile.ready(&self.cache).await;
        self.reconcile.keys(&self.cache).into_iter().for_each(|key| self.queue.add(key));
        let slots = Arc::new(Semaphore::new(R::WORKERS));
        loop {
            let next = async {
                let slot = slots.clone().acquire_owned().await;
                (self.queue.next().await, slot)
            };
            tokio::select! {
                (key, slot) = next => if let Ok(slot) = slot {
                    working.spawn(self.clone().work(key, slot));
                },
                Some(ended) = working.join_next() => if let Err(error) = ended {
                    tracing::error!(controller = R::NAME, %error, "a worker ended");
                },
            }
        }
    }

    async fn work(self: Arc<Self>, key: R::Key, slot: OwnedSemaphorePermit) {
        let working = Working { queue: self.queue.clone(), key: key.clone() };
        let started = Instant::now();
        let failed_before = self.failures.lock().remove(&key);
        let input = Input {
            cache: &self.cache,
            client: &self.executor.client,
            failure: failed_before.as_ref(),
            now: self.clock.now(),
        };
        let (outcome, requeue) = match self.reconcile.plan(&input, &key).await {
            Err(error) => (Outcome { error: Some(error), ..Outcome::default() }, None),
            Ok(plan) => (self.perform(plan.actions).await, plan.requeue),
        };
        self.queue.metrics().worked.observe(started.elapsed().as_secs_f64());
        let settle = self.cache.settled(&outcome.expectations);
        if R::WORKERS == 1 {
            self.wait(&key, SETTLE_SERIAL_MAX, settle).await;
            drop(slot);
        } else {
            drop(slot);
            self.wait(&key, SETTLE_MAX, settle).await;
        }
        self.conclude(&key, failed_before.is_some(), outcome, requeue);
        drop(working);
    }

    async fn perform(&self, actions: Vec<crate::Action>) -> Outcome {
        let bound = self.perform_max;
        let performed = timeout(bound, self.executor.run(actions)).await;
        performed.unwrap_or_else(|_elapsed| Outcome { error: Some(Error::Timeout(bound)), ..Outcome::default() })
    }

    async fn wait(&self, key: &R::Key, bound: Duration, settled: impl Future<Output = ()>) {
        if timeout(bound, settled).await.is_err() {
            tracing::warn!(controller = R::NAME, %key, "the caches do not show what was written");
        }
    }

    fn conclude(&self, key: &R::Key, failed_before: bool, outcome: Outcome, requeue: Option<Duration>) {
        let Outcome { failure, error, .. } = outcome;
        let healed = failed_before && failure.is_none();
        if let Some(failure) = failure {
            self.failures.lock().insert(key.clone(), failure);
        }
        match error {
            Some(error) => {
                if error.is_race() {
                    tracing::debug!(controller = R::NAME, %key, %error, "plans again");
                } else {
                    tracing::warn!(controller = R::NAME, %key, %error, "could not perform its plan");
                }
                self.queue.retry(key.clone());
            }
            None => {
                self.queue.forget(key);
                // The status still tells of the failure: the plan after the first success takes it back.
                if healed {
                    self.queue.add(key.clone());
                }
                if let Some(delay) = requeue {
                    self.queue.add_after(key.clone(), delay);
                }
            }
        }
    }
}

/// Gives the key back however the work ends: done, stopped or panicked.
struct Working<K: Clone + Eq + Hash + Ord + fmt::Debug> {
    queue: Arc<Queue<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash + Ord + fmt::Debug> Drop for Working<K> {
    fn drop(&mut self) {
        self.queue.done(&self.key);
    }
}

/// Has the queue filled by changes in the caches.
pub(crate) fn subscribe<R: Reconcile>(cache: &Cache, reconcile: Arc<R>, queue: Arc<Queue<R::Key>>) {
    reconcile.attach(&queue);
    cache.listen(Box::new(move |cache, change| {
        reconcile.wakes(cache, change).into_iter().for_each(|key| queue.add(key));
    }));
}

#[cfg(test)]
#[path = "driver/tests.rs"]
mod tests;
