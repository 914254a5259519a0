//! "Something changed": from the runtime's events where it has them, and from comparing lists now and then, because
//! events can be lost.

use std::{collections::BTreeMap, time::Duration};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use crate::{runtime::CriRuntime, v1};

/// Where events flow, lists are compared this many times less often.
const TRUST: u32 = 10;

const RECONNECT: Duration = Duration::from_secs(1);

impl CriRuntime {
    /// One wake-up is pending at most; whoever wakes up reads everything.
    pub(crate) fn hints(&self) -> BoxStream<'static, ()> {
        let (sender, receiver) = mpsc::channel(1);
        let watcher = AbortOnDropHandle::new(tokio::spawn(self.clone().watch(sender)));
        stream::unfold((receiver, watcher), |(mut receiver, watcher)| async move {
            receiver.recv().await.map(|()| ((), (receiver, watcher)))
        })
        .boxed()
    }

    async fn watch(self, wake: mpsc::Sender<()>) {
        let (flowing, flows) = tokio::sync::watch::channel(false);
        let own = AbortOnDropHandle::new(tokio::spawn(self.clone().follow_events(wake.clone(), flowing)));
        let given = self.options.changes.as_ref().map(|source| (source.open)());
        let listening = given.is_some();
        let mut given = given.unwrap_or_else(|| stream::pending().boxed());
        let mut seen = None;
        let mut poll = tokio::time::interval(self.options.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut skipped = 0;
        loop {
            tokio::select! {
                Some(()) = given.next() => {
                    if wake.try_send(()).is_err() && wake.is_closed() { break }
                }
                _ = poll.tick() => {
                    skipped += 1;
                    if (listening || *flows.borrow()) && seen.is_some() && skipped < TRUST { continue }
                    skipped = 0;
                    let now = self.fingerprint().await;
                    if seen.as_ref() != Some(&now) {
                        // A full queue has a wake-up in it already.
                        if wake.try_send(()).is_err() && wake.is_closed() { break }
                        seen = Some(now);
                    }
                }
            }
        }
        drop(own);
    }

    /// Follows CRI's own events, for ever or until the runtime says that it has none.
    async fn follow_events(self, wake: mpsc::Sender<()>, flowing: tokio::sync::watch::Sender<bool>) {
        loop {
            match self.runtime().get_container_events(v1::GetEventsRequest {}).await {
                Ok(answer) => {
                    let mut events = answer.into_inner();
                    flowing.send_replace(true);
                    while let Ok(Some(_)) = events.message().await {
                        if wake.try_send(()).is_err() && wake.is_closed() {
                            return;
                        }
                    }
                    flowing.send_replace(false);
                }
                Err(status) if status.code() == Code::Unimplemented => return,
                Err(status) => tracing::debug!(runtime = self.options.name, %status, "no container events"),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// What exists, in which state. `None` while the runtime does not answer: that, too, is a change.
    async fn fingerprint(&self) -> Option<BTreeMap<String, i32>> {
        let (sandboxes, containers) = self.lists().await.ok()?;
        let sandboxes = sandboxes.into_iter().map(|item| (item.id, item.state));
        Some(sandboxes.chain(containers.into_iter().map(|item| (item.id, item.state))).collect())
    }
}
