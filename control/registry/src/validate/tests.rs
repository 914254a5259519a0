use expect_test::{Expect, expect};
use serde_json::{Value, json};
use tandem_api::Object;

use crate::{NameRule, Registry, fields};

fn prepared(group: &str, kind: &str, mut body: Value) -> (std::sync::Arc<crate::ResourceDef>, Object) {
    let registry = Registry::builtin();
    let def = registry.all().into_iter().rfind(|def| def.group == group && def.kind == kind).unwrap();
    if body["metadata"].is_null() {
        body["metadata"] = json!({ "name": "x" });
    }
    if def.is_namespaced() && body["metadata"]["namespace"].is_null() {
        body["metadata"]["namespace"] = "default".into();
    }
    let mut object = Object::from_value(body).unwrap();
    fields::types(registry.schema(), &def.type_name, &object).unwrap();
    fields::prune(registry.schema(), &def.type_name, &mut object);
    def.default(&mut object);
    (def, object)
}

fn lines(causes: &[tandem_api::Cause]) -> String {
    let lines: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    lines.join("\n")
}

/// What is wrong with a new object.
fn create(group: &str, kind: &str, body: Value, expected: Expect) {
    let (def, mut object) = prepared(group, kind, body);
    object.set(&["metadata", "uid"], "u1");
    def.prepare_create(&mut object);
    expected.assert_eq(&lines(&def.validate_create(&object)));
}

/// What is wrong with the change from one to the other.
fn update(group: &str, kind: &str, old: Value, new: Value, expected: Expect) {
    let (def, mut old) = prepared(group, kind, old);
    def.prepare_create(&mut old);
    let (_, mut new) = prepared(group, kind, new);
    def.prepare_update(&mut new, &old);
    expected.assert_eq(&lines(&def.validate_update(&new, &old)));
}

fn pod(spec: Value) -> Value {
    json!({ "spec": spec })
}

fn container(more: Value) -> Value {
    let mut container = json!({ "name": "c", "image": "i" });
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "containers": [container] })
}

fn deployment(more: Value) -> Value {
    let mut spec = json!({ "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": container(json!({}))} });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "spec": spec })
}

#[test]
fn metadata() {
    let of = |metadata: Value, expected: Expect| create("", "ConfigMap", json!({ "metadata": metadata }), expected);
    of(json!({"name": "fine"}), expect![[""]]);
    of(
        json!({"name": "Not_Fine"}),
        expect![[
            r#"metadata.name: Invalid value: "Not_Fine": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#
        ]],
    );
    of(json!({"generateName": "web-", "name": "web-1"}), expect![[""]]);
    of(json!({"namespace": "x"}), expect!["metadata.name: Required value: name or generateName is required"]);
    of(
        json!({"name": "a", "labels": {"-x": "y", "a": "b c"}, "annotations": {"a/b/c": ""}}),
        expect![[r#"
        metadata.labels: Invalid value: "-x": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        metadata.labels: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        metadata.annotations: Invalid value: "a/b/c": a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"#]],
    );
    of(
        json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}], "finalizers": ["x"]}),
        expect![[r#"
        metadata.finalizers[0]: Invalid value: "x": name is neither a standard finalizer name nor is it fully qualified
        metadata.ownerReferences[0].uid: Invalid value: "": must not be empty"#]],
    );
    create("rbac.authorization.k8s.io", "Role", json!({"metadata": {"name": "system:x"}}), expect![[""]]);
    create(
        "rbac.authorization.k8s.io",
        "Role",
        json!({"metadata": {"name": "a/b"}}),
        expect![[r#"metadata.name: Invalid value: "a/b": may not contain '/'"#]],
    );
    update(
        "",
        "ConfigMap",
        json!({"metadata": {"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        json!({"metadata": {"name": "b", "uid": "2", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}}),
        expect![[r#"
            metadata.name: Invalid value: "b": field is immutable
            metadata.uid: Invalid value: "2": field is immutable
            metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"a/b"}"#]],
    );
}

#[test]
fn pods() {
    let of = |spec: Value, expected: Expect| create("", "Pod", pod(spec), expected);
    of(container(json!({})), expect![[""]]);
    of(json!({}), expect!["spec.containers: Required value"]);
    of(
        json!({"containers": [{"name": "A"}, {"image": "i"}], "restartPolicy": "Sometimes"}),
        expect![[r#"
        spec.containers[0].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.containers[0].image: Required value
        spec.containers[1].name: Required value
        spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#]],
    );
    of(
        json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}], "volumes": [{"name": "v"}, {"name": "v"}]}),
        expect![[r#"
        spec.volumes[1].name: Duplicate value: "v"
        spec.containers[1].name: Duplicate value: "a""#]],
    );
    of(
        container(
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}], "ports": [{"containerPort": 70000}, {"containerPort": 80, "protocol": "ICMP"}]}),
        ),
        expect![[r#"
        spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.containers[0].ports[1].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
        spec.containers[0].volumeMounts[0].name: Not found: "v""#]],
    );
    of(
        container(
            json!({"resources": {"limits": {"cpu": "1", "x.y/z": "500m"}, "requests": {"cpu": "2", "disk": "1"}}}),
        ),
        expect![[r#"
            spec.containers[0].resources.limits[x.y/z]: Invalid value: "500m": must be an integer
            spec.containers[0].resources.requests[disk]: Invalid value: "disk": must be a standard resource type or fully qualified
            spec.containers[0].resources.requests[disk]: Invalid value: "disk": must be a standard resource for containers
            spec.containers[0].resources.requests[x.y/z]: Invalid value: "500m": must be an integer
            spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#]],
    );
    of(
        container(
            json!({"env": [{"name": "a=b"}, {"name": "B", "valueFrom": {}}, {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "x"}}}], "envFrom": [{}]}),
        ),
        expect![[r#"
            spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
            spec.containers[0].env[1].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`
            spec.containers[0].env[2].valueFrom.configMapKeyRef.key: Required value
            spec.containers[0].envFrom[0]: Invalid value: "": must specify one of: `configMapRef` or `secretRef`"#]],
    );
}

#[test]
fn probes_and_volumes() {
    let of = |spec: Value, expected: Expect| create("", "Pod", pod(spec), expected);
    of(
        container(
            json!({"livenessProbe": {"httpGet": {"port": 80}, "tcpSocket": {"port": 1}, "successThreshold": 2}, "readinessProbe": {}}),
        ),
        expect![[r#"
            spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type
            spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
            spec.containers[0].readinessProbe: Required value: must specify a handler type"#]],
    );
    of(
        json!({"containers": [{"name": "a", "image": "i"}], "securityContext": {"sysctls": [
            {"name": "foo-", "value": "1"}, {"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": "net/ipv4/tcp_syncookies", "value": "1"},
            {"name": "bar..", "value": "1"}, {"name": "kernel.shm_rmid_forced", "value": "0"}, {"value": "0"},
        ]}}),
        expect![[r#"
            spec.securityContext.sysctls[0].name: Invalid value: "foo-": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$
            spec.securityContext.sysctls[3].name: Invalid value: "bar..": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$
            spec.securityContext.sysctls[4].name: Duplicate value: "kernel.shm_rmid_forced"
            spec.securityContext.sysctls[5].name: Required value"#]],
    );
    of(
        json!({"containers": [{"name": "a", "image": "i"}], "tolerations": [{"operator": "Equal"}, {"key": "k", "operator": "Exists", "effect": "Never"}],
        "volumes": [{"name": "v", "secret": {}, "emptyDir": {}}, {"name": "w", "configMap": {"items": [{"key": "k", "path": "../x"}]}}]}),
        expect![[r#"
            spec.volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type
            spec.volumes[1].configMap.name: Required value
            spec.volumes[1].configMap.items[0].path: Invalid value: "../x": must not contain '..'
            spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys"
            spec.tolerations[1].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#]],
    );
}

#[test]
fn pods_hardly_change() {
    let of = |new: Value, expected: Expect| update("", "Pod", pod(container(json!({}))), pod(new), expected);
    of(container(json!({"image": "other"})), expect![[""]]);
    of(
        container(json!({"args": ["x"]})),
        expect![[r#"
        spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)
        - containers: [{"name":"c","image":"i","imagePullPolicy":"Always","terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","resources":{}}]
        + containers: [{"name":"c","image":"i","args":["x"],"imagePullPolicy":"Always","terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","resources":{}}]"#]],
    );
    of(
        json!({"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}),
        expect!["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
}

#[test]
fn workloads() {
    let of = |more: Value, expected: Expect| create("apps", "Deployment", deployment(more), expected);
    of(json!({}), expect![[""]]);
    of(
        json!({"replicas": -1, "selector": {"matchLabels": {"app": "y"}}}),
        expect![[r#"
        spec.replicas: Invalid value: -1: must be greater than or equal to 0
        spec.template.metadata.labels: Invalid value: {"app":"x"}: `selector` does not match template `labels`"#]],
    );
    of(json!({"selector": {}}), expect!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]);
    of(
        json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
        expect!["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    of(
        json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
        expect![[
            r#"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#
        ]],
    );
    of(
        json!({"strategy": {"type": "Magic"}, "progressDeadlineSeconds": 5, "minReadySeconds": 5}),
        expect![[r#"
        spec.strategy.type: Unsupported value: "Magic": supported values: "Recreate", "RollingUpdate"
        spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"#]],
    );
    create(
        "apps",
        "Deployment",
        json!({"spec": {}}),
        expect![[r#"
        spec.selector: Required value
        spec.template: Required value"#]],
    );
}

#[test]
fn selectors_stay_and_jobs_end() {
    let of = |more: Value, expected: Expect| create("apps", "Deployment", deployment(more), expected);
    update(
        "apps",
        "Deployment",
        deployment(json!({})),
        deployment(
            json!({"selector": {"matchLabels": {"app": "y"}}, "template": {"metadata": {"labels": {"app": "y"}}, "spec": container(json!({}))}}),
        ),
        expect![[r#"spec.selector: Invalid value: {"matchLabels":{"app":"y"}}: field is immutable"#]],
    );
    update(
        "apps",
        "StatefulSet",
        deployment(json!({"serviceName": "a"})),
        deployment(json!({"serviceName": "b"})),
        expect![
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        ],
    );
    create(
        "apps",
        "StatefulSet",
        deployment(json!({"ordinals": {"start": -1}})),
        expect!["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"],
    );
    let mut never = container(json!({}));
    never["restartPolicy"] = "Never".into();
    of(
        json!({"template": {"metadata": {"labels": {"app": "x"}}, "spec": never}}),
        expect![[r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#]],
    );
    create(
        "batch",
        "Job",
        json!({"spec": {"template": {"spec": container(json!({}))}}}),
        expect![[
            r#"spec.template.spec.restartPolicy: Unsupported value: "Always": supported values: "OnFailure", "Never""#
        ]],
    );
    create(
        "batch",
        "CronJob",
        json!({"spec": {"schedule": "* * *", "jobTemplate": {"spec": {"template": {"spec": never}}}}}),
        expect![[r#"spec.schedule: Invalid value: "* * *": expected exactly 5 fields, found 3: [* * *]"#]],
    );
    create(
        "batch",
        "CronJob",
        json!({"spec": {"schedule": "61 * * * fri", "jobTemplate": {"spec": {"template": {"spec": never}}}}}),
        expect![[r#"spec.schedule: Invalid value: "61 * * * fri": end of range (61) above maximum (59): 61"#]],
    );
}

#[test]
fn indexed_jobs() {
    let of = |more: Value, expected: Expect| {
        let mut template = container(json!({}));
        template["restartPolicy"] = "Never".into();
        let mut spec = json!({"completionMode": "Indexed", "template": {"spec": template}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        create("batch", "Job", json!({ "spec": spec }), expected);
    };
    of(json!({"parallelism": 1}), expect!["spec.completions: Required value: when completion mode is Indexed"]);
    of(json!({"completions": 100_000, "parallelism": 100_000}), expect![[""]]);
    of(json!({"completions": 2_147_483_647, "parallelism": 100_000}), expect![[""]]);
    of(
        json!({"completions": 2_147_483_647, "parallelism": 100_001}),
        expect![
            "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed"
        ],
    );
    of(
        json!({"completions": 5, "backoffLimitPerIndex": 1, "maxFailedIndexes": 6}),
        expect!["spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions"],
    );
    of(
        json!({"completions": 200_000, "parallelism": 10_001, "backoffLimitPerIndex": 1, "maxFailedIndexes": 100_001}),
        expect![[r#"
            spec.maxFailedIndexes: Invalid value: 100001: must be less than or equal to 100000
            spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index
            spec.maxFailedIndexes: Invalid value: 100001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index"#]],
    );
    of(
        json!({"completions": 100_001, "backoffLimitPerIndex": 1}),
        expect!["spec.maxFailedIndexes: Required value: must be specified when completions is above 100000"],
    );
}

#[test]
fn services() {
    let of = |spec: Value, expected: Expect| create("", "Service", json!({ "spec": spec }), expected);
    of(json!({"ports": [{"port": 80}]}), expect![[""]]);
    of(json!({}), expect!["spec.ports: Required value"]);
    of(json!({"type": "ExternalName"}), expect!["spec.externalName: Required value"]);
    of(
        json!({"ports": [{"port": 80}, {"port": 80, "name": "b", "nodePort": 30000}], "type": "Cluster"}),
        expect![[r#"
        spec.ports[0].name: Required value
        spec.ports[1]: Duplicate value: {"protocol":"TCP","port":80}
        spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'Cluster'
        spec.type: Unsupported value: "Cluster": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#]],
    );
    of(
        json!({"ports": [{"port": 0, "protocol": "ICMP", "targetPort": "Bad--Name"}], "externalTrafficPolicy": "Local"}),
        expect![[r#"
        spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
        spec.ports[0].targetPort: Invalid value: "Bad--Name": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
        spec.ports[0].targetPort: Invalid value: "Bad--Name": must not contain consecutive hyphens
        spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#]],
    );
    update(
        "",
        "Service",
        json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
        json!({"spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 80}]}}),
        expect![[r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#]],
    );
    update(
        "",
        "Service",
        json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
        json!({"spec": {"ports": [{"port": 81}]}}),
        expect![[""]],
    );
    create(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"endpoints": [{"addresses": ["127.0.0.1"]}]}),
        expect![[r#"
        addressType: Required value
        endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#]],
    );
}

#[test]
fn configuration() {
    create(
        "",
        "ConfigMap",
        json!({"data": {"a b": "", "k": ""}, "binaryData": {"k": ""}}),
        expect![[r#"
        data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        data[k]: Invalid value: "k": duplicate of key present in binaryData"#]],
    );
    create(
        "",
        "ConfigMap",
        json!({"data": {"a": "x".repeat(1_100_000)}}),
        expect![": Too long: may not be more than 1048576 bytes"],
    );
    update(
        "",
        "ConfigMap",
        json!({"immutable": true, "data": {"a": "b"}}),
        json!({"data": {"a": "c"}}),
        expect![[r#"
        immutable: Forbidden: field is immutable when `immutable` is set
        data: Forbidden: field is immutable when `immutable` is set"#]],
    );
    create(
        "",
        "Secret",
        json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
        expect!["data[tls.key]: Required value"],
    );
    create(
        "",
        "Secret",
        json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}}),
        expect![[
            r#"data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": expected value at line 1 column 1"#
        ]],
    );
    update(
        "",
        "Secret",
        json!({"type": "a"}),
        json!({"type": "b"}),
        expect![[r#"type: Invalid value: "b": field is immutable"#]],
    );
    create(
        "",
        "Node",
        json!({"spec": {"taints": [{"key": "a", "effect": "Nothing"}]}}),
        expect![[
            r#"spec.taints[0].effect: Unsupported value: "Nothing": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#
        ]],
    );
    create(
        "",
        "Namespace",
        json!({"metadata": {"name": "a.b"}}),
        expect![[
            r#"metadata.name: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"#
        ]],
    );
}

#[test]
fn others() {
    create(
        "rbac.authorization.k8s.io",
        "Role",
        json!({"rules": [{}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        expect![[r#"
        rules[0].verbs: Required value: verbs must contain at least one value
        rules[0].apiGroups: Required value: resource rules must supply at least one api group
        rules[0].resources: Required value: resource rules must supply at least one resource
        rules[1].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#]],
    );
    create(
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        json!({"roleRef": {"kind": "Role", "name": ""}, "subjects": [{"kind": "Robot", "name": "x"}, {"kind": "ServiceAccount", "name": "s"}]}),
        expect![[r#"
        roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole"
        roleRef.name: Required value
        subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"
        subjects[1].namespace: Required value"#]],
    );
    update(
        "rbac.authorization.k8s.io",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "a"}}),
        json!({"roleRef": {"kind": "Role", "name": "b"}}),
        expect![[
            r#"roleRef: Invalid value: {"kind":"Role","name":"b","apiGroup":"rbac.authorization.k8s.io"}: cannot change roleRef"#
        ]],
    );
}

#[test]
fn networks() {
    create(
        "networking.k8s.io",
        "Ingress",
        json!({"spec": {"rules": [{"host": "1.2.3.4", "http": {"paths": [{"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "s"}}}, {"backend": {}}]}}]}}),
        expect![[r#"
        spec.rules[0].host: Invalid value: "1.2.3.4": must be a DNS name, not an IP address
        spec.rules[0].http.paths[0].path: Invalid value: "x": must be an absolute path
        spec.rules[0].http.paths[0].backend: Required value: port name or number is required
        spec.rules[0].http.paths[1].pathType: Required value: pathType must be specified
        spec.rules[0].http.paths[1].backend: Required value: either service or resource must be specified"#]],
    );
    create(
        "networking.k8s.io",
        "Ingress",
        json!({}),
        expect!["spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified"],
    );
    create(
        "networking.k8s.io",
        "Ingress",
        json!({"metadata": {"name": "x", "annotations": {"kubernetes.io/ingress.class": "b"}}, "spec": {"ingressClassName": "a", "defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}, "tls": [{"secretName": "A"}]}}),
        expect![[r#"
            annotations.kubernetes.io/ingress.class: Invalid value: "b": must match `ingressClassName` when both are specified
            spec.tls[0].secretName: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#]],
    );
    create(
        "networking.k8s.io",
        "NetworkPolicy",
        json!({"spec": {"ingress": [{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}]}}),
        expect![[r#"
        spec.ingress[0].from[0]: Required value: must specify a peer
        spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: "11.0.0.0/8": must be a strict subset of `cidr` "10.0.0.0/8""#]],
    );
}

#[test]
fn autoscalers() {
    let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
    create(
        "autoscaling",
        "HorizontalPodAutoscaler",
        json!({"apiVersion": "autoscaling/v2", "spec": {"minReplicas": -1, "maxReplicas": 0, "scaleTargetRef": target, "metrics": [
            {"type": "Resource"}, {"type": "Load"},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0, "averageValue": "1"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"type": "Much"}}},
            {"type": "Pods", "pods": {"metric": {"name": "a/b"}, "target": {"type": "AverageValue", "averageValue": "0"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "Ingress"}, "metric": {"name": "rps"}, "target": {"type": "Value"}}},
            {"type": "External", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "1"}}},
        ]}}),
        expect![[r#"
            spec.minReplicas: Invalid value: -1: must be greater than or equal to 0
            spec.maxReplicas: Invalid value: 0: must be greater than 0
            spec.metrics[0].resource: Required value: must populate information for the given metric source
            spec.metrics[1].type: Unsupported value: "Load": supported values: "ContainerResource", "External", "Object", "Pods", "Resource"
            spec.metrics[2].resource.target.averageUtilization: Invalid value: 0: must be greater than 0
            spec.metrics[2].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization
            spec.metrics[3].containerResource.container: Required value: must specify a container
            spec.metrics[3].containerResource.target.type: Invalid value: "Much": must be either Utilization, Value, or AverageValue
            spec.metrics[3].containerResource.target.averageUtilization: Required value: must set either a target raw value or a target utilization
            spec.metrics[4].pods.metric.name: Invalid value: "a/b": may not contain '/'
            spec.metrics[4].pods.target.averageValue: Invalid value: "0": must be positive
            spec.metrics[4].pods.target.averageValue: Required value: must specify a positive target averageValue
            spec.metrics[5].object.describedObject.name: Required value
            spec.metrics[5].object.target.averageValue: Required value: must set either a target value or averageValue
            spec.metrics[6].external: Required value: must populate information for the given metric source
            spec.metrics[6].resource: Forbidden: must populate the given metric source only"#]],
    );
    create(
        "autoscaling",
        "HorizontalPodAutoscaler",
        json!({"apiVersion": "autoscaling/v2", "spec": {"maxReplicas": 3, "scaleTargetRef": target, "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": -1, "selectPolicy": "Some"},
            "scaleDown": {"stabilizationWindowSeconds": 3601, "tolerance": "-1", "policies": [
                {"type": "Nodes", "value": 0, "periodSeconds": 1801}, {"type": "Pods", "value": 1, "periodSeconds": 0}]}}}}),
        expect![[r#"
            spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero
            spec.behavior.scaleUp.selectPolicy: Unsupported value: "Some": supported values: "Disabled", "Max", "Min"
            spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600
            spec.behavior.scaleDown.policies[0].type: Unsupported value: "Nodes": supported values: "Percent", "Pods"
            spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero
            spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800
            spec.behavior.scaleDown.policies[1].periodSeconds: Invalid value: 0: must be greater than zero
            spec.behavior.scaleDown.tolerance: Invalid value: "-1": must be greater or equal to 0"#]],
    );
}

#[test]
fn autoscalers_go_to_zero_where_something_tells_when_to_come_back() {
    const REFUSED: &str = "spec.metrics: Forbidden: must specify at least one Object or External metric, or a Pods metric of \
                           http_requests_per_second or http_requests_in_flight, to support scaling to zero replicas";
    let check = |metric: Value, expected: &str| {
        let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
        let spec = json!({"minReplicas": 0, "maxReplicas": 3, "scaleTargetRef": target, "metrics": [metric]});
        let object = json!({"apiVersion": "autoscaling/v2", "spec": spec});
        let object = Object::from_value(object).unwrap();
        assert_eq!(lines(&super::autoscaling::autoscaler(&object, None)), expected, "{metric}");
    };
    let each = json!({"type": "AverageValue", "averageValue": "1"});
    let about = json!({"kind": "Ingress", "name": "main"});
    check(json!({"type": "Object", "object": {"describedObject": about, "metric": {"name": "x"}, "target": each}}), "");
    check(json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": each}}), "");
    for (name, expected) in [("http_requests_per_second", ""), ("http_requests_in_flight", ""), ("other", REFUSED)] {
        check(json!({"type": "Pods", "pods": {"metric": {"name": name}, "target": each}}), expected);
    }
    check(json!({"type": "Resource", "resource": {"name": "cpu", "target": each}}), REFUSED);
}

#[test]
fn policies_and_storage() {
    create(
        "autoscaling",
        "HorizontalPodAutoscaler",
        json!({"apiVersion": "autoscaling/v2", "spec": {"minReplicas": 3, "maxReplicas": 2}}),
        expect![[r#"
        spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`
        spec.scaleTargetRef.kind: Required value
        spec.scaleTargetRef.name: Required value"#]],
    );
    create(
        "policy",
        "PodDisruptionBudget",
        json!({"spec": {"minAvailable": "200%", "maxUnavailable": 1}}),
        expect![[r#"
        spec: Invalid value: {"minAvailable":"200%","maxUnavailable":1}: minAvailable and maxUnavailable cannot be both set
        spec.minAvailable: Invalid value: "200%": must not be greater than 100%"#]],
    );
    create(
        "scheduling.k8s.io",
        "PriorityClass",
        json!({"metadata": {"name": "system-x"}, "value": 2_000_000_000}),
        expect![[r#"
        metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only
        value: Forbidden: maximum allowed value of a user defined priority is 1000000000"#]],
    );
    create(
        "node.k8s.io",
        "RuntimeClass",
        json!({"handler": "A"}),
        expect![[
            r#"handler: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"#
        ]],
    );
    create(
        "",
        "PersistentVolumeClaim",
        json!({"spec": {"accessModes": ["RWO"]}}),
        expect![[r#"
        spec.accessModes: Unsupported value: "RWO": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"
        spec.resources[storage]: Required value"#]],
    );
    create(
        "",
        "PersistentVolume",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}}),
        expect!["spec: Required value: must specify a volume type"],
    );
    create(
        "",
        "PersistentVolume",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/a/../b"},
            "persistentVolumeReclaimPolicy": "Recycle"}}),
        expect![[r#"
            spec.persistentVolumeReclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain"
            spec.local.path: Invalid value: "/a/../b": must not contain '..'
            spec.nodeAffinity: Required value: Local volume requires node affinity"#]],
    );
    create(
        "",
        "PersistentVolume",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": {"driver": "x.y"}}}),
        expect!["spec.csi.volumeHandle: Required value"],
    );
    create("storage.k8s.io", "StorageClass", json!({}), expect!["provisioner: Required value"]);
    create(
        "certificates.k8s.io",
        "CertificateSigningRequest",
        json!({"spec": {"request": "eA==", "signerName": "x"}}),
        expect![[r#"
        spec.request: Invalid value: "eA==": PEM block type must be CERTIFICATE REQUEST
        spec.usages: Required value
        spec.signerName: Invalid value: "x": must be a fully qualified domain and path of the form "example.com/signer-name""#]],
    );
}

#[test]
fn limits_and_quotas() {
    let limits = |item: Value| json!({ "spec": { "limits": [item] } });
    create(
        "",
        "LimitRange",
        limits(json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "100m"}})),
        expect![""],
    );
    create(
        "",
        "LimitRange",
        limits(json!({"type": "Container", "max": {"cpu": "500m", "pods": "1"}, "default": {"cpu": "1"},
            "maxLimitRequestRatio": {"cpu": "0.5"}})),
        expect![[r#"
            spec.limits[0].max[pods]: Invalid value: "pods": must be a standard resource type or fully qualified
            spec.limits[0].max[pods]: Invalid value: "pods": must be a standard resource for containers
            spec.limits[0].default[pods]: Invalid value: "pods": must be a standard resource type or fully qualified
            spec.limits[0].default[pods]: Invalid value: "pods": must be a standard resource for containers
            spec.limits[0].defaultRequest[pods]: Invalid value: "pods": must be a standard resource type or fully qualified
            spec.limits[0].defaultRequest[pods]: Invalid value: "pods": must be a standard resource for containers
            spec.limits[0].defaultRequest[cpu]: Invalid value: "1": default request value 1 is greater than max value 500m
            spec.limits[0].default[cpu]: Invalid value: "1": default value 1 is greater than max value 500m
            spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: "500m": ratio 500m is less than 1"#]],
    );
    create(
        "",
        "LimitRange",
        limits(json!({"type": "Pod", "default": {"cpu": "1"}, "min": {"cpu": "1"}, "max": {"cpu": "2"},
            "maxLimitRequestRatio": {"cpu": "3"}})),
        expect![[r#"
            spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'
            spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: "3": ratio 3 is greater than max/min = 2.000000"#]],
    );
    let twice = json!({ "spec": { "limits": [{"type": "PersistentVolumeClaim"}, {"type": "PersistentVolumeClaim"}, {"type": "x"}] } });
    create(
        "",
        "LimitRange",
        twice,
        expect![[r#"
        spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided
        spec.limits[1].type: Duplicate value: "PersistentVolumeClaim"
        spec.limits[1].limits: Required value: either minimum or maximum storage value is required, but neither was provided
        spec.limits[2].type: Invalid value: "x": must be a standard limit type or fully qualified"#]],
    );
    create(
        "",
        "ResourceQuota",
        json!({"spec": {"hard": {"pods": "1.5", "cpu": "-1", "foo": "1", "count/deployments.apps": "3", "requests.x.y/gpu": "1"}}}),
        expect![[r#"
            spec.hard[pods]: Invalid value: "1500m": must be an integer
            spec.hard[cpu]: Invalid value: "-1": must be greater than or equal to 0
            spec.hard[foo]: Invalid value: "foo": must be a standard resource type or fully qualified
            spec.hard[foo]: Invalid value: "foo": must be a standard resource for quota"#]],
    );
    create(
        "",
        "ResourceQuota",
        json!({"spec": {"hard": {"pods": "1", "configmaps": "1"}, "scopes": ["Terminating", "NotTerminating", "Odd"]}}),
        expect![[r#"
            spec.scopes: Invalid value: ["Terminating","NotTerminating","Odd"]: unsupported scope applied to resource
            spec.scopes: Invalid value: ["Terminating","NotTerminating","Odd"]: unsupported scope applied to resource
            spec.scopes: Invalid value: ["Terminating","NotTerminating","Odd"]: unsupported scope
            spec.scopes: Invalid value: ["Terminating","NotTerminating","Odd"]: conflicting scopes"#]],
    );
    let select = |operator: &str, scope: &str| {
        let expression = json!({"scopeName": scope, "operator": operator});
        json!({"spec": {"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [expression]}}})
    };
    create(
        "",
        "ResourceQuota",
        select("In", "PriorityClass"),
        expect![
            "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
        ],
    );
    create(
        "",
        "ResourceQuota",
        select("DoesNotExist", "BestEffort"),
        expect![[
            r#"spec.scopeSelector.matchExpressions.operator: Invalid value: "DoesNotExist": must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"#
        ]],
    );
    update(
        "",
        "ResourceQuota",
        json!({"spec": {"hard": {"pods": "1"}, "scopes": ["BestEffort"]}}),
        json!({"spec": {"hard": {"pods": "2"}}}),
        expect!["spec.scopes: Invalid value: []: field is immutable"],
    );
}

#[test]
fn addresses_are_named_canonically() {
    let problems = |name: &str| NameRule::IpAddress.problems(name, false);
    assert!(problems("fe80::42:1dff:fe84:f9e2").is_empty() && problems("10.96.0.1").is_empty());
    assert_eq!(problems("FE80::1"), ["must be a valid IP address in canonical form"]);
    assert_eq!(problems("web"), problems("010.0.0.1"));
}
