//! A leader that goes hands over to the member that is closest behind it, so that nobody waits for an election.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::{sync::watch, time::Instant};

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
    let mut last = None;
    loop {
        let leads = server.borrow_watched().state.is_leader();
        let found = *space.borrow_and_update();
        if gives_way(leads, found, last.map(|last: Instant| last.elapsed())) {
            tracing::warn!("this member's disk is full: another one is asked to lead");
            hand_over(&raft).await;
            last = Some(Instant::now());
        }
        let pause = last.map_or(FULL_PAUSE, |last| FULL_PAUSE.saturating_sub(last.elapsed()));
        tokio::select! {
            changed = space.changed() => if changed.is_err() { return },
            changed = server.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause), if leads && found > Space::Enough => {}
        }
    }
}

/// Whether a leader with so much room asks another member to lead, so long after it last did.
fn gives_way(leads: bool, space: Space, since: Option<Duration>) -> bool {
    leads && space > Space::Enough && since.is_none_or(|since| since >= FULL_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_whose_disk_is_full_gives_way_once_a_minute() {
        let (soon, later) = (Some(FULL_PAUSE - Duration::from_millis(1)), Some(FULL_PAUSE));
        for full in [Space::Low, Space::None] {
            assert!(gives_way(true, full, None) && gives_way(true, full, later));
            assert!(!gives_way(true, full, soon), "it led again at once: nobody else has room");
            assert!(!gives_way(false, full, None));
        }
        assert!(!gives_way(true, Space::Enough, None));
    }
}
