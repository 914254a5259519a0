use expect_test::expect;
use futures::future::join_all;

use super::*;

fn quota(name: &str, hard: &Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "hard": hard } })
}

impl Server {
    /// A quota whose usage is known, as its controller would have written it.
    async fn counted(&self, quota: &Value, used: &Value) {
        let mut made = self.create(&in_default("resourcequotas"), quota).await;
        made["status"] = json!({ "hard": made["spec"]["hard"], "used": used });
        let uri = in_default(&format!("resourcequotas/{}/status", made["metadata"]["name"].as_str().unwrap()));
        assert_eq!(self.put(&uri, &made).await.code, 200);
    }

    async fn used(&self, name: &str) -> Value {
        self.get(&in_default(&format!("resourcequotas/{name}"))).await.json()["status"]["used"].clone()
    }
}

fn asking(name: &str, resources: &Value) -> Value {
    let mut asking = pod(name);
    asking["spec"]["containers"][0]["resources"] = resources.clone();
    asking
}

#[tokio::test]
async fn quotas_are_charged_with_what_is_made() {
    let server = Server::start().await;
    server.default_account().await;
    let hard = json!({ "pods": "2", "requests.cpu": "1", "configmaps": "1", "count/deployments.apps": "1" });
    let none = json!({ "pods": "0", "requests.cpu": "0", "configmaps": "0", "count/deployments.apps": "0" });
    server.counted(&quota("compute", &hard), &none).await;
    let pods = in_default("pods");
    expect![[r#"403 Forbidden: pods "a" is forbidden: failed quota: compute: must specify requests.cpu for: c"#]]
        .assert_eq(&server.post(&pods, &pod("a")).await.status());
    let cpu = |amount: &str| json!({ "requests": { "cpu": amount } });
    let made = server.create(&pods, &asking("a", &cpu("600m"))).await;
    let charged = server.get(&in_default("resourcequotas/compute")).await.json();
    assert_eq!(charged["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "one write");
    expect![[r#"403 Forbidden: pods "b" is forbidden: exceeded quota: compute, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"#]]
        .assert_eq(&server.post(&pods, &asking("b", &cpu("500m"))).await.status());
    assert_eq!(server.post(&format!("{pods}?dryRun=All"), &asking("b", &cpu("400m"))).await.code, 201);
    assert_eq!(server.post(&pods, &asking("a", &cpu("100m"))).await.code, 409);
    server.create(&in_default("configmaps"), &config_map("a")).await;
    expect![[r#"403 Forbidden: configmaps "b" is forbidden: exceeded quota: compute, requested: configmaps=1, used: configmaps=1, limited: configmaps=1"#]]
        .assert_eq(&server.post(&in_default("configmaps"), &config_map("b")).await.status());
    server.create(DEPLOYMENTS, &deployment("web")).await;
    expect![[r#"403 Forbidden: deployments.apps "b" is forbidden: exceeded quota: compute, requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1"#]]
        .assert_eq(&server.post(DEPLOYMENTS, &deployment("b")).await.status());
    server.create(&in_default("secrets"), &json!({ "metadata": { "name": "free" } })).await;
    let used = json!({ "pods": "1", "requests.cpu": "600m", "configmaps": "1", "count/deployments.apps": "1" });
    assert_eq!(server.used("compute").await, used);
    server.delete(&in_default("configmaps/a")).await;
    assert_eq!(server.used("compute").await, used, "deletions are seen by the controller");
}

#[tokio::test]
async fn services_are_charged_as_they_grow() {
    let server = Server::start().await;
    let hard = json!({ "services": "1", "services.nodeports": "1" });
    server.counted(&quota("net", &hard), &json!({ "services": "0", "services.nodeports": "0" })).await;
    let plain =
        json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80 }], "selector": { "app": "web" } } });
    server.create(&in_default("services"), &plain).await;
    let two = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }]);
    let patch = |ports: Value| json!({ "spec": { "type": "NodePort", "ports": ports } });
    let (uri, kind) = (in_default("services/web"), "application/merge-patch+json");
    expect![[r#"403 Forbidden: services "web" is forbidden: exceeded quota: net, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1"#]]
        .assert_eq(&server.patch(&uri, kind, &patch(two)).await.status());
    assert_eq!(server.patch(&uri, kind, &patch(json!([{ "port": 80 }]))).await.code, 200);
    assert_eq!(server.used("net").await, json!({ "services": "1", "services.nodeports": "1" }));
}

#[tokio::test]
async fn parallel_writers_get_no_more_than_the_quota() {
    const WRITERS: usize = 40;
    let server = Server::start().await;
    server.default_account().await;
    server.counted(&quota("few", &json!({ "pods": "7" })), &json!({ "pods": "0" })).await;
    let pods = in_default("pods");
    let answers = join_all((0..WRITERS).map(|at| {
        let (pods, server) = (pods.clone(), &server);
        async move { server.post(&pods, &pod(&format!("p{at}"))).await.code }
    }))
    .await;
    let with = |code: u16| answers.iter().filter(|answer| **answer == code).count();
    assert_eq!((with(201), with(403)), (7, WRITERS - 7), "{answers:?}");
    assert_eq!(server.used("few").await, json!({ "pods": "7" }));
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let server = Server::start().await;
    server.default_account().await;
    let items = json!([
        { "type": "Container", "max": { "cpu": "500m" }, "defaultRequest": { "memory": "64Mi" } },
        { "type": "PersistentVolumeClaim", "max": { "storage": "1Gi" } },
    ]);
    let range = json!({ "metadata": { "name": "bounds" }, "spec": { "limits": items } });
    let made = server.create(&in_default("limitranges"), &range).await;
    assert_eq!(made["spec"]["limits"][0]["default"], json!({ "cpu": "500m" }), "the maximum is the default");
    let plain = server.create(&in_default("pods"), &pod("plain")).await;
    assert_eq!(
        plain["spec"]["containers"][0]["resources"],
        json!({ "requests": { "cpu": "500m", "memory": "64Mi" }, "limits": { "cpu": "500m" } })
    );
    assert_eq!(
        plain["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"
    );
    assert_eq!(plain["status"]["qosClass"], "Burstable");
    let large = asking("large", &json!({ "limits": { "cpu": "1" } }));
    expect![[r#"403 Forbidden: pods "large" is forbidden: maximum cpu usage per Container is 500m, but limit is 1"#]]
        .assert_eq(&server.post(&in_default("pods"), &large).await.status());
    let claim = |storage: &str| {
        let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": storage } } });
        json!({ "metadata": { "name": "disk" }, "spec": spec })
    };
    let claims = in_default("persistentvolumeclaims");
    expect![[r#"403 Forbidden: persistentvolumeclaims "disk" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"#]]
        .assert_eq(&server.post(&claims, &claim("2Gi")).await.status());
    server.create(&claims, &claim("1Gi")).await;
}

#[tokio::test]
async fn quotas_and_limits_have_their_columns() {
    let server = Server::start().await;
    let hard = json!({ "pods": "2", "requests.cpu": "1", "limits.memory": "1Gi" });
    let used = json!({ "pods": "1", "requests.cpu": "500m", "limits.memory": "0" });
    server.counted(&quota("compute", &hard), &used).await;
    let table = server
        .send(
            ask("GET", &in_default("resourcequotas")).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
        )
        .await;
    let table = table.json();
    let names: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Name", "Request", "Limit", "Age"]);
    assert_eq!(
        table["rows"][0]["cells"],
        json!(["compute", "pods: 1/2, requests.cpu: 500m/1", "limits.memory: 0/1Gi", "0s"])
    );
}
