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

/// How a verb is asked for.
fn request(verb: &str, collection: &str, name: &str) -> Ask {
    let object = format!("{collection}/{name}");
    let patch = "application/merge-patch+json";
    match verb {
        "create" if name.contains('/') => ask("POST", &object).json(&json!({})),
        "create" => ask("POST", collection).json(&json!({})),
        "get" => ask("GET", &object),
        "list" => ask("GET", collection),
        "watch" => ask("GET", &format!("{collection}?watch=true&timeoutSeconds=1")),
        "update" => ask("PUT", &object).json(&json!({})),
        "patch" => ask("PATCH", &object).body(patch, "{}"),
        "delete" => ask("DELETE", &object),
        "deletecollection" => ask("DELETE", collection),
        other => panic!("the verb {other} is not known"),
    }
}

/// Clients believe discovery: what it lists answers, if only with a refusal of an empty body or of an unknown name.
#[tokio::test]
async fn what_is_listed_is_served() {
    let server = Server::start().await;
    let groups = server.get("/apis").await.json();
    let versions = groups["groups"].as_array().unwrap().iter().flat_map(|group| group["versions"].as_array().unwrap());
    let versions = versions.map(|version| format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
    let mut wrong = Vec::new();
    let mut asked = 0;
    for base in versions.chain(["/api/v1".to_owned()]) {
        for resource in server.get(&base).await.json()["resources"].as_array().unwrap() {
            let (plural, below) = match resource["name"].as_str().unwrap().split_once('/') {
                Some((plural, below)) => (plural.to_owned(), format!("/{below}")),
                None => (resource["name"].as_str().unwrap().to_owned(), String::new()),
            };
            let place = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
            let (collection, name) = (format!("{base}{place}/{plural}"), format!("nobody{below}"));
            for verb in resource["verbs"].as_array().unwrap() {
                asked += 1;
                let verb = verb.as_str().unwrap();
                let code = server.open(request(verb, &collection, &name)).await.status().as_u16();
                let known = code != 404 || names_an_object(&server, request(verb, &collection, &name)).await;
                if !known || code == 405 || code == 501 {
                    wrong.push(format!("{verb} {collection}/{name}: {code}"));
                }
            }
        }
    }
    assert!(asked > 500, "the lists are read: {asked}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a 404 is about the object that is asked for, and not about the path.
async fn names_an_object(server: &Server, ask: Ask) -> bool {
    server.send(ask).await.json()["details"]["name"].is_string()
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
