//! Connections of clients: how many, from whom, over TLS or not.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    patience::{Activity, Patient, TIMES},
    pool,
    proxy::{Origin, Proxy},
    request::Client,
};

/// Connections of clients on one port, and of one address among them.
const CONNECTIONS_MAX: usize = 10_000;
const CONNECTIONS_PER_ADDRESS_MAX: usize = 1_000;
/// What a failing accept waits before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests may take that still run at shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// Bytes of a request's head, and headers in it.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

#[derive(Clone)]
pub(crate) enum Scheme {
    Http,
    Https(TlsAcceptor),
}

impl Scheme {
    fn name(&self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https(_) => "https",
        }
    }
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

/// A connection's place, free again when it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr, all: usize) -> Result<Place, &'static str> {
        if all >= CONNECTIONS_MAX {
            return Err("all");
        }
        let mut taken = self.0.lock();
        let count = taken.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS_MAX {
            return Err("address");
        }
        *count += 1;
        Ok(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Takes connections until shutdown, then lets those that have requests end them.
pub(crate) async fn serve(listener: TcpListener, scheme: Scheme, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let places = Arc::new(Places::default());
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the ingress cannot accept");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = match places.take(peer.ip().to_canonical(), tasks.len()) {
            Ok(place) => place,
            Err(reason) => {
                proxy.metrics.refused(reason);
                continue;
            }
        };
        let (scheme, proxy, shutdown) = (scheme.clone(), proxy.clone(), shutdown.clone());
        tasks.spawn(async move {
            let counted = proxy.metrics.connection(scheme.name());
            if let Err(error) = connection(stream, peer, scheme, proxy, shutdown).await {
                tracing::debug!(client = %peer, %error, "a connection to the ingress ended");
            }
            drop((counted, place));
        });
    }
    drop(listener);
    let drained = timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(connections = tasks.len(), "connections to the ingress are cut");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    scheme: Scheme,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    pool::probe(&stream)?;
    let client = Client { address: peer.ip(), scheme: scheme.name() };
    match scheme {
        Scheme::Http => speak(stream, client, None, proxy, shutdown).await,
        Scheme::Https(acceptor) => {
            let stream = timeout(TIMES.head, acceptor.accept(stream)).await??;
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            speak(stream, client, name, proxy, shutdown).await
        }
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Client,
    server_name: Option<String>,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let activity = Arc::new(Activity::default());
    let origin = Arc::new(Origin { client, server_name, activity: activity.clone() });
    let service = service_fn(move |request| proxy.clone().handle(origin.clone(), request));
    let builder = builder();
    let stream = TokioIo::new(Patient::new(stream, activity, TIMES));
    let connection = builder.serve_connection_with_upgrades(stream, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Times are kept by `Patient`, which tells a head from a wait for one.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_so_many_places_and_gives_them_back() {
        let places = Arc::new(Places::default());
        let [one, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let taken: Vec<Place> = (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| places.take(one, 0).unwrap()).collect();
        assert_eq!(places.take(one, 0).unwrap_err(), "address");
        assert_eq!(places.take(other, CONNECTIONS_MAX).unwrap_err(), "all");
        drop(places.take(other, 0).unwrap());
        drop(taken);
        assert!(places.0.lock().is_empty());
        assert!(places.take(one, 0).is_ok());
    }
}
