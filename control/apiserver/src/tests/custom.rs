use super::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn version(name: &str, stored: bool, properties: &Value) -> Value {
    json!({ "name": name, "served": true, "storage": stored, "deprecated": name == "v1beta1",
        "subresources": { "status": {} },
        "schema": { "openAPIV3Schema": { "type": "object",
            "properties": { "spec": { "type": "object", "properties": properties }, "status": { "type": "object",
                "properties": { "phase": { "type": "string" } } } } } } })
}

fn definition() -> Value {
    let old = json!({ "size": { "type": "integer" } });
    let new = json!({ "size": { "type": "integer", "default": 1 }, "color": { "type": "string" } });
    json!({ "metadata": { "name": "tabs.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced", "names": { "plural": "tabs", "kind": "Tab" },
            "versions": [version("v1", true, &new), version("v1beta1", false, &old)] } })
}

pub(super) fn tabs(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/tabs")
}

/// What the controller does once it has accepted the names.
pub(super) async fn establish(server: &Server) {
    server.create(DEFINITIONS, &definition()).await;
    let status = json!({ "status": { "acceptedNames": { "plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList" },
        "conditions": [{ "type": "Established", "status": "True" }] } });
    let uri = format!("{DEFINITIONS}/tabs.example.com/status");
    let answer = server.patch(&uri, "application/merge-patch+json", &status).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    assert_eq!(answer.json()["status"]["storedVersions"], json!(["v1"]));
}

#[tokio::test]
async fn a_kind_is_there_when_it_is_established() {
    let server = Server::start().await;
    assert_eq!(server.get(&tabs("v1")).await.code, 404);
    establish(&server).await;
    let made = server.create(&tabs("v1"), &json!({ "metadata": { "name": "one" }, "spec": { "lost": 1 } })).await;
    assert_eq!(made["spec"], json!({ "size": 1 }));
    assert_eq!((&made["kind"], &made["metadata"]["generation"]), (&json!("Tab"), &json!(1)));
    let groups = server.get("/apis").await.text();
    assert!(groups.contains("example.com/v1beta1"), "{groups}");
    assert_eq!(server.get("/apis/example.com/v1").await.json()["resources"][0]["singularName"], "tab");
    assert_eq!(server.get("/openapi/v3/apis/example.com/v1").await.code, 200);
}

#[tokio::test]
async fn versions_are_views_of_one_object() {
    let server = Server::start().await;
    establish(&server).await;
    let body = json!({ "metadata": { "name": "one" }, "spec": { "size": 3, "color": "red" } });
    server.create(&tabs("v1"), &body).await;
    let old = server.get(&format!("{}/one", tabs("v1beta1"))).await;
    assert_eq!(old.json()["spec"], json!({ "size": 3 }));
    assert_eq!(old.json()["apiVersion"], "example.com/v1beta1");
    assert_eq!(old.header(header::WARNING), "299 - \"example.com/v1beta1 Tab is deprecated\"");
    let list = server.get(&tabs("v1beta1")).await;
    assert_eq!(list.json()["items"][0]["apiVersion"], "example.com/v1beta1");
    assert_eq!(server.get(&tabs("v1")).await.header(header::WARNING), "");
}

#[tokio::test]
async fn status_and_spec_have_doors_of_their_own() {
    let server = Server::start().await;
    establish(&server).await;
    server.create(&tabs("v1"), &json!({ "metadata": { "name": "one" }, "status": { "phase": "Early" } })).await;
    let (uri, merge) = (format!("{}/one", tabs("v1")), "application/merge-patch+json");
    let both = json!({ "spec": { "size": 2 }, "status": { "phase": "Fine" } });
    let object = server.patch(&uri, merge, &both).await.json();
    assert_eq!((&object["spec"]["size"], object.get("status")), (&json!(2), None));
    let object = server
        .patch(&format!("{uri}/status"), merge, &json!({ "spec": { "size": 9 }, "status": { "phase": "Fine" } }))
        .await;
    let object = object.json();
    assert_eq!((&object["spec"]["size"], &object["status"]["phase"]), (&json!(2), &json!("Fine")));
    assert_eq!(object["metadata"]["generation"], 2);
    let refused = server.patch(&uri, "application/strategic-merge-patch+json", &both).await;
    assert_eq!(refused.code, 415);
    let refused = server.patch(&uri, merge, &json!({ "spec": { "size": "big" } })).await;
    assert_eq!(refused.json()["details"]["causes"][0]["field"], "spec.size");
    let uri = format!("{uri}?fieldManager=x");
    let applied = json!({ "apiVersion": "example.com/v1", "kind": "Tab", "spec": { "color": "red" } });
    let object = server.patch(&uri, "application/apply-patch+yaml", &applied).await.json();
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers[0]["fieldsV1"], json!({ "f:spec": { "f:color": {} } }));
}

#[tokio::test]
async fn a_definition_that_ends_keeps_its_objects_until_they_are_gone() {
    let server = Server::start().await;
    establish(&server).await;
    server.create(&tabs("v1"), &json!({ "metadata": { "name": "one" } })).await;
    let marked = server.delete(&format!("{DEFINITIONS}/tabs.example.com")).await.json();
    assert_eq!(marked["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let refused = server.post(&tabs("v1"), &json!({ "metadata": { "name": "two" } })).await;
    assert_eq!(refused.code, 405, "{}", refused.status());
    assert_eq!(server.delete(&format!("{}/one", tabs("v1"))).await.code, 200);
    let free = json!({ "metadata": { "finalizers": null } });
    server.patch(&format!("{DEFINITIONS}/tabs.example.com"), "application/merge-patch+json", &free).await;
    assert_eq!(server.get(&tabs("v1")).await.code, 404);
}

#[tokio::test]
async fn a_built_in_kind_is_not_replaced() {
    let server = Server::start().await;
    let mut definition = definition();
    definition["metadata"] = json!({ "name": "tabs.apps", "annotations": {} });
    definition["spec"]["group"] = "apps".into();
    let refused = server.post(DEFINITIONS, &definition).await;
    assert!(refused.status().contains("should be a domain with at least one dot"), "{}", refused.status());
}
