//! Pods that have a node, and whose claims do not have their volumes yet: they hold their room there meanwhile.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use kube::runtime::watcher::{self, Event};
use tokio::time::Instant;

use super::{Kept, Nomination, Scheduler, Setback, Taken, Written, bind, within};
use crate::{
    snapshot::PodInfo,
    storage::{Standing, Storage},
};

/// How long a pod waits for its claims before it is scheduled again.
const CLAIMS_MAX: Duration = Duration::from_secs(30);

/// A pod and the node that was chosen for it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) taken: Box<Taken>,
    pub(super) node: String,
    pub(super) started: Instant,
}

/// By the pods' uids. Bounded by the number of pods.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pods: HashMap<String, (Instant, Held)>,
}

impl Waiting {
    fn insert(&mut self, held: Held, deadline: Instant) {
        self.pods.insert(held.taken.pod.uid.clone(), (deadline, held));
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Held> {
        self.pods.remove(uid).map(|(_, held)| held)
    }

    /// Resolves when a pod has waited long enough.
    pub(super) async fn overdue(&self) {
        match self.pods.values().map(|(deadline, _)| *deadline).min() {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }
}

impl Scheduler {
    pub(super) fn is_listed(&self) -> bool {
        self.listed.is_complete() && self.snapshot.is_listed()
    }

    pub(super) fn storage_changed<K: kube::Resource + Debug>(
        &mut self,
        change: watcher::Result<Event<K>>,
        kept: fn(&mut Storage) -> &mut Kept<K>,
    ) {
        match change {
            Ok(event) => kept(&mut self.snapshot.storage).take(event),
            Err(error) => return tracing::debug!(%error, "the scheduler's view of storage retries"),
        }
        self.queue.wake_minding(PodInfo::has_claims);
        let uids: Vec<String> = self.waiting.pods.keys().cloned().collect();
        for uid in uids {
            if let Some((deadline, held)) = self.waiting.pods.remove(&uid) {
                self.settle_until(held, deadline);
            }
        }
    }

    /// Tells the pod's claims its node.
    pub(super) fn select(&mut self, held: Held) {
        let Held { taken, node, started } = held;
        let claims = self.snapshot.storage.to_select(&taken.pod, &node);
        let client = self.context.client.clone();
        self.writes.spawn(async move {
            let result = within(bind::select(&client, &taken.pod, &claims, Some(&node))).await;
            Written::Selected { taken, node, started, result }
        });
    }

    /// Binds the pod if its claims are bound, else has it wait for them.
    pub(super) fn settle(&mut self, held: Held) {
        self.settle_until(held, Instant::now() + CLAIMS_MAX);
    }

    fn settle_until(&mut self, held: Held, deadline: Instant) {
        // Whoever is not held any more was deleted while its claims were written.
        if !self.snapshot.is_placed(&held.taken.pod.uid) {
            return;
        }
        let Some(node) = self.snapshot.node(&held.node) else {
            return self.give_back(&held, "the node is gone".to_owned());
        };
        match self.snapshot.storage.standing(&held.taken.pod, node) {
            Standing::Bound => {
                let (Held { taken, node, started }, client) = (held, self.context.client.clone());
                self.writes.spawn(async move {
                    let result = within(bind::bind(&client, &taken.pod, &node)).await;
                    Written::Bound { taken, node, started, result }
                });
            }
            Standing::Waiting => self.waiting.insert(held, deadline),
            Standing::Elsewhere => {
                self.give_back(&held, "binding volumes: the volume of a claim is not on the chosen node".to_owned());
            }
        }
    }

    /// Schedules those again that waited too long.
    pub(super) fn give_up_waiting(&mut self) {
        let now = Instant::now();
        let overdue = self.waiting.pods.iter().filter(|(_, (deadline, _))| *deadline <= now);
        let uids: Vec<String> = overdue.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            if let Some(held) = self.waiting.remove(&uid) {
                self.give_back(&held, "binding volumes: timed out waiting for the condition".to_owned());
            }
        }
    }

    pub(super) fn give_back(&mut self, held: &Held, why: String) {
        self.context.metrics.attempted(&held.taken.pod.scheduler, "error", held.started.elapsed().as_secs_f64());
        self.snapshot.forget(&held.taken.pod.uid);
        self.follow_nomination(&held.taken.pod);
        self.queue.wake();
        self.put_back(&held.taken, Setback::Error, why, Nomination::Keep);
    }
}
