//! The work queue: a key is in it once however often it was added, and never with two workers at a time.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Debug,
    hash::Hash,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::metrics::QueueMetrics;

/// The wait after the first failure of a key; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The number of keys is bounded by the number of objects, so the queue needs no bound of its own.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    metrics: QueueMetrics,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// When each key that waits for a worker was added; keys that are being worked on wait here too.
    waiting: HashMap<K, Instant>,
    working: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + Ord + Debug> Queue<K> {
    pub(crate) fn new(metrics: QueueMetrics) -> Queue<K> {
        Queue { state: Mutex::new(State::default()), changed: Notify::new(), metrics }
    }

    pub(crate) fn add(&self, key: K) {
        if self.state.lock().add(key, Instant::now()) {
            self.metrics.adds.inc();
            self.metrics.depth.inc();
            self.changed.notify_one();
        }
    }

    /// Adds the key later, or at the earlier of two times when it was due already.
    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().schedule(key, Instant::now() + delay);
        self.changed.notify_one();
    }

    /// Adds the key after a wait that grows with each failure since it was last forgotten.
    pub(crate) fn retry(&self, key: K) {
        let delay = self.state.lock().fail(&key);
        self.metrics.retries.inc();
        self.add_after(key, delay);
    }

    /// The next failure of the key is its first again.
    pub(crate) fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// The next key, when there is one. The caller says `done` when it may be worked on again.
    pub(crate) async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            let (key, due) = self.take();
            if let Some(key) = key {
                return key;
            }
            match due {
                None => changed.await,
                Some(due) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    }

    fn take(&self) -> (Option<K>, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let matured = state.mature(now);
        self.metrics.adds.inc_by(matured);
        self.metrics.depth.inc_by(i64::try_from(matured).unwrap_or(i64::MAX));
        let taken = state.take();
        if let Some((_, since)) = &taken {
            self.metrics.depth.dec();
            self.metrics.queued.observe(now.duration_since(*since).as_secs_f64());
        }
        if !state.ready.is_empty() {
            self.changed.notify_one();
        }
        (taken.map(|(key, _)| key), state.delayed.first().map(|(due, _)| *due))
    }

    pub(crate) fn done(&self, key: &K) {
        if self.state.lock().done(key) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn metrics(&self) -> &QueueMetrics {
        &self.metrics
    }
}

/// The queue without its clock: every method is told the time.
impl<K: Clone + Eq + Hash + Ord> State<K> {
    /// Says whether the key was not waiting already.
    fn add(&mut self, key: K, now: Instant) -> bool {
        if self.waiting.contains_key(&key) {
            return false;
        }
        self.waiting.insert(key.clone(), now);
        if !self.working.contains(&key) {
            self.ready.push_back(key);
        }
        true
    }

    fn schedule(&mut self, key: K, at: Instant) {
        if let Some(due) = self.due.get(&key).copied() {
            if due <= at {
                return;
            }
            self.delayed.remove(&(due, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    fn fail(&mut self, key: &K) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        *failures = failures.saturating_add(1);
        backoff(*failures)
    }

    /// Adds what has become due, and says how much was not waiting already.
    fn mature(&mut self, now: Instant) -> u64 {
        let mut matured = 0;
        while self.delayed.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, key)) = self.delayed.pop_first() else { break };
            self.due.remove(&key);
            matured += u64::from(self.add(key, now));
        }
        matured
    }

    /// The next key and since when it has waited.
    fn take(&mut self) -> Option<(K, Instant)> {
        let key = self.ready.pop_front()?;
        let since = self.waiting.remove(&key)?;
        self.working.insert(key.clone());
        Some((key, since))
    }

    /// Says whether the key waits for work again.
    fn done(&mut self, key: &K) -> bool {
        self.working.remove(key);
        let again = self.waiting.contains_key(key);
        if again {
            self.ready.push_back(key.clone());
        }
        again
    }
}

impl<K> Default for State<K> {
    fn default() -> State<K> {
        State {
            ready: VecDeque::new(),
            waiting: HashMap::new(),
            working: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        }
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(state: &mut State<&'static str>) -> Option<&'static str> {
        state.take().map(|(key, _)| key)
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_key_is_queued_once() {
        let (mut queue, now) = (State::default(), Instant::now());
        assert_eq!(["a", "b", "a"].map(|key| queue.add(key, now)), [true, true, false]);
        assert_eq!([take(&mut queue), take(&mut queue), take(&mut queue)], [Some("a"), Some("b"), None]);
    }

    #[test]
    fn a_key_never_has_two_workers() {
        let (mut queue, now) = (State::default(), Instant::now());
        queue.add("a", now);
        assert_eq!(take(&mut queue), Some("a"));
        queue.add("a", now);
        assert_eq!(take(&mut queue), None, "still with its worker");
        assert!(queue.done(&"a"));
        assert_eq!(take(&mut queue), Some("a"), "what was added meanwhile is not lost");
        assert!(!queue.done(&"a"));
        assert_eq!(take(&mut queue), None);
    }

    #[test]
    fn the_earlier_of_two_times_wins() {
        let (mut queue, start) = (State::default(), Instant::now());
        for seconds in [5, 1, 9] {
            queue.schedule("a", after(start, seconds));
        }
        assert_eq!(queue.mature(start), 0);
        assert_eq!(queue.mature(after(start, 1)), 1);
        assert_eq!(take(&mut queue), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.mature(after(start, 20)), 0, "it was due once");
    }

    #[test]
    fn failures_back_off_until_forgotten() {
        let mut queue = State::default();
        let waits: Vec<u128> = (0..3).map(|_| queue.fail(&"a").as_millis()).collect();
        assert_eq!(waits, [5, 10, 20]);
        queue.failures.remove("a");
        assert_eq!(queue.fail(&"a"), BACKOFF_FIRST);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }

    #[tokio::test]
    async fn waiting_ends_when_a_key_is_added_or_becomes_due() {
        let queue = std::sync::Arc::new(Queue::new(crate::metrics::Metrics::default().queue("test")));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { (queue.next().await, queue.next().await) }
        });
        queue.add("a");
        queue.add_after("b", Duration::from_millis(1));
        assert_eq!(waiting.await.unwrap(), ("a", "b"));
        assert_eq!(queue.metrics().adds.get(), 2);
        assert_eq!(queue.metrics().depth.get(), 0);
    }
}
