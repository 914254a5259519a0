//! What runs beside raft as long as a member does: telling who leads, and forgetting history.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use openraft::async_runtime::watch::WatchReceiver;
use tandem_api::Clock;
use tokio::sync::watch;

use crate::{
    Command, Leadership, Member, Metrics, Standing,
    codec::Proposal,
    compactor::{self, Mark},
    disk::Guarded,
    machine::Core,
    members::{listed, metrics_of, standing},
    metrics::shown,
    replica::Replica,
};

/// Tells who leads and who belongs to the cluster whenever that changes, and of the end of raft when nobody asked for
/// it: it ends by itself only when its storage failed, and then the process must not pretend to be a member any longer.
pub(crate) struct Report {
    pub(crate) raft: Core,
    pub(crate) leadership: Arc<watch::Sender<Leadership>>,
    pub(crate) members: watch::Sender<Vec<Member>>,
    pub(crate) standing: watch::Sender<Standing>,
    /// Another member said that this one was removed.
    pub(crate) removed: watch::Receiver<bool>,
    pub(crate) quorum: watch::Receiver<bool>,
    /// The last term in which a quorum confirmed a leader.
    pub(crate) confirmed: u64,
    pub(crate) metrics: Metrics,
    pub(crate) closing: Arc<AtomicBool>,
    pub(crate) guarded: Guarded,
    pub(crate) path: PathBuf,
}

impl Report {
    pub(crate) async fn run(mut self) {
        let mut server = self.raft.server_metrics();
        loop {
            let leadership = self.tell();
            let changed = tokio::select! {
                changed = server.changed() => changed.is_ok(),
                removed = self.removed.changed() => removed.is_ok(),
                // Who tells of the quorum ends when raft does, which is told above.
                Ok(()) = self.quorum.changed() => true,
            };
            if !changed {
                self.leadership.send_replace(Leadership { leader: false, ..leadership });
                let why = self.raft.metrics().borrow_watched().running_state.clone().err();
                if let Some(why) = why.filter(|_| !self.closing.load(Ordering::SeqCst)) {
                    self.guarded.fail("run raft", &self.path, &std::io::Error::other(why.to_string()));
                }
                return;
            }
        }
    }

    fn tell(&mut self) -> Leadership {
        let metrics = metrics_of(&self.raft);
        let leads = metrics.state.is_leader() && metrics.vote.committed;
        let term = metrics.vote.leader_id.term;
        let confirmed = *self.quorum.borrow_and_update();
        if confirmed {
            self.confirmed = term;
        }
        // Who was confirmed and is not any more can do nothing as a leader; perhaps another one leads already.
        let leader = leads && (confirmed || self.confirmed != term);
        let only_member = metrics.membership_config.nodes().map(|(id, _)| *id).eq([metrics.id]);
        // Who leads nobody needs no clock: no heartbeats, no elections, no work while nothing happens.
        self.raft.runtime_config().tick(!(leads && only_member));
        let leadership = Leadership { leader, term };
        self.metrics.term.set(shown(leadership.term));
        self.metrics.leader.set(i64::from(leadership.leader));
        // What is applied may be ahead of what raft has told.
        self.leadership.send_if_modified(|before| {
            before.term <= leadership.term && std::mem::replace(before, leadership) != leadership
        });
        let members = listed(&metrics);
        self.members.send_if_modified(|before| {
            *before != members && {
                *before = members;
                true
            }
        });
        let found = if *self.removed.borrow() {
            Standing::Removed
        } else {
            standing(metrics.id, &metrics.committed_membership_config)
        };
        let told = self.standing.send_if_modified(|before| std::mem::replace(before, found) != found);
        if told && found == Standing::Removed {
            tracing::warn!(member = metrics.id, "this member was removed from its cluster; it can join as a new one");
        }
        leadership
    }
}

pub(crate) struct Compaction {
    pub(crate) raft: Core,
    pub(crate) replica: Arc<Replica>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) interval: Duration,
}

impl Compaction {
    /// At every interval the leader moves the horizons, and every member frees what lies behind them.
    pub(crate) async fn run(self, leadership: watch::Receiver<Leadership>) {
        let mut ticks = tokio::time::interval(self.interval);
        // What was missed is not made up for: marks of one moment tell nothing.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut marks: VecDeque<Mark> = VecDeque::new();
        let mut last: Option<Command> = None;
        loop {
            ticks.tick().await;
            let now = self.clock.now();
            let planned = compactor::plan(&marks, now, self.interval);
            compactor::note(&mut marks, Mark { at: now, revision: self.replica.revision() });
            let Leadership { leader, term } = *leadership.borrow();
            if let Some(command) = planned.filter(|command| leader && last.as_ref() != Some(command)) {
                last = Some(command.clone());
                if let Err(error) = self.raft.client_write(Proposal(Arc::new(command.fenced(term)))).await {
                    tracing::info!(%error, "history was not compacted this time");
                    last = None;
                }
            }
            // Between two entries, so that whoever writes waits for one slice at most.
            while let Ok(true) = self.raft.with_state_machine(|machine| machine.trim().boxed()).await {}
        }
    }
}
