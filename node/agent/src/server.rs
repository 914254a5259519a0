//! The node's own HTTPS server: logs, exec, attach, port forwarding, metrics, statistics.
//!
//! ```text
//!  TLS with a client certificate of the cluster's authority ─> who may ask ─> one handler a path
//! ```
//!
//! Nobody but the API server and administrators may ask, whatever the path.

mod access;
mod exec;
mod logs;
mod port_forward;
mod spdy;
mod statistics;

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::{List, api::core::v1::Pod};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{ServerConfig, context::Context, life, observed::Observed, supervisor::Pods};

const CONNECTIONS_MAX: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a failing accept waits before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the handlers share.
#[derive(Clone)]
struct Serving {
    context: Arc<Context>,
    pods: Pods,
    /// Bounds the clients whose ports are forwarded.
    forwards: Arc<Semaphore>,
}

/// Accepts connections until the agent ends.
pub(crate) async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    context: Arc<Context>,
    pods: Pods,
    shutdown: CancellationToken,
) {
    let forwards = Arc::new(Semaphore::new(port_forward::CLIENTS_MAX));
    let router = router(Serving { context, pods, forwards });
    let acceptors = Acceptors { config, current: Mutex::default() };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the node's server cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Above the bound a connection is closed at once: its client sees that and tries later.
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let acceptor = match acceptors.current() {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::warn!(%error, "the node's server has no usable certificate");
                continue;
            }
        };
        let router = router.clone();
        tasks.spawn(async move {
            if let Err(error) = connection(stream, acceptor, router).await {
                tracing::debug!(%error, "a connection to the node's server ended");
            }
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let caller = access::Caller::of(stream.get_ref().1.peer_certificates());
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller.clone());
        let router = router.clone();
        async move { tower::ServiceExt::oneshot(router, request).await }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// TLS as its files say now: a renewed certificate is used for the next connection.
struct Acceptors {
    config: ServerConfig,
    current: Mutex<Option<(SystemTime, TlsAcceptor)>>,
}

impl Acceptors {
    fn current(&self) -> io::Result<TlsAcceptor> {
        let written = std::fs::metadata(&self.config.certificate)?.modified()?;
        let mut current = self.current.lock();
        if let Some((of, acceptor)) = &*current
            && *of == written
        {
            return Ok(acceptor.clone());
        }
        let acceptor = access::acceptor(&self.config)?;
        *current = Some((written, acceptor.clone()));
        Ok(acceptor)
    }
}

fn router(serving: Serving) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(list_pods))
        .route("/metrics", get(metrics))
        .route("/stats/summary", get(statistics::summary))
        .route("/metrics/resource", get(statistics::resource))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(exec::exec_of_uid))
        .route("/attach/{namespace}/{pod}/{container}", any(exec::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(exec::attach_of_uid))
        .route("/portForward/{namespace}/{pod}", any(port_forward::port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(port_forward::port_forward_of_uid))
        .layer(axum::middleware::from_fn(access::check))
        .with_state(serving)
}

async fn list_pods(State(serving): State<Serving>) -> Json<List<Pod>> {
    let items = serving.pods.all().iter().map(|pod| (**pod).clone()).collect();
    Json(List { items, ..List::default() })
}

async fn metrics(State(serving): State<Serving>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(http::header::CONTENT_TYPE, kind)], serving.context.metrics.text()).into_response()
}

/// A pod and what runs of it.
struct Found {
    pod: Arc<Pod>,
    seen: Observed,
}

/// Why something that was asked for is not to be had, as a kubelet answers it.
type Refusal = (StatusCode, String);

impl Serving {
    fn find(&self, namespace: &str, name: &str) -> Result<Found, Refusal> {
        let pod = self.pods.find(namespace, name);
        let pod = pod.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist on this node")))?;
        let mut seen = Observed::new(self.context.facts());
        seen.sandboxes = self.context.observer.view(crate::pod::uid(&pod));
        Ok(Found { pod, seen })
    }
}

impl Found {
    fn life(&self, container: &str) -> Result<life::Life<'_>, Refusal> {
        let (part, spec) = crate::pod::container(&self.pod, container).ok_or_else(|| {
            let name = crate::pod::name(&self.pod);
            (StatusCode::NOT_FOUND, format!("container {container} is not valid for pod {name}"))
        })?;
        Ok(life::life(&self.pod, part, &spec, &self.seen))
    }
}

type ContainerPath = Path<(String, String, String)>;

#[cfg(test)]
mod tests;
