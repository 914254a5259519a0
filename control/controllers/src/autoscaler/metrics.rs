//! What one metric says: of a resource of the target's pods, of their requests, or of anything else.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::autoscaling::v2::{
        ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, HorizontalPodAutoscalerSpec,
        MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus,
        PodsMetricSource, PodsMetricStatus, ResourceMetricStatus,
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use tandem_api::quantity::Quantity;

use super::{
    Snapshot,
    custom::Measured,
    replicas::{self, Goal, Proposal, Question, Tolerance, Whole},
    target::Target,
    usage::{self, Reading},
};
use crate::{object, pod};

/// Kubernetes' `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// Why a metric says nothing: the condition's reason, its error, and what is said before it in the end.
pub(super) struct Unable {
    pub(super) reason: &'static str,
    pub(super) error: String,
    pub(super) of: String,
}

/// How many replicas a metric asks for, what it is called, and what it is.
pub(super) type Computed = Result<(i32, String, MetricStatus), Unable>;

/// What was measured of a metric, or why that is not known.
pub(super) type Taken = Result<Measured, String>;

pub(super) fn compute(
    snapshot: &Snapshot,
    target: &Target,
    (metric, measured): (&MetricSpec, Option<&Taken>),
    now: Timestamp,
) -> Computed {
    let asked = |resource, container| Asked {
        snapshot,
        spec: &snapshot.autoscaler.spec,
        current: target.wanted(),
        running: target.running(),
        resource,
        container,
        now,
    };
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
    let asked = asked("", None);
    match (&metric.pods, &metric.object, &metric.external) {
        (Some(source), ..) => of_pods(&asked, source, measured, status),
        (_, Some(source), _) => of_object(&asked, source, measured, status),
        (.., Some(source)) => external(&asked, source, measured, status),
        _ => {
            let error = format!("unknown metric source type {:?}", metric.type_);
            Err(Unable { reason: "InvalidMetricSourceType", error, of: "invalid metric source".to_owned() })
        }
    }
}

fn milli(target: Option<&Text>) -> Option<i64> {
    target.and_then(usage::milli).filter(|goal| *goal > 0)
}

fn of_pods(asked: &Asked<'_>, source: &PodsMetricSource, measured: Option<&Taken>, status: MetricStatus) -> Computed {
    let name = &source.metric.name;
    let of = || "failed to get pods metric value".to_owned();
    let unable = |error: String| Unable { reason: "FailedGetPodsMetric", error, of: of() };
    let neither = "invalid pods metric source: no average value target was set";
    let goal = milli(source.target.average_value.as_ref()).ok_or_else(|| unable(neither.to_owned()))?;
    let proposal = match measured {
        _ if asked.current == 0 => Proposal::ZERO,
        Some(Ok(Measured::Pods(readings))) => asked.ask_of(Goal::Average(goal), readings.clone()).map_err(unable)?,
        Some(Err(error)) => return Err(unable(format!("unable to get metric {name}: {error}"))),
        Some(Ok(Measured::Value(_))) | None => return Err(unable(format!("unable to get metric {name}"))),
    };
    let pods = Some(PodsMetricStatus { current: values(proposal), metric: source.metric.clone() });
    Ok((proposal.replicas, format!("pods metric {name}"), MetricStatus { pods, ..status }))
}

fn of_object(
    asked: &Asked<'_>,
    source: &ObjectMetricSource,
    measured: Option<&Taken>,
    status: MetricStatus,
) -> Computed {
    let (about, name) = (&source.described_object, &source.metric.name);
    let namespace = object::namespace(&asked.snapshot.autoscaler.metadata);
    let of = || "failed to get object metric value".to_owned();
    let unable = |error: String| Unable { reason: "FailedGetObjectMetric", error, of: of() };
    let value = match measured {
        Some(Ok(Measured::Value(value))) => *value,
        other => {
            let error = error_of(other);
            // The order of Kubernetes' own message.
            return Err(unable(format!(
                "unable to get metric {name}: {} on {namespace} {}/{error}",
                about.kind, about.name
            )));
        }
    };
    let (replicas, current) = asked.whole(value, &source.target, "object").map_err(unable)?;
    let object = Some(ObjectMetricStatus { current, described_object: about.clone(), metric: source.metric.clone() });
    Ok((replicas, format!("{} metric {name}", about.kind), MetricStatus { object, ..status }))
}

fn external(
    asked: &Asked<'_>,
    source: &ExternalMetricSource,
    measured: Option<&Taken>,
    status: MetricStatus,
) -> Computed {
    let name = &source.metric.name;
    let namespace = object::namespace(&asked.snapshot.autoscaler.metadata);
    let selector = source.metric.selector.as_ref().and_then(object::selector);
    let selector = selector.map_or_else(|| "nil".to_owned(), |selector| selector.to_string());
    let what = match source.target.average_value {
        Some(_) => format!("{name} external metric"),
        None => format!("external metric {name}"),
    };
    let of = || format!("failed to get {name} external metric value: failed to get {what}");
    let unable = |error: String| Unable { reason: "FailedGetExternalMetric", error, of: of() };
    let value = match measured {
        Some(Ok(Measured::Value(value))) => *value,
        other => {
            let error = error_of(other);
            return Err(unable(format!("unable to get external metric {namespace}/{name}/{selector}: {error}")));
        }
    };
    let (replicas, current) = asked.whole(value, &source.target, "external").map_err(unable)?;
    let external = Some(ExternalMetricStatus { current, metric: source.metric.clone() });
    Ok((replicas, format!("external metric {name}({selector})"), MetricStatus { external, ..status }))
}

fn error_of(measured: Option<&Taken>) -> &str {
    match measured {
        Some(Err(error)) => error,
        _ => "it was not measured",
    }
}

/// A resource of the target's pods, or of one container of each.
struct Asked<'a> {
    snapshot: &'a Snapshot,
    spec: &'a HorizontalPodAutoscalerSpec,
    current: i32,
    running: i32,
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
        let proposal = if self.current == 0 { Ok(Proposal::ZERO) } else { self.ask(goal) };
        let proposal = proposal.map_err(|error| format!("failed to get {resource} {what}: {error}"))?;
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
        self.ask_of(goal, readings)
    }

    /// How many replicas a value of one thing asks for, and what is said of it.
    fn whole(&self, value: i64, target: &MetricTarget, kind: &str) -> Result<(i32, MetricValueStatus), String> {
        let whole = |goal| Whole { value, goal, tolerance: tolerance(self.spec) };
        let status = MetricValueStatus::default();
        if let Some(goal) = milli(target.average_value.as_ref()) {
            let (replicas, each) = whole(goal).per_pod(self.running);
            return Ok((replicas, MetricValueStatus { average_value: Some(quantity(each)), ..status }));
        }
        let neither =
            || format!("invalid {kind} metric source: neither a value target nor an average value target was set");
        let goal = milli(target.value.as_ref()).ok_or_else(neither)?;
        let pods = self.snapshot.pods.as_deref().unwrap_or_default();
        if self.current > 0 && pods.is_empty() {
            let why = "no pods returned by selector while calculating replica count";
            return Err(format!("unable to calculate ready pods: {why}"));
        }
        let ready = pods.iter().filter(|one| pod::phase(one) == "Running" && pod::is_ready(one)).count();
        Ok((whole(goal).replicas(self.current, ready), MetricValueStatus { value: Some(quantity(value)), ..status }))
    }

    fn ask_of(&self, goal: Goal, readings: BTreeMap<String, Reading>) -> Result<Proposal, String> {
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
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(quantity(proposal.average)),
        value: None,
    }
}

fn quantity(milli: i64) -> Text {
    Text(Quantity::parse(&format!("{milli}m")).unwrap_or(Quantity::ZERO).to_string())
}
