//! The metrics that Kubernetes' dashboards for the scheduler know.

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

use crate::queue::Pending;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    result: &'static str,
    profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    queue: &'static str,
}

/// Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<Attempt, Counter>,
    durations: Family<Attempt, Histogram>,
    algorithm: Histogram,
    latency: Histogram,
    pending: Family<Place, Gauge>,
    preemptions: Counter,
    victims: Histogram,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-5, 2.0, 22))
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            attempts: Family::default(),
            durations: Family::new_with_constructor(seconds),
            algorithm: seconds(),
            latency: seconds(),
            pending: Family::default(),
            preemptions: Counter::default(),
            victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        }
    }
}

impl Metrics {
    /// Registers the metrics under Kubernetes' names; the encoder adds `_total` to counters.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let help = "Number of attempts to schedule pods, by the result";
        registry.register("scheduler_schedule_attempts", help, metrics.attempts.clone());
        let help = "Scheduling attempt latency in seconds (scheduling algorithm + binding)";
        registry.register("scheduler_scheduling_attempt_duration_seconds", help, metrics.durations.clone());
        let help = "Scheduling algorithm latency in seconds";
        registry.register("scheduler_scheduling_algorithm_duration_seconds", help, metrics.algorithm.clone());
        let help = "E2e latency for a pod being scheduled, from first attempt";
        registry.register("scheduler_pod_scheduling_sli_duration_seconds", help, metrics.latency.clone());
        let help = "Number of pending pods, by the queue type";
        registry.register("scheduler_pending_pods", help, metrics.pending.clone());
        let help = "Total preemption attempts in the cluster till now";
        registry.register("scheduler_preemption_attempts", help, metrics.preemptions.clone());
        let help = "Number of selected preemption victims";
        registry.register("scheduler_preemption_victims", help, metrics.victims.clone());
        metrics
    }

    pub(crate) fn tried_to_preempt(&self) {
        self.preemptions.inc();
    }

    #[allow(clippy::cast_precision_loss, reason = "a node does not have 2^52 pods")]
    pub(crate) fn preempted(&self, victims: usize) {
        self.victims.observe(victims as f64);
    }

    pub(crate) fn attempted(&self, profile: &str, result: &'static str, seconds: f64) {
        let labels = Attempt { result, profile: profile.to_owned() };
        self.attempts.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(seconds);
    }

    pub(crate) fn decided(&self, seconds: f64) {
        self.algorithm.observe(seconds);
    }

    pub(crate) fn bound(&self, seconds: f64) {
        self.latency.observe(seconds);
    }

    pub(crate) fn pending(&self, pending: Pending) {
        let set = |queue, count: usize| {
            self.pending.get_or_create(&Place { queue }).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("active", pending.active);
        set("backoff", pending.backoff);
        set("unschedulable", pending.unschedulable);
    }
}
