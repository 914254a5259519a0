//! The work queue metrics that Kubernetes' dashboards know.

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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    name: String,
}

/// The metrics of all controllers. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    depth: Family<Labels, Gauge>,
    adds: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    queued: Family<Labels, Histogram>,
    worked: Family<Labels, Histogram>,
}

/// The metrics of one controller's queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) depth: Gauge,
    pub(crate) adds: Counter,
    pub(crate) retries: Counter,
    pub(crate) queued: Histogram,
    pub(crate) worked: Histogram,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-6, 10.0, 9))
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queued: Family::new_with_constructor(seconds),
            worked: Family::new_with_constructor(seconds),
        }
    }
}

impl Metrics {
    /// Registers the metrics under Kubernetes' names; the encoder adds `_total` to counters.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register("workqueue_depth", "Current depth of workqueue", metrics.depth.clone());
        registry.register("workqueue_adds", "Total number of adds handled by workqueue", metrics.adds.clone());
        registry.register("workqueue_retries", "Total number of retries handled by workqueue", metrics.retries.clone());
        let help = "How long in seconds an item stays in workqueue before being requested";
        registry.register("workqueue_queue_duration_seconds", help, metrics.queued.clone());
        let help = "How long in seconds processing an item from workqueue takes";
        registry.register("workqueue_work_duration_seconds", help, metrics.worked.clone());
        metrics
    }

    pub(crate) fn queue(&self, name: &str) -> QueueMetrics {
        let labels = Labels { name: name.to_owned() };
        QueueMetrics {
            depth: self.depth.get_or_create_owned(&labels),
            adds: self.adds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            queued: self.queued.get_or_create_owned(&labels),
            worked: self.worked.get_or_create_owned(&labels),
        }
    }
}
