use expect_test::{Expect, expect};
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_api::Object;

use super::*;
use crate::Registry;

/// The cells of an object that was created five minutes ago, as `kubectl get -o wide` prints them.
fn check(group: &str, kind: &str, mut object: Value, expected: Expect) {
    let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
    let registry = Registry::builtin();
    let def = registry.all().into_iter().find(|def| def.group == group && def.kind == kind).unwrap();
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    object["metadata"]["name"] = "x".into();
    object["kind"] = kind.into();
    let object = Object::from_value(object).unwrap();
    let cells: Vec<String> = (def.hooks.cells)(&object, now)
        .iter()
        .zip(def.columns.iter())
        .map(|(cell, column)| {
            format!("{}={}", column.name, cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
        })
        .collect();
    expected.assert_eq(&cells.join(" | "));
}

fn pod(status: Value, expected: Expect) {
    pod_of(json!({"containers": [{}, {}], "nodeName": "n1"}), status, expected);
}

fn pod_of(spec: Value, status: Value, expected: Expect) {
    let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
    let object = Object::from_value(json!({"spec": spec, "status": status})).unwrap();
    let cells: Vec<String> =
        pod::cells(&object, now)[1..4].iter().map(|cell| cell.as_str().unwrap().to_owned()).collect();
    expected.assert_eq(&cells.join(" "));
}

#[test]
fn pods_say_what_is_the_matter() {
    let running = json!({"ready": true, "state": {"running": {}}});
    pod(json!({"phase": "Pending"}), expect!["0/2 Pending 0"]);
    pod(json!({"phase": "Running", "containerStatuses": [running, running]}), expect!["2/2 Running 0"]);
    pod(
        json!({"phase": "Running", "containerStatuses": [running, {"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:04:00Z"}}}]}),
        expect!["1/2 CrashLoopBackOff 3 (60s ago)"],
    );
    pod(
        json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}),
        expect!["0/2 Completed 0"],
    );
    pod(
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}, running]}),
        expect!["1/2 Running 0"],
    );
    pod(json!({"phase": "Failed", "reason": "Evicted"}), expect!["0/2 Evicted 0"]);
    pod(
        json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 2}}}]}),
        expect!["0/2 ExitCode:2 0"],
    );
    pod(
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
        expect!["0/2 SchedulingGated 0"],
    );
}

#[test]
fn pods_that_initialize() {
    let spec = json!({"initContainers": [{"name": "a"}, {"name": "b"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{}]});
    let done = json!({"name": "a", "state": {"terminated": {"exitCode": 0}}});
    pod_of(
        spec.clone(),
        json!({"initContainerStatuses": [done, {"name": "b", "state": {"running": {}}}]}),
        expect!["0/2 Init:1/3 0"],
    );
    pod_of(
        spec.clone(),
        json!({"initContainerStatuses": [{"name": "a", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
        expect!["0/2 Init:CrashLoopBackOff 2"],
    );
    pod_of(
        spec.clone(),
        json!({"initContainerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
        expect!["0/2 Init:Error 0"],
    );
    pod_of(
        spec,
        json!({"phase": "Running", "initContainerStatuses": [done, {"name": "b", "state": {"terminated": {"exitCode": 0}}},
            {"name": "s", "started": true, "ready": true, "restartCount": 1}], "containerStatuses": [{"ready": true, "restartCount": 1, "state": {"running": {}}}]}),
        expect!["2/2 Running 2"],
    );
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j:2"}]}});
    check(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": 3, "template": template, "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "t", "operator": "In", "values": ["y", "x"]}]}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
        expect![
            "Name=x | Ready=2/3 | Up-to-date=3 | Available=2 | Age=5m | Containers=a,b | Images=i:1,j:2 | Selector=app=web,t in (x,y)"
        ],
    );
    check(
        "apps",
        "ReplicaSet",
        json!({"spec": {"replicas": 3, "template": template}}),
        expect![
            "Name=x | Desired=3 | Current=0 | Ready=0 | Age=5m | Containers=a,b | Images=i:1,j:2 | Selector=<none>"
        ],
    );
    check(
        "apps",
        "StatefulSet",
        json!({"spec": {"replicas": 3, "template": template}, "status": {"readyReplicas": 1}}),
        expect!["Name=x | Ready=1/3 | Age=5m | Containers=a,b | Images=i:1,j:2"],
    );
    check(
        "apps",
        "DaemonSet",
        json!({"spec": {"template": template}, "status": {"desiredNumberScheduled": 2}}),
        expect![
            "Name=x | Desired=2 | Current=0 | Ready=0 | Up-to-date=0 | Available=0 | Node Selector=<none> | Age=5m | Containers=a,b | Images=i:1,j:2 | Selector=<none>"
        ],
    );
    check(
        "batch",
        "Job",
        json!({"spec": {"completions": 2, "template": template}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:04:00Z"}}),
        expect![
            "Name=x | Status=Running | Completions=1/2 | Duration=60s | Age=5m | Containers=a,b | Images=i:1,j:2 | Selector=<none>"
        ],
    );
    check(
        "batch",
        "CronJob",
        json!({"spec": {"schedule": "* * * * *", "suspend": false, "jobTemplate": {"spec": {"template": template}}}, "status": {"active": [{}]}}),
        expect![
            "Name=x | Schedule=* * * * * | Timezone=<none> | Suspend=False | Active=1 | Last Schedule=<none> | Age=5m | Containers=a,b | Images=i:1,j:2 | Selector=<none>"
        ],
    );
}

#[test]
fn cluster() {
    check(
        "",
        "Node",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}}),
        expect![
            "Name=x | Status=Ready,SchedulingDisabled | Roles=control-plane | Age=5m | Version=v1.36.0 | Internal-IP=10.0.0.1 | External-IP=<none> | OS-Image=<unknown> | Kernel-Version=<unknown> | Container-Runtime=<unknown>"
        ],
    );
    check(
        "",
        "Service",
        json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.5", "selector": {"b": "c", "a": "b"}, "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
        expect![
            "Name=x | Type=NodePort | Cluster-IP=10.96.0.5 | External-IP=<none> | Port(s)=80:30080/TCP | Age=5m | Selector=a=b,b=c"
        ],
    );
    check(
        "",
        "Endpoints",
        json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}], "ports": [{"port": 80}, {"port": 81}]}]}),
        expect!["Name=x | Endpoints=1.1.1.1:80,2.2.2.2:80,1.1.1.1:81 + 1 more... | Age=5m"],
    );
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["1.1.1.1"]}]}),
        expect!["Name=x | AddressType=IPv4 | Ports=80 | Endpoints=1.1.1.1 | Age=5m"],
    );
    check(
        "",
        "Event",
        json!({"type": "Warning", "reason": "Failed", "message": "no\n", "eventTime": "2026-01-01T00:04:30.000000Z", "involvedObject": {"kind": "Pod", "name": "p"}, "reportingComponent": "kubelet", "reportingInstance": "n1"}),
        expect![
            "Last Seen=30s | Type=Warning | Reason=Failed | Object=pod/p | Subobject= | Source=kubelet, n1 | Message=no | First Seen=30s | Count=1 | Name=x"
        ],
    );
    check("", "ConfigMap", json!({"data": {"a": "b"}, "binaryData": {"c": ""}}), expect!["Name=x | Data=2 | Age=5m"]);
    check(
        "",
        "PersistentVolumeClaim",
        json!({"status": {"phase": "Pending"}, "spec": {"storageClassName": "local"}}),
        expect![
            "Name=x | Status=Pending | Volume= | Capacity= | Access Modes= | StorageClass=local | VolumeAttributesClass=<unset> | Age=5m | VolumeMode=<unset>"
        ],
    );
    check(
        "networking.k8s.io",
        "Ingress",
        json!({"spec": {"rules": [{"host": "a.b"}]}}),
        expect!["Name=x | Class=<none> | Hosts=a.b | Address= | Ports=80 | Age=5m"],
    );
    check("rbac.authorization.k8s.io", "Role", json!({}), expect!["Name=x | Created At=2026-01-01T00:00:00Z"]);
    check(
        "autoscaling",
        "HorizontalPodAutoscaler",
        json!({"spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}}),
        expect![
            "Name=x | Reference=Deployment/web | Targets=cpu: <unknown>/80% | MinPods=1 | MaxPods=3 | Replicas=0 | Age=5m"
        ],
    );
}

#[test]
fn tables() {
    let registry = Registry::builtin();
    let def = registry.by_kind("", "v1", "ConfigMap").unwrap();
    let mut object = Object::default();
    object.set(&["metadata", "name"], "x");
    let now = Timestamp::UNIX_EPOCH;
    let table = table(&def, &[&object], json!({"resourceVersion": "7"}), IncludeObject::Metadata, true, now);
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
    assert_eq!(table["rows"][0]["cells"], json!(["x", 0, "<unknown>"]));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["metadata"]["resourceVersion"], "7");
}
