//! What is done about one autoscaler at one moment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget, ResourceMetricSource,
};
use serde::Serialize;
use tandem_api::WAKE_ANNOTATION;
use tandem_client::events::{self, Note, Severity};

use super::{
    Snapshot,
    limits::{self, Bounds, Past, Rescale, Words},
    metrics::{self, Unable},
    target::Target,
    zero,
};
use crate::{
    action::{self, Action, Plan},
    object,
};

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";
/// The target of an autoscaler that names no metric.
const CPU_PERCENT: i32 = 80;

/// A plan in the making.
struct Round<'a> {
    autoscaler: &'a HorizontalPodAutoscaler,
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    notes: Vec<Note>,
    now: Timestamp,
}

impl Round<'_> {
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: impl Into<String>) {
        let status = if status { "True" } else { "False" };
        let at = self.conditions.iter().position(|one| one.type_ == kind).unwrap_or_else(|| {
            let new = HorizontalPodAutoscalerCondition { type_: kind.to_owned(), ..Default::default() };
            self.conditions.push(new);
            self.conditions.len() - 1
        });
        let condition = &mut self.conditions[at];
        if condition.status != status {
            condition.last_transition_time = Some(object::time(self.now));
        }
        status.clone_into(&mut condition.status);
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.into());
    }

    fn set_words(&mut self, kind: &str, status: bool, (reason, message): Words) {
        self.set(kind, status, reason, message);
    }

    fn tell(&mut self, severity: Severity, reason: &str, message: impl Into<String>) {
        self.notes.push(Note::new(events::reference(self.autoscaler), severity, reason, message));
    }
}

/// What there is to scale, and what it is to become.
#[derive(Debug, Default)]
struct Outcome {
    /// `None` where that is not known.
    current: Option<i32>,
    /// Where it differs from what is.
    rescale: Option<Rescale>,
    desired: Option<i32>,
    metrics: Option<Vec<MetricStatus>>,
}

/// The plan for a snapshot, and what is to be remembered of it.
pub(super) fn plan(snapshot: &Snapshot, now: Timestamp) -> (Plan, Past) {
    let autoscaler = &*snapshot.autoscaler;
    let before = autoscaler.status.clone().unwrap_or_default();
    let mut past = snapshot.past.clone();
    if let Some(plan) = answered(snapshot, &mut past, now) {
        return (plan, past);
    }
    let conditions = before.conditions.clone().unwrap_or_default();
    let mut round = Round { autoscaler, conditions, notes: Vec::new(), now };
    let outcome = decide(snapshot, &mut round, &mut past);
    let (Round { conditions, notes, .. }, mut plan) = (round, Plan::default());
    if let (Some(rescale), Ok(target)) = (&outcome.rescale, &snapshot.target) {
        let object = Box::new(target.scaled(rescale.to));
        plan.actions.push(Action::Put { subresource: "scale", object });
    }
    past.asked = outcome.rescale.clone();
    plan.actions.extend(notes.into_iter().map(Action::Event));
    let status = HorizontalPodAutoscalerStatus {
        conditions: Some(conditions),
        current_metrics: outcome.metrics,
        current_replicas: outcome.current.or(before.current_replicas),
        desired_replicas: outcome.desired.unwrap_or(before.desired_replicas),
        last_scale_time: match outcome.rescale {
            Some(_) => Some(object::time(now)),
            None => before.last_scale_time,
        },
        observed_generation: autoscaler.metadata.generation,
    };
    if autoscaler.status.as_ref() != Some(&status) {
        let object = Box::new(HorizontalPodAutoscaler { status: Some(status), ..autoscaler.clone() });
        // Not as other statuses, which are written although something before them failed: this one would tell of a
        // rescale that did not happen.
        plan.actions.push(Action::Put { subresource: "status", object });
    }
    plan.requeue_after(snapshot.period);
    (plan, past)
}

#[derive(Debug, Serialize)]
struct Marked {
    metadata: Marks,
}

#[derive(Debug, Serialize)]
struct Marks {
    annotations: BTreeMap<&'static str, Option<String>>,
}

/// Takes the mark of a wake off an autoscaler whose workload does not sleep, or not any more.
fn answered(snapshot: &Snapshot, past: &mut Past, now: Timestamp) -> Option<Plan> {
    let current = snapshot.target.as_ref().ok()?.wanted();
    if !zero::is_requested(snapshot) || (current == 0 && snapshot.asleep()) {
        return None;
    }
    if current > 0 {
        past.wake(1, now);
    }
    let annotations = [(WAKE_ANNOTATION, None)].into();
    let body = Marked { metadata: Marks { annotations } };
    let mut plan = Plan::of(vec![Action::patch(action::Target::of(&*snapshot.autoscaler), body)]);
    plan.requeue_after(snapshot.period);
    Some(plan)
}

fn decide(snapshot: &Snapshot, round: &mut Round<'_>, past: &mut Past) -> Outcome {
    let target = match &snapshot.target {
        Ok(target) => target,
        Err(error) => {
            round.tell(Severity::Warning, "FailedGetScale", error);
            let message = format!("the HPA controller was unable to get the target's current scale: {error}");
            round.set(ABLE, false, "FailedGetScale", message);
            return Outcome::default();
        }
    };
    let spec = &snapshot.autoscaler.spec;
    let current = target.wanted();
    let asleep = snapshot.asleep();
    if let Some(asked) = past.asked.take() {
        if current == asked.to {
            past.settle(&asked);
            if current == 0 && asleep {
                // Its status may not have been written.
                round.set_words(zero::CONDITION, true, zero::TO_ZERO);
            }
        } else if let Some(error) = &snapshot.failure {
            return refused(round, &asked, current, error);
        }
    }
    let message = "the HPA controller was able to get the target's current scale";
    round.set(ABLE, true, "SucceededGetScale", message);
    past.begin(current, round.now);
    let least = spec.min_replicas.unwrap_or(1);
    let (desired, reason, metrics) = if current == 0 && asleep && zero::is_requested(snapshot) {
        past.wake(1, round.now);
        (least.max(1), zero::REQUESTED.to_owned(), None)
    } else if current == 0 && !asleep {
        let message = "scaling is disabled since the replica count of the target is zero";
        round.set(ACTIVE, false, "ScalingDisabled", message);
        (0, String::new(), None)
    } else if current > spec.max_replicas {
        (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned(), None)
    } else if current < least {
        (least, "Current number of replicas below Spec.MinReplicas".to_owned(), None)
    } else {
        let (metrics, found) = compute(snapshot, round, spec, target);
        let Some((wanted, name)) = found else {
            return Outcome { current: Some(current), metrics: Some(metrics), ..Outcome::default() };
        };
        let reason = if wanted > current { format!("{name} above target") } else { "All metrics below target".into() };
        let bounds = Bounds { least, most: spec.max_replicas, current };
        let limited = limits::limit(past, spec.behavior.as_ref(), bounds, wanted, round.now);
        round.set_words(ABLE, true, limited.able);
        round.set_words(LIMITED, limited.limited.0, limited.limited.1);
        (kept(snapshot, round, current, limited.replicas), reason, Some(metrics))
    };
    let mut outcome = Outcome { current: Some(current), desired: Some(desired), metrics, rescale: None };
    if desired != current {
        round.set(
            ABLE,
            true,
            "SucceededRescale",
            format!("the HPA controller was able to update the target scale to {desired}"),
        );
        round.tell(Severity::Normal, "SuccessfulRescale", format!("New size: {desired}; reason: {reason}"));
        let to_zero = desired == 0;
        if least == 0 || asleep {
            round.set_words(zero::CONDITION, to_zero, if to_zero { zero::TO_ZERO } else { zero::NOT_TO_ZERO });
        }
        outcome.rescale = Some(Rescale { from: current, to: desired, reason, at: round.now });
    }
    outcome
}

/// The replicas that are wanted, and the last one as long as it is needed.
fn kept(snapshot: &Snapshot, round: &mut Round<'_>, current: i32, desired: i32) -> i32 {
    let objection = zero::Needs::of(snapshot).objection(round.now);
    let Some(words) = objection.filter(|_| desired == 0 && current > 0) else { return desired };
    round.set_words(ABLE, true, words);
    1
}

/// The API did not take the last rescale.
fn refused(round: &mut Round<'_>, asked: &Rescale, current: i32, error: &str) -> Outcome {
    let message = format!("New size: {}; reason: {}; error: {error}", asked.to, asked.reason);
    round.tell(Severity::Warning, "FailedRescale", message);
    let message = format!("the HPA controller was unable to update the target scale: {error}");
    round.set(ABLE, false, "FailedUpdateScale", message);
    let metrics = round.autoscaler.status.as_ref().and_then(|status| status.current_metrics.clone());
    Outcome { current: Some(current), metrics, ..Outcome::default() }
}

/// The state of each metric, and the highest number of replicas that one of them asks for, with its name. `None` where
/// no metric can be had, or where one cannot and the others would scale down.
fn compute(
    snapshot: &Snapshot,
    round: &mut Round<'_>,
    spec: &HorizontalPodAutoscalerSpec,
    target: &Target,
) -> (Vec<MetricStatus>, Option<(i32, String)>) {
    if let Err((event, message, told)) = check_pods(snapshot, target) {
        round.tell(Severity::Warning, event, &message);
        let reason = if event == "SelectorRequired" { "InvalidSelector" } else { event };
        round.set(ACTIVE, false, reason, told.unwrap_or_else(|| message.clone()));
        round.tell(Severity::Warning, "FailedComputeMetricsReplicas", message);
        return (Vec::new(), None);
    }
    let (fallback, listed) = (default_metric(), spec.metrics.as_deref().unwrap_or_default());
    let wanted = if listed.is_empty() { std::slice::from_ref(&fallback) } else { listed };
    let (mut statuses, mut best, mut unable): (Vec<_>, Option<(i32, String)>, Vec<Unable>) = Default::default();
    for (index, metric) in wanted.iter().enumerate() {
        let measured = snapshot.measured.get(index).and_then(Option::as_ref);
        match metrics::compute(snapshot, target, (metric, measured), round.now) {
            Ok((replicas, name, status)) => {
                statuses.push(status);
                if best.as_ref().is_none_or(|(most, _)| *most == 0 || replicas > *most) {
                    best = Some((replicas, name));
                }
            }
            Err(error) => {
                // Its place is kept: clients look at both lists side by side.
                statuses.push(MetricStatus::default());
                round.tell(Severity::Warning, error.reason, &error.error);
                unable.push(error);
            }
        }
    }
    let would_shrink = best.as_ref().is_none_or(|(most, _)| *most < target.wanted());
    if let Some(first) = unable.first().filter(|_| unable.len() == wanted.len() || would_shrink) {
        let message = format!("the HPA was unable to compute the replica count: {}", first.error);
        round.set(ACTIVE, false, first.reason, message);
        let (failed, all) = (unable.len(), wanted.len());
        let message =
            format!("invalid metrics ({failed} invalid out of {all}), first error is: {}: {}", first.of, first.error);
        round.tell(Severity::Warning, "FailedComputeMetricsReplicas", message);
        return (statuses, None);
    }
    let name = best.as_ref().map(|(_, name)| name.as_str()).unwrap_or_default();
    let message = format!("the HPA was able to successfully calculate a replica count from {name}");
    round.set(ACTIVE, true, "ValidMetricFound", message);
    (statuses, best)
}

/// An Event's reason and message, and what the condition says where it is not the same.
type Objection = (&'static str, String, Option<String>);

fn check_pods(snapshot: &Snapshot, target: &Target) -> Result<(), Objection> {
    if let Err(unknown) = &snapshot.pods {
        let told =
            (unknown.event == "SelectorRequired").then(|| "the HPA target's scale is missing a selector".to_owned());
        return Err((unknown.event, unknown.message.clone(), told));
    }
    if snapshot.rivals.is_empty() {
        return Ok(());
    }
    let rivals: Vec<String> = snapshot.rivals.iter().map(ToString::to_string).collect();
    let selector = target.selector().unwrap_or_default();
    let message = format!("pods by selector {selector} are controlled by multiple HPAs: [{}]", rivals.join(" "));
    Err(("AmbiguousSelector", message, None))
}

fn default_metric() -> MetricSpec {
    let target = MetricTarget {
        type_: "Utilization".to_owned(),
        average_utilization: Some(CPU_PERCENT),
        ..MetricTarget::default()
    };
    let resource = ResourceMetricSource { name: "cpu".to_owned(), target };
    MetricSpec { type_: "Resource".to_owned(), resource: Some(resource), ..MetricSpec::default() }
}
