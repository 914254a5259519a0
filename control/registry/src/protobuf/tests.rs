use std::sync::LazyLock;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

use super::{
    wire::{put_bytes, put_number},
    *,
};

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::builtin);

fn registry() -> &'static Registry {
    &REGISTRY
}

fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    encode::envelope(api_version, kind, raw)
}

fn check(api_version: &str, kind: &str, raw: &[u8], expected: Expect) {
    let registry = registry();
    let decoded = decode(registry.schema(), registry, &wrap(api_version, kind, raw));
    let text = decoded.map(|object| serde_json::to_string(&object).unwrap()).unwrap_or_else(|error| error.message);
    expected.assert_eq(&text);
}

fn round_trip(value: Value) {
    let registry = registry();
    let bytes = encode(registry.schema(), &value).unwrap();
    assert_eq!(decode(registry.schema(), registry, &bytes).unwrap(), Object::from_value(value).unwrap());
}

/// What a Go client sends: every plain scalar and every struct is there, zero or not.
#[test]
fn plain_zeros_are_nothing_and_pointed_zeros_are_something() {
    let mut metadata = Vec::new();
    for (number, text) in [(1, "web"), (2, ""), (3, ""), (4, ""), (5, ""), (6, "")] {
        put_bytes(&mut metadata, number, text.as_bytes());
    }
    put_number(&mut metadata, 7, 0);
    put_bytes(&mut metadata, 8, b"");
    let mut spec = Vec::new();
    put_number(&mut spec, 1, 0);
    put_bytes(&mut spec, 4, b"");
    put_number(&mut spec, 5, 0);
    put_number(&mut spec, 7, 0);
    let mut raw = Vec::new();
    put_bytes(&mut raw, 1, &metadata);
    put_bytes(&mut raw, 2, &spec);
    put_bytes(&mut raw, 3, b"");
    check(
        "apps/v1",
        "Deployment",
        &raw,
        expect![[
            r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":0,"strategy":{}},"status":{}}"#
        ]],
    );
}

#[test]
fn options_are_known_in_every_group() {
    let mut raw = Vec::new();
    put_number(&mut raw, 1, 0);
    put_bytes(&mut raw, 4, b"Background");
    for version in ["v1", "apps/v1", "meta.k8s.io/v1", "policy/v1"] {
        let registry = registry();
        let object = decode(registry.schema(), registry, &wrap(version, "DeleteOptions", &raw)).unwrap();
        assert_eq!(object.i64_at(&["gracePeriodSeconds"]), Some(0));
        assert_eq!(object.str_at(&["propagationPolicy"]), Some("Background"));
    }
    check("apps/v1", "Nonsense", b"", expect![[r#"no kind "Nonsense" is registered for version "apps/v1""#]]);
    check("v1", "PodSpec", b"", expect![[r#"no kind "PodSpec" is registered for version "v1""#]]);
}

#[test]
fn odd_bytes_are_refused() {
    check("v1", "Pod", &[0x0a, 5, 1], expect![[r#"Pod in version "v1" cannot be handled as a Pod: unexpected EOF"#]]);
    check(
        "v1",
        "Pod",
        &[0x08, 5],
        expect![[r#"Pod in version "v1" cannot be handled as a Pod: proto: wrong wireType = 0 for field metadata"#]],
    );
    check(
        "v1",
        "Pod",
        &[0x0b],
        expect![[r#"Pod in version "v1" cannot be handled as a Pod: proto: illegal wireType 3"#]],
    );
    let registry = registry();
    let error = decode(registry.schema(), registry, b"{}").unwrap_err();
    assert!(error.message.starts_with("provided data does not appear to be a protobuf message"));
    // A thousand schemas, each inside the last.
    let mut schema = Vec::new();
    for _ in 0..1000 {
        let mut outer = Vec::new();
        put_bytes(&mut outer, 28, &schema);
        schema = outer;
    }
    let mut bytes = schema;
    for number in [1, 4, 7, 2] {
        let mut outer = Vec::new();
        put_bytes(&mut outer, number, &bytes);
        bytes = outer;
    }
    let wrapped = wrap("apiextensions.k8s.io/v1", "CustomResourceDefinition", &bytes);
    let error = decode(registry.schema(), registry, &wrapped).unwrap_err();
    assert!(error.message.ends_with("nested too deeply"), "{}", error.message);
}

#[test]
fn packed_numbers_are_read_too() {
    let mut context = Vec::new();
    put_bytes(&mut context, 4, &[1, 0xac, 0x02]);
    let (mut spec, mut raw) = (Vec::new(), Vec::new());
    put_bytes(&mut spec, 14, &context);
    put_bytes(&mut raw, 2, &spec);
    check(
        "v1",
        "Pod",
        &raw,
        expect![[r#"{"apiVersion":"v1","kind":"Pod","spec":{"securityContext":{"supplementalGroups":[1,300]}}}"#]],
    );
}

#[test]
fn round_trips() {
    round_trip(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "creationTimestamp": "2026-01-02T03:04:05Z",
        "managedFields": [{"manager": "kubectl", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "c", "configMap": {"name": "cm", "optional": false}}],
        "containers": [{"name": "c", "image": "i", "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "initialDelaySeconds": 3},
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}],
        "resources": {"limits": {"cpu": "500m"}}}], "ephemeralContainers": [{"name": "e", "image": "x", "targetContainerName": "c"}]}}),
    );
    round_trip(json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "AAE="}, "type": "Opaque"}));
    round_trip(
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"renewTime": "2026-01-02T03:04:05.000678Z", "leaseTransitions": 0}}),
    );
    round_trip(
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "spec": {"minAvailable": "50%", "maxUnavailable": 0}}),
    );
    round_trip(
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"extra": {"a": ["b", "c"]}, "user": "u"}, "status": {"allowed": false}}),
    );
    round_trip(
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"group": "g", "scope": "Cluster",
        "names": {"plural": "p", "kind": "K"}, "versions": [{"name": "v1", "served": true, "storage": false, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "default": {"a": [1, null]},
        "properties": {"a": {"items": {"type": "string"}, "additionalProperties": false, "enum": ["x", 1], "minimum": 0.0, "$ref": "r"}}}}}]}}),
    );
    round_trip(
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "a"}}]}),
    );
}

#[test]
fn lists_are_written_item_by_item() {
    let metadata = json!({"resourceVersion": "5", "continue": "x"});
    let items = [json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}, "spec": {"nodeName": "n"}})];
    let registry = registry();
    let mut list = List::new(registry.schema(), "v1", "PodList", &metadata).unwrap();
    items.iter().for_each(|item| list.push(item.as_object().unwrap()));
    let whole = json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items});
    let bytes = list.finish();
    assert_eq!(bytes, encode(registry.schema(), &whole).unwrap());
    assert_eq!(decode(registry.schema(), registry, &bytes).unwrap(), Object::from_value(whole).unwrap());
    assert!(List::new(registry.schema(), "v1", "Pod", &metadata).is_none());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), which in 0_usize..68) {
        let registry = registry();
        let def = registry.all()[which].clone();
        let _ = decode(registry.schema(), registry, &wrap(&def.api_version(), &def.kind, &bytes));
        let mut body = MAGIC.to_vec();
        body.extend(&bytes);
        let _ = decode(registry.schema(), registry, &body);
    }

    #[test]
    fn damaged_messages_never_panic(at in 0_usize..200, byte in any::<u8>()) {
        let registry = registry();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"tcpSocket": {"port": 1}}}], "tolerations": [{"tolerationSeconds": 0}]}});
        let mut bytes = encode(registry.schema(), &pod).unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = decode(registry.schema(), registry, &bytes);
    }
}

fn sent(bytes: &[u8], expected: Expect) {
    let registry = registry();
    let object = decode(registry.schema(), registry, bytes).unwrap();
    let GroupVersion { group, version } = GroupVersion::parse(object.api_version()).unwrap();
    let ty = registry.schema().kind_type(&group, &version, object.kind()).unwrap();
    assert_eq!(crate::fields::check(registry.schema(), &ty.name, &object), Vec::<String>::new());
    crate::fields::types(registry.schema(), &ty.name, &object).unwrap();
    expected.assert_eq(&serde_json::to_string(&object).unwrap());
}

/// What kubectl 1.33 sent for `kubectl create ..`, as it came.
#[test]
fn bodies_of_kubectl() {
    sent(
        include_bytes!("../../tests/bodies/deployment.pb"),
        expect![[
            r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","labels":{"app":"web"}},"spec":{"replicas":0,"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"nginx","image":"nginx","resources":{}}]}},"strategy":{}},"status":{}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/secret.pb"),
        expect![[r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"data":{"a":"Yg=="}}"#]],
    );
    sent(
        include_bytes!("../../tests/bodies/cronjob.pb"),
        expect![[
            r#"{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"name":"cj"},"spec":{"schedule":"1_*_*_*_*","jobTemplate":{"metadata":{"name":"cj"},"spec":{"template":{"metadata":{},"spec":{"containers":[{"name":"cj","image":"i","resources":{}}],"restartPolicy":"OnFailure"}}}}},"status":{}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/role.pb"),
        expect![[
            r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"r"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/rolebinding.pb"),
        expect![[
            r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"rb"},"subjects":[{"kind":"User","apiGroup":"rbac.authorization.k8s.io","name":"u"}],"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"r"}}"#
        ]],
    );
}

#[test]
fn more_bodies_of_kubectl() {
    sent(
        include_bytes!("../../tests/bodies/service.pb"),
        expect![[
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s","labels":{"app":"s"}},"spec":{"ports":[{"name":"80-8080","protocol":"TCP","port":80,"targetPort":8080}],"selector":{"app":"s"},"type":"NodePort"},"status":{"loadBalancer":{}}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/ingress.pb"),
        expect![[
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"name":"i"},"spec":{"rules":[{"host":"a.b","http":{"paths":[{"path":"/","backend":{"service":{"name":"s","port":{"number":80}}},"pathType":"Prefix"}]}}]},"status":{"loadBalancer":{}}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/quota.pb"),
        expect![[
            r#"{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":"q"},"spec":{"hard":{"cpu":"1"}},"status":{}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/pdb.pb"),
        expect![[
            r#"{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"name":"p"},"spec":{"minAvailable":"50%","selector":{"matchLabels":{"a":"b"}}},"status":{"disruptionsAllowed":0,"currentHealthy":0,"desiredHealthy":0,"expectedPods":0}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/token.pb"),
        expect![[
            r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","metadata":{},"spec":{},"status":{}}"#
        ]],
    );
    sent(
        include_bytes!("../../tests/bodies/priorityclass.pb"),
        expect![[
            r#"{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"pc"},"value":5,"preemptionPolicy":"PreemptLowerPriority"}"#
        ]],
    );
}
