//! A leader that goes hands over to the member that is closest behind it, so that nobody waits for an election.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use tokio::sync::watch;

use crate::{
    Space,
    machine::Core,
    members::{listed, metrics_of},
    types::RaftMetrics,
};

/// How long a handover may take before the leader goes without it.
pub const HANDOVER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a leader without room on its disk waits before it hands over again: perhaps nobody has any.
const FULL_PAUSE: Duration = Duration::from_secs(60);

/// Who is to take over: the voter that has the most of the log, and of equals the one with the smallest id.
fn successor(metrics: &RaftMetrics) -> Option<u64> {
    let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
    let others = listed(metrics).into_iter().filter(|member| member.id != metrics.id && voters.contains(&member.id));
    let known = others.filter_map(|member| Some((member.matched?, member.id)));
    known.max_by_key(|(matched, id)| (*matched, u64::MAX - id)).map(|(_, id)| id)
}

/// Hands over when this member leads and another one can. Gives back whether it no longer leads.
pub(crate) async fn hand_over(raft: &Core) -> bool {
    let metrics = metrics_of(raft);
    if !metrics.state.is_leader() {
        return true;
    }
    let Some(successor) = successor(&metrics) else { return false };
    if raft.trigger().transfer_leader(successor).await.is_err() {
        return true;
    }
    let mut server = raft.server_metrics();
    let taken_over = async {
        while server.borrow_watched().state.is_leader() {
            if server.changed().await.is_err() {
                break;
            }
        }
    };
    let ended = tokio::time::timeout(HANDOVER_TIMEOUT, taken_over).await;
    if ended.is_err() {
        tracing::warn!(successor, "the other member did not take over in time; an election will follow");
    }
    ended.is_ok()
}

/// A leader whose disk is full would refuse writes that another member has room for.
pub(crate) async fn hand_over_when_full(raft: Core, mut space: watch::Receiver<Space>) {
    let mut server = raft.server_metrics();
    loop {
        let leads = server.borrow_watched().state.is_leader();
        if leads && *space.borrow_and_update() > Space::Enough {
            tracing::warn!("this member's disk is full: another one is asked to lead");
            hand_over(&raft).await;
            tokio::time::sleep(FULL_PAUSE).await;
            continue;
        }
        tokio::select! {
            changed = space.changed() => if changed.is_err() { return },
            changed = server.changed() => if changed.is_err() { return },
        }
    }
}
