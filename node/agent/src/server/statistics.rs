//! `/stats/summary` and `/metrics/resource`: what the node and its pods use, in the kubelet's forms.

use std::{collections::BTreeMap, fmt::Write as _};

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use tandem_runtime::State as Running;

use super::Serving;
use crate::{
    observed::SeenSandbox,
    usage::{ContainerUse, Measured, Rate, RequestRate},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    node: NodeFigures,
    pods: Vec<PodFigures>,
    /// What came to this node for each Ingress. The kubelet knows none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingresses: Vec<IngressFigures>,
    /// Whether all runtimes answered.
    #[serde(skip)]
    complete: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeFigures {
    node_name: String,
    cpu: Cpu,
    memory: Memory,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodFigures {
    pod_ref: Reference,
    start_time: Timestamp,
    containers: Vec<ContainerFigures>,
    cpu: Cpu,
    memory: Memory,
}

#[derive(Debug, Serialize)]
struct IngressFigures {
    name: String,
    namespace: String,
    http: HttpFigures,
}

/// Requests of a component, or of an Ingress; the rest is there once there is a rate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HttpFigures {
    in_flight: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    milli_requests_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_microseconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_milliseconds: Option<u64>,
}

impl HttpFigures {
    fn new(in_flight: u64, rate: Option<RequestRate>) -> HttpFigures {
        HttpFigures {
            in_flight,
            milli_requests_per_second: rate.map(|rate| rate.per_second_milli),
            duration_microseconds: rate.map(|rate| rate.duration_us),
            window_milliseconds: rate.map(|rate| u64::try_from(rate.window.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[derive(Debug, Serialize)]
struct Reference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerFigures {
    name: String,
    start_time: Timestamp,
    cpu: Cpu,
    memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<HttpFigures>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    usage_core_nano_seconds: u64,
    /// The time that `usageNanoCores` was taken over. The kubelet does not tell; those who compare with the time when
    /// a pod became ready have to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_milliseconds: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    usage_bytes: u64,
    working_set_bytes: u64,
    rss_bytes: u64,
}

impl Cpu {
    fn new(time: Timestamp, used_ns: u64, rate: Option<Rate>) -> Cpu {
        let milliseconds = |rate: Rate| u64::try_from(rate.window.as_millis()).unwrap_or(u64::MAX);
        Cpu {
            time,
            usage_nano_cores: rate.map(|rate| rate.nano_cores),
            usage_core_nano_seconds: used_ns,
            window_milliseconds: rate.map(milliseconds),
        }
    }
}

fn container(name: &str, started: Timestamp, found: &ContainerUse, now: Timestamp) -> ContainerFigures {
    let stats = &found.stats;
    let time = stats.at.unwrap_or(now);
    ContainerFigures {
        name: name.to_owned(),
        start_time: started,
        cpu: Cpu::new(time, stats.cpu_ns, found.rate),
        memory: Memory {
            time,
            available_bytes: None,
            usage_bytes: stats.memory_usage_bytes,
            working_set_bytes: stats.memory_working_set_bytes,
            rss_bytes: stats.memory_rss_bytes,
        },
        http: stats.requests.map(|requests| HttpFigures::new(requests.in_flight, found.requests)),
    }
}

impl PodFigures {
    fn new(seen: &SeenSandbox, now: Timestamp) -> PodFigures {
        let reference = &seen.sandbox.pod;
        PodFigures {
            pod_ref: Reference {
                name: reference.name.clone(),
                namespace: reference.namespace.clone(),
                uid: reference.uid.clone(),
            },
            start_time: seen.sandbox.created,
            containers: Vec::new(),
            cpu: Cpu::new(now, 0, None),
            memory: Memory { time: now, available_bytes: None, usage_bytes: 0, working_set_bytes: 0, rss_bytes: 0 },
        }
    }

    /// The pod is the sum of what runs in it; of its rate only where all have one.
    fn sum_up(&mut self) {
        let rates: Option<Vec<u64>> = self.containers.iter().map(|one| one.cpu.usage_nano_cores).collect();
        self.cpu.usage_nano_cores = rates.map(|rates| rates.iter().sum());
        self.cpu.window_milliseconds = self.containers.iter().filter_map(|one| one.cpu.window_milliseconds).min();
        for one in &self.containers {
            self.cpu.usage_core_nano_seconds += one.cpu.usage_core_nano_seconds;
            self.memory.usage_bytes += one.memory.usage_bytes;
            self.memory.working_set_bytes += one.memory.working_set_bytes;
            self.memory.rss_bytes += one.memory.rss_bytes;
        }
    }
}

async fn figures(serving: &Serving) -> Summary {
    let context = &serving.context;
    let measured = context.usage.measure(&context.runtimes, &*context.clock).await;
    let mut pods: BTreeMap<String, PodFigures> = BTreeMap::new();
    context.observer.visit(|seen| {
        for one in &seen.sandbox.containers {
            let (Running::Running { started }, Some(found)) = (&one.state, measured.containers.get(&one.id)) else {
                continue;
            };
            let uid = seen.sandbox.pod.uid.clone();
            let pod = pods.entry(uid).or_insert_with(|| PodFigures::new(seen, measured.at));
            pod.containers.push(container(&one.name, *started, found, measured.at));
        }
    });
    pods.values_mut().for_each(PodFigures::sum_up);
    let node = node(&context.node_name, &measured);
    let ingresses = measured.ingresses.iter().map(|((namespace, name), rate)| IngressFigures {
        name: name.clone(),
        namespace: namespace.clone(),
        http: HttpFigures::new(0, Some(*rate)),
    });
    let ingresses = ingresses.collect();
    Summary { node, pods: pods.into_values().collect(), ingresses, complete: measured.complete }
}

fn node(name: &str, measured: &Measured) -> NodeFigures {
    let memory = measured.memory;
    NodeFigures {
        node_name: name.to_owned(),
        cpu: Cpu::new(measured.at, measured.cpu_ns, measured.rate),
        memory: Memory {
            time: measured.at,
            available_bytes: Some(memory.total_bytes.saturating_sub(memory.working_set_bytes)),
            usage_bytes: memory.usage_bytes,
            working_set_bytes: memory.working_set_bytes,
            rss_bytes: memory.rss_bytes,
        },
    }
}

pub(super) async fn summary(State(serving): State<Serving>) -> Json<Summary> {
    Json(figures(&serving).await)
}

pub(super) async fn resource(State(serving): State<Serving>) -> Response {
    let text = figures(&serving).await.exposition();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// A metric of `/metrics/resource`: its name, type and description.
type Metric = (&'static str, &'static str, &'static str);

const CONTAINER_CPU: Metric = (
    "container_cpu_usage_seconds_total",
    "counter",
    "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
);
const CONTAINER_MEMORY: Metric =
    ("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes");
const CONTAINER_START: Metric =
    ("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
const NODE_CPU: Metric =
    ("node_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds");
const NODE_MEMORY: Metric =
    ("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes");
const POD_CPU: Metric =
    ("pod_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds");
const POD_MEMORY: Metric =
    ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes");
const SCRAPE_ERROR: Metric =
    ("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise");

impl Summary {
    /// The text that Prometheus and metrics-server read. Names of pods and containers need no escaping: they are DNS
    /// names.
    fn exposition(&self) -> String {
        let mut text = String::new();
        let containers = || self.pods.iter().flat_map(|pod| pod.containers.iter().map(move |one| (pod, one)));
        let of_pod = |pod: &PodFigures| format!("namespace=\"{}\",pod=\"{}\"", pod.pod_ref.namespace, pod.pod_ref.name);
        let of = |pod: &PodFigures, one: &ContainerFigures| format!("{{container=\"{}\",{}}}", one.name, of_pod(pod));
        let cpu = |cpu: &Cpu| (seconds(cpu.usage_core_nano_seconds), Some(cpu.time));
        let memory = |memory: &Memory| (memory.working_set_bytes.to_string(), Some(memory.time));
        let alone = |reading: Reading| std::iter::once((String::new(), reading));
        let pods = || self.pods.iter().map(|pod| (format!("{{{}}}", of_pod(pod)), pod));
        metric(&mut text, CONTAINER_CPU, containers().map(|(pod, one)| (of(pod, one), cpu(&one.cpu))));
        metric(&mut text, CONTAINER_MEMORY, containers().map(|(pod, one)| (of(pod, one), memory(&one.memory))));
        let started = containers().map(|(pod, one)| {
            let since = one.start_time.as_millisecond().max(0).unsigned_abs();
            (of(pod, one), (seconds(since.saturating_mul(1_000_000)), None))
        });
        metric(&mut text, CONTAINER_START, started);
        metric(&mut text, NODE_CPU, alone(cpu(&self.node.cpu)));
        metric(&mut text, NODE_MEMORY, alone(memory(&self.node.memory)));
        metric(&mut text, POD_CPU, pods().map(|(labels, pod)| (labels, cpu(&pod.cpu))));
        metric(&mut text, POD_MEMORY, pods().map(|(labels, pod)| (labels, memory(&pod.memory))));
        metric(&mut text, SCRAPE_ERROR, alone((u8::from(!self.complete).to_string(), None)));
        text
    }
}

/// A value as text, and when it was read.
type Reading = (String, Option<Timestamp>);

fn metric(text: &mut String, (name, kind, help): Metric, lines: impl Iterator<Item = (String, Reading)>) {
    // Writing to a string does not fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (labels, (value, at)) in lines {
        let at = at.map(|at| format!(" {}", at.as_millisecond())).unwrap_or_default();
        let _ = writeln!(text, "{name}{labels} {value}{at}");
    }
}

fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use tandem_runtime::Stats;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn figures_are_written_as_the_kubelet_writes_them() {
        let stats =
            Stats { cpu_ns: 1_500_000_000, memory_working_set_bytes: 4096, at: Some(at(7)), ..Stats::default() };
        let rate = Some(Rate { nano_cores: 250_000_000, window: Duration::from_secs(10) });
        let one = container("web", at(3), &ContainerUse { stats, rate, requests: None }, at(9));
        let reference =
            Reference { name: "web-1".to_owned(), namespace: "default".to_owned(), uid: "uid-1".to_owned() };
        let memory = Memory { time: at(9), available_bytes: None, usage_bytes: 0, working_set_bytes: 0, rss_bytes: 0 };
        let mut pod = PodFigures {
            pod_ref: reference,
            start_time: at(2),
            containers: vec![one],
            cpu: Cpu::new(at(9), 0, None),
            memory: memory.clone(),
        };
        pod.sum_up();
        let node = NodeFigures {
            node_name: "n1".to_owned(),
            cpu: Cpu::new(at(9), 60_000_000_001, None),
            memory: Memory { working_set_bytes: 1 << 20, ..memory },
        };
        let summary = Summary { node, pods: vec![pod], ingresses: Vec::new(), complete: true };
        let samples: Vec<String> =
            summary.exposition().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        expect![[r#"
            container_cpu_usage_seconds_total{container="web",namespace="default",pod="web-1"} 1.500000000 7000
            container_memory_working_set_bytes{container="web",namespace="default",pod="web-1"} 4096 7000
            container_start_time_seconds{container="web",namespace="default",pod="web-1"} 3.000000000
            node_cpu_usage_seconds_total 60.000000001 9000
            node_memory_working_set_bytes 1048576 9000
            pod_cpu_usage_seconds_total{namespace="default",pod="web-1"} 1.500000000 9000
            pod_memory_working_set_bytes{namespace="default",pod="web-1"} 4096 9000
            resource_scrape_error 0"#]]
        .assert_eq(&samples.join("\n"));
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["pods"][0]["cpu"]["usageNanoCores"], 250_000_000);
        assert_eq!(json["pods"][0]["containers"][0]["cpu"]["windowMilliseconds"], 10_000);
        assert!(json["node"]["cpu"].get("usageNanoCores").is_none());
    }
}
