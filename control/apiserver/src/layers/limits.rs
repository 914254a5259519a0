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
const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;
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
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    streams_of: Arc<Mutex<HashMap<String, usize>>>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            reads: Arc::new(Semaphore::new(READS_MAX)),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            streams_of: Arc::default(),
        }
    }
}

impl Limits {
    /// How many reads and writes are in flight.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (READS_MAX - self.reads.available_permits(), WRITES_MAX - self.writes.available_permits())
    }

    pub(crate) fn streams(&self) -> usize {
        STREAMS_MAX - self.streams.available_permits()
    }

    fn stream(&self, user: &str) -> Option<StreamSlot> {
        let permit = self.streams.clone().try_acquire_owned().ok()?;
        let mut streams_of = self.streams_of.lock();
        let mine = streams_of.entry(user.to_owned()).or_default();
        if *mine >= STREAMS_OF_ONE_MAX {
            return None;
        }
        *mine += 1;
        Some(StreamSlot { _permit: permit, streams_of: self.streams_of.clone(), user: user.to_owned() })
    }
}

struct StreamSlot {
    _permit: OwnedSemaphorePermit,
    streams_of: Arc<Mutex<HashMap<String, usize>>>,
    user: String,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut streams_of = self.streams_of.lock();
        if let Some(mine) = streams_of.get_mut(&self.user) {
            *mine -= 1;
            if *mine == 0 {
                streams_of.remove(&self.user);
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
    let pool = if info.verb.is_read() { &core.limits.reads } else { &core.limits.writes };
    let _slot = if outside {
        match pool.clone().try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => return too_many(),
        }
    } else {
        None
    };
    let longest = requested_timeout(&info).map_or(REQUEST_MAX, |asked| asked.min(REQUEST_MAX));
    timeout(longest, next.run(request)).await.unwrap_or_else(|_| {
        let message = "Timeout: request did not complete within requested timeout - context deadline exceeded";
        respond::error(&ApiError::new(Reason::Timeout, message))
    })
}

async fn stream(core: &Core, info: &RequestInfo, outside: bool, request: Request, next: Next) -> Response {
    let user = request.extensions().get::<Identity>().map_or("", |identity| identity.name.as_str());
    let slot = if outside && info.verb == Verb::Watch { Some(core.limits.stream(user)) } else { None };
    match slot {
        Some(None) => too_many(),
        // The slot is the stream's until its body has ended or was dropped.
        Some(Some(slot)) => next.run(request).await.map(|body| held(body, slot)),
        None => next.run(request).await,
    }
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
