use expect_test::{Expect, expect};
use tandem_api::Object;

use crate::{Registry, fields};

/// What becomes of a body that is created: defaults and preparation, as YAML-like lines.
fn check(path: (&str, &str), body: serde_json::Value, expected: Expect) {
    let registry = Registry::builtin();
    let (group, kind) = path;
    let def = registry.all().into_iter().rfind(|def| def.group == group && def.kind == kind).unwrap();
    let mut object = Object::from_value(body).unwrap();
    fields::prune(registry.schema(), &def.type_name, &mut object);
    def.default(&mut object);
    def.prepare_create(&mut object);
    assert_eq!(fields::check(registry.schema(), &def.type_name, &object), Vec::<String>::new());
    fields::types(registry.schema(), &def.type_name, &object).unwrap();
    let mut pruned = object.clone();
    fields::prune(registry.schema(), &def.type_name, &mut pruned);
    assert_eq!(pruned, object, "defaults survive pruning");
    let mut lines = Vec::new();
    flatten("", &serde_json::Value::Object(object.0), &mut lines);
    expected.assert_eq(&lines.join("\n"));
}

fn flatten(path: &str, value: &serde_json::Value, lines: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, lines));
        }
        serde_json::Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(at, value)| flatten(&format!("{path}[{at}]"), value, lines));
        }
        other => lines.push(format!("{path} = {other}")),
    }
}

#[test]
fn pods() {
    check(
        ("", "Pod"),
        serde_json::json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "me",
            "containers": [{"name": "c", "image": "nginx:1.25", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/x"}}]}}),
        expect![[r#"
            .metadata.name = "p"
            .metadata.generation = 1
            .spec.serviceAccountName = "me"
            .spec.containers[0].name = "c"
            .spec.containers[0].image = "nginx:1.25"
            .spec.containers[0].ports[0].containerPort = 80
            .spec.containers[0].ports[0].protocol = "TCP"
            .spec.containers[0].livenessProbe.httpGet.port = 80
            .spec.containers[0].livenessProbe.httpGet.path = "/"
            .spec.containers[0].livenessProbe.httpGet.scheme = "HTTP"
            .spec.containers[0].livenessProbe.timeoutSeconds = 1
            .spec.containers[0].livenessProbe.periodSeconds = 10
            .spec.containers[0].livenessProbe.successThreshold = 1
            .spec.containers[0].livenessProbe.failureThreshold = 3
            .spec.containers[0].resources.limits.cpu = "1"
            .spec.containers[0].resources.limits.memory = "64Mi"
            .spec.containers[0].resources.requests.cpu = "1"
            .spec.containers[0].resources.requests.memory = "64Mi"
            .spec.containers[0].env[0].name = "A"
            .spec.containers[0].env[0].valueFrom.fieldRef.fieldPath = "metadata.name"
            .spec.containers[0].env[0].valueFrom.fieldRef.apiVersion = "v1"
            .spec.containers[0].imagePullPolicy = "IfNotPresent"
            .spec.containers[0].terminationMessagePath = "/dev/termination-log"
            .spec.containers[0].terminationMessagePolicy = "File"
            .spec.volumes[0].name = "v"
            .spec.volumes[0].emptyDir = {}
            .spec.volumes[1].name = "s"
            .spec.volumes[1].secret.secretName = "x"
            .spec.volumes[1].secret.defaultMode = 420
            .spec.volumes[2].name = "h"
            .spec.volumes[2].hostPath.path = "/x"
            .spec.volumes[2].hostPath.type = ""
            .spec.restartPolicy = "Always"
            .spec.terminationGracePeriodSeconds = 30
            .spec.dnsPolicy = "ClusterFirst"
            .spec.serviceAccount = "me"
            .spec.securityContext = {}
            .spec.schedulerName = "default-scheduler"
            .spec.enableServiceLinks = true
            .apiVersion = "v1"
            .kind = "Pod"
            .status.phase = "Pending"
            .status.qosClass = "Guaranteed""#]],
    );
}

#[test]
fn deployments() {
    check(
        ("apps", "Deployment"),
        serde_json::json!({"metadata": {"name": "d"}, "status": {"replicas": 9}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}}),
        expect![[r#"
            .metadata.name = "d"
            .metadata.generation = 1
            .status = {}
            .spec.selector.matchLabels.a = "b"
            .spec.template.metadata.labels.a = "b"
            .spec.template.spec.containers[0].name = "c"
            .spec.template.spec.containers[0].image = "nginx"
            .spec.template.spec.containers[0].imagePullPolicy = "Always"
            .spec.template.spec.containers[0].terminationMessagePath = "/dev/termination-log"
            .spec.template.spec.containers[0].terminationMessagePolicy = "File"
            .spec.template.spec.containers[0].resources = {}
            .spec.template.spec.restartPolicy = "Always"
            .spec.template.spec.terminationGracePeriodSeconds = 30
            .spec.template.spec.dnsPolicy = "ClusterFirst"
            .spec.template.spec.securityContext = {}
            .spec.template.spec.schedulerName = "default-scheduler"
            .spec.replicas = 1
            .spec.strategy.type = "RollingUpdate"
            .spec.strategy.rollingUpdate.maxUnavailable = "25%"
            .spec.strategy.rollingUpdate.maxSurge = "25%"
            .spec.revisionHistoryLimit = 10
            .spec.progressDeadlineSeconds = 600
            .apiVersion = "apps/v1"
            .kind = "Deployment""#]],
    );
}

#[test]
fn services() {
    check(
        ("", "Service"),
        serde_json::json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "name": "x", "targetPort": "http"}]}}),
        expect![[r#"
            .metadata.name = "s"
            .spec.type = "NodePort"
            .spec.ports[0].port = 80
            .spec.ports[0].protocol = "TCP"
            .spec.ports[0].targetPort = 80
            .spec.ports[1].port = 81
            .spec.ports[1].name = "x"
            .spec.ports[1].targetPort = "http"
            .spec.ports[1].protocol = "TCP"
            .spec.sessionAffinity = "None"
            .spec.externalTrafficPolicy = "Cluster"
            .spec.internalTrafficPolicy = "Cluster"
            .spec.ipFamilyPolicy = "SingleStack"
            .spec.ipFamilies[0] = "IPv4"
            .apiVersion = "v1"
            .kind = "Service"
            .status.loadBalancer = {}"#]],
    );
}

#[test]
fn small_kinds() {
    check(
        ("", "Secret"),
        serde_json::json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}, "data": {"c": "ZA=="}}),
        expect![[r#"
            .metadata.name = "s"
            .data.c = "ZA=="
            .data.a = "Yg=="
            .apiVersion = "v1"
            .kind = "Secret"
            .type = "Opaque""#]],
    );
    check(
        ("", "Namespace"),
        serde_json::json!({"metadata": {"name": "n"}}),
        expect![[r#"
        .metadata.name = "n"
        .metadata.labels.kubernetes.io/metadata.name = "n"
        .apiVersion = "v1"
        .kind = "Namespace"
        .status.phase = "Active"
        .spec.finalizers[0] = "kubernetes""#]],
    );
    check(
        ("rbac.authorization.k8s.io", "RoleBinding"),
        serde_json::json!({"metadata": {"name": "r"}, "roleRef": {"kind": "Role", "name": "x"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
        expect![[r#"
            .metadata.name = "r"
            .roleRef.kind = "Role"
            .roleRef.name = "x"
            .roleRef.apiGroup = "rbac.authorization.k8s.io"
            .subjects[0].kind = "User"
            .subjects[0].name = "u"
            .subjects[0].apiGroup = "rbac.authorization.k8s.io"
            .subjects[1].kind = "ServiceAccount"
            .subjects[1].name = "s"
            .subjects[1].namespace = "n"
            .apiVersion = "rbac.authorization.k8s.io/v1"
            .kind = "RoleBinding""#]],
    );
}

#[test]
fn autoscalers_and_jobs() {
    check(
        ("autoscaling", "HorizontalPodAutoscaler"),
        serde_json::json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "behavior": {}}}),
        expect![[r#"
            .apiVersion = "autoscaling/v2"
            .metadata.name = "h"
            .spec.maxReplicas = 3
            .spec.behavior.scaleUp.stabilizationWindowSeconds = 0
            .spec.behavior.scaleUp.selectPolicy = "Max"
            .spec.behavior.scaleUp.policies[0].type = "Pods"
            .spec.behavior.scaleUp.policies[0].value = 4
            .spec.behavior.scaleUp.policies[0].periodSeconds = 15
            .spec.behavior.scaleUp.policies[1].type = "Percent"
            .spec.behavior.scaleUp.policies[1].value = 100
            .spec.behavior.scaleUp.policies[1].periodSeconds = 15
            .spec.behavior.scaleDown.selectPolicy = "Max"
            .spec.behavior.scaleDown.policies[0].type = "Percent"
            .spec.behavior.scaleDown.policies[0].value = 100
            .spec.behavior.scaleDown.policies[0].periodSeconds = 15
            .spec.minReplicas = 1
            .spec.metrics[0].type = "Resource"
            .spec.metrics[0].resource.name = "cpu"
            .spec.metrics[0].resource.target.type = "Utilization"
            .spec.metrics[0].resource.target.averageUtilization = 80
            .kind = "HorizontalPodAutoscaler"
            .status = {}"#]],
    );
    check(
        ("batch", "Job"),
        serde_json::json!({"metadata": {"name": "j", "uid": "u1"}, "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:1"}], "restartPolicy": "Never"}}}}),
        expect![[r#"
            .metadata.name = "j"
            .metadata.uid = "u1"
            .metadata.generation = 1
            .spec.template.spec.containers[0].name = "c"
            .spec.template.spec.containers[0].image = "i:1"
            .spec.template.spec.containers[0].imagePullPolicy = "IfNotPresent"
            .spec.template.spec.containers[0].terminationMessagePath = "/dev/termination-log"
            .spec.template.spec.containers[0].terminationMessagePolicy = "File"
            .spec.template.spec.containers[0].resources = {}
            .spec.template.spec.restartPolicy = "Never"
            .spec.template.spec.terminationGracePeriodSeconds = 30
            .spec.template.spec.dnsPolicy = "ClusterFirst"
            .spec.template.spec.securityContext = {}
            .spec.template.spec.schedulerName = "default-scheduler"
            .spec.template.metadata.labels.controller-uid = "u1"
            .spec.template.metadata.labels.batch.kubernetes.io/controller-uid = "u1"
            .spec.template.metadata.labels.job-name = "j"
            .spec.template.metadata.labels.batch.kubernetes.io/job-name = "j"
            .spec.completions = 1
            .spec.parallelism = 1
            .spec.backoffLimit = 6
            .spec.completionMode = "NonIndexed"
            .spec.suspend = false
            .spec.manualSelector = false
            .spec.podReplacementPolicy = "TerminatingOrFailed"
            .spec.selector.matchLabels.batch.kubernetes.io/controller-uid = "u1"
            .apiVersion = "batch/v1"
            .kind = "Job"
            .status = {}"#]],
    );
}
