//! The clock, the randomness, the record of what happened: what a run owns instead of the machine.
//!
//! A run has its process for itself, so that nothing that another run did, and no order of threads, can reach it.
//! The binary puts [`monotonic`] and [`fill`] in the place of the machine's clock and entropy.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

/// How far the clock goes when nobody has anything to do.
const TICK_NS: u64 = 1_000_000;

/// The clock does not begin at 0: programs subtract from it.
const EPOCH_NS: u64 = 1_000_000_000_000_000;

static NOW_NS: AtomicU64 = AtomicU64::new(EPOCH_NS);
static ENTROPY: AtomicU64 = AtomicU64::new(0);
static THREADS: AtomicU64 = AtomicU64::new(0);
static ACTIVE: AtomicBool = AtomicBool::new(false);
static ROOT: Mutex<Option<Waker>> = Mutex::new(None);

/// What the machine's monotonic clock and its clock of the day are to say; `None` before the run begins.
pub fn monotonic() -> Option<Duration> {
    ACTIVE.load(Ordering::Relaxed).then(|| Duration::from_nanos(NOW_NS.load(Ordering::Relaxed)))
}

/// What the machine's entropy is to be.
pub fn fill(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        let next = splitmix(ENTROPY.fetch_add(GAMMA, Ordering::Relaxed)).to_le_bytes();
        chunk.copy_from_slice(&next[..chunk.len()]);
    }
}

/// Simulated time since the run began.
pub fn now() -> Duration {
    Duration::from_nanos(NOW_NS.load(Ordering::Relaxed) - EPOCH_NS)
}

/// Everything that waits finds that so much time has passed at once, as after a machine was suspended.
pub fn jump(by: Duration) {
    NOW_NS.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Lets simulated time pass.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

pub async fn pass_ms(time_ms: u64) {
    pass(Duration::from_millis(time_ms)).await;
}

/// Drives `simulation` on one thread. The clock stands still while anyone has something to do.
pub fn run<T>(seed: u64, simulation: impl Future<Output = T>) -> T {
    ENTROPY.store(splitmix(seed), Ordering::Relaxed);
    ACTIVE.store(true, Ordering::Relaxed);
    let begun = std::time::Instant::now();
    jump(Duration::from_secs(1));
    assert_eq!(begun.elapsed().as_secs(), 1, "the machine's clock is read: the binary lacks its shims");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .on_thread_park(tick)
        .on_thread_start(|| {
            THREADS.fetch_add(1, Ordering::Relaxed);
        })
        .build();
    let Ok(runtime) = runtime else { panic!("a runtime of one thread can be built") };
    let ended = runtime.block_on(Root(Box::pin(simulation)));
    assert_eq!(THREADS.load(Ordering::Relaxed), 0, "something started a thread of its own");
    runtime.shutdown_background();
    ended
}

fn tick() {
    NOW_NS.fetch_add(TICK_NS, Ordering::Relaxed);
    if let Some(waker) = &*ROOT.lock() {
        waker.wake_by_ref();
    }
}

/// The root of a run. It is woken with every tick, so that the runtime looks at its timers instead of waiting.
struct Root<'a, T>(Pin<Box<dyn Future<Output = T> + 'a>>);

impl<T> Future for Root<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut root = ROOT.lock();
        if !root.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *root = Some(context.waker().clone());
        }
        drop(root);
        self.0.as_mut().poll(context)
    }
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn splitmix(state: u64) -> u64 {
    let mixed = state.wrapping_add(GAMMA);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Randomness of one part of a run. Parts have their own, so that a change in one does not disturb the others.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, part: &str) -> Dice {
        Dice(part.bytes().fold(splitmix(seed), |state, byte| splitmix(state ^ u64::from(byte))))
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        splitmix(self.0)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }
}

/// What happened in a run: a hash over every step, how often each fault and injection point was hit, what went wrong.
#[derive(Debug, Default)]
pub struct Journal(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    hash: u64,
    hits: BTreeMap<&'static str, u64>,
    broken: Vec<String>,
    told: bool,
}

impl Journal {
    /// With `told` every step is printed.
    pub fn new(told: bool) -> Journal {
        Journal(Mutex::new(Record { hash: 0xcbf2_9ce4_8422_2325, told, ..Record::default() }))
    }

    /// A step that is the same whenever the seed is run again.
    pub fn step(&self, what: &'static str, numbers: &[u64]) {
        let mut record = self.0.lock();
        let time = u64::try_from(now().as_micros()).unwrap_or(u64::MAX);
        for number in what.bytes().map(u64::from).chain([time]).chain(numbers.iter().copied()) {
            record.hash = (record.hash ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
        }
        if record.told {
            tell(&format!("{:>10.3} {what} {numbers:?}", now().as_secs_f64()));
        }
    }

    /// A fault or an injection point that was hit.
    pub fn hit(&self, what: &'static str) {
        *self.0.lock().hits.entry(what).or_default() += 1;
    }

    /// A promise that was broken; the run goes on to its end.
    pub fn broken(&self, what: String) {
        let mut record = self.0.lock();
        if record.told {
            tell(&format!("BROKEN {what}"));
        }
        record.broken.push(what);
    }

    pub fn is_told(&self) -> bool {
        self.0.lock().told
    }

    pub fn hash(&self) -> u64 {
        self.0.lock().hash
    }

    pub fn hits(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().hits.clone()
    }

    pub fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().broken)
    }
}

/// A line for who looks at a run.
pub fn tell(line: &str) {
    use std::io::Write;
    // Who looked may have gone.
    drop(writeln!(std::io::stderr(), "{line}"));
}
