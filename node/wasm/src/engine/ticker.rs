use std::{
    cell::RefCell,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::Thread,
    time::Duration,
};

use parking_lot::Mutex;

use super::priority;

/// How long a guest runs before it makes room for others on its thread.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// It interrupts whoever keeps a processor busy, so it must not wait for one: its priority, as `nice` counts.
const TICKER_NICE: i32 = -20;
/// So many ticks without a running guest, and the ticker sleeps: an idle node wakes up for nothing.
const IDLE_TICKS: u32 = 50;

thread_local! {
    /// The flag of this thread, and the ticker that knows it.
    static RUNNING: RefCell<Option<(usize, Arc<AtomicBool>)>> = const { RefCell::new(None) };
}

/// Moves the engine's epoch on, which is what interrupts guests, as long as any guest runs.
pub(crate) struct Ticker {
    /// One flag for each thread that polls guests: true while it is inside one.
    threads: Mutex<Vec<Weak<AtomicBool>>>,
    parked: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Ticker {
    pub(crate) fn start(engine: wasmtime::Engine) -> Arc<Ticker> {
        let ticker = Arc::new(Ticker {
            threads: Mutex::default(),
            parked: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        });
        let weak = Arc::downgrade(&ticker);
        let spawned = std::thread::Builder::new().name("epoch".to_owned()).spawn(move || run(&weak, &engine));
        match spawned {
            // The thread ends by itself when the engine's owner lets go of the ticker.
            Ok(handle) => drop(ticker.thread.set(handle.thread().clone())),
            Err(error) => {
                tracing::error!(%error, "no thread for the ticker: a guest that loops will not be interrupted")
            }
        }
        ticker
    }

    /// Marks this thread as inside a guest until the mark is dropped.
    pub(crate) fn enter(&self) -> Running {
        let flag = RUNNING.with_borrow_mut(|known| self.flag(known));
        // Sequential consistency pairs with `run`: either it sees the flag, or this sees that it parked.
        flag.store(true, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Running(flag)
    }

    fn flag(&self, known: &mut Option<(usize, Arc<AtomicBool>)>) -> Arc<AtomicBool> {
        let this = std::ptr::from_ref(self).addr();
        if let Some((ticker, flag)) = known
            && *ticker == this
        {
            return flag.clone();
        }
        let flag = Arc::new(AtomicBool::new(false));
        let mut threads = self.threads.lock();
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(&flag));
        *known = Some((this, flag.clone()));
        flag
    }

    fn any_running(&self) -> bool {
        self.threads.lock().iter().filter_map(Weak::upgrade).any(|flag| flag.load(Ordering::SeqCst))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

pub(crate) struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn run(ticker: &Weak<Ticker>, engine: &wasmtime::Engine) {
    if let Err(error) = priority::set(TICKER_NICE, None) {
        tracing::warn!(%error, "the ticker has no priority: a guest that loops is interrupted late");
    }
    let mut idle = 0;
    loop {
        std::thread::park_timeout(TICK);
        let Some(ticker) = ticker.upgrade() else { return };
        engine.increment_epoch();
        idle = if ticker.any_running() { 0 } else { idle + 1 };
        if idle < IDLE_TICKS {
            continue;
        }
        ticker.parked.store(true, Ordering::SeqCst);
        let sleeps = !ticker.any_running();
        if sleeps {
            let weak = Arc::downgrade(&ticker);
            drop(ticker);
            std::thread::park();
            let Some(ticker) = weak.upgrade() else { return };
            ticker.parked.store(false, Ordering::SeqCst);
        } else {
            ticker.parked.store(false, Ordering::SeqCst);
        }
        idle = 0;
    }
}
