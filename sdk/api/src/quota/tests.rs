use serde_json::json;

use super::*;

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

fn used(name: &str, value: Value) -> String {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    show(&Counted::by(name).unwrap().usage(&object(value), now))
}

#[test]
fn names_say_what_is_counted() {
    for (name, group, resource) in [
        ("pods", "", "pods"),
        ("count/pods", "", "pods"),
        ("limits.memory", "", "pods"),
        ("requests.ephemeral-storage", "", "pods"),
        ("hugepages-2Mi", "", "pods"),
        ("requests.nvidia.com/gpu", "", "pods"),
        ("count/deployments.apps", "apps", "deployments"),
        ("count/widgets.example.com", "example.com", "widgets"),
        ("services.nodeports", "", "services"),
        ("requests.storage", "", "persistentvolumeclaims"),
        ("gold.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims"),
        ("secrets", "", "secrets"),
    ] {
        assert_eq!(Counted::by(name), Some(Counted { group, resource }), "{name}");
    }
    for name in ["deployments", "nvidia.com/gpu", "requests.pods", "gold.storageclass.storage.k8s.io/pods", "storage"] {
        assert_eq!(Counted::by(name), None, "{name}");
    }
}

#[test]
fn pods_use_what_they_ask_for() {
    let asks = |cpu: &str| json!({ "requests": { "cpu": cpu, "memory": "64Mi" }, "limits": { "cpu": "1" } });
    let spec = json!({
        "overhead": { "cpu": "10m" },
        "initContainers": [
            { "name": "proxy", "restartPolicy": "Always", "resources": { "requests": { "cpu": "100m" } } },
            { "name": "setup", "resources": asks("500m") },
        ],
        "containers": [{ "name": "a", "resources": asks("200m") }, { "name": "b", "resources": asks("100m") }],
    });
    assert_eq!(
        used("pods", json!({ "spec": spec })),
        "count/pods=1,cpu=610m,limits.cpu=2010m,memory=128Mi,pods=1,requests.cpu=610m,requests.memory=128Mi"
    );
    let whole = json!({ "resources": { "requests": { "cpu": "2" } }, "containers": [{ "resources": asks("1") }] });
    assert_eq!(
        used("pods", json!({ "spec": whole })),
        "count/pods=1,cpu=2,limits.cpu=1,memory=64Mi,pods=1,requests.cpu=2,requests.memory=64Mi"
    );
    let special = json!({ "requests": { "nvidia.com/gpu": "2", "hugepages-2Mi": "4Mi" } });
    assert_eq!(
        used("pods", json!({ "spec": { "containers": [{ "resources": special }] } })),
        "count/pods=1,hugepages-2Mi=4Mi,pods=1,requests.hugepages-2Mi=4Mi,requests.nvidia.com/gpu=2"
    );
}

#[test]
fn pods_use_what_is_held_for_them_while_they_are_resized() {
    let pod = |wants: &str, reason: &str| {
        json!({
            "spec": { "containers": [{ "name": "a", "resources": { "requests": { "cpu": wants } } }] },
            "status": {
                "containerStatuses": [{
                    "name": "a", "allocatedResources": { "cpu": "2" }, "resources": { "requests": { "cpu": "1" } },
                }],
                "conditions": [{ "type": "PodResizePending", "status": "True", "reason": reason }],
            },
        })
    };
    for (wants, reason, cpu) in [("1", "Deferred", "2"), ("5", "Deferred", "5"), ("5", "Infeasible", "2")] {
        let told = used("pods", pod(wants, reason));
        assert_eq!(told, format!("count/pods=1,cpu={cpu},pods=1,requests.cpu={cpu}"), "{wants} {reason}");
    }
}

#[test]
fn pods_that_have_ended_are_only_counted() {
    assert_eq!(used("pods", json!({ "status": { "phase": "Failed" } })), "count/pods=1");
    let deleted = |at: &str| json!({ "metadata": { "deletionTimestamp": at, "deletionGracePeriodSeconds": 30 } });
    assert_eq!(used("pods", deleted("2025-12-31T23:59:40Z")), "count/pods=1,pods=1");
    assert_eq!(used("pods", deleted("2025-12-31T23:59:00Z")), "count/pods=1");
}

#[test]
fn services_use_ports_and_balancers() {
    let ports = json!([{ "port": 1 }, { "port": 2, "nodePort": 30000 }]);
    let service = |spec: Value| used("services", json!({ "spec": spec }));
    assert_eq!(
        service(json!({ "type": "ClusterIP", "ports": ports })),
        "count/services=1,services=1,services.loadbalancers=0,services.nodeports=0"
    );
    assert_eq!(
        service(json!({ "type": "NodePort", "ports": ports })),
        "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2"
    );
    assert_eq!(
        service(json!({ "type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false })),
        "count/services=1,services=1,services.loadbalancers=1,services.nodeports=1"
    );
}

#[test]
fn claims_and_others() {
    let claim = json!({ "storageClassName": "gold", "resources": { "requests": { "storage": "1Gi" } } });
    assert_eq!(
        used("persistentvolumeclaims", json!({ "spec": claim })),
        "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
         gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
    );
    assert_eq!(used("configmaps", json!({})), "configmaps=1,count/configmaps=1");
    assert_eq!(used("count/jobs.batch", json!({})), "count/jobs.batch=1");
}

#[test]
fn scopes_choose_pods() {
    let pod = |spec: Value, quality: &str| json!({ "spec": spec, "status": { "qosClass": quality } });
    let plain = pod(json!({}), "BestEffort");
    let limited = pod(json!({ "activeDeadlineSeconds": 60, "priorityClassName": "high" }), "Burstable");
    let term = json!({ "topologyKey": "zone", "namespaceSelector": {} });
    let near = json!({ "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    let near = pod(json!({ "affinity": near }), "Burstable");
    let class = |operator: &str, values: &[&str]| {
        let expression = json!({ "scopeName": "PriorityClass", "operator": operator, "values": values });
        json!({ "scopeSelector": { "matchExpressions": [expression] } })
    };
    for (spec, expected) in [
        (json!({}), [true, true, true]),
        (json!({ "scopes": ["Terminating"] }), [false, true, false]),
        (json!({ "scopes": ["NotTerminating"] }), [true, false, true]),
        (json!({ "scopes": ["BestEffort"] }), [true, false, false]),
        (json!({ "scopes": ["NotBestEffort", "Terminating"] }), [false, true, false]),
        (json!({ "scopes": ["CrossNamespacePodAffinity"] }), [false, false, true]),
        (class("In", &["high"]), [false, true, false]),
        (class("NotIn", &["high"]), [true, false, true]),
        (class("Exists", &[]), [false, true, false]),
        (class("DoesNotExist", &[]), [true, false, true]),
    ] {
        let quota = object(json!({ "spec": spec }));
        let pods = Counted { group: "", resource: "pods" };
        let found = [&plain, &limited, &near].map(|pod| pods.is_in_scope(&quota, &object(pod.clone())));
        assert_eq!(found, expected, "{spec}");
        let maps = Counted { group: "", resource: "configmaps" };
        assert_eq!(maps.is_in_scope(&quota, &object(json!({}))), spec == json!({}), "{spec}");
    }
}

#[test]
fn what_is_limited_must_be_named() {
    let pod = object(json!({ "spec": {
        "initContainers": [{ "name": "setup", "resources": { "limits": { "cpu": "1" } } }],
        "containers": [{ "name": "app", "resources": { "requests": { "cpu": "1" } } }, { "name": "log" }],
    } }));
    let said = |names: &[&str]| missing(names.iter().copied(), &pod).unwrap_or_default();
    assert_eq!(said(&["pods", "requests.ephemeral-storage"]), "");
    assert_eq!(
        said(&["requests.cpu", "limits.cpu"]),
        "must specify limits.cpu for: app,log; requests.cpu for: log,setup"
    );
}
