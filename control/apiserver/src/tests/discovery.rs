use super::*;

const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

#[tokio::test]
async fn aggregated_discovery_has_tags() {
    let server = Server::start().await;
    let answer = server.send(ask("GET", "/apis").header("accept", V2)).await;
    assert_eq!(
        answer.header(header::CONTENT_TYPE),
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    assert_eq!(answer.header(header::VARY), "Accept");
    let tag = answer.header(header::ETAG).to_owned();
    let again = server.send(ask("GET", "/apis").header("accept", V2).header("if-none-match", &tag)).await;
    assert_eq!((again.code, again.body.len()), (304, 0));
    let apps = answer.json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["metadata"]["name"] == "apps")
        .unwrap()
        .clone();
    let resources = apps["versions"][0]["resources"].as_array().unwrap();
    let deployments = resources.iter().find(|resource| resource["resource"] == "deployments").unwrap();
    assert_eq!(deployments["responseKind"]["kind"], "Deployment");
    let scale =
        deployments["subresources"].as_array().unwrap().iter().find(|sub| sub["subresource"] == "scale").unwrap();
    assert_eq!(scale["responseKind"], json!({ "group": "autoscaling", "version": "v1", "kind": "Scale" }));
    let old = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    assert_eq!(server.send(ask("GET", "/apis").header("accept", old)).await.json()["kind"], "APIGroupList");
}

#[tokio::test]
async fn legacy_discovery() {
    let server = Server::start().await;
    assert_eq!(server.get("/api").await.json()["versions"], json!(["v1"]));
    let core = server.get("/api/v1").await.json();
    let pods =
        core["resources"].as_array().unwrap().iter().find(|resource| resource["name"] == "pods").unwrap().clone();
    assert_eq!(pods["shortNames"], json!(["po"]));
    assert!(core["resources"].as_array().unwrap().iter().any(|resource| resource["name"] == "pods/eviction"));
    assert_eq!(server.get("/apis/apps").await.json()["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(server.get("/apis/none.example").await.code, 404);
    let version = server.get("/version").await.json();
    assert_eq!((version["major"].as_str(), version["minor"].as_str()), (Some("1"), Some("36")));
}

#[tokio::test]
async fn openapi() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.json();
    let path = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = server.get(&path).await;
    assert_eq!(document.code, 200);
    assert!(document.header(header::CACHE_CONTROL).contains("immutable"));
    assert!(
        document.json()["components"]["schemas"].as_object().unwrap().keys().any(|name| name.ends_with("Deployment"))
    );
    let older = server.get("/openapi/v2").await.json();
    assert!(older["definitions"].as_object().unwrap().keys().any(|name| name.ends_with("Deployment")));
}

#[tokio::test]
async fn health_and_metrics() {
    let server = Server::start().await;
    for path in ["/livez", "/readyz", "/healthz"] {
        let answer = server.send(ask("GET", path).unknown()).await;
        assert_eq!((answer.code, answer.text().as_str()), (200, "ok"));
    }
    assert!(server.get("/readyz?verbose").await.text().contains("[+]store ok\n"));
    assert_eq!(server.get("/readyz/store").await.code, 200);
    assert_eq!(server.get("/readyz/nothing").await.code, 404);
    server.get("/api/v1/pods").await;
    let metrics = server.get("/metrics").await.text();
    assert!(
        metrics.contains("apiserver_request_total{verb=\"LIST\",group=\"\",version=\"v1\",resource=\"pods\""),
        "{metrics}"
    );
    assert!(metrics.contains("apiserver_request_duration_seconds_bucket"));
    assert_eq!(server.get("/nothing").await.code, 404);
}

#[tokio::test]
async fn every_answer_has_an_audit_id() {
    let server = Server::start().await;
    let audit = header::HeaderName::from_static("audit-id");
    assert_eq!(server.send(ask("GET", "/nothing").header("audit-id", "mine")).await.header(audit.clone()), "mine");
    assert_eq!(server.get("/api//v1").await.header(audit).len(), 36);
}
