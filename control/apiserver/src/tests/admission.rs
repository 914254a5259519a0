use async_trait::async_trait;
use expect_test::expect;

use super::*;

#[tokio::test]
async fn pods_get_their_account_and_tolerations() {
    let server = Server::start().await;
    expect![[r#"403 Forbidden: pods "a" is forbidden: error looking up service account default/default: serviceaccount "default" not found"#]]
        .assert_eq(&server.post(&in_default("pods"), &pod("a")).await.status());
    server.default_account().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let made =
        server.send(ask("POST", &in_default("pods")).json(&pod("a")).header("traceparent", &parent)).await.json();
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["metadata"]["annotations"]["tandem.dev/trace-id"], trace);
    let volume = made["spec"]["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"));
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
    let keys: Vec<&str> =
        made["spec"]["tolerations"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
}

#[tokio::test]
async fn priorities_come_from_classes() {
    let server = Server::start().await;
    server.default_account().await;
    let plain = server.create(&in_default("pods"), &pod("plain")).await;
    assert_eq!(
        (&plain["spec"]["priority"], &plain["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    let mut critical = pod("critical");
    critical["spec"]["priorityClassName"] = "system-node-critical".into();
    assert_eq!(server.create(&in_default("pods"), &critical).await["spec"]["priority"], 2_000_001_000);
    let mut unknown = pod("unknown");
    unknown["spec"]["priorityClassName"] = "none".into();
    expect![[r#"403 Forbidden: pods "unknown" is forbidden: no PriorityClass with name none was found"#]]
        .assert_eq(&server.post(&in_default("pods"), &unknown).await.status());
    let mut chosen = pod("chosen");
    chosen["spec"]["priority"] = 9.into();
    assert_eq!(server.post(&in_default("pods"), &chosen).await.code, 403);
}

#[tokio::test]
async fn new_nodes_take_no_pods_yet() {
    let server = Server::start().await;
    let node = server.create("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await;
    assert_eq!(node["spec"]["taints"], json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }]));
}

struct Components;

#[async_trait]
impl ImageKinds for Components {
    async fn is_component(&self, image: &str) -> bool {
        image.starts_with("registry.tandem/wasm/")
    }
}

#[tokio::test]
async fn components_take_the_light_path() {
    let server = Server::with(Parts { images: Some(Arc::new(Components)), ..Parts::default() }).await;
    server.default_account().await;
    let mut light = pod("light");
    light["spec"]["containers"][0]["image"] = "registry.tandem/wasm/hello:1".into();
    let made = server.create(&in_default("pods"), &light).await;
    assert_eq!(made["spec"]["runtimeClassName"], "wasm");
    assert!(made["spec"]["tolerations"].as_array().unwrap().iter().any(|one| one["key"] == "tandem.dev/no-containers"));
    let mut mixed = light.clone();
    mixed["metadata"]["name"] = "mixed".into();
    mixed["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "d", "image": "nginx" }));
    let made = server.create(&in_default("pods"), &mixed).await;
    assert!(made["spec"].get("runtimeClassName").is_none());
    let mut unknown = pod("unknown");
    unknown["spec"]["runtimeClassName"] = "gvisor".into();
    expect![[r#"403 Forbidden: pods "unknown" is forbidden: pod rejected: RuntimeClass "gvisor" not found"#]]
        .assert_eq(&server.post(&in_default("pods"), &unknown).await.status());
}

fn service(name: &str, kind: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "type": kind, "selector": { "app": "web" }, "ports": [{ "port": 80 }] } })
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let server = Server::start().await;
    let services = in_default("services");
    let kubernetes = server.get(&in_default("services/kubernetes")).await.json();
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    let web = server.create(&services, &service("web", "NodePort")).await;
    let address = web["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.96."), "{address}");
    assert_eq!(web["spec"]["clusterIPs"], json!([address]));
    let port = web["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30086..=32767).contains(&port), "{port}");

    let mut taken = service("taken", "ClusterIP");
    taken["spec"]["clusterIP"] = address.as_str().into();
    let refused = server.post(&services, &taken).await;
    assert_eq!(refused.code, 422);
    assert!(refused.status().ends_with("provided IP is already allocated"), "{}", refused.status());
    let mut outside = service("outside", "NodePort");
    outside["spec"]["ports"][0]["nodePort"] = 80.into();
    expect![[r#"422 Invalid: Service "outside" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"#]]
        .assert_eq(&server.post(&services, &outside).await.status());

    let mut plain = service("web", "ClusterIP");
    plain["metadata"]["resourceVersion"] = web["metadata"]["resourceVersion"].clone();
    let changed = server.put(&in_default("services/web"), &plain).await;
    assert_eq!(changed.code, 200, "{}", changed.text());
    assert_eq!(changed.json()["spec"]["clusterIP"], address.as_str());
    assert!(changed.json()["spec"]["ports"][0].get("nodePort").is_none());
    server.delete(&in_default("services/web")).await;
    assert_eq!(server.post(&services, &taken).await.code, 201);
    let mut again = service("again", "NodePort");
    again["spec"]["ports"][0]["nodePort"] = port.into();
    assert_eq!(server.post(&services, &again).await.code, 201);
    let mut headless = service("headless", "ClusterIP");
    headless["spec"]["clusterIP"] = "None".into();
    assert_eq!(server.create(&services, &headless).await["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn namespaces_end_when_they_are_finalized() {
    let server = Server::start().await;
    server.create("/api/v1/namespaces", &json!({ "metadata": { "name": "a" } })).await;
    expect![[r#"403 Forbidden: namespaces "default" is forbidden: this namespace may not be deleted"#]]
        .assert_eq(&server.delete("/api/v1/namespaces/default").await.status());
    let marked = server.delete("/api/v1/namespaces/a").await.json();
    assert_eq!(marked["status"]["phase"], "Terminating");
    expect![[r#"403 Forbidden: configmaps "x" is forbidden: unable to create new content in namespace a because it is being terminated"#]]
        .assert_eq(&server.post("/api/v1/namespaces/a/configmaps", &config_map("x")).await.status());
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(server.put("/api/v1/namespaces/a/finalize", &finalized).await.code, 200);
    assert_eq!(server.get("/api/v1/namespaces/a").await.code, 404);
}
