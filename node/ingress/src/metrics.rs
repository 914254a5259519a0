//! What the proxy counts, and its access log: target `tandem_ingress::access`, level debug.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, StatusCode, header};
use parking_lot::RwLock;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::time::Instant;

use crate::{
    request::Client,
    routes::{Backend, Name},
};

const ACCESS: &str = "tandem_ingress::access";
/// Characters of a path or host in the log.
const SHOWN_MAX: usize = 256;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    scheme: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    scheme: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Because {
    reason: &'static str,
}

#[derive(Debug)]
struct Inner {
    requests: Family<Answered, Counter>,
    durations: Histogram,
    connections: Family<Of, Gauge>,
    refused: Family<Because, Counter>,
    retries: Counter,
    tunnels: Gauge,
    routes: Gauge,
    held: Gauge,
    /// Requests of each Ingress that is served.
    by_ingress: RwLock<HashMap<Name, AtomicU64>>,
}

/// The metrics of one node's proxy.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

impl Metrics {
    pub fn new(registry: &mut Registry) -> Metrics {
        let buckets = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let inner = Inner {
            requests: Family::default(),
            durations: Histogram::new(buckets),
            connections: Family::default(),
            refused: Family::default(),
            retries: Counter::default(),
            tunnels: Gauge::default(),
            routes: Gauge::default(),
            held: Gauge::default(),
            by_ingress: RwLock::default(),
        };
        let i = &inner;
        registry.register("tandem_ingress_requests", "Requests by scheme and status", i.requests.clone());
        let help = "From the head of a request to the end of its answer, in seconds";
        registry.register("tandem_ingress_request_duration_seconds", help, i.durations.clone());
        registry.register("tandem_ingress_connections", "Open connections of clients", i.connections.clone());
        let help = "Connections of clients that were closed at once, by reason";
        registry.register("tandem_ingress_connections_refused", help, i.refused.clone());
        let help = "Times that a request was tried on another endpoint";
        registry.register("tandem_ingress_retries", help, i.retries.clone());
        registry.register(
            "tandem_ingress_upgraded_connections",
            "Upgraded connections that are open",
            i.tunnels.clone(),
        );
        let help = "Requests that wait for a workload to be woken";
        registry.register("tandem_ingress_requests_held", help, i.held.clone());
        registry.register("tandem_ingress_ingresses", "Ingresses that this node serves", i.routes.clone());
        Metrics(Arc::new(inner))
    }

    pub(crate) fn retried(&self) {
        self.0.retries.inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.0.refused.get_or_create(&Because { reason }).inc();
    }

    pub(crate) fn set_ingresses(&self, served: &[Name]) {
        self.0.routes.set(i64::try_from(served.len()).unwrap_or(i64::MAX));
        let mut counts = self.0.by_ingress.write();
        let mut before = std::mem::take(&mut *counts);
        *counts = served.iter().map(|name| (name.clone(), before.remove(name).unwrap_or_default())).collect();
    }

    /// How many requests came for each Ingress that is served.
    pub fn by_ingress(&self) -> HashMap<Name, u64> {
        let counts = self.0.by_ingress.read();
        counts.iter().map(|(name, count)| (name.clone(), count.load(Ordering::Relaxed))).collect()
    }

    pub(crate) fn held(&self) -> Counted {
        Counted::new(self.0.held.clone())
    }

    /// Counts a client's connection for as long as it is held.
    pub(crate) fn connection(&self, scheme: &'static str) -> Counted {
        Counted::new(self.0.connections.get_or_create(&Of { scheme }).clone())
    }

    /// Counts an upgraded connection for as long as it is held.
    pub(crate) fn tunnel(&self) -> Counted {
        Counted::new(self.0.tunnels.clone())
    }
}

/// One in a gauge.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    fn new(gauge: Gauge) -> Counted {
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request's line in the access log, written when its answer has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    metrics: Metrics,
    client: Client,
    begun: Instant,
    status: StatusCode,
    bytes: usize,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    method: Method,
    host: String,
    path: String,
    backend: Option<String>,
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

impl Ended {
    pub(crate) fn new<B>(metrics: &Metrics, request: &Request<B>, client: Client) -> Ended {
        let shown = tracing::enabled!(target: ACCESS, tracing::Level::DEBUG).then(|| {
            let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
            let host = request.uri().host().or(named).unwrap_or_default();
            let path = short(request.uri().path());
            Shown { method: request.method().clone(), host: short(host), path, backend: None }
        });
        let status = StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT);
        Ended { metrics: metrics.clone(), client, begun: Instant::now(), status, bytes: 0, shown }
    }

    pub(crate) fn routed(&mut self, backend: &Backend) {
        if let Some(count) = self.metrics.0.by_ingress.read().get(&backend.ingress) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(shown) = &mut self.shown {
            shown.backend = Some(backend.name.clone());
        }
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let took: Duration = self.begun.elapsed();
        let inner = &self.metrics.0;
        inner.durations.observe(took.as_secs_f64());
        let labels = Answered { scheme: self.client.scheme, code: self.status.as_u16() };
        inner.requests.get_or_create(&labels).inc();
        if let Some(shown) = &self.shown {
            tracing::debug!(
                target: ACCESS,
                client = %self.client.address,
                scheme = self.client.scheme,
                method = %shown.method,
                host = shown.host,
                path = shown.path,
                status = self.status.as_u16(),
                bytes = self.bytes,
                milliseconds = took.as_millis(),
                backend = shown.backend,
                "request"
            );
        }
    }
}
