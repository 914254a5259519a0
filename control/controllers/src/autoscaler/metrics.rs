//! What one metric says: of a resource of the target's pods, or that there is nobody who could tell.

use jiff::Timestamp;
use k8s_openapi::{
    api::autoscaling::v2::{
        ContainerResourceMetricStatus, ExternalMetricSource, HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus,
        MetricTarget, MetricValueStatus, ObjectMetricSource, ResourceMetricStatus,
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use tandem_api::quantity::Quantity;

use super::{
    Snapshot,
    replicas::{self, Goal, Proposal, Question, Tolerance},
    target::Target,
    usage,
};
use crate::object;

/// Kubernetes' `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
const NO_CUSTOM: &str =
    "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered";
const NO_EXTERNAL: &str =
    "unable to fetch metrics from external metrics API: the server could not find the requested resource";

/// Why a metric says nothing: the condition's reason, its error, and what is said before it in the end.
pub(super) struct Unable {
    pub(super) reason: &'static str,
    pub(super) error: String,
    pub(super) of: String,
}

/// How many replicas a metric asks for, what it is called, and what it is.
pub(super) type Computed = Result<(i32, String, MetricStatus), Unable>;

pub(super) fn compute(snapshot: &Snapshot, target: &Target, metric: &MetricSpec, now: Timestamp) -> Computed {
    let asked = |resource, container| Asked {
        snapshot,
        spec: &snapshot.autoscaler.spec,
        current: target.wanted(),
        resource,
        container,
        now,
    };
    let namespace = object::namespace(&snapshot.autoscaler.metadata);
    let status = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
    if let ("Resource", Some(source)) = (metric.type_.as_str(), &metric.resource) {
        let of = format!("failed to get {} resource metric value", source.name);
        let unable = |error| Unable { reason: "FailedGetResourceMetric", error, of };
        let (proposal, name) = asked(source.name.as_str(), None).propose(&source.target).map_err(unable)?;
        let resource = Some(ResourceMetricStatus { current: values(proposal), name: source.name.clone() });
        return Ok((proposal.replicas, name, MetricStatus { resource, ..status }));
    }
    if let ("ContainerResource", Some(source)) = (metric.type_.as_str(), &metric.container_resource) {
        let container = &source.container;
        let of = format!("failed to get {container} container metric value");
        let unable = |error| Unable { reason: "FailedGetContainerResourceMetric", error, of };
        let asked = asked(source.name.as_str(), Some(container.as_str()));
        let (proposal, name) = asked.propose(&source.target).map_err(unable)?;
        let container_resource = Some(ContainerResourceMetricStatus {
            container: container.clone(),
            current: values(proposal),
            name: source.name.clone(),
        });
        return Ok((proposal.replicas, name, MetricStatus { container_resource, ..status }));
    }
    Err(elsewhere(metric, namespace))
}

/// Metrics that come from APIs which this cluster does not have.
fn elsewhere(metric: &MetricSpec, namespace: &str) -> Unable {
    if let Some(source) = &metric.pods {
        let error = format!("unable to get metric {}: {NO_CUSTOM}", source.metric.name);
        return Unable { reason: "FailedGetPodsMetric", error, of: "failed to get pods metric value".to_owned() };
    }
    if let Some(source) = &metric.object {
        return of_object(source, namespace);
    }
    if let Some(source) = &metric.external {
        return external(source, namespace);
    }
    let error = format!("unknown metric source type {:?}", metric.type_);
    Unable { reason: "InvalidMetricSourceType", error, of: "invalid metric source".to_owned() }
}

fn of_object(source: &ObjectMetricSource, namespace: &str) -> Unable {
    let (about, name) = (&source.described_object, &source.metric.name);
    // The order of Kubernetes' own message.
    let error = format!("unable to get metric {name}: {} on {namespace} {}/{NO_CUSTOM}", about.kind, about.name);
    Unable { reason: "FailedGetObjectMetric", error, of: "failed to get object metric value".to_owned() }
}

fn external(source: &ExternalMetricSource, namespace: &str) -> Unable {
    let name = &source.metric.name;
    let selector = source.metric.selector.as_ref().and_then(object::selector);
    let selector = selector.map_or_else(|| "nil".to_owned(), |selector| selector.to_string());
    let asked = format!("{namespace}/{name}/{selector}");
    let error = format!("unable to get external metric {asked}: {NO_EXTERNAL} (get {name}.external.metrics.k8s.io)");
    let what = match source.target.average_value {
        Some(_) => format!("{name} external metric"),
        None => format!("external metric {name}"),
    };
    let of = format!("failed to get {name} external metric value: failed to get {what}");
    Unable { reason: "FailedGetExternalMetric", error, of }
}

/// A resource of the target's pods, or of one container of each.
struct Asked<'a> {
    snapshot: &'a Snapshot,
    spec: &'a HorizontalPodAutoscalerSpec,
    current: i32,
    resource: &'a str,
    container: Option<&'a str>,
    now: Timestamp,
}

impl Asked<'_> {
    /// How many replicas are asked for, and by what.
    fn propose(&self, target: &MetricTarget) -> Result<(Proposal, String), String> {
        let resource = self.resource;
        let average = target.average_value.as_ref().and_then(usage::milli);
        let (goal, what) = match (average, target.average_utilization) {
            (Some(average), _) if average > 0 => (Goal::Average(average), "usage"),
            (None, Some(percent)) if percent > 0 => (Goal::Utilization(percent), "utilization"),
            _ => {
                let why = "neither an average utilization target nor an average value (usage) target was set";
                return Err(format!("invalid resource metric source: {why}"));
            }
        };
        let proposal = self.ask(goal).map_err(|error| format!("failed to get {resource} {what}: {error}"))?;
        let name = match (goal, self.container) {
            (Goal::Average(_), _) => format!("{resource} resource"),
            (Goal::Utilization(_), None) => format!("{resource} resource utilization (percentage of request)"),
            (Goal::Utilization(_), Some(_)) => {
                format!("{resource} container resource utilization (percentage of request)")
            }
        };
        Ok((proposal, name))
    }

    fn ask(&self, goal: Goal) -> Result<Proposal, String> {
        let unable = |error: &str| format!("unable to get metrics for resource {}: {error}", self.resource);
        let all = self.snapshot.usage.as_ref().map_err(|error| unable(error))?;
        let readings = usage::readings(all, self.resource, self.container).map_err(|error| unable(&error))?;
        let pods = self.snapshot.pods.as_deref().unwrap_or_default();
        replicas::propose(&Question {
            current: self.current,
            goal,
            tolerance: tolerance(self.spec),
            resource: self.resource,
            container: self.container,
            pods,
            readings,
            now: self.now,
        })
    }
}

fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let of = |text: Option<&Text>| {
        let amount = text.and_then(|text| Quantity::parse(&text.0).ok());
        amount.and_then(|amount| amount.to_decimal().parse().ok()).unwrap_or(TOLERANCE)
    };
    let behavior = spec.behavior.as_ref();
    Tolerance {
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref()?.tolerance.as_ref())),
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref()?.tolerance.as_ref())),
    }
}

fn values(proposal: Proposal) -> MetricValueStatus {
    let average = Quantity::parse(&format!("{}m", proposal.average)).unwrap_or(Quantity::ZERO);
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(Text(average.to_string())),
        value: None,
    }
}
