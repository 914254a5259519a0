//! Kinds whose versions a webhook converts.

use super::{
    webhooks::{Hooks, Reply},
    *,
};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const MERGE: &str = "application/merge-patch+json";

fn version(name: &str, stored: bool, fields: &[&str]) -> Value {
    let properties: Value = fields.iter().map(|field| ((*field).to_owned(), json!({ "type": "string" }))).collect();
    json!({ "name": name, "served": true, "storage": stored,
        "schema": { "openAPIV3Schema": { "type": "object", "properties": properties } } })
}

fn versions(stored: &str) -> Value {
    json!([version("v1", stored == "v1", &["hostPort"]), version("v2", stored == "v2", &["host", "port"])])
}

fn places(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/places")
}

/// Splits `hostPort` for v2, and joins it for v1. Objects whose host is `bad` are not converted.
fn convert(review: &Value) -> Reply {
    let request = &review["request"];
    let to = request["desiredAPIVersion"].as_str().unwrap();
    let mut result = json!({ "status": "Success" });
    let one = |object: &Value| {
        let mut object = object.clone();
        let map = object.as_object_mut().unwrap();
        let text = |value: Option<Value>| value.and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default();
        if to == "example.com/v2" {
            let both = text(map.remove("hostPort"));
            let (host, port) = both.split_once(':').unwrap();
            map.insert("host".to_owned(), host.into());
            map.insert("port".to_owned(), port.into());
        } else {
            let both = format!("{}:{}", text(map.remove("host")), text(map.remove("port")));
            map.insert("hostPort".to_owned(), both.into());
        }
        map.insert("apiVersion".to_owned(), to.into());
        object["metadata"]["finalizers"] = json!(["stolen/by"]);
        object["metadata"]["labels"] = json!({ "converted": "yes" });
        object
    };
    let objects: Vec<Value> = request["objects"].as_array().unwrap().iter().map(one).collect();
    if review.to_string().contains("bad-host") {
        result = json!({ "status": "Failure", "message": "this one is bad" });
    }
    let response = json!({ "uid": request["uid"], "convertedObjects": objects, "result": result });
    let api_version = &review["apiVersion"];
    Reply::Answer(200, json!({ "kind": "ConversionReview", "apiVersion": api_version, "response": response }))
}

async fn server(hooks: &Hooks) -> Server {
    let server = Server::start().await;
    let conversion = json!({ "strategy": "Webhook", "webhook": {
        "clientConfig": hooks.client("/crdconvert"), "conversionReviewVersions": ["v1", "v1beta1"] } });
    let definition = json!({ "metadata": { "name": "places.example.com" }, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": { "plural": "places", "kind": "Place" },
        "versions": versions("v1"), "conversion": conversion } });
    server.create(DEFINITIONS, &definition).await;
    let status = json!({ "status": { "acceptedNames": definition["spec"]["names"],
        "conditions": [{ "type": "Established", "status": "True" }] } });
    let uri = format!("{DEFINITIONS}/places.example.com/status");
    assert_eq!(server.patch(&uri, MERGE, &status).await.code, 200);
    server
}

#[tokio::test]
async fn every_version_reads_and_writes_every_object() {
    let hooks = Hooks::start(|_, review| convert(review)).await;
    let server = server(&hooks).await;
    let one = json!({ "metadata": { "name": "one" }, "hostPort": "localhost:8080" });
    let made = server.create(&places("v1"), &one).await;
    assert_eq!(hooks.asked().len(), 0);
    let read = server.get(&format!("{}/one", places("v2"))).await.json();
    assert_eq!((&read["host"], &read["port"], read.get("hostPort")), (&json!("localhost"), &json!("8080"), None));
    assert_eq!((&read["apiVersion"], &read["metadata"]["uid"]), (&json!("example.com/v2"), &made["metadata"]["uid"]));
    assert_eq!(read["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!((&read["metadata"]["labels"]["converted"], read["metadata"].get("finalizers")), (&json!("yes"), None));
    let asked = hooks.asked();
    assert_eq!((asked.len(), &asked[0].1["desiredAPIVersion"]), (1, &json!("example.com/v2")));

    let two = json!({ "metadata": { "name": "two" }, "host": "h", "port": "1" });
    let made = server.create(&places("v2"), &two).await;
    assert_eq!((&made["host"], made.get("hostPort")), (&json!("h"), None));
    let changed = server.patch(&format!("{}/two", places("v2")), MERGE, &json!({ "port": "2" })).await;
    assert_eq!(changed.json()["port"], "2", "{}", changed.text());
    assert_eq!(server.get(&format!("{}/two", places("v1"))).await.json()["hostPort"], "h:2");

    // The objects of a list are converted together, those of both versions.
    let switched = server
        .patch(&format!("{DEFINITIONS}/places.example.com"), MERGE, &json!({ "spec": { "versions": versions("v2") } }))
        .await;
    assert_eq!(switched.code, 200, "{}", switched.text());
    server.create(&places("v1"), &json!({ "metadata": { "name": "three" }, "hostPort": "new:3" })).await;
    hooks.asked();
    let hosts = |list: Value| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["host"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(hosts(server.get(&places("v2")).await.json()), ["localhost", "new", "h"]);
    assert_eq!(hooks.asked().len(), 1);
    assert_eq!(hosts(server.get(&format!("{}?labelSelector=converted", places("v2"))).await.json()).len(), 3);
    let watched = server.get(&format!("{}?watch=true&timeoutSeconds=1", places("v2"))).await.text();
    assert_eq!(
        watched.lines().filter(|line| line.contains("\"host\":") && !line.contains("\"hostPort\":")).count(),
        3,
        "{watched}"
    );
    assert_eq!(server.delete(&format!("{}/one", places("v2"))).await.code, 200);
    assert_eq!(server.delete(&places("v1")).await.code, 200);
    assert_eq!(hosts(server.get(&places("v2")).await.json()), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_converted_is_told() {
    let hooks = Hooks::start(|_, review| convert(review)).await;
    let server = server(&hooks).await;
    let told = "conversion webhook for example.com/v1, Kind=Place failed: this one is bad";
    server.create(&places("v1"), &json!({ "metadata": { "name": "one" }, "hostPort": "bad-host:1" })).await;
    assert_eq!(server.get(&format!("{}/one", places("v2"))).await.json()["message"], told);
    let list = server.get(&places("v2")).await;
    assert_eq!((list.code, &list.json()["message"]), (500, &json!(told)));
    assert_eq!(server.get(&places("v1")).await.code, 200);
    let refused =
        server.post(&places("v2"), &json!({ "metadata": { "name": "two" }, "host": "bad-host", "port": "1" })).await;
    assert_eq!(refused.json()["message"], told.replace("v1", "v2"));
    assert_eq!(server.get(&format!("{}/two", places("v1"))).await.code, 404);
}

#[tokio::test]
async fn a_webhook_that_names_one_version_is_asked_about_all() {
    let hooks = Hooks::start(|path, review| {
        if path == "/crdconvert" {
            return convert(review);
        }
        let response = json!({ "uid": review["request"]["uid"], "allowed": false, "status": { "message": "no" } });
        Reply::Answer(
            200,
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response }),
        )
    })
    .await;
    let server = server(&hooks).await;
    let hook = |policy: &str| {
        json!({ "metadata": { "name": "v" }, "webhooks": [{
        "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "matchPolicy": policy,
        "clientConfig": hooks.client("/check"),
        "rules": [{ "operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["v2"], "resources": ["places"] }],
    }] })
    };
    let uri = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    server.create(uri, &hook("Exact")).await;
    let one = |name: &str| json!({ "metadata": { "name": name }, "hostPort": "h:1" });
    server.create(&places("v1"), &one("one")).await;
    server.put(&format!("{uri}/v"), &hook("Equivalent")).await;
    hooks.asked();
    let refused = server.post(&places("v1"), &one("two")).await;
    assert_eq!(refused.json()["message"], "admission webhook \"a.example.com\" denied the request: no");
    let asked = hooks.asked();
    let (_, request) = asked.iter().find(|(path, _)| path == "/check").unwrap();
    assert_eq!((&request["object"]["host"], &request["kind"]["version"]), (&json!("h"), &json!("v2")));
    assert_eq!(request["requestKind"]["version"], "v1");
}
