use axum::routing::get;
use parking_lot::Mutex;

use super::{connect::server_of, *};

const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";

fn cpu(cores: Option<u64>) -> Value {
    let mut cpu = json!({ "time": "2026-01-01T00:00:00.5Z", "usageCoreNanoSeconds": 9 });
    if let Some(cores) = cores {
        cpu["usageNanoCores"] = cores.into();
        cpu["windowMilliseconds"] = 10_066.into();
    }
    cpu
}

fn used(name: &str, uid: &Value, cores: Option<u64>) -> Value {
    let memory = json!({ "workingSetBytes": 3 << 20 });
    json!({
        "podRef": { "name": name, "namespace": "default", "uid": uid }, "cpu": cpu(cores), "memory": memory,
        "containers": [{ "name": "c", "cpu": cpu(cores), "memory": memory }],
    })
}

/// A server whose node n1 says this of its pods, given their uids.
async fn server(pods: impl FnOnce(&Value, &Value) -> Value) -> (Server, Arc<Mutex<usize>>) {
    let (summary, asked) = (Arc::new(Mutex::new(Value::Null)), Arc::new(Mutex::new(0)));
    let (told, count) = (summary.clone(), asked.clone());
    let answer = move || {
        *count.lock() += 1;
        let body = told.lock().to_string();
        async move { body }
    };
    let server = server_of(Router::new().route("/stats/summary", get(answer))).await;
    for name in ["n1", "n2"] {
        let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        let uri = format!("/api/v1/nodes/{name}/status");
        assert_eq!(server.patch(&uri, "application/merge-patch+json", &status).await.code, 200);
    }
    let uid =
        async |name: &str| server.get(&in_default(&format!("pods/{name}"))).await.json()["metadata"]["uid"].clone();
    let node = json!({ "cpu": cpu(Some(1_500_000_000)), "memory": { "workingSetBytes": 1 << 30 } });
    *summary.lock() = json!({ "node": node, "pods": pods(&uid("a").await, &uid("b").await) });
    (server, asked)
}

#[tokio::test]
async fn nodes_and_pods_show_what_they_use() {
    let (server, asked) = server(|a, _| json!([used("a", a, Some(250_000_000))])).await;
    let nodes = server.get(NODES).await.json();
    assert_eq!(nodes["kind"], "NodeMetricsList");
    let expected = json!([{
        "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "timestamp": "2026-01-01T00:00:00Z",
        "window": "10.066s", "usage": { "cpu": "1500000000n", "memory": "1048576Ki" },
        "metadata": { "name": "n1", "creationTimestamp": "2026-01-01T00:00:00Z" },
    }]);
    assert_eq!(nodes["items"], expected, "a node that does not answer is left out");
    let pod = server.get(&format!("{PODS}/a")).await.json();
    assert_eq!(pod["containers"], json!([{ "name": "c", "usage": { "cpu": "250000000n", "memory": "3072Ki" } }]));
    let everywhere = server.get("/apis/metrics.k8s.io/v1beta1/pods").await.json();
    assert_eq!(everywhere["items"], json!([pod]));
    assert_eq!(*asked.lock(), 1, "an answer is kept for some seconds");
    assert_eq!(
        server.get(&format!("{PODS}/b")).await.status(),
        "404 NotFound: podmetrics.metrics.k8s.io \"default/b\" not found"
    );
    assert_eq!(server.get(&format!("{NODES}/n2")).await.code, 404);
    assert_eq!(server.post(PODS, &json!({})).await.code, 405);
    assert_eq!(server.get(&format!("{PODS}?watch=true")).await.code, 405);
}

#[tokio::test]
async fn selectors_and_tables_work_as_for_any_resource() {
    let (server, _) = server(|a, _| json!([used("a", a, Some(250_000_000))])).await;
    let labels = json!({ "metadata": { "labels": { "app": "web" } } });
    server.patch(&in_default("pods/a"), "application/merge-patch+json", &labels).await;
    let count =
        async |query: &str| server.get(&format!("{PODS}?{query}")).await.json()["items"].as_array().unwrap().len();
    assert_eq!(count("labelSelector=app%3Dweb").await, 1);
    assert_eq!(count("labelSelector=app%3Dother").await, 0);
    assert_eq!(count("fieldSelector=metadata.name%3Da").await, 1);
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = server.send(ask("GET", PODS).header("accept", accept)).await.json();
    assert_eq!(table["rows"][0]["cells"], json!(["a", "250m", "3Mi", "10.066s"]));
}

#[tokio::test]
async fn a_node_is_believed_of_its_own_pods_only() {
    let (server, _) = server(|_, b| json!([used("b", b, Some(1))])).await;
    assert_eq!(server.get(PODS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn what_was_not_measured_yet_is_left_out() {
    let (server, _) = server(|a, _| json!([used("a", a, None)])).await;
    assert_eq!(server.get(PODS).await.json()["items"], json!([]));
    assert_eq!(server.get(NODES).await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn whoever_may_read_pods_may_not_read_their_use() {
    let (server, _) = server(|_, _| json!([])).await;
    let jane = Identity::user("jane", &[]);
    let refused = server.send(ask("GET", PODS).by(jane.clone())).await;
    assert_eq!(
        refused.status(),
        "403 Forbidden: pods.metrics.k8s.io is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"metrics.k8s.io\" in the namespace \"default\""
    );
    let binding = json!({
        "metadata": { "name": "jane" }, "subjects": [{ "kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io" }],
        "roleRef": { "kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io" },
    });
    server.create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding).await;
    assert_eq!(server.send(ask("GET", PODS).by(jane.clone())).await.code, 200);
    assert_eq!(server.send(ask("GET", NODES).by(jane)).await.code, 403);
}

#[tokio::test]
async fn the_group_is_discovered() {
    let server = Server::start().await;
    let plain = server.get("/apis/metrics.k8s.io/v1beta1").await.json();
    let names: Vec<&str> =
        plain["resources"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["nodes", "pods"]);
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = server.send(ask("GET", "/apis").header("accept", accept)).await.text();
    assert!(groups.contains("NodeMetrics") && groups.contains("PodMetrics"), "{groups}");
}
