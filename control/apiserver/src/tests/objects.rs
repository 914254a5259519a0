use expect_test::expect;
use serde_json::json;

use super::*;

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let server = Server::start().await;
    let made = server.create(DEPLOYMENTS, &deployment("web")).await;
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Update");
    assert!(made["metadata"]["uid"].is_string());
    let uri = format!("{DEPLOYMENTS}/web");
    assert_eq!(server.get(&uri).await.json(), made);

    let mut changed = made.clone();
    changed["spec"]["replicas"] = 3.into();
    let updated = server.put(&uri, &changed).await;
    assert_eq!(updated.code, 200, "{}", updated.text());
    assert_eq!(updated.json()["metadata"]["generation"], 2);
    assert_ne!(updated.json()["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);

    expect![[r#"409 Conflict: Operation cannot be fulfilled on deployments.apps "web": the object has been modified; please apply your changes to the latest version and try again"#]]
        .assert_eq(&server.put(&uri, &changed).await.status());
    let gone = server.delete(&uri).await.json();
    assert_eq!(gone["status"], "Success");
    assert_eq!(
        gone["details"],
        json!({"name": "web", "kind": "deployments", "group": "apps", "uid": made["metadata"]["uid"]})
    );
    expect![[r#"404 NotFound: deployments.apps "web" not found"#]].assert_eq(&server.get(&uri).await.status());
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_revision() {
    let server = Server::start().await;
    let made = server.create(&in_default("configmaps"), &config_map("a")).await;
    server.clock.advance(std::time::Duration::from_secs(60));
    let same = server.put(&in_default("configmaps/a"), &made).await.json();
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let mut unversioned = config_map("a");
    unversioned["data"]["a"] = "2".into();
    let changed = server.put(&in_default("configmaps/a"), &unversioned).await.json();
    assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
}

#[tokio::test]
async fn names_are_generated() {
    let server = Server::start().await;
    let body = json!({ "metadata": { "generateName": "job-" } });
    let first = server.create(&in_default("configmaps"), &body).await;
    let second = server.create(&in_default("configmaps"), &body).await;
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("job-") && name.len() == 9, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
}

#[tokio::test]
async fn refusals_are_worded_as_in_kubernetes() {
    let server = Server::start().await;
    server.create(&in_default("configmaps"), &config_map("a")).await;
    let maps = in_default("configmaps");
    expect![[r#"409 AlreadyExists: configmaps "a" already exists"#]]
        .assert_eq(&server.post(&maps, &config_map("a")).await.status());
    expect![[r#"404 NotFound: namespaces "nowhere" not found"#]]
        .assert_eq(&server.post("/api/v1/namespaces/nowhere/configmaps", &config_map("a")).await.status());
    expect!["404 NotFound: the server could not find the requested resource"]
        .assert_eq(&server.get("/api/v1/unicorns").await.status());
    expect!["404 NotFound: the server could not find the requested resource"]
        .assert_eq(&server.get("/api/v1/namespaces/default/nodes").await.status());
    expect!["405 MethodNotAllowed: the server does not allow this method on the requested resource"]
        .assert_eq(&server.post("/api/v1/configmaps", &config_map("b")).await.status());
    expect!["400 BadRequest: the API version in the data (apps/v1) does not match the expected API version (v1)"]
        .assert_eq(&server.post(&maps, &deployment("x")).await.status());
    expect!["400 BadRequest: the namespace of the provided object does not match the namespace sent on the request"]
        .assert_eq(&server.post(&maps, &json!({"metadata": {"name": "x", "namespace": "other"}})).await.status());
    expect!["400 BadRequest: the name of the object (b) does not match the name on the URL (a)"]
        .assert_eq(&server.put(&in_default("configmaps/a"), &config_map("b")).await.status());
    expect!["400 BadRequest: resourceVersion should not be set on objects to be created"]
        .assert_eq(&server.post(&maps, &json!({"metadata": {"name": "x", "resourceVersion": "7"}})).await.status());
    for name in ["a/b", "..", "A", "a%2fb", ""] {
        assert_eq!(server.post(&maps, &config_map(name)).await.code, 422, "{name:?}");
    }
    let unknown = server.send(ask("POST", &maps).body("text/csv", "a,b")).await;
    expect!["415 UnsupportedMediaType: the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"].assert_eq(&unknown.status());
    let unacceptable = server.send(ask("GET", &maps).header("accept", "text/html")).await;
    assert_eq!(unacceptable.code, 406);
    let large = server.send(ask("POST", &maps).body("application/json", vec![b' '; 4 << 20])).await;
    expect!["413 RequestEntityTooLarge: Request entity too large: limit is 3145728"].assert_eq(&large.status());
}

#[tokio::test]
async fn unknown_fields_are_told_as_asked() {
    let server = Server::start().await;
    let mut body = deployment("web");
    body["spec"]["replica"] = 3.into();
    let strict = server.post(&format!("{DEPLOYMENTS}?fieldValidation=Strict"), &body).await;
    expect![[r#"400 BadRequest: Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.replica""#]]
        .assert_eq(&strict.status());
    let warned = server.post(DEPLOYMENTS, &body).await;
    assert_eq!(warned.code, 201);
    expect![[r#"299 - "unknown field \"spec.replica\"""#]].assert_eq(warned.header(header::WARNING));
    assert!(warned.json()["spec"].get("replica").is_none());
    body["metadata"]["name"] = "other".into();
    let ignored = server.post(&format!("{DEPLOYMENTS}?fieldValidation=Ignore"), &body).await;
    assert_eq!((ignored.code, ignored.header(header::WARNING)), (201, ""));
}

#[tokio::test]
async fn yaml_and_no_content_type_are_read() {
    let server = Server::start().await;
    let yaml = "metadata:\n  name: yam\ndata:\n  k: v\n";
    let made = server.send(ask("POST", &in_default("configmaps")).body("application/yaml", yaml)).await;
    assert_eq!(made.code, 201, "{}", made.text());
    let mut request = ask("POST", &in_default("configmaps"));
    request.body = config_map("j").to_string().into_bytes();
    assert_eq!(server.send(request).await.code, 201);
    let read = server.send(ask("GET", &in_default("configmaps/yam")).header("accept", "application/yaml")).await;
    assert!(read.text().contains("kind: ConfigMap"), "{}", read.text());
}

#[tokio::test]
async fn dry_runs_leave_nothing() {
    let server = Server::start().await;
    let maps = in_default("configmaps");
    let made = server.post(&format!("{maps}?dryRun=All"), &config_map("a")).await;
    assert_eq!(made.code, 201);
    assert_eq!(server.get(&in_default("configmaps/a")).await.code, 404);
    server.create(&maps, &config_map("a")).await;
    assert_eq!(server.post(&format!("{maps}?dryRun=All"), &config_map("a")).await.code, 409);
    let deleted = server.delete(&in_default("configmaps/a?dryRun=All")).await;
    assert_eq!(deleted.code, 200);
    assert_eq!(server.get(&in_default("configmaps/a")).await.code, 200);
    assert_eq!(server.post(&format!("{maps}?dryRun=Some"), &config_map("b")).await.code, 422);
}

#[tokio::test]
async fn deletion_waits_for_finalizers_and_honours_preconditions() {
    let server = Server::start().await;
    let mut body = config_map("a");
    body["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let made = server.create(&in_default("configmaps"), &body).await;
    let uri = in_default("configmaps/a");
    let wrong = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": { "uid": "other" } });
    let refused = server.send(ask("DELETE", &uri).json(&wrong)).await;
    assert_eq!(refused.code, 409);
    assert!(refused.status().contains("Precondition failed: UID in precondition: other"), "{}", refused.status());
    let marked = server.delete(&uri).await.json();
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:00Z");
    let mut freed = marked.clone();
    freed["metadata"]["finalizers"] = json!([]);
    assert_eq!(server.put(&uri, &freed).await.code, 200);
    assert_eq!(server.get(&uri).await.code, 404);
    assert_ne!(made["metadata"]["uid"], serde_json::Value::Null);
}

#[tokio::test]
async fn pods_on_nodes_end_gracefully() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    let bind = json!({ "metadata": { "name": "a" }, "target": { "kind": "Node", "name": "n1" } });
    server.create(&in_default("pods/a/binding"), &bind).await;
    let marked = server.delete(&in_default("pods/a")).await.json();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
    let now = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0 });
    assert_eq!(server.send(ask("DELETE", &in_default("pods/a")).json(&now)).await.code, 200);
    assert_eq!(server.get(&in_default("pods/a")).await.code, 404);
    server.create(&in_default("pods"), &pod("b")).await;
    server.delete(&in_default("pods/b")).await;
    assert_eq!(server.get(&in_default("pods/b")).await.code, 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let server = Server::start().await;
    for (name, tier) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut body = config_map(name);
        body["metadata"]["labels"] = json!({ "tier": tier });
        server.create(&in_default("configmaps"), &body).await;
    }
    let answer = server.delete(&in_default("configmaps?labelSelector=tier%3Dx")).await;
    assert_eq!(answer.json()["items"].as_array().unwrap().len(), 2);
    let left = server.get(&in_default("configmaps")).await.json();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn status_is_a_door_of_its_own() {
    let server = Server::start().await;
    let made = server.create(DEPLOYMENTS, &deployment("web")).await;
    let uri = format!("{DEPLOYMENTS}/web");
    let mut body = made.clone();
    body["status"] = json!({ "replicas": 2 });
    body["spec"]["replicas"] = 9.into();
    let through_status = server.put(&format!("{uri}/status"), &body).await.json();
    assert_eq!(through_status["status"]["replicas"], 2);
    assert_eq!(through_status["spec"]["replicas"], 2);
    assert_eq!(through_status["metadata"]["generation"], 1);
    let entries = through_status["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.iter().any(|entry| entry["subresource"] == "status"), "{entries:?}");
    let mut body = through_status.clone();
    body["status"]["replicas"] = 7.into();
    assert_eq!(server.put(&uri, &body).await.json()["status"]["replicas"], 2);
}

#[tokio::test]
async fn a_node_that_renews_its_lease_writes_nothing() {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let server = Server::start().await;
    let lease = |second: u32| {
        json!({
            "metadata": { "name": "n1" },
            "spec": { "holderIdentity": "n1", "renewTime": format!("2026-01-01T00:00:{second:02}.000000Z") }
        })
    };
    let made = server.create(LEASES, &lease(0)).await;
    let uri = format!("{LEASES}/n1");
    let renewed = server.put(&uri, &lease(3)).await.json();
    assert_eq!(renewed["spec"]["renewTime"], "2026-01-01T00:00:03.000000Z");
    assert_eq!(renewed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let read = server.get(&uri).await.json();
    assert_eq!(read["spec"], renewed["spec"]);
    assert_eq!(server.get(LEASES).await.json()["items"][0]["spec"], renewed["spec"]);

    let mut handed = lease(4);
    handed["spec"]["holderIdentity"] = "n2".into();
    let written = server.put(&uri, &handed).await.json();
    assert_ne!(written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(server.get(&uri).await.json()["spec"], handed["spec"]);
}
