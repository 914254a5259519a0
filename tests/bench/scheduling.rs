use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, from_value, json};
use tandem_client::k8s_openapi::api::core::v1::{Node, Pod};
use tandem_scheduler::{PodInfo, Profile, Snapshot, schedule};

use crate::report::{Goal, Report};

const ZONES: usize = 10;
/// Pods of one application: those that are spread, or kept together.
const PODS_OF_ONE: usize = 100;
/// A row ends after this time, and tells how far it came.
const ROW_MAX: Duration = Duration::from_secs(30);

/// How fast `schedule` alone decides, for nodes that are simulated.
pub(crate) fn decisions(report: &mut Report) -> anyhow::Result<()> {
    for (nodes, pods) in [(1_000, 10_000), (5_000, 50_000)] {
        for (what, spec) in kinds() {
            let mut snapshot = cluster(nodes)?;
            let (placed, seconds) = fill(&mut snapshot, pods, &spec)?;
            let name = format!("decisions, {nodes} nodes, {placed} of {pods} pods, {what}");
            #[allow(clippy::cast_precision_loss, reason = "some ten thousand pods")]
            report.figure(&name, placed as f64 / seconds, "/s", Goal::None);
        }
    }
    Ok(())
}

/// What the pods of an application ask for, by its name.
type Spec = fn(&str) -> Value;

fn kinds() -> [(&'static str, Spec); 4] {
    [
        ("plain", |_| json!({})),
        ("topology spread", |app| {
            let constraint = |key: &str| {
                json!({"topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app": app}}})
            };
            json!({"topologySpreadConstraints": [constraint("topology.kubernetes.io/zone")]})
        }),
        ("affinity", |app| {
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": app}}}]}}})
        }),
        ("anti-affinity", |app| {
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]}}})
        }),
    ]
}

fn cluster(nodes: usize) -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    for index in 0..nodes {
        let (name, zone) = (format!("n{index}"), format!("z{}", index % ZONES));
        let node: Node = from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
            "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "250"}},
        }))?;
        snapshot.set_node(&node);
    }
    Ok(snapshot)
}

/// How many pods were placed, and in which time, of which reading them is no part.
fn fill(snapshot: &mut Snapshot, pods: usize, spec: &Spec) -> anyhow::Result<(usize, f64)> {
    let (profile, mut deciding, began) = (Profile::default(), Duration::ZERO, Instant::now());
    let mut placed = 0;
    while placed < pods && began.elapsed() < ROW_MAX {
        let (name, app) = (format!("p{placed}"), format!("app-{}", placed / PODS_OF_ONE));
        let mut spec = spec(&app);
        spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]);
        let metadata = json!({"name": name, "namespace": "bench", "uid": name, "labels": {"app": app}});
        let pod = PodInfo::of(&from_value::<Pod>(json!({"metadata": metadata, "spec": spec}))?);
        let decision = Instant::now();
        let node = schedule(&pod, snapshot, &profile, placed).with_context(|| format!("{name} has no room"))?;
        snapshot.assume(&pod, &node);
        deciding += decision.elapsed();
        placed += 1;
    }
    Ok((placed, deciding.as_secs_f64()))
}
