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
    let mut turns = Turns::default();
    loop {
        let leads = server.borrow_watched().state.is_leader();
        let found = *space.borrow_and_update();
        if turns.gives_way(leads, found, Instant::now()) {
            tracing::warn!("this member's disk is full: another one is asked to lead");
            hand_over(&raft).await;
        }
        let pause = turns.last.map_or(FULL_PAUSE, |last| FULL_PAUSE.saturating_sub(last.elapsed()));
        tokio::select! {
            changed = space.changed() => if changed.is_err() { return },
            changed = server.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause), if leads && found > Space::Enough => {}
        }
    }
}

/// When a member whose disk is full last asked another one to lead.
#[derive(Default)]
struct Turns {
    last: Option<Instant>,
}

impl Turns {
    /// Whether a member asks another one to lead: at once when its disk becomes full, and rarely while it stays so.
    fn gives_way(&mut self, leads: bool, space: Space, now: Instant) -> bool {
        if space == Space::Enough {
            self.last = None;
            return false;
        }
        let due = leads && self.last.is_none_or(|last| now.duration_since(last) >= FULL_PAUSE);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_whose_disk_is_full_gives_way_once_a_minute() {
        let began = Instant::now();
        let (soon, later) = (began + FULL_PAUSE - Duration::from_millis(1), began + FULL_PAUSE);
        for full in [Space::Low, Space::None] {
            let mut turns = Turns::default();
            assert!(!turns.gives_way(false, full, began));
            assert!(turns.gives_way(true, full, began));
            assert!(!turns.gives_way(true, full, soon), "it led again at once: nobody else has room");
            assert!(turns.gives_way(true, full, later));
        }
        assert!(!Turns::default().gives_way(true, Space::Enough, began));
    }

    #[test]
    fn a_disk_that_had_room_meanwhile_is_full_anew() {
        let began = Instant::now();
        let mut turns = Turns::default();
        assert!(turns.gives_way(true, Space::Low, began));
        assert!(!turns.gives_way(false, Space::Enough, began));
        assert!(turns.gives_way(true, Space::Low, began), "others may have room now");
    }
}
