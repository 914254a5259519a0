use expect_test::{Expect, expect};

use super::*;
use crate::Schema;

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
