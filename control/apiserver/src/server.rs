use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use futures::StreamExt as _;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{ServerConfig, server::Acceptor};
use tandem_api::Identity;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{held::held, tls};

/// Connections beyond this wait in the listen queue until others end.
const CONNECTIONS_MAX: usize = 16_384;
/// Connections beyond those, for the other protocol only: clients, however many, never keep members from each other.
const RESERVED_MAX: usize = 64;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a new connection may be silent.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(10);
/// How long the head of an HTTP/1 request may take; also how long an HTTP/1 connection may idle between requests.
const HEAD_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX_BYTES: usize = 64 * 1024;
/// HTTP/2 connections are pinged, and dropped when no answer comes: a peer that is gone holds nothing.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_ANSWER_MAX: Duration = Duration::from_secs(15);
const STREAMS_MAX: u32 = 250;
/// Connections on which nothing has happened for this long are closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Requests that have not ended this long after the shutdown began are cut off. What never ends by itself is ended at once.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// The pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a request came from. Requests made inside the process have none.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Marks an answer that goes on for as long as its client listens. It ends when the server does, in order, so that what
/// does come to an end has the time for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endless;

/// What clients meet: the server's side of TLS, and the routes behind it.
#[derive(Clone)]
pub struct Front {
    pub tls: Arc<ServerConfig>,
    pub router: Router,
}

/// Another protocol on the same port. A connection whose client offers its name goes to `take` before any answer.
#[derive(Clone)]
pub struct OtherProtocol {
    pub name: &'static [u8],
    pub take: Arc<dyn Fn(StartHandshake<TcpStream>, SocketAddr) + Send + Sync>,
}

/// Accepts connections until `shutdown`, then lets what runs finish for a moment.
///
/// Each request carries its [`Peer`] and, where the connection has a client certificate, its [`Identity`].
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let front = OnceLock::from(Front { tls: Arc::new(tls), router });
    serve_beside(listener, Arc::new(front), None, shutdown).await
}

/// As [`serve`], with another protocol on the same port, which is accepted to the end: what is left to answer may need
/// what comes by it. Until there is a front, and after the shutdown, connections of clients are closed.
pub async fn serve_beside(
    listener: TcpListener,
    front: Arc<OnceLock<Front>>,
    other: Option<OtherProtocol>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let clients = Entrance { listener, slots: Slots::new(), front, other, shutdown: shutdown.clone() };
    let mut connections = JoinSet::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = clients.take(&mut connections) => match never {},
    }
    // Nobody is in front any more, and no new connection is told to stop.
    let others = Entrance { front: Arc::default(), shutdown: CancellationToken::new(), ..clients };
    let taking = async move {
        if others.other.is_some() {
            return others.take(&mut JoinSet::new()).await;
        }
        drop(others);
        std::future::pending().await
    };
    let drained = tokio::select! {
        drained = timeout(DRAIN_MAX, async { while connections.join_next().await.is_some() {} }) => drained,
        never = taking => match never {},
    };
    if drained.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

/// Where connections come in.
struct Entrance {
    listener: TcpListener,
    slots: Slots,
    front: Arc<OnceLock<Front>>,
    other: Option<OtherProtocol>,
    shutdown: CancellationToken,
}

impl Entrance {
    async fn take(&self, connections: &mut JoinSet<()>) -> Infallible {
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, peer, slot) = match accept(&self.listener, &self.slots).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = greet(stream, peer, slot, self.front.clone(), self.other.clone(), self.shutdown.clone());
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%peer, %error, "connection ended");
                }
            });
        }
    }
}

struct Slots {
    clients: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
}

/// One of the connections that may be open.
struct Slot {
    _permit: OwnedSemaphorePermit,
    /// Not for clients.
    reserved: bool,
}

impl Slots {
    fn new() -> Slots {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Slots { clients: semaphore(CONNECTIONS_MAX), reserved: semaphore(RESERVED_MAX) }
    }

    async fn next(&self) -> io::Result<Slot> {
        let (permit, reserved) = tokio::select! {
            biased;
            permit = self.clients.clone().acquire_owned() => (permit, false),
            permit = self.reserved.clone().acquire_owned() => (permit, true),
        };
        Ok(Slot { _permit: permit.map_err(io::Error::other)?, reserved })
    }
}

async fn accept(listener: &TcpListener, slots: &Slots) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    let slot = slots.next().await?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, slot))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Finds out by which protocol the other side wants to speak.
async fn greet(
    stream: TcpStream,
    peer: SocketAddr,
    slot: Slot,
    front: Arc<OnceLock<Front>>,
    other: Option<OtherProtocol>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let begun = tokio::time::Instant::now();
    let start = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        start = timeout(HANDSHAKE_MAX, LazyConfigAcceptor::new(Acceptor::default(), stream)) => start??,
    };
    if let Some(other) = other
        && start.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == other.name))
    {
        (other.take)(start, peer);
        return Ok(());
    }
    if slot.reserved {
        return Err("too many connections".into());
    }
    let Some(Front { tls, router }) = front.get().cloned() else {
        return Err("this member does not know its cluster yet, or stops".into());
    };
    let stream = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        stream = timeout(HANDSHAKE_MAX.saturating_sub(begun.elapsed()), start.into_stream(tls)) => stream??,
    };
    let served = connection(stream, peer, router, shutdown).await;
    drop(slot);
    served
}

async fn connection(
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let identity = peer_identity(&stream);
    let activity = Arc::new(Activity::default());
    let (working, closing) = (activity.clone(), shutdown.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        let (router, work, closing) = (router.clone(), working.begin(), closing.clone());
        async move {
            let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
            let end = response.extensions().get::<Endless>().map(|_| closing);
            Ok::<_, Infallible>(response.map(|body| held(until(body, end), work)))
        }
    });
    let builder = builder();
    let stream = TokioIo::new(FirstByte::new(stream));
    let serving = builder.serve_connection_with_upgrades(stream, service);
    tokio::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = activity.idle() => serving.as_mut().graceful_shutdown(),
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

/// The body, or as much of it as comes before `end`.
fn until(body: Body, end: Option<CancellationToken>) -> Body {
    match end {
        Some(end) => Body::from_stream(body.into_data_stream().take_until(end.cancelled_owned())),
        None => body,
    }
}

/// How many requests of a connection are being answered, and how many have been.
#[derive(Default)]
struct Activity {
    in_flight: AtomicUsize,
    begun: AtomicUsize,
}

struct Work(Arc<Activity>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    fn begin(self: &Arc<Activity>) -> Work {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Work(self.clone())
    }

    /// Resolves when nothing was asked for a whole interval and nothing is being answered.
    async fn idle(&self) {
        let mut seen = 0;
        loop {
            sleep(IDLE_MAX).await;
            let begun = self.begun.load(Ordering::Relaxed);
            if begun == seen && self.in_flight.load(Ordering::Relaxed) == 0 {
                return;
            }
            seen = begun;
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(HEAD_MAX_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_ANSWER_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX_BYTES).unwrap_or(u32::MAX));
    builder
}

fn peer_identity(stream: &TlsStream<TcpStream>) -> Option<Identity> {
    let (_, session) = stream.get_ref();
    session.peer_certificates()?.first().and_then(tls::identity)
}

/// A stream whose first read fails when nothing comes for [`FIRST_BYTE_MAX`]. Hyper's own timers begin only after it.
struct FirstByte<S> {
    stream: S,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> FirstByte<S> {
    fn new(stream: S) -> FirstByte<S> {
        FirstByte { stream, deadline: Some(Box::pin(sleep(FIRST_BYTE_MAX))) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstByte<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            self.deadline = None;
            return Poll::Ready(read);
        }
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstByte<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn what_never_ends_ends_with_the_server() {
        let endless = || {
            let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"first"))]);
            Body::from_stream(first.chain(stream::pending()))
        };
        let (closing, whole) = (CancellationToken::new(), Bytes::from_static(b"whole"));
        let mut body = until(endless(), Some(closing.clone())).into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), "first");
        closing.cancel();
        assert!(body.next().await.is_none());
        let ends = until(Body::from(whole.clone()), None);
        assert_eq!(axum::body::to_bytes(ends, usize::MAX).await.unwrap(), whole);
    }
}
