//! What the users of a workload should hear about, and about how often.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::broadcast;

const HELD: usize = 256;
/// A container that traps at every request is mentioned so often.
const BETWEEN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) container: String,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) warning: bool,
}

/// Hands notices to whoever listens; nobody waits for slow listeners.
#[derive(Clone)]
pub(crate) struct Notices(broadcast::Sender<Notice>);

impl Default for Notices {
    fn default() -> Notices {
        Notices(broadcast::Sender::new(HELD))
    }
}

impl Notices {
    pub(crate) fn publish(&self, notice: Notice) {
        // Without a listener there is nobody to tell.
        drop(self.0.send(notice));
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<Notice> {
        self.0.subscribe()
    }
}

/// Says when one container may be mentioned again.
#[derive(Default)]
pub(crate) struct Pace(Mutex<(Option<Instant>, u64)>);

impl Pace {
    /// How many were held back since the last one, if this one may go out.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let (last, held) = &mut *state;
        if last.is_some_and(|last| now.duration_since(last) < BETWEEN) {
            *held += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_becomes_one_notice() {
        let (pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.pass(start), Some(0));
        assert_eq!(pace.pass(start + Duration::from_secs(1)), None);
        assert_eq!(pace.pass(start + Duration::from_secs(2)), None);
        assert_eq!(pace.pass(start + Duration::from_secs(11)), Some(2));
    }
}
