//! Counts of requests, which CRI carries as metrics of a runtime's own: `ListPodSandboxMetrics`.

use std::collections::HashMap;

use tandem_runtime::Requests;

use crate::v1;

const ANSWERED: &str = "http_requests_total";
const DURATION: &str = "http_request_duration_microseconds_total";
const IN_FLIGHT: &str = "http_requests_in_flight";

/// What `ListMetricDescriptors` says of them.
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let all = [
        (ANSWERED, "Answered HTTP requests."),
        (DURATION, "From each HTTP request to the head of its answer, all together."),
        (IN_FLIGHT, "HTTP requests that run or wait for an instance."),
    ];
    all.map(|(name, help)| v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: Vec::new(),
    })
    .into()
}

pub fn metrics(counts: Requests) -> Vec<v1::Metric> {
    let all = [
        (ANSWERED, v1::MetricType::Counter, counts.answered),
        (DURATION, v1::MetricType::Counter, counts.duration_us),
        (IN_FLIGHT, v1::MetricType::Gauge, counts.in_flight),
    ];
    let metric = |(name, kind, value): (&str, v1::MetricType, u64)| v1::Metric {
        name: name.to_owned(),
        metric_type: kind.into(),
        value: Some(v1::UInt64Value { value }),
        ..v1::Metric::default()
    };
    all.map(metric).into()
}

/// The counts by container.
pub(crate) fn counts(answer: v1::ListPodSandboxMetricsResponse) -> HashMap<String, Requests> {
    let containers = answer.pod_metrics.into_iter().flat_map(|sandbox| sandbox.container_metrics);
    let counted = containers.filter_map(|container| {
        let of = |name: &str| {
            let found = container.metrics.iter().find(|metric| metric.name == name)?;
            Some(found.value?.value)
        };
        let requests = Requests { answered: of(ANSWERED)?, duration_us: of(DURATION)?, in_flight: of(IN_FLIGHT)? };
        Some((container.container_id, requests))
    });
    counted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_way() {
        let requests = Requests { answered: 7, duration_us: 900, in_flight: 2 };
        let container = v1::ContainerMetrics { container_id: "c".to_owned(), metrics: metrics(requests) };
        let strange = v1::ContainerMetrics { container_id: "d".to_owned(), metrics: Vec::new() };
        let sandbox = v1::PodSandboxMetrics {
            pod_sandbox_id: "s".to_owned(),
            container_metrics: vec![container, strange],
            ..Default::default()
        };
        let found = counts(v1::ListPodSandboxMetricsResponse { pod_metrics: vec![sandbox] });
        assert_eq!(found, [("c".to_owned(), requests)].into());
        let described: Vec<String> = descriptors().into_iter().map(|one| one.name).collect();
        assert!(metrics(requests).iter().all(|metric| described.contains(&metric.name)));
    }
}
