use super::*;

fn document(group: &str, version: &str) -> Value {
    serde_json::from_slice(&v3(&Registry::builtin(), group, version).unwrap()).unwrap()
}

#[test]
fn kubectl_finds_what_it_validates_with() {
    let apps = document("apps", "v1");
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert_eq!(patch["x-kubernetes-action"], "patch");
    let parameters = patch["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation" && parameter["in"] == "query"));
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
}

#[test]
fn kubectl_explains() {
    let apps = document("apps", "v1");
    let schemas = &apps["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    assert_eq!(deployment["description"], "Deployment enables declarative updates for Pods and ReplicaSets.");
    let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(spec["required"], json!(["selector", "template"]));
    let strategy = &spec["properties"]["strategy"];
    assert_eq!(strategy["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy");
    assert_eq!(strategy["description"], "The deployment strategy to use to replace existing pods with new ones.");
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
}

/// Every reference leads somewhere, and every served kind has a description.
#[test]
fn documents_are_whole() {
    let registry = Registry::builtin();
    let index: Value = serde_json::from_slice(&index(&registry)).unwrap();
    assert!(
        index["paths"]["apis/apps/v1"]["serverRelativeURL"]
            .as_str()
            .unwrap()
            .starts_with("/openapi/v3/apis/apps/v1?hash=")
    );
    for group in registry.groups() {
        for version in &group.versions {
            let document = document(&group.name, version);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            references(&document, &mut |reference| {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(schemas.contains_key(name), "{name} in {}", group.name);
            });
            for def in registry.all().iter().filter(|def| def.group == group.name && def.version == *version) {
                let described = schemas.values().any(|schema| {
                    let kinds = schema["x-kubernetes-group-version-kind"].as_array();
                    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"] == def.kind.as_str()))
                        && schema["description"].is_string()
                });
                assert!(described, "{}", def.kind);
            }
        }
    }
    assert!(v3(&registry, "apps", "v2").is_none());
}

#[test]
fn the_older_document_has_the_same_kinds() {
    let registry = Registry::builtin();
    let document: Value = serde_json::from_slice(&v2(&registry, V2Format::Json)).unwrap();
    let definitions = document["definitions"].as_object().unwrap();
    references(&document, &mut |reference| {
        assert!(definitions.contains_key(reference.strip_prefix("#/definitions/").unwrap()), "{reference}");
    });
    let strategy = &definitions["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["$ref"], "#/definitions/io.k8s.api.apps.v1.DeploymentStrategy");
    assert!(document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"].is_object());
    assert!(v2(&registry, V2Format::Protobuf).starts_with(b"\x0a\x032.0"));
}

fn references(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                found(reference);
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}
