//! Connections to backends: kept for the next request where that is safe, bounded, left at once when an endpoint goes.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{patience::Upload, proxy::Proxy, routes::Protocol};

const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Connections kept for one address, and for all.
const KEPT_PER_ADDRESS_MAX: usize = 64;
const KEPT_MAX: usize = 2048;
/// Many servers close a connection that was idle for five seconds: it must not be used just then.
const KEPT_FOR: Duration = Duration::from_secs(4);
const TEND_EVERY: Duration = Duration::from_secs(1);
/// A backend that is gone without a word is found out by the kernel after about three of these.
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;
/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const READY_MAX: Duration = Duration::from_secs(5);
/// Requests at a time on one HTTP/2 connection, if its server takes as many, and such connections of one address.
const STREAMS_MAX: usize = 100;
pub(crate) const SHARED_PER_ADDRESS_MAX: usize = 32;
/// Bytes of one answer over HTTP/2 that its client has not read yet. Those of one connection are so many that answers
/// that nobody reads leave room for the others.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// How often is looked whether a server has said how many requests it takes.
const SETTINGS_EVERY: Duration = Duration::from_millis(1);

/// Why a request did not lead to an answer.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// Nothing of it was sent: here it is.
    Returned(Box<Request<Upload>>, hyper::Error),
    /// It may have been carried out.
    Lost(hyper::Error),
}

impl Unsent {
    fn of(mut error: TrySendError<Request<Upload>>) -> Unsent {
        match error.take_message() {
            Some(request) => Unsent::Returned(Box::new(request), error.into_error()),
            None => Unsent::Lost(error.into_error()),
        }
    }
}

#[derive(Debug)]
enum Sender {
    One(http1::SendRequest<Upload>),
    Many(Stream),
}

/// One request's part of a connection.
#[derive(Debug)]
struct Stream {
    sender: http2::SendRequest<Upload>,
    _running: Arc<()>,
}

/// A connection that one request has, or shares.
#[derive(Debug)]
pub(crate) struct Lent {
    address: SocketAddr,
    sender: Sender,
    /// It had requests before: its server may be closing it.
    pub(crate) used: bool,
}

impl Lent {
    pub(crate) async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, Unsent> {
        match &mut self.sender {
            Sender::One(sender) => sender.try_send_request(request).await.map_err(Unsent::of),
            Sender::Many(stream) => stream.sender.try_send_request(request).await.map_err(Unsent::of),
        }
    }
}

#[derive(Debug)]
struct Kept {
    sender: http1::SendRequest<Upload>,
    since: Instant,
}

/// A connection that requests share.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Upload>,
    /// What the server takes, as far as it has said so.
    streams_max: watch::Receiver<usize>,
    /// Held by each request too.
    running: Arc<()>,
}

impl Shared {
    fn running(&self) -> usize {
        Arc::strong_count(&self.running) - 1
    }

    fn stream(&self) -> Option<Stream> {
        let room = self.running() < STREAMS_MAX.min(*self.streams_max.borrow());
        (room && !self.sender.is_closed())
            .then(|| Stream { sender: self.sender.clone(), _running: self.running.clone() })
    }
}

/// The shared connections of one address.
#[derive(Debug, Default)]
struct AllShared {
    all: Vec<Shared>,
    /// Held while one is opened: requests that come together share what one of them opens.
    opening: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Connections {
    kept: HashMap<SocketAddr, Vec<Kept>>,
    count: usize,
    shared: HashMap<SocketAddr, AllShared>,
}

/// The connections to all backends.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    connections: Mutex<Connections>,
    /// Told when something is kept.
    kept: Notify,
}

impl Pool {
    /// A connection for a request. `fresh`: one that no request had before, for those that must not be sent twice.
    pub(crate) async fn lend(&self, address: SocketAddr, protocol: Protocol, fresh: bool) -> std::io::Result<Lent> {
        let lent = |sender, used| Lent { address, sender, used };
        match protocol {
            Protocol::Http1 => {
                let kept = if fresh { None } else { self.connections.lock().take(address) };
                match kept {
                    Some(sender) => Ok(lent(Sender::One(sender), true)),
                    None => Ok(lent(Sender::One(connect(address).await?), false)),
                }
            }
            Protocol::Http2 => {
                let (stream, used) = timeout(CONNECT_MAX, self.share(address)).await??;
                Ok(lent(Sender::Many(stream), used))
            }
        }
    }

    /// Room on a connection that is there, else on a new one; and whether it was there.
    async fn share(&self, address: SocketAddr) -> std::io::Result<(Stream, bool)> {
        let opening = {
            let mut connections = self.connections.lock();
            let shared = connections.shared.entry(address).or_default();
            if let Some(stream) = shared.stream() {
                return Ok((stream, true));
            }
            shared.opening.clone()
        };
        self.kept.notify_one();
        let _opening = opening.lock().await;
        {
            let mut connections = self.connections.lock();
            let shared = connections.shared.entry(address).or_default();
            if let Some(stream) = shared.stream() {
                return Ok((stream, true));
            }
            shared.all.retain(|shared| !shared.sender.is_closed());
            if shared.all.len() >= SHARED_PER_ADDRESS_MAX {
                return Err(std::io::Error::new(std::io::ErrorKind::QuotaExceeded, "all its connections are full"));
            }
        }
        let shared = connect_shared(address).await?;
        let stream = Stream { sender: shared.sender.clone(), _running: shared.running.clone() };
        self.connections.lock().shared.entry(address).or_default().all.push(shared);
        self.kept.notify_one();
        Ok((stream, false))
    }

    /// Keeps a connection whose answer has ended, once it takes another request.
    pub(crate) fn give_back(pool: &Arc<Pool>, lent: Lent) {
        let Sender::One(mut sender) = lent.sender else { return };
        if sender.is_ready() {
            return pool.keep(lent.address, sender);
        }
        if sender.is_closed() {
            return;
        }
        let pool = pool.clone();
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(READY_MAX, sender.ready()).await {
                pool.keep(lent.address, sender);
            }
        });
    }

    /// Drops what is too old, and what leads to addresses that no route has any more.
    fn tend(&self, routed: &HashSet<SocketAddr>, now: Instant) {
        let mut connections = self.connections.lock();
        connections.kept.retain(|address, kept| {
            let good = |kept: &Kept| kept.sender.is_ready() && now.duration_since(kept.since) < KEPT_FOR;
            kept.retain(|kept| routed.contains(address) && good(kept));
            !kept.is_empty()
        });
        connections.count = connections.kept.values().map(Vec::len).sum();
        connections.shared.retain(|address, shared| {
            // Of connections that have no requests one is enough.
            let mut idle = 0;
            shared.all.retain(|shared| {
                idle += usize::from(shared.running() == 0);
                !shared.sender.is_closed() && (shared.running() > 0 || idle <= 1)
            });
            routed.contains(address) && (!shared.all.is_empty() || Arc::strong_count(&shared.opening) > 1)
        });
    }

    fn keep(&self, address: SocketAddr, sender: http1::SendRequest<Upload>) {
        self.connections.lock().keep(address, sender);
        self.kept.notify_one();
    }

    fn is_empty(&self) -> bool {
        let connections = self.connections.lock();
        connections.count == 0 && connections.shared.is_empty()
    }
}

impl Connections {
    fn take(&mut self, address: SocketAddr) -> Option<http1::SendRequest<Upload>> {
        let kept = self.kept.get_mut(&address)?;
        while let Some(last) = kept.pop() {
            self.count -= 1;
            if last.sender.is_ready() && last.since.elapsed() < KEPT_FOR {
                return Some(last.sender);
            }
        }
        None
    }

    fn keep(&mut self, address: SocketAddr, sender: http1::SendRequest<Upload>) {
        let kept = self.kept.entry(address).or_default();
        if self.count < KEPT_MAX && kept.len() < KEPT_PER_ADDRESS_MAX {
            kept.push(Kept { sender, since: Instant::now() });
            self.count += 1;
        }
    }
}

impl AllShared {
    fn stream(&self) -> Option<Stream> {
        self.all.iter().find_map(Shared::stream)
    }
}

async fn open(address: SocketAddr) -> std::io::Result<TokioIo<TcpStream>> {
    let stream = timeout(CONNECT_MAX, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    probe(&stream)?;
    Ok(TokioIo::new(stream))
}

async fn connect(address: SocketAddr) -> std::io::Result<http1::SendRequest<Upload>> {
    let mut builder = http1::Builder::new();
    let shaking = builder.max_buf_size(HEAD_BYTES_MAX).handshake(open(address).await?);
    let (sender, connection) = shaking.await.map_err(std::io::Error::other)?;
    tokio::spawn(drive(connection.with_upgrades(), address));
    Ok(sender)
}

/// A connection whose server has said how many requests it takes. It is not pinged: gRPC servers close connections
/// whose clients do so often.
async fn connect_shared(address: SocketAddr) -> std::io::Result<Shared> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(0);
    let shaking = builder.handshake(open(address).await?);
    let (sender, mut connection) = shaking.await.map_err(std::io::Error::other)?;
    let (tell, mut streams_max) = watch::channel(0);
    let driven = async move {
        loop {
            let known = *tell.borrow() > 0;
            let polled = std::future::poll_fn(|context| {
                let polled = Pin::new(&mut connection).poll(context);
                let max = connection.current_max_send_streams();
                tell.send_if_modified(|told| std::mem::replace(told, max) != max);
                polled
            });
            tokio::select! {
                ended = polled => return ended,
                () = sleep(SETTINGS_EVERY), if !known => {}
            }
        }
    };
    tokio::spawn(drive(driven, address));
    streams_max.wait_for(|max| *max > 0).await.map_err(std::io::Error::other)?;
    Ok(Shared { sender, streams_max, running: Arc::new(()) })
}

async fn drive(connection: impl Future<Output = hyper::Result<()>>, address: SocketAddr) {
    // Whoever waits for an answer is told too.
    if let Err(error) = connection.await {
        tracing::debug!(%address, %error, "a connection to a backend broke");
    }
}

/// Has the kernel ask now and then whether the other end is still there.
pub(crate) fn probe(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}

/// Keeps the pool in order until shutdown.
pub(crate) async fn tend(proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let tending = async {
        loop {
            proxy.pool.kept.notified().await;
            while !proxy.pool.is_empty() {
                sleep(TEND_EVERY).await;
                let routed = proxy.table().addresses().collect();
                proxy.pool.tend(&routed, Instant::now());
            }
        }
    };
    shutdown.run_until_cancelled(tending).await;
}
