use axum::routing::get;

use super::{connect::server_of, *};

const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default";
const AUTOSCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
const MERGE: &str = "application/merge-patch+json";

/// A server whose node n1 answers 2.5 requests a second for the pod `a`, and took 4 a second for the Ingress `main`.
async fn server() -> Server {
    let told = Arc::new(parking_lot::Mutex::new(Value::Null));
    let said = told.clone();
    let answer = move || {
        let body = said.lock().to_string();
        async move { body }
    };
    let server = server_of(Router::new().route("/stats/summary", get(answer))).await;
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    server.patch("/api/v1/nodes/n1/status", MERGE, &ready).await;
    let labels = json!({ "metadata": { "labels": { "app": "web" } } });
    server.patch(&in_default("pods/a"), MERGE, &labels).await;
    let uid = server.get(&in_default("pods/a")).await.json()["metadata"]["uid"].clone();
    let cpu = json!({ "time": "2026-01-01T00:00:00.5Z", "usageNanoCores": 1, "windowMilliseconds": 10_000 });
    let memory = json!({ "workingSetBytes": 1 });
    let http = |milli: u64| json!({ "inFlight": 3, "milliRequestsPerSecond": milli, "durationMicroseconds": 1500, "windowMilliseconds": 10_000 });
    *told.lock() = json!({
        "node": { "cpu": cpu, "memory": memory },
        "pods": [{
            "podRef": { "uid": uid }, "cpu": cpu, "memory": memory,
            "containers": [{ "name": "c", "cpu": cpu, "memory": memory, "http": http(2500) }],
        }],
        "ingresses": [{ "name": "main", "namespace": "default", "http": http(4000) }],
    });
    for name in ["main", "other"] {
        let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
        let ingress = json!({ "metadata": { "name": name }, "spec": { "defaultBackend": backend } });
        server.create("/apis/networking.k8s.io/v1/namespaces/default/ingresses", &ingress).await;
    }
    for (name, app) in [("web", "web"), ("idle", "nobody")] {
        let spec = json!({ "selector": { "app": app }, "ports": [{ "port": 80 }] });
        server.create(&in_default("services"), &json!({ "metadata": { "name": name }, "spec": spec })).await;
    }
    server
}

/// The names and values of a list.
async fn values(server: &Server, path: &str) -> Vec<String> {
    let list = server.get(path).await.json();
    let Some(items) = list["items"].as_array() else { return vec![list["message"].to_string()] };
    let value = |item: &Value| {
        let name = item["describedObject"]["name"].as_str().unwrap_or_default();
        format!("{name}{}={}", item["metricLabels"], item["value"].as_str().unwrap_or_default())
    };
    items.iter().map(value).collect()
}

#[tokio::test]
async fn requests_of_pods_services_and_ingresses_are_served() {
    let server = server().await;
    let check = async |path: String, expected: &[&str]| assert_eq!(values(&server, &path).await, expected, "{path}");
    check(format!("{CUSTOM}/pods/*/http_requests_per_second"), &["anull=2500m"]).await;
    check(format!("{CUSTOM}/pods/*/http_requests_per_second?labelSelector=app%3Dother"), &[]).await;
    check(format!("{CUSTOM}/pods/*/http_requests_per_second?metricLabelSelector=x%3Dy"), &[]).await;
    check(format!("{CUSTOM}/pods/a/http_requests_in_flight"), &["anull=3"]).await;
    check(format!("{CUSTOM}/pods/a/http_request_duration"), &["anull=1500u"]).await;
    check(format!("{CUSTOM}/services/web/http_requests_per_second"), &["webnull=2500m"]).await;
    check(format!("{CUSTOM}/services/idle/http_requests_per_second"), &["idlenull=0"]).await;
    let ingress = format!("{CUSTOM}/ingresses.networking.k8s.io/main");
    check(format!("{ingress}/http_requests_per_second"), &["mainnull=4"]).await;
    check(format!("{EXTERNAL}/ingress_http_requests_per_second"), &[r#"{"ingress":"main"}=4"#]).await;
    check(
        format!("{EXTERNAL}/service_http_requests_per_second?labelSelector=service%3Dweb"),
        &[r#"{"service":"web"}=2500m"#],
    )
    .await;
    let missing = server.get(&format!("{ingress}/http_requests_in_flight")).await.status();
    assert_eq!(
        missing,
        "404 NotFound: the server could not find the metric http_requests_in_flight for ingresses.networking.k8s.io main"
    );
    let one = server.get(&format!("{CUSTOM}/pods/a/http_requests_per_second")).await.json();
    let expected = json!([{
        "describedObject": { "kind": "Pod", "namespace": "default", "name": "a", "apiVersion": "/v1" },
        "metric": { "name": "http_requests_per_second", "selector": null },
        "timestamp": "2026-01-01T00:00:00Z", "windowSeconds": 10, "value": "2500m",
    }]);
    assert_eq!((&one["kind"], &one["items"]), (&json!("MetricValueList"), &expected));
    let old = CUSTOM.replace("v1beta2", "v1beta1");
    let one = server.get(&format!("{old}/pods/a/http_requests_per_second")).await.json();
    assert_eq!(one["items"][0]["metricName"], "http_requests_per_second");
    assert_eq!(server.post(&format!("{CUSTOM}/pods/a/http_requests_per_second"), &json!({})).await.code, 405);
    let refused = server.send(ask("GET", &format!("{CUSTOM}/pods/a/x")).by(Identity::user("jane", &[]))).await;
    assert_eq!(refused.code, 403);
    let plain = server.get("/apis/custom.metrics.k8s.io/v1beta2").await.json();
    assert_eq!(plain["resources"][0]["name"], "pods/http_requests_per_second");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = server.send(ask("GET", "/apis").header("accept", accept)).await.text();
    assert!(groups.contains("external.metrics.k8s.io"), "{groups}");
}

#[tokio::test]
async fn a_node_wakes_what_may_sleep_and_changes_nothing_else() {
    let server = server().await;
    let metrics = json!([{ "type": "Pods", "pods": {
        "metric": { "name": "http_requests_per_second" }, "target": { "type": "AverageValue", "averageValue": "1" } } }]);
    for (name, least) in [("sleeps", 0), ("stays", 1)] {
        let target = json!({ "kind": "Deployment", "name": "web", "apiVersion": "apps/v1" });
        let spec = json!({ "minReplicas": least, "maxReplicas": 3, "scaleTargetRef": target, "metrics": metrics });
        server.create(AUTOSCALERS, &json!({ "metadata": { "name": name }, "spec": spec })).await;
    }
    let patch = async |name: &str, body: Value| {
        let node = Identity::user("system:node:n1", &["system:nodes"]);
        let path = format!("{AUTOSCALERS}/{name}");
        server.send(ask("PATCH", &path).header("content-type", MERGE).json(&body).by(node)).await.status()
    };
    let mark =
        |value: &str| json!({ "metadata": { "annotations": { "autoscaling.tandem.dev/wake-requested-at": value } } });
    assert!(patch("sleeps", mark("2026-01-01T00:00:00.123456789Z")).await.starts_with("200"));
    assert!(patch("sleeps", mark("2026-01-01T00:00:01Z")).await.starts_with("200"));
    assert!(patch("stays", mark("2026-01-01T00:00:00Z")).await.starts_with("403"));
    assert!(patch("nobody", mark("2026-01-01T00:00:00Z")).await.starts_with("404"));
    for wrong in [
        mark("soon"),
        mark(&"1".repeat(1000)),
        json!({ "spec": { "maxReplicas": 9 } }),
        json!({ "metadata": { "labels": { "a": "b" } } }),
        json!({ "metadata": { "annotations": { "a": "b" } } }),
        json!({ "metadata": { "annotations": { "autoscaling.tandem.dev/wake-requested-at": "2026-01-01T00:00:02Z" } }, "spec": { "minReplicas": 1 } }),
    ] {
        let refused = patch("sleeps", wrong.clone()).await;
        assert!(refused.starts_with("403"), "{wrong}: {refused}");
    }
    let seen = server.get(&format!("{AUTOSCALERS}/sleeps")).await.json();
    assert_eq!(seen["metadata"]["annotations"]["autoscaling.tandem.dev/wake-requested-at"], "2026-01-01T00:00:01Z");
}
