//! `/stats/summary`: what pods use, in the kubelet's form.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tandem_runtime::{SandboxId, Stats};

use super::{Refusal, Serving};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    node: NodeUse,
    pods: Vec<PodUse>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeUse {
    node_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodUse {
    pod_ref: Reference,
    start_time: Timestamp,
    containers: Vec<ContainerUse>,
    cpu: Cpu,
    memory: Memory,
}

#[derive(Debug, Serialize)]
struct Reference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
struct ContainerUse {
    name: String,
    cpu: Cpu,
    memory: Memory,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Timestamp,
    usage_core_nano_seconds: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    time: Timestamp,
    usage_bytes: u64,
    working_set_bytes: u64,
    rss_bytes: u64,
}

fn measured(stats: &Stats, now: Timestamp) -> (Cpu, Memory) {
    let time = stats.at.unwrap_or(now);
    let memory = Memory {
        time,
        usage_bytes: stats.memory_usage_bytes,
        working_set_bytes: stats.memory_working_set_bytes,
        rss_bytes: stats.memory_rss_bytes,
    };
    (Cpu { time, usage_core_nano_seconds: stats.cpu_ns }, memory)
}

pub(super) async fn summary(State(serving): State<Serving>) -> Result<Json<Summary>, Refusal> {
    let now = serving.context.clock.now();
    let mut by_sandbox: BTreeMap<SandboxId, Vec<Stats>> = BTreeMap::new();
    for (_, runtime) in serving.context.runtimes.all() {
        let stats = runtime.stats().await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        for stats in stats.into_iter().filter(|stats| stats.container.is_some()) {
            if let Some(sandbox) = stats.sandbox.clone() {
                by_sandbox.entry(sandbox).or_default().push(stats);
            }
        }
    }
    let mut pods: BTreeMap<String, PodUse> = BTreeMap::new();
    serving.context.observer.visit(|seen| {
        let Some(stats) = by_sandbox.get(&seen.sandbox.id) else { return };
        let reference = &seen.sandbox.pod;
        let zero = Stats::default();
        let (cpu, memory) = measured(&zero, now);
        let pod = pods.entry(reference.uid.clone()).or_insert_with(|| PodUse {
            pod_ref: Reference {
                name: reference.name.clone(),
                namespace: reference.namespace.clone(),
                uid: reference.uid.clone(),
            },
            start_time: seen.sandbox.created,
            containers: Vec::new(),
            cpu,
            memory,
        });
        for stats in stats {
            let (cpu, memory) = measured(stats, now);
            pod.cpu.usage_core_nano_seconds += cpu.usage_core_nano_seconds;
            pod.memory.usage_bytes += memory.usage_bytes;
            pod.memory.working_set_bytes += memory.working_set_bytes;
            pod.memory.rss_bytes += memory.rss_bytes;
            pod.containers.push(ContainerUse { name: stats.name.clone(), cpu, memory });
        }
    });
    let node = NodeUse { node_name: serving.context.node_name.clone() };
    Ok(Json(Summary { node, pods: pods.into_values().collect() }))
}
