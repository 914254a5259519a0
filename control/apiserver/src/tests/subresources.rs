use expect_test::expect;

use super::*;

const MERGE: &str = "application/merge-patch+json";

#[tokio::test]
async fn scale_is_a_view_of_replicas() {
    let server = Server::start().await;
    server.create(DEPLOYMENTS, &deployment("web")).await;
    let uri = format!("{DEPLOYMENTS}/web/scale");
    let scale = server.get(&uri).await.json();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(scale["status"]["selector"], "app=web");
    let patched = server.patch(&uri, MERGE, &json!({ "spec": { "replicas": 5 } })).await;
    assert_eq!(patched.json()["spec"]["replicas"], 5, "{}", patched.text());
    // kubectl sends this one without a Content-Type.
    let mut body = patched.json();
    body["spec"]["replicas"] = 1.into();
    let mut put = ask("PUT", &uri);
    put.body = body.to_string().into_bytes();
    assert_eq!(server.send(put).await.code, 200);
    assert_eq!(server.get(&format!("{DEPLOYMENTS}/web")).await.json()["spec"]["replicas"], 1);
    assert_eq!(server.put(&uri, &body).await.code, 409);
    let negative = server.patch(&uri, MERGE, &json!({ "spec": { "replicas": -1 } })).await;
    assert_eq!(negative.code, 422);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    let bind = |node: &str| json!({ "metadata": { "name": "a" }, "target": { "kind": "Node", "name": node } });
    let done = server.post(&in_default("pods/a/binding"), &bind("n1")).await;
    assert_eq!((done.code, done.json()["status"].as_str()), (201, Some("Success")));
    let pod = server.get(&in_default("pods/a")).await.json();
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    expect![[r#"409 Conflict: Operation cannot be fulfilled on pods "a": pod a is already assigned to node "n1""#]]
        .assert_eq(&server.post(&in_default("pods/a/binding"), &bind("n2")).await.status());
    server.create(&in_default("pods"), &super::pod("b")).await;
    let alone = json!({ "metadata": { "name": "b" }, "target": { "kind": "Node", "name": "n1" } });
    assert_eq!(server.post(&in_default("bindings"), &alone).await.code, 201);
}

fn running(ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] } })
}

#[tokio::test]
async fn evictions_respect_budgets() {
    let server = Server::start().await;
    server.default_account().await;
    let mut guarded = pod("a");
    guarded["metadata"]["labels"] = json!({ "app": "web" });
    server.create(&in_default("pods"), &guarded).await;
    server.create(&in_default("pods/a/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } })).await;
    server.patch(&in_default("pods/a/status"), MERGE, &running(true)).await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({ "metadata": { "name": "keep" }, "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    server.create(budgets, &budget).await;
    let evict = json!({ "kind": "Eviction", "apiVersion": "policy/v1", "metadata": { "name": "a" } });
    let evict = async || server.post(&in_default("pods/a/eviction"), &evict).await;
    assert_eq!(evict().await.code, 429);
    let status = |allowed: i64| json!({ "status": { "observedGeneration": 1, "disruptionsAllowed": allowed, "desiredHealthy": 1, "currentHealthy": 1, "expectedPods": 1 } });
    server.patch(&format!("{budgets}/keep/status"), MERGE, &status(0)).await;
    let refused = evict().await;
    expect!["429 TooManyRequests: Cannot evict pod as it would violate the pod's disruption budget."]
        .assert_eq(&refused.status());
    expect!["The disruption budget keep needs 1 healthy pods and has 1 currently"]
        .assert_eq(refused.json()["details"]["causes"][0]["message"].as_str().unwrap());
    server.patch(&format!("{budgets}/keep/status"), MERGE, &status(1)).await;
    assert_eq!(evict().await.code, 201);
    assert!(server.get(&in_default("pods/a")).await.json()["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(server.get(&format!("{budgets}/keep")).await.json()["status"]["disruptionsAllowed"], 0);
}

#[tokio::test]
async fn pods_that_are_not_ready_spend_no_budget() {
    const BUDGET: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let server = Server::start().await;
    server.default_account().await;
    let budget = json!({ "metadata": { "name": "keep" }, "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    server.create(BUDGET, &budget).await;
    let budget = format!("{BUDGET}/keep");
    let evict = async |ready: bool, policy: &str, allowed: i64, healthy: i64, preconditions: Value| {
        let mut guarded = pod("a");
        guarded["metadata"]["labels"] = json!({ "app": "web" });
        server.create(&in_default("pods"), &guarded).await;
        server.create(&in_default("pods/a/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } })).await;
        server.patch(&in_default("pods/a/status"), MERGE, &running(ready)).await;
        let policy = Some(policy).filter(|policy| !policy.is_empty());
        let set =
            server.patch(&budget, MERGE, &json!({ "spec": { "unhealthyPodEvictionPolicy": policy } })).await.json();
        let status = json!({ "status": { "observedGeneration": set["metadata"]["generation"], "disruptionsAllowed": allowed, "desiredHealthy": 1, "currentHealthy": healthy, "expectedPods": 2 } });
        server.patch(&format!("{budget}/status"), MERGE, &status).await;
        let body = json!({ "metadata": { "name": "a" }, "deleteOptions": { "preconditions": preconditions } });
        let code = server.post(&in_default("pods/a/eviction"), &body).await.code;
        server.delete(&in_default("pods/a?gracePeriodSeconds=0")).await;
        (code, server.get(&budget).await.json()["status"]["disruptionsAllowed"].as_i64().unwrap_or_default())
    };
    let none = || json!({});
    for policy in ["", "IfHealthyBudget"] {
        assert_eq!(evict(false, policy, 0, 1, none()).await, (201, 0), "{policy}");
        assert_eq!(evict(false, policy, 0, 0, none()).await, (429, 0), "{policy}");
        assert_eq!(evict(false, policy, 1, 0, none()).await, (201, 0), "{policy}");
    }
    assert_eq!(evict(false, "AlwaysAllow", 0, 0, none()).await, (201, 0));
    assert_eq!(evict(false, "AlwaysAllow", 2, 0, none()).await, (201, 2));
    assert_eq!(evict(true, "AlwaysAllow", 0, 1, none()).await, (429, 0));
    for wrong in [json!({ "uid": "other" }), json!({ "resourceVersion": "1" })] {
        assert_eq!(evict(true, "", 1, 1, wrong).await, (409, 1));
    }
}

fn certificate_request(name: &str, organizations: &[&str]) -> Value {
    use base64::Engine as _;
    let (pem, _) = tandem_pki::Authority::request(name, organizations, &[], &[]).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(pem);
    json!({
        "metadata": { "name": "csr" },
        "spec": {
            "request": encoded, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
            "username": "system:admin", "groups": ["system:masters"],
        },
    })
}

#[tokio::test]
async fn certificate_requests_say_who_asks_and_are_approved() {
    let server = Server::start().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let jane = || Identity::user("system:bootstrap:abcdef", &["system:bootstrappers"]);
    let too_much = certificate_request("jane", &["system:masters"]);
    expect![[r#"403 Forbidden: certificatesigningrequests.certificates.k8s.io "csr" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"#]]
        .assert_eq(&server.send(ask("POST", requests).json(&too_much).by(jane())).await.status());
    let made = server.send(ask("POST", requests).json(&certificate_request("jane", &["people"])).by(jane())).await;
    assert_eq!(made.code, 201, "{}", made.text());
    let mut approved = made.json();
    assert_eq!(approved["spec"]["username"], "system:bootstrap:abcdef");
    assert_eq!(approved["spec"]["groups"], json!(["system:bootstrappers", "system:authenticated"]));
    let condition = json!({ "type": "Approved", "status": "True", "reason": "Test", "message": "ok" });
    approved["status"] = json!({ "conditions": [condition], "certificate": "bm8=" });
    let answer = server.put(&format!("{requests}/csr/approval"), &approved).await;
    assert_eq!(answer.json()["status"]["conditions"][0]["type"], "Approved", "{}", answer.text());
    assert_eq!(answer.json()["status"]["conditions"][0]["lastUpdateTime"], "2026-01-01T00:00:00Z");
    assert!(answer.json()["status"].get("certificate").is_none());
    let mut changed = answer.json();
    changed["spec"]["username"] = "root".into();
    let changed = server.put(&format!("{requests}/csr"), &changed).await;
    assert!(
        changed.code == 422 || changed.json()["spec"]["username"] == "system:bootstrap:abcdef",
        "{}",
        changed.text()
    );
}

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A user who may write every part of a certificate request, and the named verb for the named signer.
async fn certificate_user(server: &Server, name: &str, verb: &str, signer: &str) -> Identity {
    let group = "certificates.k8s.io";
    let doors = ["certificatesigningrequests/approval", "certificatesigningrequests/status"];
    let role = json!({ "metadata": { "name": name }, "rules": [
        { "apiGroups": [group], "resources": doors, "verbs": ["update", "patch"] },
        { "apiGroups": [group], "resources": ["signers"], "resourceNames": [signer], "verbs": [verb] },
    ] });
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let rbac = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": { "name": name }, "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "User", "apiGroup": rbac, "name": name }],
    });
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    Identity::user(name, &[])
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "reason": "Test", "message": kind })
}

#[tokio::test]
async fn approving_and_signing_need_the_signer() {
    let server = Server::start().await;
    server.create(REQUESTS, &certificate_request("jane", &["people"])).await;
    let client = "kubernetes.io/kube-apiserver-client";
    let nobody = certificate_user(&server, "nobody", "approve", "example.com/*").await;
    let approver = certificate_user(&server, "approver", "approve", client).await;
    let signer = certificate_user(&server, "signer", "sign", "kubernetes.io/*").await;
    let patch = async |who: &Identity, door: &str, status: Value| {
        let body = json!({ "status": status }).to_string();
        server.send(ask("PATCH", &format!("{REQUESTS}/csr/{door}")).body(MERGE, body).by(who.clone())).await
    };
    let approved = json!({ "conditions": [condition("Approved")] });
    expect![[r#"403 Forbidden: certificatesigningrequests.certificates.k8s.io "csr" is forbidden: user not permitted to approve requests with signerName "kubernetes.io/kube-apiserver-client""#]].assert_eq(&patch(&nobody, "approval", approved.clone()).await.status());
    assert_eq!(patch(&signer, "approval", approved.clone()).await.code, 403);
    expect![[r#"403 Forbidden: certificatesigningrequests.certificates.k8s.io "csr" is forbidden: user not permitted to sign requests with signerName "kubernetes.io/kube-apiserver-client""#]].assert_eq(&patch(&approver, "status", approved.clone()).await.status());
    expect![[r#"422 Invalid: CertificateSigningRequest.certificates.k8s.io "csr" is invalid: status.conditions: Forbidden: updates may not add a condition of type "Approved""#]].assert_eq(&patch(&signer, "status", approved.clone()).await.status());
    let answer = patch(&approver, "approval", approved).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    let conditions = answer.json()["status"]["conditions"].clone();

    let mut changed = conditions.clone();
    changed[0]["message"] = "other".into();
    expect![[r#"422 Invalid: CertificateSigningRequest.certificates.k8s.io "csr" is invalid: status.conditions: Forbidden: updates may not modify a condition of type "Approved""#]].assert_eq(&patch(&signer, "status", json!({ "conditions": changed })).await.status());
    expect![[r#"422 Invalid: CertificateSigningRequest.certificates.k8s.io "csr" is invalid: status.conditions: Forbidden: updates may not remove a condition of type "Approved""#]].assert_eq(&patch(&signer, "status", json!({ "conditions": [] })).await.status());
    expect![[r#"422 Invalid: CertificateSigningRequest.certificates.k8s.io "csr" is invalid: status.conditions: Forbidden: updates may not remove a condition of type "Approved""#]].assert_eq(&patch(&approver, "approval", json!({ "conditions": [] })).await.status());
    let failed = json!({ "conditions": [conditions[0], condition("Failed")] });
    assert_eq!(patch(&approver, "status", failed.clone()).await.code, 403);
    assert_eq!(patch(&approver, "status", json!({ "certificate": "bm8=" })).await.code, 403);
    let mut signed = failed;
    signed["certificate"] = "bm8=".into();
    let answer = patch(&signer, "status", signed).await;
    assert_eq!(answer.json()["status"]["certificate"], "bm8=", "{}", answer.text());
    // What does not touch the outcome needs neither.
    assert_eq!(patch(&nobody, "status", json!({})).await.code, 200);
}

#[tokio::test]
async fn the_clusters_own_signer_approves_and_signs() {
    let server = Server::start().await;
    let mut request = certificate_request("system:node:n1", &["system:nodes"]);
    request["spec"]["signerName"] = "kubernetes.io/kube-apiserver-client-kubelet".into();
    let mut made = server.create(REQUESTS, &request).await;
    let put = async |door: &str, body: &Value| {
        let controller = Identity::controller("certificate-signer");
        server.send(ask("PUT", &format!("{REQUESTS}/csr/{door}")).json(body).by(controller)).await
    };
    let mut approved = condition("Approved");
    approved["lastUpdateTime"] = "2026-01-01T00:00:00Z".into();
    made["status"] = json!({ "conditions": [approved] });
    let mut made = put("approval", &made).await.json();
    // Clients may write the same time in another way.
    made["status"]["conditions"][0]["lastUpdateTime"] = "2026-01-01T00:00:00.000Z".into();
    made["status"]["certificate"] = "bm8=".into();
    let signed = put("status", &made).await;
    assert_eq!(signed.json()["status"]["certificate"], "bm8=", "{}", signed.text());
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    for path in ["pods/a/nothing", "pods/a/log/deeper"] {
        assert_eq!(server.patch(&in_default(path), MERGE, &json!({})).await.code, 404, "{path}");
    }
    assert_eq!(server.get(&in_default("pods/a/binding")).await.code, 405);
    assert_eq!(server.delete(&in_default("pods/a/status")).await.code, 405);
}

const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn added(containers: Value) -> Value {
    json!({ "spec": { "ephemeralContainers": containers } })
}

#[tokio::test]
async fn ephemeral_containers_are_added_and_stay() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    let uri = in_default("pods/a/ephemeralcontainers");
    // As kubectl debug sends it.
    let first = json!([{ "name": "one", "image": "busybox", "resources": {}, "stdin": true, "tty": true }]);
    let patched = server.patch(&uri, STRATEGIC, &added(first.clone())).await;
    assert_eq!(patched.code, 200, "{}", patched.text());
    let second = json!([{ "name": "two", "image": "busybox", "targetContainerName": "c" }]);
    let second = server.patch(&uri, STRATEGIC, &added(second)).await;
    assert_eq!(second.code, 200, "{}", second.text());
    let pod = server.get(&uri).await.json();
    let named: Vec<&str> =
        pod["spec"]["ephemeralContainers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["two", "one"]);
    assert_eq!(pod["spec"]["ephemeralContainers"][0]["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(pod["metadata"]["generation"], 3);
    // A put that says the same changes nothing, and of all else nothing counts.
    let mut same = pod.clone();
    same["spec"]["activeDeadlineSeconds"] = 5.into();
    same["metadata"]["labels"] = json!({ "a": "b" });
    let same = server.put(&uri, &same).await.json();
    assert_eq!(same["metadata"]["resourceVersion"], pod["metadata"]["resourceVersion"]);
    // The pod's own door does not add any.
    let own = server.patch(&in_default("pods/a"), STRATEGIC, &added(json!([{ "name": "x", "image": "y" }]))).await;
    assert_eq!(own.code, 422, "{}", own.text());
}

#[tokio::test]
async fn ephemeral_containers_are_what_they_may_be() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    let uri = in_default("pods/a/ephemeralcontainers");
    let one = json!({ "name": "one", "image": "busybox" });
    assert_eq!(server.patch(&uri, STRATEGIC, &added(json!([one]))).await.code, 200);
    let refused = async |container: Value| server.patch(&uri, MERGE, &added(json!([one, container]))).await.status();
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.ephemeralContainers[1].image: Required value"#]]
        .assert_eq(&refused(json!({ "name": "two" })).await);
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.ephemeralContainers[1].name: Duplicate value: "c""#]]
        .assert_eq(&refused(json!({ "name": "c", "image": "x" })).await);
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.ephemeralContainers[1].ports: Forbidden: cannot be set for an Ephemeral Container"#]]
        .assert_eq(&refused(json!({ "name": "two", "image": "x", "ports": [{ "containerPort": 80 }] })).await);
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.ephemeralContainers[1].resources: Forbidden: cannot be set for an Ephemeral Container"#]]
        .assert_eq(&refused(json!({ "name": "two", "image": "x", "resources": { "limits": { "cpu": "1" } } })).await);
    expect![[
        r#"422 Invalid: Pod "a" is invalid: spec.ephemeralContainers[1].targetContainerName: Not found: "nobody""#
    ]]
    .assert_eq(&refused(json!({ "name": "two", "image": "x", "targetContainerName": "nobody" })).await);
    let changed = server.patch(&uri, STRATEGIC, &added(json!([{ "name": "one", "image": "other" }]))).await;
    expect![[r#"
        422 Invalid: Pod "a" is invalid: spec.ephemeralContainers: Forbidden: existing ephemeral containers "one" may not be changed
    "#]].assert_eq(&changed.status());
    let removed = server.patch(&uri, MERGE, &added(json!([]))).await;
    expect![[r#"
        422 Invalid: Pod "a" is invalid: spec.ephemeralContainers: Forbidden: existing ephemeral containers "one" may not be removed
    "#]].assert_eq(&removed.status());
}

#[tokio::test]
async fn pods_are_resized_within_their_class() {
    let server = Server::start().await;
    server.default_account().await;
    let mut sized = pod("a");
    let resources = |cpu: &str, memory: &str| json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "memory": memory } });
    sized["spec"]["containers"][0]["resources"] = resources("100m", "64Mi");
    server.create(&in_default("pods"), &sized).await;
    let uri = in_default("pods/a/resize");
    let of = |container: Value| json!({ "spec": { "containers": [container] } });
    let patch = async |change: Value| server.patch(&uri, STRATEGIC, &of(change)).await;
    let grown = patch(json!({ "name": "c", "resources": resources("200m", "128Mi") })).await;
    assert_eq!(grown.code, 200, "{}", grown.text());
    let mut grown = grown.json();
    assert_eq!(grown["spec"]["containers"][0]["resources"], resources("200m", "128Mi"));
    assert_eq!(grown["metadata"]["generation"], 2);
    // Replaced as a whole, of all else nothing counts.
    grown["spec"]["containers"][0]["resources"] = resources("150m", "64Mi");
    grown["spec"]["containers"][0]["image"] = "other".into();
    let replaced = server.put(&uri, &grown).await.json();
    assert_eq!(replaced["spec"]["containers"][0]["resources"], resources("150m", "64Mi"));
    assert_ne!(replaced["spec"]["containers"][0]["image"], "other");
    // The pod's own door does not resize.
    let change = of(json!({ "name": "c", "resources": resources("1", "64Mi") }));
    assert_eq!(server.patch(&in_default("pods/a"), STRATEGIC, &change).await.code, 422);
    let refused = async |resources: Value| patch(json!({ "name": "c", "resources": resources })).await.status();
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"#]]
        .assert_eq(&refused(json!({ "limits": { "memory": null } })).await);
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"#]]
        .assert_eq(&refused(json!({ "requests": { "cpu": null } })).await);
    expect![[r#"422 Invalid: Pod "a" is invalid: spec: Invalid value: "Guaranteed": Pod QOS Class may not change as a result of resizing"#]]
        .assert_eq(&refused(json!({ "limits": { "cpu": "150m" } })).await);
    expect![[r#"422 Invalid: Pod "a" is invalid: spec: Forbidden: only cpu and memory resources are mutable"#]]
        .assert_eq(&refused(json!({ "limits": { "ephemeral-storage": "1Gi" } })).await);
    let renamed = server.patch(&uri, STRATEGIC, &of(json!({ "name": "other", "image": "x" }))).await.status();
    expect![[r#"422 Invalid: Pod "a" is invalid: spec.containers: Forbidden: containers may not be renamed or reordered on resize"#]]
        .assert_eq(&renamed);
}

#[tokio::test]
async fn a_node_without_resize_keeps_its_pods_as_they_are() {
    let server = Server::start().await;
    server.default_account().await;
    let mut sized = pod("a");
    sized["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "100m" } });
    server.create(&in_default("pods"), &sized).await;
    let running = json!({ "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": {} } });
    let patch = async |status: Value| {
        let status = json!({ "status": { "containerStatuses": [status] } });
        assert_eq!(server.patch(&in_default("pods/a/status"), MERGE, &status).await.code, 200);
        let change = json!([{ "name": "c", "resources": { "requests": { "cpu": "200m" } } }]);
        server
            .patch(&in_default("pods/a/resize"), STRATEGIC, &json!({ "spec": { "containers": change } }))
            .await
            .status()
    };
    expect![[r#"422 Invalid: Pod "a" is invalid: spec: Forbidden: Pod running on node without support for resize"#]]
        .assert_eq(&patch(running.clone()).await);
    let mut told = running;
    told["resources"] = json!({ "requests": { "cpu": "100m" } });
    assert_eq!(patch(told).await, "200 : ");
}
