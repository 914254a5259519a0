//! One listing of the runtimes for all pods.
//!
//! ```text
//!  Runtime::changes ─┐
//!  a step ended ─────┼─> list ─> what changed, by pod ─> the workers of those pods
//!  time passed ──────┘
//! ```
//!
//! A worker that did something asks for a listing that began afterwards (a [`Ticket`]); listings are shared by all
//! who wait, so many pods cost few calls.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tandem_runtime::{Runtime, Sandbox};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    observed::{Kind, SeenSandbox},
    runtimes::Runtimes,
};

const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two listings, so that a burst of changes makes few of them.
const PAUSE: Duration = Duration::from_millis(4);
const KINDS: [Kind; 2] = [Kind::Container, Kind::Component];

/// A pod's sandboxes, in both runtimes.
pub(crate) type View = Arc<Vec<SeenSandbox>>;

/// How far the listing of each runtime has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    listed: [u64; 2],
    /// Why the last listing failed.
    pub(crate) errors: [Option<String>; 2],
}

impl Progress {
    /// The runtime has answered at least once.
    pub(crate) fn has_listed(&self, kind: Kind) -> bool {
        self.listed[index(kind)] > 0
    }

    /// Which runtimes have answered at least once.
    pub(crate) fn first_listed(&self) -> [bool; 2] {
        self.listed.map(|listed| listed > 0)
    }

    pub(crate) fn error(&self, kind: Kind) -> Option<&str> {
        self.errors[index(kind)].as_deref()
    }
}

/// A point in time of one runtime's listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticket([u64; 2]);

impl Ticket {
    pub(crate) fn is_served(self, progress: &Progress) -> bool {
        self.0.iter().zip(progress.listed).all(|(wanted, listed)| listed >= *wanted)
    }

    pub(crate) fn and(self, other: Ticket) -> Ticket {
        Ticket([self.0[0].max(other.0[0]), self.0[1].max(other.0[1])])
    }
}

fn index(kind: Kind) -> usize {
    match kind {
        Kind::Container => 0,
        Kind::Component => 1,
    }
}

#[derive(Clone)]
pub(crate) struct Observer {
    shared: Arc<Shared>,
}

struct Shared {
    runtimes: Runtimes,
    begun: [AtomicU64; 2],
    wake: [Notify; 2],
    progress: watch::Sender<Progress>,
    // Written by the two listing tasks and by subscribers, for a moment each: never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: [HashMap<String, Vec<SeenSandbox>>; 2],
    subscribers: HashMap<String, watch::Sender<View>>,
}

impl State {
    fn view(&self, uid: &str) -> Vec<SeenSandbox> {
        self.seen.iter().filter_map(|seen| seen.get(uid)).flatten().cloned().collect()
    }
}

impl Observer {
    pub(crate) fn new(runtimes: Runtimes) -> Observer {
        let mut progress = Progress::default();
        if runtimes.get(Kind::Container).is_none() {
            progress.listed[index(Kind::Container)] = u64::MAX;
        }
        Observer {
            shared: Arc::new(Shared {
                runtimes,
                begun: Default::default(),
                wake: Default::default(),
                progress: watch::Sender::new(progress),
                state: Mutex::default(),
            }),
        }
    }

    /// A listing of this runtime that has not begun yet.
    pub(crate) fn ticket(&self, kind: Kind) -> Ticket {
        if self.shared.runtimes.get(kind).is_none() {
            return Ticket::default();
        }
        let mut ticket = Ticket::default();
        ticket.0[index(kind)] = self.shared.begun[index(kind)].load(Ordering::SeqCst) + 1;
        self.shared.wake[index(kind)].notify_one();
        ticket
    }

    /// A listing of these runtimes, the first one that there is.
    pub(crate) fn first(&self, kinds: &[Kind]) -> Ticket {
        let mut ticket = Ticket::default();
        for kind in kinds.iter().filter(|kind| self.shared.runtimes.get(**kind).is_some()) {
            ticket.0[index(*kind)] = 1;
        }
        ticket
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    pub(crate) fn subscribe(&self, uid: &str) -> watch::Receiver<View> {
        let mut state = self.shared.state.lock();
        let view = state.view(uid);
        let sender = state.subscribers.entry(uid.to_owned()).or_insert_with(|| watch::Sender::new(Arc::new(view)));
        sender.subscribe()
    }

    pub(crate) fn unsubscribe(&self, uid: &str) {
        self.shared.state.lock().subscribers.remove(uid);
    }

    /// The sandboxes of one pod, as listed last.
    pub(crate) fn view(&self, uid: &str) -> Vec<SeenSandbox> {
        self.shared.state.lock().view(uid)
    }

    /// Shows every sandbox of the last listings; the visitor must be quick, as listings wait for it.
    pub(crate) fn visit(&self, mut visitor: impl FnMut(&SeenSandbox)) {
        let state = self.shared.state.lock();
        state.seen.iter().flat_map(HashMap::values).flatten().for_each(&mut visitor);
    }

    /// Lists until the end of the agent.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let each = KINDS.into_iter().filter_map(|kind| Some((kind, self.shared.runtimes.get(kind)?.clone())));
        let tasks = each.map(|(kind, runtime)| self.watch(kind, runtime));
        let all = futures::future::join_all(tasks);
        shutdown.run_until_cancelled(all).await;
    }

    async fn watch(&self, kind: Kind, runtime: Arc<dyn Runtime>) {
        let interval = runtime.relist_interval();
        let mut changes: BoxStream<'static, ()> = runtime.changes();
        loop {
            let begun = Instant::now();
            let number = self.shared.begun[index(kind)].fetch_add(1, Ordering::SeqCst) + 1;
            match tokio::time::timeout(LIST_TIMEOUT, runtime.list()).await {
                Ok(Ok(sandboxes)) => self.publish(kind, number, sandboxes),
                Ok(Err(error)) => self.fail(kind, error.to_string()),
                Err(_) => self.fail(kind, "listing timed out".to_owned()),
            }
            // Listing takes at most half of the time, however much there is to list.
            tokio::time::sleep(PAUSE.max(begun.elapsed())).await;
            tokio::select! {
                () = self.shared.wake[index(kind)].notified() => {}
                () = tokio::time::sleep(interval) => {}
                change = changes.next() => if change.is_none() {
                    // The stream ended with its connection; until it is back, time is the only wake-up.
                    tokio::time::sleep(interval).await;
                    changes = runtime.changes();
                },
            }
        }
    }

    fn publish(&self, kind: Kind, number: u64, sandboxes: Vec<Sandbox>) {
        let mut by_pod: HashMap<String, Vec<SeenSandbox>> = HashMap::new();
        for sandbox in sandboxes {
            by_pod.entry(sandbox.pod.uid.clone()).or_default().push(SeenSandbox { kind, sandbox });
        }
        for mine in by_pod.values_mut() {
            mine.sort_by(|a, b| (a.sandbox.pod.attempt, &a.sandbox.id).cmp(&(b.sandbox.pod.attempt, &b.sandbox.id)));
        }
        {
            let mut state = self.shared.state.lock();
            state.seen[index(kind)] = by_pod;
            for (uid, sender) in &state.subscribers {
                let view = state.view(uid);
                sender.send_if_modified(|current| {
                    let changed = **current != view;
                    if changed {
                        *current = Arc::new(view);
                    }
                    changed
                });
            }
        }
        self.shared.progress.send_modify(|progress| {
            progress.listed[index(kind)] = number;
            progress.errors[index(kind)] = None;
        });
    }

    fn fail(&self, kind: Kind, error: String) {
        self.shared.progress.send_if_modified(|progress| {
            let known = progress.errors[index(kind)].replace(error.clone());
            if known.as_ref() != Some(&error) {
                tracing::warn!(runtime = ?kind, error, "a runtime does not answer");
            }
            known.as_ref() != Some(&error)
        });
    }
}

#[cfg(test)]
mod tests {
    use tandem_api::SystemClock;
    use tandem_runtime::{Error, Fake, Network, SandboxSpec};

    use super::*;

    fn spec(uid: &str) -> SandboxSpec {
        SandboxSpec {
            pod: tandem_runtime::PodRef { uid: uid.to_owned(), ..Default::default() },
            network: Network::Own,
            hostname: String::new(),
            dns: Default::default(),
            labels: Default::default(),
            annotations: Default::default(),
            log_directory: Default::default(),
            cgroup_parent: String::new(),
            host_ports: Vec::new(),
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: std::collections::BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn a_ticket_is_served_by_a_listing_that_began_later() {
        let fake = Arc::new(Fake::new("fake", Arc::new(SystemClock)));
        let observer = Observer::new(Runtimes { containers: None, components: fake.clone() });
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(observer.clone().run(shutdown.clone()));
        let mut view = observer.subscribe("uid-1");
        fake.create_sandbox(&spec("uid-1")).await.unwrap();
        let ticket = observer.ticket(Kind::Component).and(observer.ticket(Kind::Container));
        observer.progress().wait_for(|progress| ticket.is_served(progress)).await.unwrap();
        assert_eq!(view.borrow_and_update().len(), 1);

        fake.fail_next("list", Error::Unsupported("listing"));
        observer.ticket(Kind::Component);
        observer.progress().wait_for(|progress| progress.error(Kind::Component).is_some()).await.unwrap();
        assert_eq!(view.borrow().len(), 1, "a failed listing forgets nothing");
        shutdown.cancel();
        task.await.unwrap();
    }
}
