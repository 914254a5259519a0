use std::{
    fs::File,
    future::Future,
    io,
    os::fd::AsFd,
    panic::AssertUnwindSafe,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use rustix::time::{ClockId, clock_gettime};
use tokio::{runtime::Handle, time::Sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Cpu, priority, ticker::Ticker};

/// A guest that computes for so long at one go belongs on a bulk lane.
const GO: Duration = Duration::from_micros(900);
/// So does one that used so much altogether without ever computing long at one go.
const ALTOGETHER: Duration = Duration::from_millis(50);
/// A guest that used so much without waiting for anything may never end: those on bulk lanes must not wait behind it,
/// and the sooner it gives way the fewer requests of its neighbours notice that it began.
const LONG: Duration = Duration::from_millis(10);
/// How much bulk lanes give way to express lanes, and background lanes to both, as `nice` counts.
const BULK_NICE: i32 = 5;
const BACKGROUND_NICE: i32 = 19;
/// They may run for long at one go in return for giving way at once.
const YIELDING_SLICE: Duration = Duration::from_millis(100);

/// The threads that guests run on, each with an event loop of its own: the caches of one core, no stealing, and no
/// locks between them.
///
/// Express lanes accept connections and run what answers quickly. What computes on is moved to a bulk lane, and from
/// there to a background lane, which the kernel lets run when the others leave time: a guest that loops takes what
/// nobody else wants.
pub(crate) struct Lanes {
    express: Vec<Lane>,
    bulk: Vec<Lane>,
    background: Vec<Lane>,
    next: AtomicUsize,
    ticker: Arc<Ticker>,
    // Ends the threads when the lanes are dropped.
    _running: DropGuard,
}

struct Lane {
    handle: Handle,
    connections: Arc<AtomicUsize>,
}

/// Counts a connection on its lane until it is dropped.
pub(crate) struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    /// Lanes of so many threads of each kind, all inside a network namespace if one is given.
    pub(crate) fn start(ticker: Arc<Ticker>, count: usize, namespace: Option<&Path>) -> io::Result<Arc<Lanes>> {
        let running = CancellationToken::new();
        let namespace = namespace.map(File::open).transpose()?;
        let lane = |name: String, nice: Option<i32>| -> io::Result<Lane> {
            let namespace = namespace.as_ref().map(File::try_clone).transpose()?;
            let prepare = move || {
                nice.map_or(Ok(()), |nice| priority::set(nice, Some(YIELDING_SLICE)))?;
                enter(namespace.as_ref())
            };
            let handle = event_loop(name, running.clone(), prepare)?;
            Ok(Lane { handle, connections: Arc::default() })
        };
        let lanes = |kind: &str, nice: Option<i32>| -> io::Result<Vec<Lane>> {
            (0..count.max(1)).map(|index| lane(format!("{kind}-{index}"), nice)).collect()
        };
        Ok(Arc::new(Lanes {
            express: lanes("express", None)?,
            bulk: lanes("bulk", Some(BULK_NICE))?,
            background: lanes("background", Some(BACKGROUND_NICE))?,
            next: AtomicUsize::new(0),
            ticker,
            _running: running.drop_guard(),
        }))
    }

    /// The lane where a new listener or loop of small work goes.
    pub(crate) fn any(&self) -> &Handle {
        self.one_of(&self.express)
    }

    /// The express lane with the fewest connections.
    pub(crate) fn seat(&self) -> (&Handle, Seat) {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.express.len();
        let lanes = (0..count).map(|offset| &self.express[(first + offset) % count]);
        let lane = lanes.min_by_key(|lane| lane.connections.load(Ordering::Relaxed)).unwrap_or(&self.express[0]);
        lane.connections.fetch_add(1, Ordering::Relaxed);
        (&lane.handle, Seat(lane.connections.clone()))
    }

    fn one_of<'a>(&self, lanes: &'a [Lane]) -> &'a Handle {
        &lanes[self.next.fetch_add(1, Ordering::Relaxed) % lanes.len()].handle
    }

    /// Starts a guest on the lane of the caller; it is moved when it turns out to compute much.
    pub(crate) fn run_express(
        self: &Arc<Self>,
        cpu: Arc<Cpu>,
        pulse: Arc<Pulse>,
        guest: impl Future<Output = ()> + Send + 'static,
    ) {
        let express =
            Express { guest: Some(Box::pin(guest)), lanes: self.clone(), spent: Duration::ZERO, suspected: false };
        drop(tokio::spawn(Metered { work: express, cpu, pulse, wait: None }));
    }

    /// Starts a guest on a bulk lane.
    pub(crate) fn run_bulk(
        self: &Arc<Self>,
        cpu: Arc<Cpu>,
        pulse: Arc<Pulse>,
        guest: impl Future<Output = ()> + Send + 'static,
    ) {
        self.run_bulk_boxed(cpu, pulse, Box::pin(guest));
    }

    fn run_bulk_boxed(self: &Arc<Self>, cpu: Arc<Cpu>, pulse: Arc<Pulse>, guest: BoxedGuest) {
        let bulk = Bulk { guest: Some(guest), lanes: self.clone(), spent: Duration::ZERO };
        drop(self.one_of(&self.bulk).spawn(Metered { work: bulk, cpu, pulse, wait: None }));
    }

    fn run_background(self: &Arc<Self>, cpu: Arc<Cpu>, pulse: Arc<Pulse>, guest: BoxedGuest) {
        let work = Background { guest: Some(guest), lanes: self.clone() };
        drop(self.one_of(&self.background).spawn(Metered { work, cpu, pulse, wait: None }));
    }

    /// Starts a guest on a thread of its own inside a network namespace, where its sockets are made.
    pub(crate) fn run_inside(
        &self,
        namespace: Option<&Path>,
        cpu: Arc<Cpu>,
        pulse: Arc<Pulse>,
        guest: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let namespace = namespace.map(File::open).transpose()?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        // The namespace is entered before the event loop is made, so that its helper threads are inside too.
        let handle = event_loop("guest".to_owned(), ended, move || enter(namespace.as_ref()))?;
        let guest = Box::pin(async move {
            guest.await;
            drop(guard);
        });
        drop(handle.spawn(Metered {
            work: Alone { guest: Some(guest), ticker: self.ticker.clone() },
            cpu,
            pulse,
            wait: None,
        }));
        Ok(())
    }
}

/// Moves this thread for ever.
fn enter(namespace: Option<&File>) -> io::Result<()> {
    if let Some(namespace) = namespace {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))?;
    }
    Ok(())
}

/// A thread with an event loop that runs until the token is cancelled.
fn event_loop(
    name: String,
    ended: CancellationToken,
    prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<Handle> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let run = move || {
        let runtime = prepare().and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
        match runtime {
            Ok(runtime) => {
                drop(sender.send(Ok(runtime.handle().clone())));
                runtime.block_on(ended.cancelled());
                runtime.shutdown_background();
            }
            Err(error) => drop(sender.send(Err(error))),
        }
    };
    drop(std::thread::Builder::new().name(name).spawn(run)?);
    receiver.recv().map_err(|_| io::Error::other("the thread ended before it began"))?
}

/// The way to end a guest from outside, at its next breath.
#[derive(Default)]
pub(crate) struct Pulse {
    stopped: AtomicBool,
    waker: AtomicWaker,
}

impl Pulse {
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

type BoxedGuest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One way to poll a guest and to measure what it used.
trait Work: Unpin {
    /// Polls the guest; says whether it is over for this task.
    fn poll(&mut self, cpu: &Arc<Cpu>, pulse: &Arc<Pulse>, context: &mut Context<'_>) -> Poll<()>;
    fn discard(&mut self);
}

struct Express {
    guest: Option<BoxedGuest>,
    lanes: Arc<Lanes>,
    spent: Duration,
    /// Whether a go of it took long, be it that it computed or that its thread waited for a processor.
    suspected: bool,
}

impl Work for Express {
    fn poll(&mut self, cpu: &Arc<Cpu>, pulse: &Arc<Pulse>, context: &mut Context<'_>) -> Poll<()> {
        let Some(guest) = self.guest.as_mut() else { return Poll::Ready(()) };
        // The wall clock is read without a system call; while a guest is quick the two clocks agree. On a busy machine
        // a slow one may have computed nothing: it is measured by its thread's clock from then on.
        let computed = self.suspected.then(thread_time);
        let began = Instant::now();
        let polled = contained(guest, &self.lanes.ticker, context);
        let now = Instant::now();
        let took = match computed {
            Some(before) => thread_time().saturating_sub(before),
            None => (now - began).min(GO),
        };
        self.suspected |= now - began > GO;
        cpu.spend(took, now);
        self.spent += took;
        if polled.is_pending()
            && (took > GO || self.spent > ALTOGETHER)
            && let Some(guest) = self.guest.take()
        {
            self.lanes.run_bulk_boxed(cpu.clone(), pulse.clone(), guest);
            return Poll::Ready(());
        }
        polled
    }

    fn discard(&mut self) {
        self.guest = None;
    }
}

struct Bulk {
    guest: Option<BoxedGuest>,
    lanes: Arc<Lanes>,
    /// Since it last waited for something.
    spent: Duration,
}

impl Work for Bulk {
    fn poll(&mut self, cpu: &Arc<Cpu>, pulse: &Arc<Pulse>, context: &mut Context<'_>) -> Poll<()> {
        let Some(guest) = self.guest.as_mut() else { return Poll::Ready(()) };
        let go = Go::of(guest, &self.lanes.ticker, context);
        cpu.spend(go.computed, go.ended);
        self.spent = if go.waits() { Duration::ZERO } else { self.spent + go.computed };
        if go.polled.is_pending()
            && self.spent > LONG
            && let Some(guest) = self.guest.take()
        {
            self.lanes.run_background(cpu.clone(), pulse.clone(), guest);
            return Poll::Ready(());
        }
        go.polled
    }

    fn discard(&mut self) {
        self.guest = None;
    }
}

struct Background {
    guest: Option<BoxedGuest>,
    lanes: Arc<Lanes>,
}

impl Work for Background {
    fn poll(&mut self, cpu: &Arc<Cpu>, pulse: &Arc<Pulse>, context: &mut Context<'_>) -> Poll<()> {
        let Some(guest) = self.guest.as_mut() else { return Poll::Ready(()) };
        let go = Go::of(guest, &self.lanes.ticker, context);
        cpu.spend(go.computed, go.ended);
        if go.waits()
            && let Some(guest) = self.guest.take()
        {
            self.lanes.run_bulk_boxed(cpu.clone(), pulse.clone(), guest);
            return Poll::Ready(());
        }
        go.polled
    }

    fn discard(&mut self) {
        self.guest = None;
    }
}

/// A guest that has a thread to itself.
struct Alone {
    guest: Option<BoxedGuest>,
    ticker: Arc<Ticker>,
}

impl Work for Alone {
    fn poll(&mut self, cpu: &Arc<Cpu>, _pulse: &Arc<Pulse>, context: &mut Context<'_>) -> Poll<()> {
        let Some(guest) = self.guest.as_mut() else { return Poll::Ready(()) };
        let go = Go::of(guest, &self.ticker, context);
        cpu.spend(go.computed, go.ended);
        go.polled
    }

    fn discard(&mut self) {
        self.guest = None;
    }
}

/// One go of a guest.
struct Go {
    polled: Poll<()>,
    took: Duration,
    /// Of that, what its thread really had a processor for.
    computed: Duration,
    ended: Instant,
}

impl Go {
    fn of(guest: &mut BoxedGuest, ticker: &Ticker, context: &mut Context<'_>) -> Go {
        let (began, before) = (Instant::now(), thread_time());
        let polled = contained(guest, ticker, context);
        let (ended, after) = (Instant::now(), thread_time());
        Go { polled, took: ended - began, computed: after.saturating_sub(before), ended }
    }

    /// Whether the guest gave way by itself: one that computes on is interrupted later than this.
    fn waits(&self) -> bool {
        self.polled.is_pending() && self.took < GO
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A panic below a guest, in the engine or in a host call, ends that guest and nothing else.
fn contained(guest: &mut BoxedGuest, ticker: &Ticker, context: &mut Context<'_>) -> Poll<()> {
    let _running = ticker.enter();
    match std::panic::catch_unwind(AssertUnwindSafe(|| guest.as_mut().poll(context))) {
        Ok(polled) => polled,
        Err(_) => {
            tracing::error!("a guest made the host panic; the guest is ended");
            Poll::Ready(())
        }
    }
}

/// Runs a guest's future within the CPU limit of its container.
struct Metered<W> {
    work: W,
    cpu: Arc<Cpu>,
    pulse: Arc<Pulse>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl<W: Work> Future for Metered<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.pulse.waker.register(context.waker());
        if this.pulse.is_stopped() {
            this.work.discard();
            return Poll::Ready(());
        }
        if let Some(until) = this.cpu.exhausted_until(Instant::now()) {
            let wait = this.wait.insert(Box::pin(tokio::time::sleep_until(until.into())));
            if wait.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        this.wait = None;
        let polled = this.work.poll(&this.cpu, &this.pulse, context);
        if polled.is_ready() {
            this.work.discard();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Where a guest is after it did the same thing several times.
    async fn lane_after(turns: usize, go: impl Fn() + Send + 'static) -> String {
        let ticker = Ticker::start(wasmtime::Engine::default());
        let lanes = Lanes::start(ticker, 1, None).unwrap();
        let (sender, receiver) = oneshot::channel();
        let guest = async move {
            for _ in 0..turns {
                go();
                tokio::task::yield_now().await;
            }
            sender.send(std::thread::current().name().unwrap_or_default().to_owned()).unwrap();
        };
        let cpu = Arc::new(Cpu::new(0, 0, Instant::now()));
        let mine = lanes.clone();
        lanes.any().spawn(async move { mine.run_express(cpu, Arc::default(), guest) }).await.unwrap();
        receiver.await.unwrap()
    }

    #[tokio::test]
    async fn what_computes_long_makes_room_and_what_waits_for_a_processor_stays() {
        let (_open, never) = std::sync::mpsc::channel::<()>();
        let waits = move || assert!(never.recv_timeout(3 * GO).is_err());
        assert_eq!(lane_after(5, waits).await, "express-0");
        let computes = || {
            let began = thread_time();
            while thread_time() - began < 3 * GO {}
        };
        assert_eq!(lane_after(3, computes).await, "bulk-0");
        assert_eq!(lane_after(100, computes).await, "background-0");
    }
}
