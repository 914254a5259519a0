//! The agent's metrics, under the kubelet's names.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::observed::Kind;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Probed {
    probe_type: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Step {
    operation_type: &'static str,
}

type Durations = Family<Of, Histogram, fn() -> Histogram>;

pub(crate) struct Metrics {
    registry: Registry,
    running_pods: Gauge,
    running_containers: Family<Of, Gauge>,
    started: Durations,
    pod_started: Histogram,
    probes: Family<Probed, Counter>,
    steps: Family<Step, Counter>,
    step_errors: Family<Step, Counter>,
    status_patches: Counter,
}

fn durations() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0])
}

fn name(kind: Kind) -> Of {
    let kind = match kind {
        Kind::Container => "container",
        Kind::Component => "component",
    };
    Of { kind }
}

impl Metrics {
    pub(crate) fn new(mut registry: Registry) -> Metrics {
        let metrics = Metrics {
            running_pods: Gauge::default(),
            running_containers: Family::default(),
            started: Family::new_with_constructor(durations as fn() -> Histogram),
            pod_started: durations(),
            probes: Family::default(),
            steps: Family::default(),
            step_errors: Family::default(),
            status_patches: Counter::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register("kubelet_running_pods", "Pods that have a running sandbox", m.running_pods.clone());
        registry.register("kubelet_running_containers", "Containers that run", m.running_containers.clone());
        let help = "From creating a container to its start, in seconds";
        registry.register("kubelet_container_start_duration_seconds", help, m.started.clone());
        let help = "From first seeing a pod to all its containers started, in seconds";
        registry.register("kubelet_pod_start_duration_seconds", help, m.pod_started.clone());
        registry.register("prober_probe", "Probes by type and result", m.probes.clone());
        registry.register("kubelet_runtime_operations", "Steps taken for pods", m.steps.clone());
        registry.register("kubelet_runtime_operations_errors", "Steps that failed", m.step_errors.clone());
        registry.register("kubelet_pod_status_patches", "Status updates sent", m.status_patches.clone());
        Metrics { registry, ..metrics }
    }

    pub(crate) fn started(&self, kind: Kind, took: Duration) {
        self.started.get_or_create(&name(kind)).observe(took.as_secs_f64());
    }

    pub(crate) fn pod_started(&self, took: Duration) {
        self.pod_started.observe(took.as_secs_f64());
    }

    pub(crate) fn probed(&self, probe_type: &'static str, succeeded: bool) {
        let result = if succeeded { "successful" } else { "failed" };
        self.probes.get_or_create(&Probed { probe_type, result }).inc();
    }

    pub(crate) fn step(&self, operation_type: &'static str, succeeded: bool) {
        self.steps.get_or_create(&Step { operation_type }).inc();
        if !succeeded {
            self.step_errors.get_or_create(&Step { operation_type }).inc();
        }
    }

    pub(crate) fn patched(&self) {
        self.status_patches.inc();
    }

    pub(crate) fn set_running(&self, pods: usize, containers: &[(Kind, usize)]) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.running_pods.set(number(pods));
        for (kind, count) in containers {
            self.running_containers.get_or_create(&name(*kind)).set(number(*count));
        }
    }

    /// The metrics as Prometheus reads them.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::warn!(%error, "cannot write the metrics");
        }
        text
    }
}
