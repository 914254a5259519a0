//! How long a client may take: for its first request, for the rest of one, between two, and to read what it asked for.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// How long a connection waits for its client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// From the connection to the end of the first request's head, and from the first byte of a later head to its end.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// How long the client may take nothing of what is sent to it.
    pub(crate) reader_stall: Duration,
}

pub(crate) const TIMES: Times =
    Times { head: Duration::from_secs(10), idle: Duration::from_secs(60), reader_stall: Duration::from_secs(30) };
/// How long a client may send nothing of a body that is waited for.
pub(crate) const SENDER_STALL_MAX: Duration = Duration::from_secs(30);

/// The requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    running: AtomicUsize,
    begun: AtomicU64,
    /// HTTP/2, where bytes between requests are no head that has begun.
    multiplexed: AtomicBool,
    /// Requests of whose answer more is there than the client takes, and when it last took something of it: what it
    /// takes of one says nothing about another.
    blocked: Mutex<HashMap<u64, Instant>>,
}

/// A point in time that threads share.
#[derive(Debug)]
struct Moment {
    base: Instant,
    millis: AtomicU64,
}

impl Default for Moment {
    fn default() -> Moment {
        Moment { base: Instant::now(), millis: AtomicU64::new(0) }
    }
}

impl Moment {
    fn set_now(&self) {
        let millis = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    fn get(&self) -> Instant {
        self.base + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

/// A request that runs, until it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    activity: Arc<Activity>,
    number: u64,
    blocked: bool,
}

impl Activity {
    pub(crate) fn begin(self: &Arc<Self>, multiplexed: bool) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        if multiplexed {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        Running { activity: self.clone(), number, blocked: false }
    }

    /// Whether there is something of an answer for the client that it has not taken for so long. Over HTTP/2 it says itself how much
    /// it takes, and nothing is written that could stall.
    fn is_stalled(&self, time: Duration) -> bool {
        self.blocked.lock().values().any(|since| since.elapsed() >= time)
    }
}

impl Running {
    /// Says whether the client has to take what is there before more of the answer is asked for.
    pub(crate) fn set_blocked(&mut self, blocked: bool) {
        match (self.blocked, blocked) {
            (_, true) => drop(self.activity.blocked.lock().insert(self.number, Instant::now())),
            (true, false) => drop(self.activity.blocked.lock().remove(&self.number)),
            (false, false) => {}
        }
        self.blocked = blocked;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.set_blocked(false);
        self.activity.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For a head, to its end.
    Head,
    /// For the first byte of the next head.
    Idle,
    /// For nothing of the client: a request runs.
    None,
}

/// A connection that ends with an error when its client is too slow.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    inner: S,
    activity: Arc<Activity>,
    times: Times,
    wait: Wait,
    begun: u64,
    reading: Pin<Box<Sleep>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(inner: S, activity: Arc<Activity>, times: Times) -> Patient<S> {
        let reading = Box::pin(sleep_until(Instant::now() + times.head));
        Patient { inner, activity, times, wait: Wait::Head, begun: 0, reading, writing: None }
    }

    fn wait_for(&mut self, wait: Wait, time: Duration) {
        self.wait = wait;
        self.reading.as_mut().reset(Instant::now() + time);
    }

    /// Takes note of requests that began and ended since the last look.
    fn look(&mut self) {
        let begun = self.activity.begun.load(Ordering::Relaxed);
        let running = self.activity.running.load(Ordering::Relaxed) > 0;
        if running && self.wait != Wait::None {
            self.wait_for(Wait::None, self.times.reader_stall);
        } else if !running && (self.wait == Wait::None || begun != self.begun) {
            self.wait_for(Wait::Idle, self.times.idle);
        }
        self.begun = begun;
    }

    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.look();
        while self.reading.as_mut().poll(context).is_ready() {
            if self.wait != Wait::None || self.activity.is_stalled(self.times.reader_stall) {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client is too slow"));
            }
            self.wait_for(Wait::None, self.times.reader_stall);
        }
        Poll::Pending
    }

    fn poll_stall(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let time = self.times.reader_stall;
        let stall = self.writing.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + time)));
        stall.as_mut().poll(context).map(|()| io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))
    }

    fn written<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.writing = None;
            return polled;
        }
        self.poll_stall(context).map(Err)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.inner).poll_read(context, buffer) {
            Poll::Ready(result) => {
                if buffer.filled().len() > before && !this.activity.multiplexed.load(Ordering::Relaxed) {
                    this.look();
                    if this.wait == Wait::Idle {
                        this.wait_for(Wait::Head, this.times.head);
                    }
                }
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_patience(context).map(Err),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.written(polled, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write_vectored(context, parts);
        this.written(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(context);
        this.written(polled, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_shutdown(context);
        this.written(polled, context)
    }
}

/// What is known of a request's body while its answer is waited for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moved: Moment,
    stalled: AtomicBool,
    answered: AtomicBool,
}

impl Progress {
    pub(crate) fn new() -> Arc<Progress> {
        Arc::new(Progress::default())
    }

    /// Whether the client stopped sending.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// The head of the answer is there: client and backend may be silent for as long as they want, as gRPC streams are.
    pub(crate) fn set_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Ends when nothing of the body has moved for so long.
    pub(crate) async fn quiet(&self, time: Duration) {
        loop {
            let until = self.moved.get() + time;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// The body of a client's request, on its way to a backend.
#[derive(Debug)]
pub(crate) struct Upload<B = Incoming> {
    inner: Option<B>,
    progress: Arc<Progress>,
    stall_max: Duration,
    stall: Option<Pin<Box<Sleep>>>,
}

/// The client stopped in the middle of a body, or its connection broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the client sends nothing more of the request's body")]
    Stalled,
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

impl Upload {
    pub(crate) fn new(inner: Incoming, progress: Arc<Progress>) -> Upload {
        Upload { inner: Some(inner), progress, stall_max: SENDER_STALL_MAX, stall: None }
    }

    pub(crate) fn empty(progress: Arc<Progress>) -> Upload {
        Upload { inner: None, progress, stall_max: SENDER_STALL_MAX, stall: None }
    }
}

impl<B: http_body::Body<Data = Bytes, Error = hyper::Error> + Unpin> http_body::Body for Upload<B> {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(context) {
            Poll::Ready(frame) => {
                self.stall = None;
                self.progress.moved.set_now();
                Poll::Ready(frame.map(|frame| frame.map_err(UploadError::Broken)))
            }
            Poll::Pending => {
                let until = Instant::now() + self.stall_max;
                let stall = self.stall.get_or_insert_with(|| Box::pin(sleep_until(until)));
                if stall.as_mut().poll(context).is_pending() || self.progress.answered.load(Ordering::Relaxed) {
                    return Poll::Pending;
                }
                self.progress.stalled.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(UploadError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), B::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_millis(200);

    fn connection(times: Times) -> (DuplexStream, Patient<DuplexStream>, Arc<Activity>) {
        let activity = Arc::new(Activity::default());
        let (client, server) = duplex(64);
        (client, Patient::new(server, activity.clone(), times), activity)
    }

    /// How long a read waits until it gives up.
    async fn waits(patient: &mut Patient<DuplexStream>) -> Duration {
        let begun = Instant::now();
        let error = patient.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        begun.elapsed()
    }

    async fn pass(client: &mut DuplexStream, patient: &mut Patient<DuplexStream>) {
        client.write_all(b"x").await.unwrap();
        patient.read_u8().await.unwrap();
    }

    #[tokio::test]
    async fn a_head_has_its_time_however_slowly_it_comes() {
        let (_client, mut patient, _) = connection(Times { head: SHORT, ..TIMES });
        waits(&mut patient).await;
        let begun = Instant::now();
        let (mut client, mut patient, _) = connection(Times { head: LONG, ..TIMES });
        while begun.elapsed() < LONG / 2 {
            pass(&mut client, &mut patient).await;
        }
        waits(&mut patient).await;
        assert!(begun.elapsed() >= LONG && begun.elapsed() < TIMES.head, "the time runs from the connection");
    }

    #[tokio::test]
    async fn a_connection_may_be_idle_for_longer_and_is_not_cut_while_a_request_runs() {
        let times = Times { head: SHORT, idle: LONG, ..TIMES };
        let (mut client, mut patient, activity) = connection(times);
        let running = activity.begin(false);
        pass(&mut client, &mut patient).await;
        let patiently = tokio::time::timeout(LONG * 3, patient.read_u8()).await;
        assert!(patiently.is_err(), "a request runs");
        drop(running);
        assert!(waits(&mut patient).await >= LONG);
        let (mut client, mut patient, activity) = connection(Times { head: SHORT, ..TIMES });
        drop(activity.begin(false));
        pass(&mut client, &mut patient).await;
        assert!(waits(&mut patient).await < TIMES.idle, "the next head has begun");
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_of_an_answer_is_cut_also_when_nothing_is_written() {
        let (mut client, mut patient, activity) = connection(Times { reader_stall: LONG, ..TIMES });
        let mut running = activity.begin(true);
        pass(&mut client, &mut patient).await;
        running.set_blocked(true);
        running.set_blocked(false);
        assert!(tokio::time::timeout(LONG * 3, patient.read_u8()).await.is_err(), "the backend is waited for");
        let begun = Instant::now();
        running.set_blocked(true);
        // That it takes all of another answer does not help.
        let mut other = activity.begin(true);
        other.set_blocked(true);
        drop(other);
        waits(&mut patient).await;
        assert!(begun.elapsed() >= LONG);
    }

    #[tokio::test]
    async fn a_body_may_be_silent_once_the_answer_has_begun() {
        let upload = |progress: &Arc<Progress>| {
            let silent = futures::stream::pending::<Result<Frame<Bytes>, hyper::Error>>();
            let inner = Some(http_body_util::StreamBody::new(silent));
            Upload { inner, progress: progress.clone(), stall_max: SHORT, stall: None }
        };
        let progress = Progress::new();
        let told = upload(&progress).frame().await.unwrap();
        assert!(matches!(told, Err(UploadError::Stalled)) && progress.is_stalled());
        let progress = Progress::new();
        let mut body = upload(&progress);
        let mut frame = std::pin::pin!(body.frame());
        assert!(futures::poll!(frame.as_mut()).is_pending(), "the time runs");
        progress.set_answered();
        assert!(tokio::time::timeout(LONG, frame).await.is_err() && !progress.is_stalled());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut() {
        let (_client, mut patient, _) = connection(Times { reader_stall: SHORT, ..TIMES });
        let error = patient.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
