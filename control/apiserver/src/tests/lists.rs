use expect_test::expect;

use super::*;

async fn with_maps(count: usize) -> Server {
    let server = Server::start().await;
    for at in 0..count {
        let mut body = config_map(&format!("m{at:02}"));
        body["metadata"]["labels"] = json!({ "odd": (at % 2 == 1).to_string() });
        server.create(&in_default("configmaps"), &body).await;
    }
    server
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn lists_have_items_in_order_and_a_revision() {
    let server = with_maps(3).await;
    let list = server.get(&in_default("configmaps")).await.json();
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("ConfigMapList"), Some("v1")));
    assert_eq!(names(&list), ["m00", "m01", "m02"]);
    assert_eq!(list["metadata"]["resourceVersion"], list["items"][2]["metadata"]["resourceVersion"]);
    let everywhere = server.get("/api/v1/configmaps").await.json();
    assert_eq!(everywhere["items"].as_array().unwrap()[..3], list["items"].as_array().unwrap()[..]);
    let empty = server.get(&in_default("secrets")).await.json();
    assert_eq!(empty["items"], json!([]));
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let server = with_maps(5).await;
    let first = server.get(&in_default("configmaps?limit=2")).await.json();
    assert_eq!(names(&first), ["m00", "m01"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.delete(&in_default("configmaps/m02")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = server.get(&in_default(&format!("configmaps?limit=2&continue={token}"))).await.json();
    assert_eq!(names(&second), ["m02", "m03"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 1, "as of that revision");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = server.get(&in_default(&format!("configmaps?limit=2&continue={token}"))).await.json();
    assert_eq!(names(&third), ["m04"]);
    assert!(third["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn expired_pages_come_with_a_token_to_go_on() {
    use tandem_store::Storage as _;
    let server = with_maps(4).await;
    let first = server.get(&in_default("configmaps?limit=2")).await.json();
    let token = first["metadata"]["continue"].as_str().unwrap();
    server.create(&in_default("configmaps"), &config_map("m99")).await;
    let newest = server.store.revision();
    server.store.write(tandem_store::Command::compact(newest)).await.unwrap();
    let gone = server.get(&in_default(&format!("configmaps?limit=2&continue={token}"))).await;
    assert_eq!((gone.code, gone.json()["reason"].as_str()), (410, Some("Expired")));
    let fresh = gone.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = server.get(&in_default(&format!("configmaps?continue={fresh}"))).await.json();
    assert_eq!(names(&rest), ["m02", "m03", "m99"]);
}

#[tokio::test]
async fn selectors() {
    let server = with_maps(6).await;
    let odd = server.get(&in_default("configmaps?labelSelector=odd%3Dtrue&limit=2")).await.json();
    assert_eq!(names(&odd), ["m01", "m03"]);
    assert!(odd["metadata"].get("remainingItemCount").is_none());
    let token = odd["metadata"]["continue"].as_str().unwrap();
    let rest =
        server.get(&in_default(&format!("configmaps?labelSelector=odd%3Dtrue&limit=2&continue={token}"))).await.json();
    assert_eq!(names(&rest), ["m05"]);
    assert!(rest["metadata"].get("continue").is_none());
    let one = server.get(&in_default("configmaps?fieldSelector=metadata.name%3Dm04")).await.json();
    assert_eq!(names(&one), ["m04"]);
    assert_eq!(names(&server.get(&in_default("configmaps?fieldSelector=metadata.name!%3Dm04")).await.json()).len(), 5);
    assert_eq!(server.get(&in_default("configmaps?fieldSelector=data.a%3D1")).await.code, 400);
    assert_eq!(server.get(&in_default("configmaps?labelSelector=%3D%3D")).await.code, 400);
}

#[tokio::test]
async fn resource_versions_are_honoured() {
    let server = with_maps(2).await;
    let list = server.get(&in_default("configmaps")).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    server.delete(&in_default("configmaps/m00")).await;
    let exact = server
        .get(&in_default(&format!("configmaps?resourceVersion={version}&resourceVersionMatch=Exact")))
        .await
        .json();
    assert_eq!(names(&exact), ["m00", "m01"]);
    let newer = server
        .get(&in_default(&format!("configmaps?resourceVersion={version}&resourceVersionMatch=NotOlderThan")))
        .await
        .json();
    assert_eq!(names(&newer), ["m01"]);
    assert_eq!(names(&server.get(&in_default("configmaps?resourceVersion=0")).await.json()), ["m01"]);
}

#[tokio::test]
async fn a_revision_that_is_not_here_yet_times_out() {
    let server = with_maps(1).await;
    let late = server.get(&in_default("configmaps?resourceVersion=999999")).await;
    assert_eq!(late.code, 504);
    assert_eq!(late.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(late.json()["details"]["retryAfterSeconds"], 1);
}

#[tokio::test]
async fn tables_and_metadata() {
    let server = with_maps(2).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = server.send(ask("GET", &in_default("configmaps")).header("accept", accept)).await.json();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"].as_array().unwrap().len(), 2);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole =
        server.send(ask("GET", &in_default("configmaps?includeObject=Object")).header("accept", accept)).await.json();
    assert_eq!(whole["rows"][0]["object"]["kind"], "ConfigMap");
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let partial = server.send(ask("GET", &in_default("configmaps")).header("accept", accept)).await.json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert!(partial["items"][0].get("data").is_none());
    let one = server
        .send(
            ask("GET", &in_default("configmaps/m00")).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
        )
        .await
        .json();
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    expect!["406"].assert_eq(
        &server
            .send(
                ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
                    .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
                    .json(&json!({"spec": {}})),
            )
            .await
            .code
            .to_string(),
    );
}

#[tokio::test]
async fn large_answers_are_compressed() {
    let server = Server::start().await;
    let mut body = config_map("big");
    body["data"]["a"] = "x".repeat(200_000).into();
    server.create(&in_default("configmaps"), &body).await;
    let answer = server.send(ask("GET", &in_default("configmaps")).header("accept-encoding", "gzip")).await;
    assert_eq!(answer.header(header::CONTENT_ENCODING), "gzip");
    assert!(answer.body.len() < 10_000);
    let small = server.send(ask("GET", "/api/v1/namespaces").header("accept-encoding", "gzip")).await;
    assert_eq!(small.header(header::CONTENT_ENCODING), "");
}
