//! The proxy of a node: takes HTTP and TLS connections from outside and leads requests to the Services that Ingresses
//! name.
//!
//! ```text
//!  Ingresses, IngressClasses, Services, EndpointSlices, Secrets ─ follow ─> routes::build (pure) ─> Table
//!                                                                                                   │
//!  clients ─ listen: limits, TLS by SNI ─> proxy: check, match, forward ─> pool ─> pods  <──────────┘
//! ```
//!
//! It never decides which Ingress belongs to whom by anything but its class, and holds no Secret that none of them names.

mod answer;
mod certificates;
mod follow;
mod hold;
mod listen;
mod metrics;
mod patience;
mod places;
mod pool;
mod proxy;
mod request;
mod routes;
mod tunnel;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tandem_api::Clock;
use tandem_client::{events::Recorder, wake::waker};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use certificates::Unusable;
pub use metrics::Metrics;

use crate::{listen::Scheme, proxy::Proxy, routes::Table};

/// Connections that wait to be accepted: of a flood of them the kernel drops the rest, whosever they are.
const BACKLOG: u32 = 16_384;
/// What Events are told by.
const COMPONENT: &str = "tandem-ingress";

/// Why a node has no ingress proxy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make the certificate of hosts that have none: {0}")]
    DefaultCertificate(#[from] Unusable),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("a part of the ingress proxy ended before the node's shutdown")]
    Ended,
    #[error("a part of the ingress proxy failed: {0}")]
    Failed(#[from] JoinError),
}

/// The sockets that clients from outside connect to; each may be missing.
#[derive(Debug, Default)]
pub struct Listeners {
    pub http: Option<TcpListener>,
    pub https: Option<TcpListener>,
}

impl Listeners {
    /// A socket on all addresses of the node; port 0 stands for none.
    pub fn open(port: u16) -> std::io::Result<Option<TcpListener>> {
        if port == 0 {
            return Ok(None);
        }
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        socket.listen(BACKLOG).map(Some)
    }
}

pub struct Config {
    /// A client with the node's identity.
    pub client: kube::Client,
    pub listeners: Listeners,
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
}

/// Serves until shutdown; then requests that run have two seconds to end.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Listeners { http, https } = config.listeners;
    if http.is_none() && https.is_none() {
        return Ok(());
    }
    let default = certificates::self_signed()?;
    let (publish, table) = watch::channel(Arc::new(Table::empty(default.clone())));
    let wake = waker(config.client.clone(), config.clock.clone());
    let proxy = Arc::new(Proxy::new(table.clone(), config.metrics.clone(), wake, shutdown.clone()));
    let (recorder, events) = Recorder::start(config.client.clone(), COMPONENT, config.clock);
    let _events = AbortOnDropHandle::new(events);
    let mut tasks = JoinSet::new();
    tasks.spawn(follow::run(config.client, recorder, config.metrics, default, publish, shutdown.clone()));
    // Who comes before the routes are known waits: he would be told that there are none.
    let mut known = table.clone();
    match shutdown.run_until_cancelled(known.changed()).await {
        Some(Ok(())) => {}
        Some(Err(_)) => return ended(tasks, &shutdown).await,
        None => return Ok(()),
    }
    if let Some(listener) = http {
        tasks.spawn(listen::serve(listener, Scheme::Http, proxy.clone(), shutdown.clone()));
    }
    if let Some(listener) = https {
        let scheme = Scheme::Https(certificates::acceptor(table)?);
        tasks.spawn(listen::serve(listener, scheme, proxy.clone(), shutdown.clone()));
    }
    tasks.spawn(pool::tend(proxy, shutdown.clone()));
    ended(tasks, &shutdown).await
}

/// Waits for all to end, which each must do at shutdown only.
async fn ended(mut tasks: JoinSet<()>, shutdown: &CancellationToken) -> Result<(), Error> {
    while let Some(ended) = tasks.join_next().await {
        ended?;
        if !shutdown.is_cancelled() {
            return Err(Error::Ended);
        }
    }
    Ok(())
}
