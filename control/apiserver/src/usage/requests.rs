//! `custom.metrics.k8s.io` and `external.metrics.k8s.io`: how many requests components, Services and Ingresses answer.
//!
//! Components count in their host, Ingresses in the proxies of all nodes; a Service has what its pods have. Requests of
//! containers are not seen by anybody but their Ingress.

use std::collections::{BTreeSet, HashMap};

use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_api::{
    ApiError, Object, REQUEST_DURATION, REQUESTS_IN_FLIGHT, REQUESTS_PER_SECOND, Reason, quantity::Quantity,
};
use tandem_registry::selectors::LabelSelector;
use tandem_store::Consistency;

use super::{Selected, nodes::Http};
use crate::{
    call::Call,
    core::Core,
    deletion,
    options::Selection,
    request::{self, ResourcePath, Verb},
    respond,
};

const CUSTOM: &str = "custom.metrics.k8s.io";
/// The preferred one first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
const EXTERNAL: &str = "external.metrics.k8s.io";
const EXTERNAL_VERSION: &str = "v1beta1";

/// A resource that something is measured of.
struct Described {
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    metrics: &'static [&'static str],
    /// What `external.metrics.k8s.io` calls its requests per second, and the label with its name.
    external: Option<(&'static str, &'static str)>,
}

const OF_COMPONENTS: &[&str] = &[REQUESTS_PER_SECOND, REQUESTS_IN_FLIGHT, REQUEST_DURATION];
const DESCRIBED: [Described; 3] = [
    Described { group: "", plural: "pods", kind: "Pod", metrics: OF_COMPONENTS, external: None },
    Described {
        group: "",
        plural: "services",
        kind: "Service",
        metrics: OF_COMPONENTS,
        external: Some(("service_http_requests_per_second", "service")),
    },
    Described {
        group: "networking.k8s.io",
        plural: "ingresses",
        kind: "Ingress",
        metrics: &[REQUESTS_PER_SECOND],
        external: Some(("ingress_http_requests_per_second", "ingress")),
    },
];

impl Described {
    /// `pods`, `ingresses.networking.k8s.io`.
    fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// Whether these groups' requests are answered here, which is decided nowhere else: whoever serves an APIService of the
/// user's own for such a group has to be asked before.
pub(crate) fn is_built_in(path: &ResourcePath) -> bool {
    (path.group == CUSTOM && CUSTOM_VERSIONS.contains(&path.version.as_str()))
        || (path.group == EXTERNAL && path.version == EXTERNAL_VERSION)
}

/// What a metric is of, where it is of a resource, and its name.
pub(crate) type Metric = (Option<String>, &'static str);

/// The groups for discovery: name, versions, metrics.
pub(crate) fn groups() -> [(&'static str, &'static [&'static str], Vec<Metric>); 2] {
    let custom = DESCRIBED.iter().flat_map(|one| one.metrics.iter().map(|metric| (Some(one.resource()), *metric)));
    let external = DESCRIBED.iter().filter_map(|one| Some((None, one.external?.0)));
    [(CUSTOM, &CUSTOM_VERSIONS, custom.collect()), (EXTERNAL, &[EXTERNAL_VERSION], external.collect())]
}

pub(crate) fn list_kind(group: &str) -> &'static str {
    if group == CUSTOM { "MetricValueList" } else { "ExternalMetricValueList" }
}

pub(crate) async fn serve(core: &Core, call: &Call, path: &ResourcePath) -> Result<Response, ApiError> {
    let items = match (path.group.as_str(), call.info.verb, &path.name, &path.subresource) {
        (CUSTOM, Verb::Get, Some(name), Some(metric)) => custom(core, call, path, name, metric).await?,
        (EXTERNAL, Verb::List, None, None) => external(core, call, path).await?,
        (_, Verb::Get | Verb::List, ..) => return Err(request::not_found()),
        _ => return Err(request::method_not_allowed()),
    };
    let api_version = format!("{}/{}", path.group, path.version);
    let list = json!({ "kind": list_kind(&path.group), "apiVersion": api_version, "metadata": {}, "items": items });
    Ok(respond::json_bytes(StatusCode::OK, list.to_string()))
}

async fn custom(
    core: &Core,
    call: &Call,
    path: &ResourcePath,
    name: &str,
    metric: &str,
) -> Result<Vec<Value>, ApiError> {
    let all = name == "*";
    let missing = || {
        let of = if all { String::new() } else { format!(" {name}") };
        let why = format!("the server could not find the metric {metric} for {}{of}", path.resource);
        ApiError::new(Reason::NotFound, why).about("", &path.resource, name)
    };
    let described = DESCRIBED.iter().find(|one| one.resource() == path.resource && one.metrics.contains(&metric));
    let (described, namespace) = described.zip(path.namespace.as_deref()).ok_or_else(missing)?;
    let row = core.row(described.group, "v1", described.plural)?;
    let selection = Selection::of(&call.info.query, &row, None)?;
    let selected = Selected { namespace: Some(namespace), name: (!all).then_some(name), selection: &selection };
    let objects = selected.stored(core, &row, &row).await?;
    let labels = LabelSelector::parse(call.info.query.get("metricLabelSelector").unwrap_or_default())?;
    let mut items = Vec::new();
    // These metrics have no labels of their own.
    if labels.matches_labels(|_| None) {
        for (object, found) in measured(core, described, namespace, objects).await? {
            items.extend(found.value(metric).map(|value| item(path, described, &object, metric, &found, value)));
        }
    }
    if items.is_empty() && !all { Err(missing()) } else { Ok(items) }
}

fn item(path: &ResourcePath, of: &Described, object: &Object, metric: &str, found: &Figures, value: String) -> Value {
    let about = json!({
        "kind": of.kind, "namespace": object.namespace(), "name": object.name(), "apiVersion": format!("{}/v1", of.group),
    });
    let (at, seconds) = (deletion::seconds(found.at), found.window_ms.div_ceil(1000));
    if path.version == "v1beta1" {
        return json!({
            "describedObject": about, "metricName": metric, "timestamp": at, "window": seconds, "value": value,
            "selector": null,
        });
    }
    json!({
        "describedObject": about, "metric": { "name": metric, "selector": null }, "timestamp": at,
        "windowSeconds": seconds, "value": value,
    })
}

async fn external(core: &Core, call: &Call, path: &ResourcePath) -> Result<Vec<Value>, ApiError> {
    let named = |one: &&Described| one.external.is_some_and(|(metric, _)| metric == path.resource);
    let described = DESCRIBED.iter().find(named);
    let found = described.and_then(|one| Some((one, one.external?.1, path.namespace.as_deref()?)));
    let missing = || {
        let why = format!("the server could not find the metric {} for external metrics", path.resource);
        ApiError::new(Reason::NotFound, why)
    };
    let (described, label, namespace) = found.ok_or_else(missing)?;
    let labels = LabelSelector::parse(call.info.query.get("labelSelector").unwrap_or_default())?;
    let row = core.row(described.group, "v1", described.plural)?;
    let mut objects = core.objects.all(&row, Some(namespace), Consistency::Any).await?;
    objects.retain(|object| labels.matches_labels(|key| (key == label).then(|| object.name())));
    let measured = measured(core, described, namespace, objects).await?;
    let items = measured.into_iter().filter_map(|(object, found)| {
        Some(json!({
            "metricName": path.resource, "metricLabels": { label: object.name() },
            "timestamp": deletion::seconds(found.at), "window": found.window_ms.div_ceil(1000),
            "value": found.value(REQUESTS_PER_SECOND)?,
        }))
    });
    Ok(items.collect())
}

/// What is known of the requests of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Figures {
    in_flight: u64,
    milli_per_second: Option<u64>,
    /// At the mean.
    duration_us: u64,
    at: Timestamp,
    window_ms: u64,
}

impl Figures {
    fn none(at: Timestamp) -> Figures {
        Figures { in_flight: 0, milli_per_second: Some(0), duration_us: 0, at, window_ms: 0 }
    }

    /// The sum of all; of durations the mean, by how often they were met.
    fn sum(all: impl IntoIterator<Item = Figures>) -> Option<Figures> {
        all.into_iter().reduce(|one, other| {
            let rate = |figures: &Figures| u128::from(figures.milli_per_second.unwrap_or(0));
            let weighted = |figures: &Figures| u128::from(figures.duration_us) * rate(figures);
            let mean = (weighted(&one) + weighted(&other)).checked_div(rate(&one) + rate(&other)).unwrap_or(0);
            let rates = [one.milli_per_second, other.milli_per_second];
            Figures {
                in_flight: one.in_flight.saturating_add(other.in_flight),
                milli_per_second: rates.into_iter().flatten().reduce(u64::saturating_add),
                duration_us: u64::try_from(mean).unwrap_or(u64::MAX),
                at: one.at.min(other.at),
                window_ms: one.window_ms.max(other.window_ms),
            }
        })
    }

    fn of(http: &Http, at: Timestamp) -> Figures {
        Figures {
            in_flight: http.in_flight,
            milli_per_second: http.milli_requests_per_second,
            duration_us: http.duration_microseconds.unwrap_or(0),
            at,
            window_ms: http.window_milliseconds.unwrap_or(0),
        }
    }

    /// A metric, as a quantity; what has to be taken over some time is not there at once.
    fn value(&self, metric: &str) -> Option<String> {
        let text = match metric {
            REQUESTS_IN_FLIGHT => self.in_flight.to_string(),
            REQUESTS_PER_SECOND => format!("{}m", self.milli_per_second?),
            REQUEST_DURATION => self.milli_per_second.map(|_| format!("{}u", self.duration_us))?,
            _ => return None,
        };
        Quantity::parse(&text).ok().map(|quantity| quantity.to_string())
    }
}

/// The objects of which anything is known, with that.
async fn measured(
    core: &Core,
    described: &Described,
    namespace: &str,
    objects: Vec<Object>,
) -> Result<Vec<(Object, Figures)>, ApiError> {
    if described.plural == "ingresses" {
        return ingresses(core, namespace, objects).await;
    }
    if described.plural == "services" {
        return services(core, namespace, objects).await;
    }
    let known = pods(core, &objects).await?;
    let found = objects.into_iter().filter_map(|pod| known.get(pod.uid()).copied().map(|figures| (pod, figures)));
    Ok(found.collect())
}

/// Of the pods that count their requests, by uid.
async fn pods(core: &Core, pods: &[Object]) -> Result<HashMap<String, Figures>, ApiError> {
    let node_of = |pod: &Object| pod.str_at(&["spec", "nodeName"]).filter(|node| !node.is_empty()).map(str::to_owned);
    let names: BTreeSet<String> = pods.iter().filter_map(node_of).collect();
    let summaries = core.usage.ask(core, names).await?;
    let mut found = HashMap::new();
    for pod in pods {
        // Nobody is believed what he says of pods that run elsewhere.
        let summary = node_of(pod).and_then(|node| summaries.get(&node));
        let Some(of) = summary.and_then(|summary| summary.pods.iter().find(|one| one.pod_ref.uid == pod.uid())) else {
            continue;
        };
        let parts = of.containers.iter().filter_map(|part| Some(Figures::of(part.http.as_ref()?, part.cpu.time)));
        found.extend(Figures::sum(parts).map(|figures| (pod.uid().to_owned(), figures)));
    }
    Ok(found)
}

async fn services(core: &Core, namespace: &str, services: Vec<Object>) -> Result<Vec<(Object, Figures)>, ApiError> {
    let row = core.row("", "v1", "pods")?;
    let all = core.objects.all(&row, Some(namespace), Consistency::Any).await?;
    let known = pods(core, &all).await?;
    let found = services.into_iter().filter_map(|service| {
        let selector = LabelSelector::from_map(service.at(&["spec", "selector"]))?;
        let mut own = all.iter().filter(|pod| selector.matches(pod)).peekable();
        if own.peek().is_none() {
            // Nobody is asked, as long as nobody is there.
            return Some((service, Figures::none(core.clock.now())));
        }
        let figures = Figures::sum(own.filter_map(|pod| known.get(pod.uid()).copied()))?;
        Some((service, figures))
    });
    Ok(found.collect())
}

async fn ingresses(core: &Core, namespace: &str, ingresses: Vec<Object>) -> Result<Vec<(Object, Figures)>, ApiError> {
    let row = core.row("", "v1", "nodes")?;
    let nodes = core.objects.all(&row, None, Consistency::Any).await?;
    let summaries = core.usage.ask(core, nodes.iter().map(|node| node.name().to_owned()).collect()).await?;
    let found = ingresses.into_iter().filter_map(|ingress| {
        let told = summaries.values().filter_map(|summary| {
            let is_meant = |one: &&super::nodes::Ingress| one.namespace == namespace && one.name == ingress.name();
            let http = &summary.ingresses.iter().find(is_meant)?.http;
            Some(Figures::of(http, summary.node.cpu.time))
        });
        Some((ingress.clone(), Figures::sum(told)?))
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(in_flight: u64, milli_per_second: Option<u64>, duration_us: u64) -> Figures {
        Figures { in_flight, milli_per_second, duration_us, at: Timestamp::UNIX_EPOCH, window_ms: 10_000 }
    }

    #[test]
    fn the_parts_of_a_pod_become_one() {
        let check = |parts: &[Figures], expected: [Option<&str>; 3]| {
            let sum = Figures::sum(parts.iter().copied()).unwrap();
            let found = [REQUESTS_IN_FLIGHT, REQUESTS_PER_SECOND, REQUEST_DURATION].map(|metric| sum.value(metric));
            assert_eq!(found.each_ref().map(Option::as_deref), expected, "{parts:?}");
        };
        check(&[figures(2, None, 0)], [Some("2"), None, None]);
        check(&[figures(0, Some(1500), 2500)], [Some("0"), Some("1500m"), Some("2500u")]);
        check(&[figures(1, Some(3000), 1000), figures(2, Some(1000), 5000)], [Some("3"), Some("4"), Some("2m")]);
        check(&[figures(1, Some(3000), 1000), figures(2, None, 0)], [Some("3"), Some("3"), Some("1m")]);
        assert_eq!(Figures::sum([]), None);
    }
}
