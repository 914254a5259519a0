use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::time::Instant;

use crate::{
    core::Core,
    request::{RequestInfo, Target},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    request_kind: &'static str,
}

type Durations = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// The figures of the API server under Kubernetes' names.
pub(crate) struct Metrics {
    requests: Family<CodeLabels, Counter>,
    durations: Durations,
    in_flight: Family<KindLabels, Gauge>,
    watchers: Gauge,
    registry: Arc<Mutex<Registry>>,
}

fn buckets() -> Histogram {
    // 0.5 ms to 65 s.
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}

impl Metrics {
    pub(crate) fn new(registry: Arc<Mutex<Registry>>) -> Metrics {
        let metrics = Metrics {
            requests: Family::default(),
            durations: Family::new_with_constructor(buckets as fn() -> Histogram),
            in_flight: Family::default(),
            watchers: Gauge::default(),
            registry: registry.clone(),
        };
        let mut all = registry.lock();
        all.register(
            "apiserver_request",
            "Requests, by verb, resource and HTTP response code",
            metrics.requests.clone(),
        );
        all.register(
            "apiserver_request_duration_seconds",
            "Response latency in seconds, by verb and resource",
            metrics.durations.clone(),
        );
        all.register(
            "apiserver_current_inflight_requests",
            "Requests being executed at this moment",
            metrics.in_flight.clone(),
        );
        all.register("apiserver_registered_watchers", "Watches being served", metrics.watchers.clone());
        drop(all);
        metrics
    }

    /// All metrics of the registry as OpenMetrics text.
    pub(crate) fn text(&self, core: &Core) -> Result<String, std::fmt::Error> {
        let (reads, writes) = core.limits.in_flight();
        let set = |request_kind, count| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.in_flight.get_or_create(&KindLabels { request_kind }).set(count);
        };
        set("readOnly", reads);
        set("mutating", writes);
        self.watchers.set(i64::try_from(core.limits.streams()).unwrap_or(i64::MAX));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

/// Labels whose number of values is bounded: resources that are not served and paths share one.
fn labels(core: &Core, info: &RequestInfo) -> RequestLabels {
    let path = match &info.target {
        Target::Resource(path) if core.registry().by_path(&path.group, &path.version, &path.resource).is_some() => {
            Some(path)
        }
        _ => None,
    };
    let field = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let scope = match path {
        Some(path) if path.name.is_some() => "resource",
        Some(path) if path.namespace.is_some() => "namespace",
        Some(_) => "cluster",
        None => "",
    };
    let served = |sub: &&str| core.known_subresource(sub);
    RequestLabels {
        verb: info.verb.as_str().to_uppercase(),
        group: field(path.map(|path| path.group.as_str())),
        version: field(path.map(|path| path.version.as_str())),
        resource: field(path.map(|path| path.resource.as_str())),
        subresource: field(path.and_then(|path| path.subresource.as_deref()).filter(served)),
        scope: scope.to_owned(),
        component: "apiserver".to_owned(),
    }
}

pub(crate) async fn measure(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    let Some(info) = request.extensions().get::<Arc<RequestInfo>>().cloned() else { return next.run(request).await };
    let begun = Instant::now();
    let response = next.run(request).await;
    let labels = labels(&core, &info);
    if !info.is_long_running() {
        core.metrics.durations.get_or_create(&labels).observe(begun.elapsed().as_secs_f64());
    }
    let RequestLabels { verb, group, version, resource, subresource, scope, component } = labels;
    let code = response.status().as_u16();
    let labels = CodeLabels { verb, group, version, resource, subresource, scope, component, code };
    core.metrics.requests.get_or_create(&labels).inc();
    response
}
