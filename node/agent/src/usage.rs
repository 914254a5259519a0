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
pub const WINDOW: Duration = Duration::from_secs(10);
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

/// How many requests came lately, and how long their answers took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestRate {
    pub(crate) per_second_milli: u64,
    /// At the mean; nothing where there were none.
    pub(crate) duration_us: u64,
    pub(crate) window: Duration,
}

/// A container or component with its rates, where it has been there long enough to have some.
#[derive(Clone, Debug)]
pub(crate) struct ContainerUse {
    pub(crate) stats: Stats,
    pub(crate) rate: Option<Rate>,
    pub(crate) requests: Option<RequestRate>,
}

/// The namespace and name of an Ingress.
pub(crate) type IngressName = (String, String);

/// How many requests the node has taken for each Ingress.
pub type IngressCounts = Arc<dyn Fn() -> HashMap<IngressName, u64> + Send + Sync>;

/// The newest sample with its rates.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) at: Timestamp,
    pub(crate) cpu_ns: u64,
    pub(crate) rate: Option<Rate>,
    pub(crate) memory: machine::MemoryUse,
    pub(crate) containers: HashMap<ContainerId, ContainerUse>,
    pub(crate) ingresses: HashMap<IngressName, RequestRate>,
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
    ingresses: HashMap<IngressName, u64>,
    complete: bool,
}

async fn sample(runtimes: &Runtimes, clock: &dyn Clock, ingresses: HashMap<IngressName, u64>) -> Sample {
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
    Sample { taken: Instant::now(), at: clock.now(), cpu_ns, memory, containers, ingresses, complete }
}

/// Samples of the last minute, the newest first.
#[derive(Debug, Default)]
struct History(VecDeque<Sample>);

impl History {
    fn add(&mut self, sample: Sample, over: Duration) -> Measured {
        let oldest = sample.taken.checked_sub(HISTORY);
        self.0.retain(|kept| oldest.is_none_or(|oldest| kept.taken >= oldest));
        self.0.truncate(SAMPLES_MAX - 1);
        let measured = self.measured(&sample, over);
        self.0.push_front(sample);
        measured
    }

    /// What was measured of a container, the newest first.
    fn of<'a>(&'a self, id: &'a ContainerId) -> impl Iterator<Item = &'a Stats> {
        self.0.iter().map_while(|sample| sample.containers.get(id))
    }

    fn measured(&self, newest: &Sample, over: Duration) -> Measured {
        let older = || self.0.iter();
        let cpu = |stats: &Stats| Some((stats.cpu_ns, stats.at?));
        let asked = |stats: &Stats| Some((stats.requests?.answered, stats.at?));
        let took = |stats: &Stats| Some((stats.requests?.duration_us, stats.at?));
        let containers = newest.containers.iter().map(|(id, stats)| {
            let rate = cpu(stats).and_then(|now| rate(now, self.of(id).filter_map(cpu), over));
            let requests = asked(stats).zip(took(stats)).and_then(|(answered, took_us)| {
                let answers = growth(answered, self.of(id).filter_map(asked), over)?;
                Some(
                    answers.requests(growth(took_us, self.of(id).filter_map(took), over).map_or(0, |took| took.amount)),
                )
            });
            (id.clone(), ContainerUse { stats: stats.clone(), rate, requests })
        });
        let ingresses = newest.ingresses.iter().filter_map(|(name, count)| {
            let before = older().map(|sample| (sample.ingresses.get(name).copied().unwrap_or(0), sample.at));
            Some((name.clone(), growth((*count, newest.at), before, over)?.requests(0)))
        });
        Measured {
            at: newest.at,
            cpu_ns: newest.cpu_ns,
            rate: rate((newest.cpu_ns, newest.at), older().map(|sample| (sample.cpu_ns, sample.at)), over),
            memory: newest.memory,
            containers: containers.collect(),
            ingresses: ingresses.collect(),
            complete: newest.complete,
        }
    }
}

/// By how much a counter grew, and in which time.
#[derive(Clone, Copy, Debug)]
struct Growth {
    amount: u64,
    window: Duration,
}

impl Growth {
    /// What grew in a second, times `scale`.
    fn per_second(self, scale: u128) -> u64 {
        let grown = u128::from(self.amount) * scale * 1_000_000_000 / self.window.as_nanos().max(1);
        u64::try_from(grown).unwrap_or(u64::MAX)
    }

    fn requests(self, took_us: u64) -> RequestRate {
        let duration_us = took_us.checked_div(self.amount).unwrap_or(0);
        RequestRate { per_second_milli: self.per_second(1000), duration_us, window: self.window }
    }
}

/// The growth from the first of the older readings, newest first, that is a whole window before this one; else from the
/// oldest that is far enough away.
fn growth(
    (amount, at): (u64, Timestamp),
    older: impl Iterator<Item = (u64, Timestamp)>,
    over: Duration,
) -> Option<Growth> {
    let mut found = None;
    for (amount_before, before) in older {
        // A counter that fell began anew.
        let Some(amount) = amount.checked_sub(amount_before) else { break };
        let window = Duration::try_from(at.duration_since(before)).unwrap_or_default();
        if window < WINDOW_MIN {
            continue;
        }
        found = Some(Growth { amount, window });
        if window >= over {
            break;
        }
    }
    found
}

fn rate(cpu: (u64, Timestamp), older: impl Iterator<Item = (u64, Timestamp)>, over: Duration) -> Option<Rate> {
    growth(cpu, older, over).map(|used| Rate { nano_cores: used.per_second(1), window: used.window })
}

impl Measured {
    fn has_all_rates(&self) -> bool {
        self.rate.is_some() && self.containers.values().all(|one| one.rate.is_some())
    }
}

/// Measures when it is asked.
pub(crate) struct Usage {
    state: Mutex<State>,
    /// The time over which rates are taken.
    window: Duration,
    ingresses: IngressCounts,
}

#[derive(Debug, Default)]
struct State {
    history: History,
    last: Option<(Instant, Arc<Measured>)>,
}

impl Usage {
    pub(crate) fn new(window: Duration, ingresses: IngressCounts) -> Usage {
        Usage { state: Mutex::default(), window, ingresses }
    }

    pub(crate) async fn measure(&self, runtimes: &Runtimes, clock: &dyn Clock) -> Arc<Measured> {
        let mut state = self.state.lock().await;
        if let Some((taken, measured)) = &state.last
            && taken.elapsed() < FRESH
        {
            return measured.clone();
        }
        let mut measured = state.history.add(sample(runtimes, clock, (self.ingresses)()).await, self.window);
        if !measured.has_all_rates() {
            tokio::time::sleep(FIRST_WINDOW).await;
            measured = state.history.add(sample(runtimes, clock, (self.ingresses)()).await, self.window);
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
        let found =
            rate(newest, readings, WINDOW).map(|rate| (rate.nano_cores / 1_000_000, rate.window.as_millis() as u64));
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
    fn requests_are_counted_by_the_second() {
        let check = |amount, milliseconds, took_us, expected| {
            let rate = Growth { amount, window: Duration::from_millis(milliseconds) }.requests(took_us);
            assert_eq!((rate.per_second_milli, rate.duration_us), expected);
        };
        check(0, 10_000, 0, (0, 0));
        check(1, 10_000, 1500, (100, 1500));
        check(250, 10_000, 500_000, (25_000, 2000));
        check(u64::MAX, 1, u64::MAX, (u64::MAX, 1));
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
            ingresses: HashMap::new(),
            complete: true,
        };
        for second in 0..100 {
            history.add(taken(second), WINDOW);
        }
        assert_eq!(history.0.len(), SAMPLES_MAX);
        assert_eq!(history.add(taken(1000), WINDOW).rate, None);
        assert_eq!(history.0.len(), 1);
    }
}
