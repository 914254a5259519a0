//! What the node, its containers and its components use: counters of their runtimes, and rates over a short window.
//!
//! ```text
//!  asked ─> sample: statistics of each runtime, /proc ─> history of a minute ─> rates
//! ```
//! Nothing is measured while nobody asks. Whoever asks first after a while waits for a second sample, so that there is
//! a rate at once; those who ask at the same time share it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tandem_api::Clock;
use tandem_runtime::{ContainerId, Stats};
use tokio::{sync::Mutex, time::Instant};

use crate::{machine, runtimes::Runtimes};

/// The time over which rates are taken, once there are samples of it.
const WINDOW: Duration = Duration::from_secs(10);
/// Counters move in steps, so a rate over less than this says little.
const WINDOW_MIN: Duration = Duration::from_millis(500);
/// What the first to ask waits for a second sample.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// Samples older than this are forgotten: a rate over them would not be of now.
const HISTORY: Duration = Duration::from_secs(60);
const SAMPLES_MAX: usize = 24;
/// A sample this young answers the next question too.
const FRESH: Duration = Duration::from_secs(1);

/// How fast a counter of CPU time grew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Nanoseconds of CPU time in each second.
    pub(crate) nano_cores: u64,
    pub(crate) window: Duration,
}

/// A container or component with its rate, where it has been there long enough to have one.
#[derive(Clone, Debug)]
pub(crate) struct ContainerUse {
    pub(crate) stats: Stats,
    pub(crate) rate: Option<Rate>,
}

/// The newest sample with its rates.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) at: Timestamp,
    pub(crate) cpu_ns: u64,
    pub(crate) rate: Option<Rate>,
    pub(crate) memory: machine::MemoryUse,
    pub(crate) containers: HashMap<ContainerId, ContainerUse>,
    /// False where a runtime did not answer: what it runs is missing.
    pub(crate) complete: bool,
}

#[derive(Debug)]
struct Sample {
    taken: Instant,
    at: Timestamp,
    cpu_ns: u64,
    memory: machine::MemoryUse,
    containers: HashMap<ContainerId, Stats>,
    complete: bool,
}

async fn sample(runtimes: &Runtimes, clock: &dyn Clock) -> Sample {
    let (mut containers, mut complete) = (HashMap::new(), true);
    for (_, runtime) in runtimes.all() {
        match runtime.stats().await {
            Ok(all) => containers.extend(all.into_iter().filter_map(|stats| Some((stats.container.clone()?, stats)))),
            Err(error) => {
                tracing::warn!(runtime = runtime.name(), %error, "no statistics of what this runtime runs");
                complete = false;
            }
        }
    }
    let (cpu_ns, memory) = (machine::cpu_ns(), machine::memory_use());
    Sample { taken: Instant::now(), at: clock.now(), cpu_ns, memory, containers, complete }
}

/// Samples of the last minute, the newest first.
#[derive(Debug, Default)]
struct History(VecDeque<Sample>);

impl History {
    fn add(&mut self, sample: Sample) -> Measured {
        let oldest = sample.taken.checked_sub(HISTORY);
        self.0.retain(|kept| oldest.is_none_or(|oldest| kept.taken >= oldest));
        self.0.truncate(SAMPLES_MAX - 1);
        let measured = self.measured(&sample);
        self.0.push_front(sample);
        measured
    }

    fn measured(&self, newest: &Sample) -> Measured {
        let older = || self.0.iter();
        let of = |id: &ContainerId, stats: &Stats| {
            let read = |stats: &Stats| Some((stats.cpu_ns, stats.at?));
            rate(read(stats)?, older().map_while(|sample| sample.containers.get(id)).filter_map(read))
        };
        let containers = newest.containers.iter().map(|(id, stats)| {
            let rate = of(id, stats);
            (id.clone(), ContainerUse { stats: stats.clone(), rate })
        });
        Measured {
            at: newest.at,
            cpu_ns: newest.cpu_ns,
            rate: rate((newest.cpu_ns, newest.at), older().map(|sample| (sample.cpu_ns, sample.at))),
            memory: newest.memory,
            containers: containers.collect(),
            complete: newest.complete,
        }
    }
}

/// The rate between a reading and the first of the older ones, newest first, that is a whole window before it; else
/// the oldest that is far enough away.
fn rate((cpu_ns, at): (u64, Timestamp), older: impl Iterator<Item = (u64, Timestamp)>) -> Option<Rate> {
    let mut found = None;
    for (before_ns, before) in older {
        // A counter that fell began anew.
        let Some(used) = cpu_ns.checked_sub(before_ns) else { break };
        let window = Duration::try_from(at.duration_since(before)).unwrap_or_default();
        if window < WINDOW_MIN {
            continue;
        }
        let nano_cores = u128::from(used) * 1_000_000_000 / window.as_nanos();
        found = Some(Rate { nano_cores: u64::try_from(nano_cores).unwrap_or(u64::MAX), window });
        if window >= WINDOW {
            break;
        }
    }
    found
}

impl Measured {
    fn has_all_rates(&self) -> bool {
        self.rate.is_some() && self.containers.values().all(|one| one.rate.is_some())
    }
}

/// Measures when it is asked.
#[derive(Debug, Default)]
pub(crate) struct Usage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    history: History,
    last: Option<(Instant, Arc<Measured>)>,
}

impl Usage {
    pub(crate) async fn measure(&self, runtimes: &Runtimes, clock: &dyn Clock) -> Arc<Measured> {
        let mut state = self.0.lock().await;
        if let Some((taken, measured)) = &state.last
            && taken.elapsed() < FRESH
        {
            return measured.clone();
        }
        let mut measured = state.history.add(sample(runtimes, clock).await);
        if !measured.has_all_rates() {
            tokio::time::sleep(FIRST_WINDOW).await;
            measured = state.history.add(sample(runtimes, clock).await);
        }
        let measured = Arc::new(measured);
        state.last = Some((Instant::now(), measured.clone()));
        measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + milliseconds).unwrap()
    }

    /// Readings as (CPU milliseconds, time in milliseconds), the newest first.
    fn check(readings: &[(u64, i64)], expected: Option<(u64, u64)>) {
        let mut readings = readings.iter().map(|(cpu, time)| (cpu * 1_000_000, at(*time)));
        let newest = readings.next().unwrap();
        let found = rate(newest, readings).map(|rate| (rate.nano_cores / 1_000_000, rate.window.as_millis() as u64));
        assert_eq!(found, expected);
    }

    #[test]
    fn rates_are_taken_over_ten_seconds_where_there_are_as_many() {
        check(&[(100, 0)], None);
        check(&[(100, 1000), (0, 0)], Some((100, 1000)));
        check(&[(100, 300), (0, 0)], None);
        check(&[(3000, 15_000), (2000, 10_000), (1000, 5000), (0, 0)], Some((200, 10_000)));
        check(&[(3000, 60_000), (0, 0)], Some((50, 60_000)));
        check(&[(500, 4000), (400, 3000), (200, 1000)], Some((100, 3000)));
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_there() {
        check(&[(10, 2000), (5000, 1000), (4000, 0)], None);
        check(&[(60, 3000), (10, 2000), (5000, 1000)], Some((50, 1000)));
    }

    #[test]
    fn history_is_short() {
        let mut history = History::default();
        let start = Instant::now();
        let taken = |seconds: u64| Sample {
            taken: start + Duration::from_secs(seconds),
            at: at(seconds as i64 * 1000),
            cpu_ns: seconds,
            memory: machine::MemoryUse::default(),
            containers: HashMap::new(),
            complete: true,
        };
        for second in 0..100 {
            history.add(taken(second));
        }
        assert_eq!(history.0.len(), SAMPLES_MAX);
        assert_eq!(history.add(taken(1000)).rate, None);
        assert_eq!(history.0.len(), 1);
    }
}
