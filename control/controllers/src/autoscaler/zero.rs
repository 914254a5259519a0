//! When a workload that nobody asks anything may lose its last pod, and when it gets one again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerCondition;
use tandem_api::WAKE_ANNOTATION;
use tandem_client::wake;

use super::{Snapshot, limits::Words};
use crate::{object, pod};

/// Kubernetes' condition that tells an autoscaler's zero from a user's, which stays.
pub(super) const CONDITION: &str = "ScaledToZero";
pub(super) const TO_ZERO: Words = ("ScaledToZero", "the HPA controller scaled the workload to zero");
pub(super) const NOT_TO_ZERO: Words = ("NotScaledToZero", "the HPA controller did not scale the workload to zero");
/// Of the Event and of nothing else: Kubernetes has nobody who wakes.
pub(super) const REQUESTED: &str = "a request waits for a workload that was scaled to zero";

const IN_FLIGHT: Words = ("RequestsInFlight", "the last pod is kept while it answers requests");
const STARTING: Words = ("RequestsWaiting", "the last pod is kept because requests wait until it is ready");

pub(super) fn is_asleep(conditions: &[HorizontalPodAutoscalerCondition]) -> bool {
    conditions.iter().any(|condition| condition.type_ == CONDITION && condition.status == "True")
}

/// What the last pod is needed for, though no metric asks for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Requests that are answered now.
    pub(super) in_flight: i64,
    pub(super) any_ready: bool,
    /// When requests last waited for the workload.
    pub(super) woken: Option<Timestamp>,
}

impl Needs {
    pub(super) fn of(snapshot: &Snapshot) -> Needs {
        Needs {
            in_flight: snapshot.in_flight.unwrap_or(0),
            any_ready: snapshot.pods.iter().flatten().any(pod::is_ready),
            woken: snapshot.past.woken,
        }
    }

    /// Why the last pod stays.
    pub(super) fn objection(&self, now: Timestamp) -> Option<Words> {
        if self.in_flight > 0 {
            return Some(IN_FLIGHT);
        }
        let held_max = SignedDuration::try_from(wake::HELD_MAX).unwrap_or(SignedDuration::MAX);
        let waits = self.woken.is_some_and(|woken| now.duration_since(woken) < held_max);
        (waits && !self.any_ready).then_some(STARTING)
    }
}

/// Whether a node has asked to wake the workload, which was not answered yet.
pub(super) fn is_requested(snapshot: &Snapshot) -> bool {
    object::annotation(&snapshot.autoscaler.metadata, WAKE_ANNOTATION).is_some()
}
