//! When something that failed is tried again.

use jiff::{SignedDuration, Timestamp};
use tandem_runtime::{Container, State};

use crate::observed::{Observed, seconds};

/// Container annotation: the back-off in seconds that holds when this container ends.
///
/// It is kept with the container, not in the agent, so that a restarted agent goes on where the old one was.
pub(crate) const BACKOFF_ANNOTATION: &str = "tandem.dev/restart-backoff-seconds";

const CRASH_LOOP_SECONDS: i64 = 10;
const CRASH_LOOP_SECONDS_MAX: i64 = 300;
/// A container that ran this long starts a new series: twice the longest back-off, as in Kubernetes.
const RESET_SECONDS: i64 = 2 * CRASH_LOOP_SECONDS_MAX;

/// When an ended container may start again, and what is told about it until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CrashLoop {
    pub(crate) ready_at: Timestamp,
    pub(crate) seconds: i64,
    /// The back-off that the next container carries.
    pub(crate) next_seconds: i64,
}

/// The crash loop of an ended container; `None` while it has not ended.
pub(crate) fn crash_loop(container: &Container, seen: &Observed) -> Option<CrashLoop> {
    let State::Exited { finished, .. } = container.state else { return None };
    let carried = container.annotations.get(BACKOFF_ANNOTATION).and_then(|text| text.parse::<i64>().ok());
    let expired = finished.duration_since(container.created) > seconds(RESET_SECONDS);
    Some(match carried.filter(|_| !expired) {
        None => CrashLoop { ready_at: finished, seconds: 0, next_seconds: CRASH_LOOP_SECONDS },
        Some(carried) => {
            let carried = carried.clamp(0, CRASH_LOOP_SECONDS_MAX);
            // Kubernetes counts from the end of the container before where it ended this one itself.
            let from = if seen.killed.contains(&container.id) { container.created } else { finished };
            CrashLoop {
                ready_at: from + seconds(carried),
                seconds: carried,
                next_seconds: (carried * 2).clamp(CRASH_LOOP_SECONDS, CRASH_LOOP_SECONDS_MAX),
            }
        }
    })
}

/// The pause after the `count`th failure in a row, by what failed.
pub(crate) fn retry_delay(reason: &str, count: u32) -> SignedDuration {
    let (first_ms, max_ms) = match reason {
        "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => (10_000, 300_000),
        "FailedMount" => (500, 20_000),
        "FailedCreatePodSandBox" => (1_000, 30_000),
        _ => (1_000, 15_000),
    };
    let doublings = count.saturating_sub(1).min(16);
    SignedDuration::from_millis((first_ms << doublings).min(max_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_pulls_back_off_to_five_minutes() {
        let delays: Vec<i64> = (1..8).map(|count| retry_delay("ErrImagePull", count).as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }
}
