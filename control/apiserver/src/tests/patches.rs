use expect_test::expect;

use super::*;

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

#[tokio::test]
async fn all_patch_types_work() {
    let server = Server::start().await;
    server.create(DEPLOYMENTS, &deployment("web")).await;
    let uri = format!("{DEPLOYMENTS}/web");
    let merged = server.patch(&uri, MERGE, &json!({ "spec": { "replicas": 5 } })).await.json();
    assert_eq!((&merged["spec"]["replicas"], &merged["metadata"]["generation"]), (&json!(5), &json!(2)));
    let image = json!({ "spec": { "template": { "spec": {
        "$setElementOrder/containers": [{ "name": "c" }], "containers": [{ "name": "c", "image": "nginx:1.26" }],
    } } } });
    let strategic = server.patch(&uri, STRATEGIC, &image).await.json();
    let containers = strategic["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!((containers.len(), containers[0]["image"].as_str()), (1, Some("nginx:1.26")));
    let replaced = json!([{ "op": "replace", "path": "/spec/replicas", "value": 1 }]);
    assert_eq!(server.patch(&uri, JSON, &replaced).await.json()["spec"]["replicas"], 1);
    let same = server.patch(&uri, MERGE, &json!({ "spec": { "replicas": 1 } })).await.json();
    assert_eq!(same["metadata"]["generation"], 4);
}

#[tokio::test]
async fn refused_patches_say_why() {
    let server = Server::start().await;
    server.create(DEPLOYMENTS, &deployment("web")).await;
    let uri = format!("{DEPLOYMENTS}/web");
    let strict = format!("{uri}?fieldValidation=Strict");
    expect![[r#"422 Invalid:  "" is invalid: patch: Invalid value: "map[spec:map[replica:5]]": strict decoding error: unknown field "spec.replica""#]]
        .assert_eq(&server.patch(&strict, STRATEGIC, &json!({ "spec": { "replica": 5 } })).await.status());
    assert_eq!(server.patch(&uri, "text/plain", &json!({})).await.code, 415);
    assert_eq!(
        server.patch(&uri, JSON, &json!([{ "op": "test", "path": "/spec/replicas", "value": 9 }])).await.code,
        422
    );
    let old = json!({ "metadata": { "resourceVersion": "1" }, "spec": { "replicas": 3 } });
    assert_eq!(server.patch(&uri, MERGE, &old).await.code, 409);
    expect![[r#"404 NotFound: deployments.apps "none" not found"#]]
        .assert_eq(&server.patch(&format!("{DEPLOYMENTS}/none"), MERGE, &json!({})).await.status());
    let wrong = server.patch(&uri, MERGE, &json!({ "spec": { "replicas": "many" } })).await;
    assert_eq!(wrong.code, 400, "{}", wrong.text());
}

#[tokio::test]
async fn patches_of_many_writers_all_happen() {
    let server = std::sync::Arc::new(Server::start().await);
    server.create(&in_default("configmaps"), &config_map("a")).await;
    let mut writers = tokio::task::JoinSet::new();
    for at in 0..8 {
        let server = server.clone();
        writers.spawn(async move {
            let patch = json!({ "data": { format!("key{at}"): "1" } });
            assert_eq!(server.patch(&in_default("configmaps/a"), MERGE, &patch).await.code, 200);
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let map = server.get(&in_default("configmaps/a")).await.json();
    assert_eq!(map["data"].as_object().unwrap().len(), 9);
}
