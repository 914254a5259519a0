//! HTTP components: a listener, connections on the express lanes, and a fresh instance for each request.

mod connection;
mod instance;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::Interest,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Blueprint, Cpu, Engine, Handler, Lanes, Program, Pulse},
    link::watched,
    metrics::Metrics,
    notices::{Notices, Pace},
    output::LogFile,
};

/// What one container may use, unless its pod says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Instances at once.
    pub(crate) instances: usize,
    /// Requests that wait for one.
    pub(crate) queue: usize,
    pub(crate) queue_time: Duration,
    /// From the request to the head of its answer.
    pub(crate) answer_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            instances: 256,
            queue: 1024,
            queue_time: Duration::from_secs(10),
            answer_time: Duration::from_secs(60),
        }
    }
}

/// Connections of one container; more wait in the listener's queue.
const CONNECTIONS: usize = 8192;
/// A stopping container still takes connections until none came for so long: whoever sends them may not know yet.
const QUIET: Duration = Duration::from_millis(300);
const QUIET_MAX: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(20);

/// A running HTTP container.
pub(crate) struct Service {
    /// The container's id, for notices.
    pub(crate) container: String,
    pub(crate) engine: Arc<Engine>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) program: Arc<Program>,
    pub(crate) blueprint: Blueprint,
    pub(crate) cpu: Arc<Cpu>,
    pub(crate) log: Arc<LogFile>,
    pub(crate) notices: Notices,
    pub(crate) metrics: Metrics,
    pub(crate) pace: Pace,
    limits: Limits,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    connections: Arc<Semaphore>,
    live: Mutex<Live>,
    began: Instant,
    last_arrival_ms: AtomicU64,
    closing: AtomicBool,
    /// No more connections.
    refuse: CancellationToken,
    /// Connections end at the next pause between requests.
    wind_down: CancellationToken,
    /// Everything ends now.
    kill: CancellationToken,
}

/// The parts of a service.
pub(crate) struct ServiceParts {
    pub(crate) container: String,
    pub(crate) engine: Arc<Engine>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) program: Arc<Program>,
    pub(crate) blueprint: Blueprint,
    pub(crate) cpu: Arc<Cpu>,
    pub(crate) log: Arc<LogFile>,
    pub(crate) notices: Notices,
    pub(crate) limits: Limits,
}

impl Service {
    pub(crate) fn new(parts: ServiceParts) -> Arc<Service> {
        let ServiceParts { container, engine, lanes, program, blueprint, cpu, log, notices, mut limits } = parts;
        // Concurrency alone must not break a memory limit: the wish to is met by waiting.
        if let (Some(limit), initial @ 1..) = (blueprint.memory.limit(), program.initial_memory_bytes) {
            let fit = usize::try_from(limit / initial).unwrap_or(usize::MAX).max(1);
            limits.instances = limits.instances.min(fit);
        }
        Arc::new(Service {
            container,
            engine,
            lanes,
            program,
            blueprint,
            cpu,
            log,
            notices,
            metrics: Metrics::default(),
            pace: Pace::default(),
            permits: Arc::new(Semaphore::new(limits.instances)),
            limits,
            waiting: AtomicUsize::new(0),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            live: Mutex::default(),
            began: Instant::now(),
            last_arrival_ms: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            refuse: CancellationToken::new(),
            wind_down: CancellationToken::new(),
            kill: CancellationToken::new(),
        })
    }

    fn handler(&self) -> Option<&Handler> {
        self.program.http.as_ref()
    }

    pub(crate) fn live_instances(&self) -> usize {
        self.live.lock().count
    }

    pub(crate) fn queued(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes connections from the listener until the service stops.
    pub(crate) fn listen(self: &Arc<Self>, listener: OwnedFd) {
        let service = self.clone();
        let accepting = async move {
            if let Err(error) = service.clone().accept(listener).await {
                tracing::error!(%error, container = service.container, "no more connections are taken");
            }
        };
        drop(self.lanes.any().spawn(accepting));
    }

    async fn accept(self: Arc<Self>, listener: OwnedFd) -> io::Result<()> {
        let listener = watched(std::net::TcpListener::from(listener), Interest::READABLE)?;
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return Ok(()) };
            let accepted = tokio::select! {
                () = self.refuse.cancelled() => return Ok(()),
                accepted = listener.async_io(Interest::READABLE, connection::accept) => accepted,
            };
            match accepted {
                Ok(stream) => {
                    self.arrived();
                    // The connection belongs to the event loop that will read it, so it is handed over as it is.
                    let (lane, seat) = self.lanes.seat();
                    drop(lane.spawn(connection::serve(self.clone(), stream, permit, seat)));
                }
                Err(error) => {
                    // Out of files or memory: a moment later there may be some.
                    tracing::warn!(%error, container = self.container, "a connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn arrived(&self) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_arrival_ms.store(ms, Ordering::Relaxed);
    }

    fn quiet_for(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last_arrival_ms.load(Ordering::Relaxed)))
    }

    /// Waits until nobody sends new connections, within `longest`. Answers ask clients to come back on a new one.
    pub(crate) async fn quiet_down(&self, longest: Duration) {
        self.closing.store(true, Ordering::Relaxed);
        self.arrived();
        let longest = longest.min(QUIET_MAX);
        let began = Instant::now();
        while self.quiet_for() < QUIET && began.elapsed() < longest {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops taking connections and waits for the requests under way; says whether all were answered in time.
    pub(crate) async fn drain(&self, longest: Duration) -> bool {
        self.refuse.cancel();
        self.wind_down.cancel();
        let began = Instant::now();
        while self.connections.available_permits() < CONNECTIONS || self.live_instances() > 0 {
            if began.elapsed() >= longest {
                return false;
            }
            tokio::time::sleep(LOOK.min(longest)).await;
        }
        true
    }

    /// Ends everything at once.
    pub(crate) fn kill(&self) {
        self.refuse.cancel();
        self.kill.cancel();
        self.live.lock().stop_all();
    }

    async fn admit(&self) -> Result<Admission, Refusal> {
        if let Ok(own) = self.permits.clone().try_acquire_owned()
            && let Ok(shared) = self.engine.instances().clone().try_acquire_owned()
        {
            return Ok(Admission { _own: own, _shared: shared });
        }
        let waiting = Waiting::enter(&self.waiting);
        if waiting.ahead >= self.limits.queue {
            return Err(Refusal::Full);
        }
        let both = async {
            let own = self.permits.clone().acquire_owned().await.ok()?;
            let shared = self.engine.instances().clone().acquire_owned().await.ok()?;
            Some(Admission { _own: own, _shared: shared })
        };
        match tokio::time::timeout(self.limits.queue_time, both).await {
            Ok(Some(admission)) => Ok(admission),
            Ok(None) => Err(Refusal::Closed),
            Err(_) => Err(Refusal::Slow),
        }
    }
}

/// The right to one instance, given back when it is gone.
struct Admission {
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// As many as may wait already do.
    Full,
    /// No instance became free in time.
    Slow,
    Closed,
}

struct Waiting<'a> {
    count: &'a AtomicUsize,
    ahead: usize,
}

impl Waiting<'_> {
    fn enter(count: &AtomicUsize) -> Waiting<'_> {
        Waiting { ahead: count.fetch_add(1, Ordering::Relaxed), count }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The instances alive, so that they can be ended together.
#[derive(Default)]
struct Live {
    pulses: Vec<Option<Arc<Pulse>>>,
    free: Vec<usize>,
    count: usize,
}

impl Live {
    fn stop_all(&self) {
        self.pulses.iter().flatten().for_each(|pulse| pulse.stop());
    }
}

/// One instance's place among the living.
struct Place {
    service: Arc<Service>,
    index: usize,
}

impl Place {
    fn take(service: Arc<Service>, pulse: Arc<Pulse>) -> Place {
        let mut live = service.live.lock();
        live.count += 1;
        let index = match live.free.pop() {
            Some(index) => {
                live.pulses[index] = Some(pulse);
                index
            }
            None => {
                live.pulses.push(Some(pulse));
                live.pulses.len() - 1
            }
        };
        drop(live);
        Place { service, index }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut live = self.service.live.lock();
        live.count -= 1;
        live.pulses[self.index] = None;
        live.free.push(self.index);
    }
}
