//! Connections to Services whose workload was scaled to zero: taken here, held until a pod is ready, and joined to it.
//!
//! ```text
//!  nft: no endpoints ─ dnat ─> accept ─ whom was it for? ─ a place, or reset ─ ask to wake ─ endpoint ─> both ways
//! ```
//! What is held costs a socket and no thread; a pod sees the node as its client.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use rand::Rng as _;
use rustix::net::sockopt;
use tandem_client::wake::{ASKED_EVERY, HELD_MAX, Name, Wake};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::rules::{Sleeper, Sleepers};

/// Connections that wait at a time, and for one Service among them.
const HELD_TOTAL_MAX: usize = 4_096;
const HELD_PER_SERVICE_MAX: usize = 1_024;
/// Connections that were held and now lead to a pod.
const JOINED_MAX: usize = 8_192;
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between two attempts where no ready pod takes the connection.
const AGAIN: Duration = Duration::from_millis(50);
/// Who says nothing for this long is asked whether it is there, and how often it may keep silent.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_MAX: u32 = 3;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Activator {
    sleepers: watch::Receiver<Arc<Sleepers>>,
    wake: Wake,
    /// Namespaces whose NetworkPolicies decide who reaches a pod: only the kernel asks them.
    guarded: watch::Receiver<Arc<BTreeSet<String>>>,
    held: Arc<Semaphore>,
    joined: Arc<Semaphore>,
    /// Of the Services that somebody waits for.
    services: Mutex<HashMap<Name, Weak<Semaphore>>>,
}

/// The right to wait, given back when it is dropped.
struct Place {
    _held: OwnedSemaphorePermit,
    _service: OwnedSemaphorePermit,
    _places: Arc<Semaphore>,
}

impl Activator {
    pub(crate) fn new(
        sleepers: watch::Receiver<Arc<Sleepers>>,
        guarded: watch::Receiver<Arc<BTreeSet<String>>>,
        wake: Wake,
    ) -> Arc<Activator> {
        Arc::new(Activator {
            sleepers,
            wake,
            guarded,
            held: Arc::new(Semaphore::new(HELD_TOTAL_MAX)),
            joined: Arc::new(Semaphore::new(JOINED_MAX)),
            services: Mutex::default(),
        })
    }

    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((client, from)) => {
                    let activator = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = activator.connection(client).await {
                            tracing::debug!(%from, %error, "a connection to a workload at zero");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a connection to a workload at zero");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, mut client: TcpStream) -> io::Result<()> {
        match self.join(&client).await {
            Ok((mut pod, _permit)) => copy_bidirectional(&mut client, &mut pod).await.map(drop),
            Err(error) => {
                // An end would look like an answer without content.
                sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
                Err(error)
            }
        }
    }

    /// A connection to a pod of the Service that the client meant.
    async fn join(&self, client: &TcpStream) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let meant = sockopt::ip_original_dst(client)?;
        let sleeper = self.find(meant)?;
        let service = sleeper.service.clone();
        if self.guarded.borrow().contains(&service.0) {
            (self.wake)(&sleeper.autoscaler);
            let why = "NetworkPolicies decide about it, which count for connections to the pod alone";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let permit = self.joined.clone().try_acquire_owned().map_err(|_| full("of all Services"))?;
        let _place = self.place(&service).ok_or_else(|| full("of this Service"))?;
        let pod = tokio::select! {
            pod = timeout(HELD_MAX, self.pod(meant)) => {
                pod.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no pod became ready in time"))??
            }
            () = left(client) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client left")),
        };
        for stream in [client, &pod] {
            stream.set_nodelay(true)?;
            sockopt::set_socket_keepalive(stream, true)?;
            sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
            sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
            sockopt::set_tcp_keepcnt(stream, KEEPALIVE_MAX)?;
        }
        Ok((pod, permit))
    }

    fn find(&self, meant: SocketAddrV4) -> io::Result<Arc<Sleeper>> {
        let sleepers = self.sleepers.borrow();
        sleepers.find(meant).cloned().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no Service that is woken"))
    }

    fn place(&self, service: &Name) -> Option<Place> {
        let held = self.held.clone().try_acquire_owned().ok()?;
        let mut services = self.services.lock();
        let places = match services.get(service).and_then(Weak::upgrade) {
            Some(places) => places,
            None => {
                services.retain(|_, places| places.strong_count() > 0);
                let places = Arc::new(Semaphore::new(HELD_PER_SERVICE_MAX));
                services.insert(service.clone(), Arc::downgrade(&places));
                places
            }
        };
        let permit = places.clone().try_acquire_owned().ok()?;
        Some(Place { _held: held, _service: permit, _places: places })
    }

    /// Asks for a pod until one takes the connection.
    async fn pod(&self, meant: SocketAddrV4) -> io::Result<TcpStream> {
        let mut sleepers = self.sleepers.clone();
        loop {
            sleepers.mark_unchanged();
            let sleeper = self.find(meant)?;
            if let Some(pod) = connect(&sleeper.ready).await {
                return Ok(pod);
            }
            let pause = if sleeper.ready.is_empty() {
                (self.wake)(&sleeper.autoscaler);
                ASKED_EVERY
            } else {
                AGAIN
            };
            tokio::select! {
                changed = sleepers.changed() => changed.map_err(io::Error::other)?,
                () = sleep(pause) => {}
            }
        }
    }
}

fn full(of: &str) -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, format!("the places {of} are taken"))
}

/// Ends when the client has closed its side before it said anything.
async fn left(client: &TcpStream) {
    let mut byte = [0];
    if !matches!(client.peek(&mut byte).await, Ok(0) | Err(_)) {
        std::future::pending::<()>().await;
    }
}

async fn connect(ready: &[SocketAddr]) -> Option<TcpStream> {
    let first = if ready.is_empty() { 0 } else { rand::rng().random_range(0..ready.len()) };
    for address in ready.iter().cycle().skip(first).take(ready.len()) {
        match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%address, %error, "a pod that was woken takes no connection"),
            Err(_) => tracing::debug!(%address, "a pod that was woken does not answer"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_to_one_service_leaves_places_for_others() {
        let (_publish, sleepers) = watch::channel(Arc::default());
        let activator = Activator::new(sleepers, watch::channel(Arc::default()).1, Arc::new(|_| {}));
        let name = |name: &str| ("ns".to_owned(), name.to_owned());
        let places: Vec<Place> = (0..HELD_PER_SERVICE_MAX * 2).map_while(|_| activator.place(&name("a"))).collect();
        assert_eq!(places.len(), HELD_PER_SERVICE_MAX);
        assert!(activator.place(&name("b")).is_some());
        drop(places);
        assert!(activator.place(&name("a")).is_some());
        assert_eq!(activator.held.available_permits(), HELD_TOTAL_MAX);
    }

    #[tokio::test]
    async fn a_connection_that_nobody_led_here_is_reset() {
        let (_publish, sleepers) = watch::channel(Arc::default());
        let activator = Activator::new(sleepers, watch::channel(Arc::default()).1, Arc::new(|_| {}));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(activator.serve(listener, shutdown.clone()));
        let stream = TcpStream::connect(address).await.unwrap();
        let read = timeout(CONNECT_MAX, stream.readable()).await;
        assert!(read.is_ok(), "it is told at once");
        assert!(matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::ConnectionReset));
        shutdown.cancel();
        serving.await.unwrap();
    }
}
