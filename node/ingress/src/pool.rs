//! Connections to backends: kept for the next request where that is safe, bounded, left at once when an endpoint goes.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
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
    sync::Notify,
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
    Many(http2::SendRequest<Upload>),
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
            Sender::Many(sender) => sender.try_send_request(request).await.map_err(Unsent::of),
        }
    }
}

#[derive(Debug)]
struct Kept {
    sender: http1::SendRequest<Upload>,
    since: Instant,
}

#[derive(Debug, Default)]
struct Connections {
    kept: HashMap<SocketAddr, Vec<Kept>>,
    count: usize,
    shared: HashMap<SocketAddr, http2::SendRequest<Upload>>,
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
        let kept = match protocol {
            Protocol::Http1 if fresh => None,
            Protocol::Http1 => self.connections.lock().take(address).map(Sender::One),
            Protocol::Http2 => self.connections.lock().share(address).map(Sender::Many),
        };
        match kept {
            Some(sender) => Ok(Lent { address, sender, used: true }),
            None => Ok(Lent { address, sender: self.connect(address, protocol).await?, used: false }),
        }
    }

    async fn connect(&self, address: SocketAddr, protocol: Protocol) -> std::io::Result<Sender> {
        let stream = timeout(CONNECT_MAX, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        probe(&stream)?;
        let stream = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let mut builder = http1::Builder::new();
                let shaking = builder.max_buf_size(HEAD_BYTES_MAX).handshake(stream);
                let (sender, connection) = shaking.await.map_err(std::io::Error::other)?;
                tokio::spawn(drive(connection.with_upgrades(), address));
                Ok(Sender::One(sender))
            }
            Protocol::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new()).keep_alive_interval(PROBE_EVERY).adaptive_window(true);
                let shaking = builder.handshake(stream);
                let (sender, connection) = timeout(CONNECT_MAX, shaking).await?.map_err(std::io::Error::other)?;
                tokio::spawn(drive(connection, address));
                self.connections.lock().shared.insert(address, sender.clone());
                self.kept.notify_one();
                Ok(Sender::Many(sender))
            }
        }
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
        connections.shared.retain(|address, sender| routed.contains(address) && !sender.is_closed());
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

    fn share(&mut self, address: SocketAddr) -> Option<http2::SendRequest<Upload>> {
        self.shared.get(&address).filter(|sender| !sender.is_closed()).cloned()
    }

    fn keep(&mut self, address: SocketAddr, sender: http1::SendRequest<Upload>) {
        let kept = self.kept.entry(address).or_default();
        if self.count < KEPT_MAX && kept.len() < KEPT_PER_ADDRESS_MAX {
            kept.push(Kept { sender, since: Instant::now() });
            self.count += 1;
        }
    }
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
