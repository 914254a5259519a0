use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use parking_lot::Mutex;
use tandem_api::{ApiError, Identity, Reason};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    core::Core,
    held::held,
    request::{RequestInfo, Verb},
    respond,
    server::Peer,
};

/// Requests that read and requests that write, at one time (Kubernetes' defaults).
pub(crate) const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;
const NODE_WRITES_MAX: usize = 100;
/// Requests of a kind that wait for their turn beyond those, and how long: a moment with more clients than slots is
/// nothing that they need to know of. Of one user only so many wait, so that one who floods is the first to be refused.
const WAITING_MAX: usize = 1024;
pub(crate) const WAITING_OF_ONE_MAX: usize = 512;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Watches and other streams: in all, and of one user.
const STREAMS_MAX: usize = 40_000;
const STREAMS_OF_ONE_MAX: usize = 10_000;
/// How long a request may take unless it asks for less with `?timeout=`.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// When to try again, in seconds, as the answers say it.
const RETRY_SECONDS: u32 = 1;

/// What is being worked on at the moment. Clients inside the process are not limited: each is one task that waits for
/// its answers.
pub(crate) struct Limits {
    reads: Pool,
    writes: Pool,
    /// What nodes say of themselves must not wait for writes that wait for somebody's webhook.
    nodes: Pool,
    streams: Quota,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            reads: Pool::of(READS_MAX),
            writes: Pool::of(WRITES_MAX),
            nodes: Pool::of(NODE_WRITES_MAX),
            streams: Quota::of(STREAMS_MAX, STREAMS_OF_ONE_MAX),
        }
    }
}

impl Limits {
    /// How many reads and writes are in flight.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.reads.taken(), self.writes.taken() + self.nodes.taken())
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.taken()
    }
}

/// Requests of one kind.
struct Pool {
    slots: Arc<Semaphore>,
    count: usize,
    waiting: Quota,
}

impl Pool {
    fn of(count: usize) -> Pool {
        let waiting = Quota::of(WAITING_MAX, WAITING_OF_ONE_MAX);
        Pool { slots: Arc::new(Semaphore::new(count)), count, waiting }
    }

    fn taken(&self) -> usize {
        self.count - self.slots.available_permits()
    }

    /// A slot, at once or after those who waited before; none when there are too many of those, or it takes too long.
    async fn enter(&self, user: &str) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        let _place = self.waiting.take(user)?;
        timeout(WAIT_MAX, self.slots.clone().acquire_owned()).await.ok()?.ok()
    }
}

/// So many of something at one time, in all and of one user.
struct Quota {
    slots: Arc<Semaphore>,
    count: usize,
    of_one: usize,
    taken_by: Arc<Mutex<HashMap<String, usize>>>,
}

struct Place {
    _permit: OwnedSemaphorePermit,
    taken_by: Arc<Mutex<HashMap<String, usize>>>,
    user: String,
}

impl Quota {
    fn of(count: usize, of_one: usize) -> Quota {
        Quota { slots: Arc::new(Semaphore::new(count)), count, of_one, taken_by: Arc::default() }
    }

    fn taken(&self) -> usize {
        self.count - self.slots.available_permits()
    }

    fn take(&self, user: &str) -> Option<Place> {
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        let mut taken_by = self.taken_by.lock();
        let mine = taken_by.entry(user.to_owned()).or_default();
        if *mine >= self.of_one {
            return None;
        }
        *mine += 1;
        Some(Place { _permit: permit, taken_by: self.taken_by.clone(), user: user.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken_by = self.taken_by.lock();
        if let Some(mine) = taken_by.get_mut(&self.user) {
            *mine -= 1;
            if *mine == 0 {
                taken_by.remove(&self.user);
            }
        }
    }
}

pub(crate) async fn hold(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    let Some(info) = request.extensions().get::<Arc<RequestInfo>>().cloned() else {
        return respond::error(&ApiError::internal("no request info"));
    };
    let outside = request.extensions().get::<Peer>().is_some();
    if info.is_long_running() {
        return stream(&core, &info, outside, request, next).await;
    }
    let is_node = request.extensions().get::<Identity>().is_some_and(|identity| identity.node_name().is_some());
    let pool = match info.verb.is_read() {
        true => &core.limits.reads,
        false if is_node => &core.limits.nodes,
        false => &core.limits.writes,
    };
    let longest = requested_timeout(&info).map_or(REQUEST_MAX, |asked| asked.min(REQUEST_MAX));
    let answered = async {
        let slot = if outside { Some(pool.enter(user(&request)).await) } else { None };
        match slot {
            Some(None) => too_many(),
            Some(Some(_slot)) => next.run(request).await,
            None => next.run(request).await,
        }
    };
    timeout(longest, answered).await.unwrap_or_else(|_| {
        let message = "Timeout: request did not complete within requested timeout - context deadline exceeded";
        respond::error(&ApiError::new(Reason::Timeout, message))
    })
}

async fn stream(core: &Core, info: &RequestInfo, outside: bool, request: Request, next: Next) -> Response {
    let slot = (outside && info.verb == Verb::Watch).then(|| core.limits.streams.take(user(&request)));
    match slot {
        Some(None) => too_many(),
        // The slot is the stream's until its body has ended or was dropped.
        Some(Some(slot)) => next.run(request).await.map(|body| held(body, slot)),
        None => next.run(request).await,
    }
}

fn user(request: &Request) -> &str {
    request.extensions().get::<Identity>().map_or("", |identity| identity.name.as_str())
}

fn too_many() -> Response {
    let error = ApiError::new(Reason::TooManyRequests, "Too many requests, please try again later.");
    respond::error(&error.retry_after(RETRY_SECONDS))
}

/// `?timeout=32s`, as client-go sends it with most requests.
fn requested_timeout(info: &RequestInfo) -> Option<Duration> {
    let seconds: u64 = info.query.get("timeout")?.strip_suffix('s')?.parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}
