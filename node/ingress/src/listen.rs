//! Connections of clients: how many, from whom, over TLS or not.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
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
    places::{Places, share_of_files},
    pool,
    proxy::{Origin, Proxy},
    request::Client,
};

/// Connections of clients on one port, where the process may have files enough, and of one address among them.
const CONNECTIONS_MAX: usize = 10_000;
const CONNECTIONS_PER_ADDRESS_MAX: usize = if cfg!(test) { 50 } else { 1_000 };
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

pub(crate) fn connections_per_address_max() -> usize {
    CONNECTIONS_PER_ADDRESS_MAX.min(share_of_files(CONNECTIONS_MAX))
}

/// Takes connections until shutdown, then lets those that have requests end them.
pub(crate) async fn serve(listener: TcpListener, scheme: Scheme, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let connections_max = share_of_files(CONNECTIONS_MAX);
    let places = Arc::new(Places::new(connections_per_address_max()));
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
        if tasks.len() >= connections_max {
            proxy.metrics.refused("all");
            continue;
        }
        let Some(place) = places.take(peer.ip().to_canonical()) else {
            proxy.metrics.refused("address");
            continue;
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
