//! Counts of one container, and the text that Prometheus reads.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper ends of the buckets for durations, in microseconds.
const BUCKETS_US: [u64; 12] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000];

/// What is counted while a container serves.
#[derive(Default)]
pub(crate) struct Metrics {
    /// By the first digit of the status code.
    answers: [AtomicU64; 6],
    buckets: [AtomicU64; BUCKETS_US.len()],
    time_us: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) traps: AtomicU64,
    pub(crate) instances: AtomicU64,
    /// Answered requests but those of probes, which say nothing of how much a container is wanted.
    asked: AtomicU64,
    asked_us: AtomicU64,
}

impl Metrics {
    pub(crate) fn answered(&self, status: http::StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).min(self.answers.len() - 1);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_US.iter().position(|end| us <= *end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.time_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts a request that is not a probe.
    pub(crate) fn asked(&self, took: Duration) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.asked_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Answered requests but those of probes, and the microseconds that all of them took.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.asked.load(Ordering::Relaxed), self.asked_us.load(Ordering::Relaxed))
    }
}

/// One container at one moment.
pub(crate) struct Sample<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) container: &'a str,
    pub(crate) metrics: &'a Metrics,
    pub(crate) live_instances: u64,
    pub(crate) queued: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu: Duration,
}

/// Name, type, help, and the figure itself.
type Figure = (&'static str, &'static str, &'static str, fn(&Sample<'_>) -> String);

/// The text of all samples in the Prometheus exposition format.
pub(crate) fn exposition(samples: &[Sample<'_>]) -> String {
    let mut out = String::new();
    let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
    family(&mut out, "requests_total", "counter", "Answered HTTP requests.", samples, |sample, line| {
        for (class, count) in sample.metrics.answers.iter().enumerate() {
            let count = get(count);
            if count > 0 {
                line(&format!(",code=\"{class}xx\""), "", &count.to_string());
            }
        }
    });
    family(&mut out, "request_duration_seconds", "histogram", "Time to the answer's head.", samples, |sample, line| {
        let mut sum = 0;
        for (end, count) in BUCKETS_US.iter().zip(&sample.metrics.buckets) {
            sum += get(count);
            line(&format!(",le=\"{}\"", seconds(*end)), "_bucket", &sum.to_string());
        }
        let all: u64 = sample.metrics.answers.iter().map(get).sum();
        line(",le=\"+Inf\"", "_bucket", &all.to_string());
        line("", "_sum", &seconds(get(&sample.metrics.time_us)));
        line("", "_count", &all.to_string());
    });
    let simple: [Figure; 7] = [
        ("requests_rejected_total", "counter", "Requests that found the queue full.", |sample| {
            sample.metrics.rejected.load(Ordering::Relaxed).to_string()
        }),
        ("traps_total", "counter", "Instances that ended with a trap.", |sample| {
            sample.metrics.traps.load(Ordering::Relaxed).to_string()
        }),
        ("instances_total", "counter", "Instances made.", |sample| {
            sample.metrics.instances.load(Ordering::Relaxed).to_string()
        }),
        ("instances", "gauge", "Instances alive.", |sample| sample.live_instances.to_string()),
        ("requests_queued", "gauge", "Requests that wait for an instance.", |sample| sample.queued.to_string()),
        ("memory_bytes", "gauge", "Linear memory of all instances.", |sample| sample.memory_bytes.to_string()),
        ("cpu_seconds_total", "counter", "CPU time of all instances.", |sample| {
            format!("{:.6}", sample.cpu.as_secs_f64())
        }),
    ];
    for (name, kind, help, value) in simple {
        family(&mut out, name, kind, help, samples, |sample, line| line("", "", &value(sample)));
    }
    out
}

type Line<'a> = &'a mut dyn FnMut(&str, &str, &str);

fn family(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: &[Sample<'_>],
    write: impl Fn(&Sample<'_>, Line<'_>),
) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP tandem_wasm_{name} {help}\n# TYPE tandem_wasm_{name} {kind}");
    for sample in samples {
        let Sample { namespace, pod, container, .. } = sample;
        write(sample, &mut |labels, suffix, value| {
            let who = format!("namespace=\"{namespace}\",pod=\"{pod}\",container=\"{container}\"");
            let _ = writeln!(out, "tandem_wasm_{name}{suffix}{{{who}{labels}}} {value}");
        });
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let metrics = Metrics::default();
        metrics.answered(http::StatusCode::OK, Duration::from_micros(70));
        metrics.answered(http::StatusCode::INTERNAL_SERVER_ERROR, Duration::from_secs(2));
        let sample = Sample {
            namespace: "default",
            pod: "web-1",
            container: "web",
            metrics: &metrics,
            live_instances: 1,
            queued: 0,
            memory_bytes: 65536,
            cpu: Duration::from_millis(1500),
        };
        let text = exposition(&[sample]);
        let labels = "{namespace=\"default\",pod=\"web-1\",container=\"web\"";
        for expected in [
            format!("tandem_wasm_requests_total{labels},code=\"2xx\"}} 1"),
            format!("tandem_wasm_requests_total{labels},code=\"5xx\"}} 1"),
            format!("tandem_wasm_request_duration_seconds_bucket{labels},le=\"0.000100\"}} 1"),
            format!("tandem_wasm_request_duration_seconds_count{labels}}} 2"),
            format!("tandem_wasm_request_duration_seconds_sum{labels}}} 2.000070"),
            format!("tandem_wasm_cpu_seconds_total{labels}}} 1.500000"),
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is missing in\n{text}");
        }
    }
}
