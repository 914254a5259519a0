use std::time::{Duration, Instant};

use tandem_tests::{cluster::Daemon, machine::Network, until};

use super::tutorial::run;

/// What is measured lately is soon forgotten, so that a test sees several ups and downs.
const QUICK: [&str; 6] =
    ["--horizontal-pod-autoscaler-sync-period", "500ms", "--metric-resolution", "250ms", "--metric-window", "1s"];
const CYCLES: usize = 5;
const DEADLINE: Duration = Duration::from_secs(60);
const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: registry.tandem/samples/hello-http:1
        ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules: [{host: web.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 0
  maxReplicas: 3
  metrics:
  - type: Pods
    pods: {metric: {name: http_requests_per_second}, target: {type: AverageValue, averageValue: "20"}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 1}
"#;

#[test]
fn workloads_go_to_zero_and_are_back_for_the_next_request() {
    let network = Network::new();
    let cluster = Daemon::up(network.machine(11), &QUICK);
    super::upload_samples(&cluster);
    run(&cluster, "zero.txt", "zero", &[]);
    no_request_is_lost_on_the_way_down_or_up(&cluster);
}

/// Requests that come as the last pod goes, when it has gone, and many at once for a workload at zero.
fn no_request_is_lost_on_the_way_down_or_up(cluster: &Daemon) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = folder.path().join("web.yaml");
    std::fs::write(&manifest, MANIFEST).expect("the manifest is written");
    cluster.read(&["apply", "-f", &manifest.display().to_string()]);
    cluster.read(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let service = cluster.read(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let by_service = vec![format!("http://{service}/")];
    let by_ingress = vec!["-HHost: web.test".to_owned(), format!("http://{}/", cluster.machine.address)];
    until("the Ingress leads there", DEADLINE, || match ask(cluster, &by_ingress, 1).0.as_slice() {
        [code] if code == "200" => Ok(()),
        codes => Err(codes.to_vec()),
    });
    for cycle in 0..CYCLES {
        let way = if cycle % 2 == 0 { &by_service } else { &by_ingress };
        until("nobody is wanted any more", DEADLINE, || {
            let wanted = cluster.read(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]);
            if wanted == "0" { Ok(()) } else { Err(wanted) }
        });
        if cycle > 1 {
            until("all pods are gone", DEADLINE, || {
                let pods = cluster.read(&["get", "pods", "-l", "app=web", "-o", "name"]);
                if pods.is_empty() { Ok(()) } else { Err(pods) }
            });
        }
        let (codes, first) = ask(cluster, way, 10);
        println!("cycle {cycle}: first answers after {first:?}");
        assert!(codes.iter().all(|code| code == "200"), "cycle {cycle}: {codes:?}");
        // It goes up under load, and loses nothing there either.
        let busy = Instant::now();
        while busy.elapsed() < Duration::from_secs(2) {
            let (codes, _) = ask(cluster, way, 10);
            assert!(codes.iter().all(|code| code == "200"), "cycle {cycle}, under load: {codes:?}");
        }
    }
}

/// Asks so many times at once, and gives back the codes and how long all of it took.
fn ask(cluster: &Daemon, way: &[String], count: usize) -> (Vec<String>, Duration) {
    let began = Instant::now();
    let asked: Vec<_> = (0..count)
        .map(|_| {
            let mut curl = cluster.machine.command("curl");
            curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60"]).args(way);
            curl.stdout(std::process::Stdio::piped()).spawn().expect("curl runs")
        })
        .collect();
    let answers = asked.into_iter().map(|curl| curl.wait_with_output().expect("curl ends").stdout);
    let codes = answers.map(|code| String::from_utf8_lossy(&code).into_owned()).collect();
    (codes, began.elapsed())
}
