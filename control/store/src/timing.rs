//! When a member may stand for election: the slower the disks, the later, because each vote waits for two of them.
//!
//! openraft's own timers stay at their floor. On a slow disk elections are held back here until the leader has been
//! silent for long enough; otherwise candidates would give up before a vote can be on disk, and none would ever win.
//! What the disks of the others are like nobody knows: after each election that nobody won the next one is given twice
//! the time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::{Standing, machine::Core};

/// The shortest time without a leader after which a member stands for election, and the longest that is added at random.
pub const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(250);
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(350);

/// A disk that needs longer than this allows is waited for no longer.
pub const ELECTION_TIMEOUT_LIMIT: Duration = Duration::from_secs(5);

/// How many of the slowest commits a member waits for.
const COMMITS_WAITED: u32 = 10;

/// Recent commits that are looked at.
const COMMITS_KEPT: usize = 256;

/// How often a member with a slow disk looks whether the leader has been silent for long enough.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// How long recent commits of the log took.
#[derive(Debug)]
pub(crate) struct Latencies {
    recent: Mutex<VecDeque<Duration>>,
    timeout: watch::Sender<Duration>,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { recent: Mutex::default(), timeout: watch::Sender::new(ELECTION_TIMEOUT_MIN) }
    }
}

impl Latencies {
    pub(crate) fn note(&self, took: Duration) {
        let mut recent = self.recent.lock();
        recent.push_back(took);
        while recent.len() > COMMITS_KEPT {
            recent.pop_front();
        }
        let timeout = election_timeout(&recent);
        drop(recent);
        self.timeout.send_if_modified(|before| std::mem::replace(before, timeout) != timeout);
    }
}

/// Ten times what all but one of a hundred commits took, within limits. One slow commit says nothing, however few there
/// were.
fn election_timeout(recent: &VecDeque<Duration>) -> Duration {
    let mut sorted: Vec<Duration> = recent.iter().copied().collect();
    sorted.sort_unstable();
    let slowest = sorted.len().saturating_sub(1).saturating_sub((sorted.len() / 100).max(1));
    let tail = sorted.get(slowest).copied().unwrap_or_default();
    (tail * COMMITS_WAITED).clamp(ELECTION_TIMEOUT_MIN, ELECTION_TIMEOUT_LIMIT)
}

/// When this member last heard of a leader.
#[derive(Debug)]
pub(crate) struct Heard(Mutex<Instant>);

impl Default for Heard {
    fn default() -> Heard {
        Heard(Mutex::new(Instant::now()))
    }
}

impl Heard {
    pub(crate) fn note(&self) {
        *self.0.lock() = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.0.lock()
    }
}

/// The one who lets openraft stand for election, or not.
pub(crate) struct Elections {
    pub(crate) node: u64,
    pub(crate) raft: Core,
    pub(crate) latencies: Arc<Latencies>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) standing: watch::Receiver<Standing>,
}

impl Elections {
    pub(crate) async fn run(mut self) {
        let mut timeouts = self.latencies.timeout.subscribe();
        let mut server = self.raft.server_metrics();
        let mut rounds = Rounds { term: 0, since: Instant::now(), lost: 0 };
        loop {
            let now = Instant::now();
            let leads = {
                let server = server.borrow_watched();
                rounds.note(server.vote.leader_id.term, server.current_leader.is_some(), now);
                server.current_leader == Some(self.node)
            };
            let timeout = patience(*timeouts.borrow_and_update(), rounds.lost);
            let held = timeout > ELECTION_TIMEOUT_MIN;
            let silent = now.saturating_duration_since(self.heard.at().max(rounds.since));
            let removed = *self.standing.borrow_and_update() == Standing::Removed;
            // Nobody votes for a member that was removed, and nobody should be asked to.
            let may = !removed && (!held || silent >= timeout + spread(self.node, rounds.term, timeout));
            self.raft.runtime_config().elect(may);
            let look = async {
                match held && !removed && !leads {
                    true => tokio::time::sleep(LOOK_INTERVAL).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = look => (),
                changed = timeouts.changed() => if changed.is_err() { return },
                changed = self.standing.changed() => if changed.is_err() { return },
                changed = server.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The elections that this member has seen since there was a leader.
#[derive(Debug)]
struct Rounds {
    term: u64,
    /// When the present one began.
    since: Instant,
    /// How many there were.
    lost: u32,
}

impl Rounds {
    fn note(&mut self, term: u64, led: bool, now: Instant) {
        if std::mem::replace(&mut self.term, term) != term {
            self.since = now;
            self.lost = self.lost.saturating_add(1);
        }
        if led {
            self.lost = 0;
        }
    }
}

/// How long the others are given, after so many elections that nobody won: as long as this member's own disk needs, and
/// from the second one on twice as long each time.
fn patience(disk: Duration, lost: u32) -> Duration {
    let doubled = 1u32.checked_shl(lost.saturating_sub(1)).unwrap_or(u32::MAX);
    ELECTION_TIMEOUT_MIN.saturating_mul(doubled).max(disk).min(ELECTION_TIMEOUT_LIMIT)
}

/// What is added so that members do not all stand at once: up to half of the timeout, another part for each member and
/// term.
fn spread(node: u64, term: u64, timeout: Duration) -> Duration {
    let mixed = (node ^ term.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    let part = u32::try_from(mixed).unwrap_or_default();
    timeout / 2 * part / (1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elections_wait_for_the_tail_of_the_disk() {
        let timeout = |commits: &[u64]| {
            let recent: VecDeque<Duration> = commits.iter().map(|took| Duration::from_millis(*took)).collect();
            election_timeout(&recent).as_millis()
        };
        assert_eq!(timeout(&[]), 250);
        assert_eq!(timeout(&[4; 200]), 250);
        assert_eq!(timeout(&[100; 3]), 1000);
        let mut once = [4; 200];
        once[7] = 3000;
        assert_eq!(timeout(&once), 250, "one slow commit of two hundred is not the tail");
        once[8..12].fill(40);
        assert_eq!(timeout(&once), 400);
        assert_eq!(timeout(&[20_000; 5]), 5000);
        assert_eq!(timeout(&[4, 3000, 5]), 250, "one of few neither");
    }

    #[test]
    fn elections_that_nobody_wins_come_less_and_less_often() {
        let begun = Instant::now();
        let mut rounds = Rounds { term: 0, since: begun, lost: 0 };
        let mut after = |term, led| {
            rounds.note(term, led, begun);
            [Duration::ZERO, Duration::from_secs(1)].map(|disk| patience(disk, rounds.lost).as_millis())
        };
        assert_eq!(after(3, true), [250, 1000], "there is a leader");
        let without: Vec<_> = (4..11).map(|term| after(term, false)).collect();
        let expected = [[250, 1000], [500, 1000], [1000, 1000], [2000, 2000], [4000, 4000], [5000, 5000], [5000, 5000]];
        assert_eq!(without, expected);
        assert_eq!(after(10, false), [5000, 5000], "the same one counts once");
        assert_eq!(after(11, true), [250, 1000]);
        assert_eq!(patience(Duration::ZERO, u32::MAX).as_millis(), 5000);
    }

    #[test]
    fn members_stand_at_different_times() {
        let timeout = Duration::from_secs(1);
        let spreads: Vec<Duration> = (1..6).map(|node| spread(node, 7, timeout)).collect();
        assert!(spreads.iter().all(|spread| *spread < timeout / 2), "{spreads:?}");
        for (place, one) in spreads.iter().enumerate() {
            assert!(spreads[..place].iter().all(|other| one.abs_diff(*other) > timeout / 200), "{spreads:?}");
        }
    }
}
