use expect_test::{Expect, expect};

use serde_json::json;
use tandem_api::Object;

use super::*;
use crate::{
    Schema,
    schema::{Label, Shape},
};

const DEPLOYMENT: &str = "apps.v1.Deployment";

fn check_strict(body: &str, expected: Expect) {
    let (object, duplicates) = parse_strict(body.as_bytes()).unwrap();
    let messages = strict(&Schema::builtin(), DEPLOYMENT, &object, &duplicates);
    expected.assert_eq(&messages.join("\n"));
}

fn check_types(type_name: &str, body: &str, expected: Expect) {
    let (object, _) = parse_strict(body.as_bytes()).unwrap();
    let found = types(&Schema::builtin(), type_name, &object).map_err(|error| error.message);
    expected.assert_eq(&found.map_or_else(|message| message, |()| "fine".to_owned()));
}

fn check_prune(type_name: &str, body: &str, expected: Expect) {
    let (mut object, _) = parse_strict(body.as_bytes()).unwrap();
    prune(&Schema::builtin(), type_name, &mut object);
    expected.assert_eq(&serde_json::to_string(&object).unwrap());
}

#[test]
fn unknown_and_duplicate_fields_in_the_order_of_the_body() {
    check_strict(
        r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "labels": {"a": "b"}}, "spec": {
            "unknown1": "val1", "unknownDupe": 1, "unknownDupe": 2, "paused": true, "paused": false,
            "template": {"spec": {"containers": [{"name": "nginx", "unknownNested": 1, "imagePullPolicy": "Always",
            "imagePullPolicy": "Never", "livenessProbe": {"httpGet": {"port": 1}, "exek": 1}}]}}}}"#,
        expect![[r#"
            unknown field "spec.unknown1"
            unknown field "spec.unknownDupe"
            duplicate field "spec.paused"
            unknown field "spec.template.spec.containers[0].unknownNested"
            duplicate field "spec.template.spec.containers[0].imagePullPolicy"
            unknown field "spec.template.spec.containers[0].livenessProbe.exek""#]],
    );
    check_strict(r#"{"apiVersion": "apps/v1", "metadata": {"annotations": {"x": "1"}}}"#, expect![[""]]);
    check_strict(r#"{"spec": {"template": {"kind": "x"}}}"#, expect![[r#"unknown field "spec.template.kind""#]]);
}

#[test]
fn the_error_of_strict_validation() {
    let (object, duplicates) = parse_strict(br#"{"spec": {"replica": 3}}"#).unwrap();
    let messages = strict(&Schema::builtin(), DEPLOYMENT, &object, &duplicates);
    let error = strict_error("Deployment", "v1", &messages).unwrap();
    expect![[r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.replica""#]]
        .assert_eq(&error.message);
    assert_eq!(error.code(), 400);
    assert_eq!(strict_error("Deployment", "v1", &[]), None);
}

#[test]
fn bodies_that_are_no_objects() {
    for bad in ["", "{", "[]", "3", "{\"a\":}", "{} x"] {
        let error = parse_strict(bad.as_bytes()).unwrap_err();
        assert!(error.message.starts_with("couldn't get version/kind; json parse error: "), "{}", error.message);
    }
    let deep = "[".repeat(100_000);
    assert!(parse_strict(deep.as_bytes()).is_err());
}

#[test]
fn wrong_types_in_the_words_of_go() {
    let of = |body: &str, expected: Expect| check_types(DEPLOYMENT, body, expected);
    of(r#"{"spec": {"replicas": 3, "template": {"metadata": null}}}"#, expect!["fine"]);
    of(
        r#"{"spec": {"replicas": "3"}}"#,
        expect![[
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#
        ]],
    );
    of(
        r#"{"spec": {"template": {"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}}}}"#,
        expect![[
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string"#
        ]],
    );
    of(
        r#"{"spec": {"template": {"spec": {"containers": {}}}}}"#,
        expect![[
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"#
        ]],
    );
    of(
        r#"{"metadata": {"labels": {"a": 1}}}"#,
        expect![[
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"#
        ]],
    );
    of(
        r#"{"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}}}}"#,
        expect![[
            r#"Deployment in version "v1" cannot be handled as a Deployment: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#
        ]],
    );
    of(
        r#"{"metadata": {"creationTimestamp": "yesterday"}}"#,
        expect![[
            r#"Deployment in version "v1" cannot be handled as a Deployment: parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#
        ]],
    );
    check_types(
        "core.v1.Secret",
        r#"{"data": {"a": "???"}}"#,
        expect![[r#"Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 0"#]],
    );
}

#[test]
fn pruning_writes_what_go_would() {
    check_prune(
        "core.v1.Pod",
        r#"{"apiVersion": "v1", "kind": "Pod", "other": 1, "metadata": {"name": "p", "labels": {}, "creationTimestamp": null},
            "spec": {"x": 1, "hostNetwork": false, "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "args": [], "env": [{"name": "E", "value": ""}], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}}"#,
        expect![[
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"terminationGracePeriodSeconds":0,"volumes":[{"name":"v","emptyDir":{}}],"containers":[{"name":"c","env":[{"name":"E"}],"resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}]}}"#
        ]],
    );
}

#[test]
fn elements_that_are_null_become_what_go_makes_of_them() {
    check_prune(
        "core.v1.Pod",
        r#"{"metadata": {"labels": {"a": null}, "finalizers": [null], "ownerReferences": [null]},
            "spec": {"overhead": {"cpu": null}, "securityContext": {"supplementalGroups": [null, 7]},
            "containers": [{"args": ["a", null], "env": [null], "resources": {"limits": {"cpu": null, "memory": "1Gi"}}}, null]}}"#,
        expect![[
            r#"{"metadata":{"labels":{"a":""},"finalizers":[""],"ownerReferences":[{}]},"spec":{"overhead":{"cpu":"0"},"securityContext":{"supplementalGroups":[0,7]},"containers":[{"args":["a",""],"env":[{}],"resources":{"limits":{"cpu":"0","memory":"1Gi"}}},{}]}}"#
        ]],
    );
    check_prune("core.v1.Secret", r#"{"data": {"a": null}}"#, expect![[r#"{"data":{"a":""}}"#]]);
    check_prune(
        "apiextensions.v1.JSONSchemaProps",
        r#"{"enum": [null, 1], "items": [null], "dependencies": {"a": null}}"#,
        expect![[r#"{"enum":[null,1],"items":[{}],"dependencies":{"a":{}}}"#]],
    );
}

/// One null that clients cannot decode hides all objects of a kind from them.
#[test]
fn no_element_stays_null() {
    let schema = Schema::builtin();
    for ty in schema.types() {
        for field in ty.fields.iter().filter(|field| !matches!(field.shape, Shape::Json | Shape::Raw)) {
            let value = match field.label {
                Label::One => continue,
                Label::List => json!([null]),
                Label::Map => json!({ "a": null }),
            };
            let mut object = Object::from_value(json!({ field.name.as_ref(): value })).unwrap();
            prune(&schema, &ty.name, &mut object);
            let pruned = object.0.get(field.name.as_ref()).unwrap();
            let element = pruned.get(0).or_else(|| pruned.get("a")).unwrap();
            assert!(!element.is_null(), "{} of {}", field.name, ty.name);
            assert_eq!(types(&schema, &ty.name, &object), Ok(()), "{} of {}", field.name, ty.name);
        }
    }
}

#[test]
fn base64_is_written_without_the_breaks_that_go_reads_over() {
    check_prune("core.v1.Secret", r#"{"data": {"a": "YWJj\r\nZGVm\n"}}"#, expect![[r#"{"data":{"a":"YWJjZGVm"}}"#]]);
    check_prune(
        "certificates.v1.CertificateSigningRequest",
        r#"{"spec": {"request": "YWJj\n"}}"#,
        expect![[r#"{"spec":{"request":"YWJj"}}"#]],
    );
}

#[test]
fn what_was_null_can_be_decoded_by_typed_clients() {
    fn decoded<K: serde::de::DeserializeOwned>(type_name: &str, body: serde_json::Value) {
        let mut object = Object::from_value(body).unwrap();
        prune(&Schema::builtin(), type_name, &mut object);
        serde_json::from_value::<K>(serde_json::Value::Object(object.0)).unwrap();
    }
    use k8s_openapi::api::{
        batch::v1::Job, certificates::v1::CertificateSigningRequest, policy::v1::PodDisruptionBudget,
    };
    decoded::<k8s_openapi::api::core::v1::Pod>(
        "core.v1.Pod",
        json!({ "spec": { "overhead": { "cpu": null }, "containers": [null, { "ports": [null], "resources": { "limits": { "cpu": null } } }] } }),
    );
    decoded::<Job>(
        "batch.v1.Job",
        json!({ "spec": { "podFailurePolicy": { "rules": [{ "onExitCodes": { "values": [null] } }] } } }),
    );
    decoded::<PodDisruptionBudget>(
        "policy.v1.PodDisruptionBudget",
        json!({ "status": { "disruptedPods": { "a": null } } }),
    );
    decoded::<CertificateSigningRequest>(
        "certificates.v1.CertificateSigningRequest",
        json!({ "spec": { "request": "", "extra": { "a": null } } }),
    );
}
