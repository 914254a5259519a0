use std::time::{Duration, Instant};

use tandem_tests::{cluster::Daemon, machine::Network, until};

use crate::report::{Goal, Report, median};

/// What was measured is soon forgotten, so that workloads go to zero often; how fast they wake does not depend on it.
const QUICK: [&str; 6] =
    ["--horizontal-pod-autoscaler-sync-period", "500ms", "--metric-resolution", "250ms", "--metric-window", "1s"];
const RUNS: usize = 9;
const PATIENCE: Duration = Duration::from_secs(120);

/// From the first request for a workload at zero to its answer, by its Service.
pub(crate) fn first_answers(report: &mut Report, network: &Network) -> anyhow::Result<()> {
    let cluster = Daemon::up(network.machine(15), &QUICK);
    crate::upload(&cluster)?;
    for (name, what, image, port, goal_ms) in [
        (
            "component",
            "component, from zero to the first answer, median of 9",
            "registry.tandem/samples/hello-http:1",
            8080,
            300.0,
        ),
        ("container", "container, from zero to the first answer, median of 9", "nginx:1.25", 80, 2000.0),
    ] {
        let address = workload(&cluster, name, image, port, 0)?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            until("the workload is at zero", PATIENCE, || {
                let pods = cluster.read(&["get", "pods", "-l", &format!("app={name}"), "-o", "name"]);
                let wanted = cluster.read(&["get", "deployment", name, "-o", "jsonpath={.spec.replicas}"]);
                if wanted == "0" && pods.is_empty() { Ok(()) } else { Err((wanted, pods)) }
            });
            let began = Instant::now();
            ask(&cluster, &address)?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        report.figure(what, median(times), "ms", Goal::AtMost(goal_ms));
        cluster.read(&["delete", "deployment,service,ingress,hpa", name]);
    }
    Ok(())
}

/// From a step in load to the replicas that it takes, with the periods that a cluster has if nothing is said.
pub(crate) fn step(report: &mut Report, network: &Network) -> anyhow::Result<()> {
    let cluster = Daemon::up(network.machine(16), &[]);
    crate::upload(&cluster)?;
    let address = workload(&cluster, "component", "registry.tandem/samples/hello-http:1", 8080, 1)?;
    ask(&cluster, &address)?;
    let began = Instant::now();
    until("the autoscaler has reacted", PATIENCE, || {
        ask(&cluster, &address).map_err(|error| error.to_string())?;
        let wanted = cluster.read(&["get", "deployment", "component", "-o", "jsonpath={.spec.replicas}"]);
        if wanted == "1" { Err(wanted) } else { Ok(()) }
    });
    report.figure("a step in load, to more replicas wanted", began.elapsed().as_secs_f64(), "s", Goal::AtMost(30.0));
    Ok(())
}

/// A Deployment with its Service, an Ingress that counts for it, and an autoscaler; gives back the Service's URL.
fn workload(cluster: &Daemon, name: &str, image: &str, port: u16, least: u8) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("workload.yaml");
    std::fs::write(&file, manifest(name, image, port, least))?;
    cluster.read(&["apply", "-f", &file.display().to_string()]);
    cluster.read(&["rollout", "status", &format!("deployment/{name}"), "--timeout=120s"]);
    let address = cluster.read(&["get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
    Ok(format!("http://{address}/"))
}

fn manifest(name: &str, image: &str, port: u16, least: u8) -> String {
    let metric = if name == "component" {
        "{type: Pods, pods: {metric: {name: http_requests_per_second}, target: {type: AverageValue, averageValue: \"1\"}}}"
    } else {
        "{type: Object, object: {metric: {name: http_requests_per_second}, describedObject: {apiVersion: networking.k8s.io/v1, kind: Ingress, name: container}, target: {type: Value, value: \"1\"}}}"
    };
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - {{name: web, image: "{image}", ports: [{{containerPort: {port}}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: {port}}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: {name}}}
spec:
  defaultBackend: {{service: {{name: {name}, port: {{number: 80}}}}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {name}}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}}}
  minReplicas: {least}
  maxReplicas: 4
  metrics: [{metric}]
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 1}}}}
"#
    )
}

fn ask(cluster: &Daemon, url: &str) -> anyhow::Result<()> {
    let output =
        cluster.machine.command("curl").args(["-s", "-f", "-o", "/dev/null", "--max-time", "60", url]).output()?;
    anyhow::ensure!(output.status.success(), "{url}: {}", output.status);
    Ok(())
}
