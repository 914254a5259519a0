use super::*;

const APPLY: &str = "application/apply-patch+yaml";

async fn apply(server: &Server, manager: &str, extra: &str, body: &Value) -> Answer {
    let uri = format!("{DEPLOYMENTS}/web?fieldManager={manager}{extra}");
    server.patch(&uri, APPLY, body).await
}

#[tokio::test]
async fn apply_creates_merges_and_prunes() {
    let server = Server::start().await;
    let made = apply(&server, "kubectl", "", &deployment("web")).await;
    assert_eq!(made.code, 201, "{}", made.text());
    let again = apply(&server, "kubectl", "", &deployment("web")).await;
    assert_eq!(again.code, 200);
    assert_eq!(again.json()["metadata"]["resourceVersion"], made.json()["metadata"]["resourceVersion"]);
    let mut labelled = deployment("web");
    labelled["metadata"]["labels"]["tier"] = "x".into();
    assert_eq!(apply(&server, "kubectl", "", &labelled).await.json()["metadata"]["labels"]["tier"], "x");
    let pruned = apply(&server, "kubectl", "", &deployment("web")).await.json();
    assert!(pruned["metadata"]["labels"].get("tier").is_none());
    assert_eq!(pruned["metadata"]["managedFields"][0]["operation"], "Apply");
}

#[tokio::test]
async fn conflicts_name_the_other_manager() {
    let server = Server::start().await;
    apply(&server, "helm", "", &deployment("web")).await;
    let mut scaled = deployment("web");
    scaled["spec"]["replicas"] = 9.into();
    let refused = apply(&server, "kubectl", "", &scaled).await;
    assert_eq!(refused.code, 409);
    let status = refused.json();
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldManagerConflict");
    assert_eq!(status["details"]["causes"][0]["field"], ".spec.replicas");
    let forced = apply(&server, "kubectl", "&force=true", &scaled).await;
    assert_eq!((forced.code, &forced.json()["spec"]["replicas"]), (200, &json!(9)));
}

#[tokio::test]
async fn applies_are_checked() {
    let server = Server::start().await;
    assert_eq!(server.patch(&format!("{DEPLOYMENTS}/web"), APPLY, &deployment("web")).await.code, 422);
    let mut misspelt = deployment("web");
    misspelt["spec"]["replica"] = 1.into();
    let refused = apply(&server, "kubectl", "&fieldValidation=Strict", &misspelt).await;
    let why = "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema";
    assert!(refused.status().contains(why), "{}", refused.status());
    let mut managed = deployment("web");
    managed["metadata"]["managedFields"] = json!([{ "manager": "x", "operation": "Apply", "fieldsV1": {} }]);
    assert_eq!(apply(&server, "kubectl", "", &managed).await.code, 400);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yam\ndata:\n  a: b\n";
    let uri = in_default("configmaps/yam?fieldManager=kubectl");
    assert_eq!(server.send(ask("PATCH", &uri).body(APPLY, yaml)).await.code, 201);
    let twice = format!("{yaml}  a: c\n");
    let strict = format!("{uri}&fieldValidation=Strict");
    let refused = server.send(ask("PATCH", &strict).body(APPLY, twice.as_str())).await;
    assert!(refused.status().contains("line 7: key \"a\" already set in map"), "{}", refused.status());
    let taken = server.send(ask("PATCH", &uri).body(APPLY, twice.as_str())).await;
    assert_eq!((taken.code, &taken.json()["data"]["a"]), (200, &json!("c")));
}
