use expect_test::expect;
use tandem_api::Identity;

use super::*;

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";

fn jane() -> Identity {
    Identity::user("jane", &["devs"])
}

fn role(name: &str, verbs: &[&str], resources: &[&str]) -> Value {
    json!({ "metadata": { "name": name }, "rules": [{ "apiGroups": [""], "resources": resources, "verbs": verbs }] })
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user }],
    })
}

#[tokio::test]
async fn a_binding_counts_at_once_and_so_does_its_end() {
    let server = Server::start().await;
    let pods = || ask("GET", "/api/v1/namespaces/default/pods").by(jane());
    assert_eq!(server.send(pods()).await.code, 403);
    server.create(ROLES, &role("reader", &["get", "list"], &["pods"])).await;
    server.create(BINDINGS, &binding("jane", "Role", "reader", "jane")).await;
    assert_eq!(server.send(pods()).await.code, 200);
    assert_eq!(server.send(ask("GET", "/api/v1/namespaces/kube-system/pods").by(jane())).await.code, 403);
    assert_eq!(server.send(ask("GET", "/api/v1/pods").by(jane())).await.code, 403);
    server.put(&format!("{ROLES}/reader"), &role("reader", &["get"], &["pods"])).await;
    assert_eq!(server.send(pods()).await.code, 403);
    server.put(&format!("{ROLES}/reader"), &role("reader", &["*"], &["*"])).await;
    assert_eq!(server.send(pods()).await.code, 200);
    server.delete(&format!("{BINDINGS}/jane")).await;
    assert_eq!(server.send(pods()).await.code, 403);
}

#[tokio::test]
async fn a_selector_is_no_name_for_a_collection_that_is_deleted() {
    let server = Server::start().await;
    let mut named = role("one", &["list", "create", "deletecollection"], &["configmaps"]);
    named["rules"][0]["resourceNames"] = json!(["a"]);
    server.create(ROLES, &named).await;
    server.create(BINDINGS, &binding("jane", "Role", "one", "jane")).await;
    let send = async |method: &str| {
        let uri = in_default("configmaps?fieldSelector=metadata.name%3Da");
        server.send(ask(method, &uri).json(&config_map("b")).by(jane())).await.code
    };
    assert_eq!((send("GET").await, send("POST").await, send("DELETE").await), (200, 403, 403));
}

/// WebSocket begins with GET; what it opens is no less than what POST opens.
#[tokio::test]
async fn who_may_only_read_opens_no_stream_into_a_pod() {
    let server = super::connect::server().await;
    let streams = ["pods/exec", "pods/attach", "pods/portforward"];
    server.create(ROLES, &role("reader", &["get"], &streams)).await;
    server.create(BINDINGS, &binding("jane", "Role", "reader", "jane")).await;
    for uri in ["pods/a/exec?command=sh&stdout=true", "pods/a/attach?stdout=true", "pods/a/portforward"] {
        let refused = server.send(ask("GET", &in_default(uri)).by(jane())).await;
        assert!(refused.status().contains("cannot create resource"), "{uri}: {}", refused.status());
    }
    server.put(&format!("{ROLES}/reader"), &role("reader", &["get", "create"], &streams)).await;
    let allowed = server.send(ask("GET", &in_default("pods/a/exec?command=sh&stdout=true")).by(jane())).await;
    assert_eq!(allowed.status(), "400 BadRequest: no such shell");
}

#[tokio::test]
async fn who_may_change_pods_adds_nothing_to_them() {
    let server = super::connect::server().await;
    server.create(ROLES, &role("writer", &["get", "patch", "update"], &["pods"])).await;
    server.create(BINDINGS, &binding("jane", "Role", "writer", "jane")).await;
    let added = json!({ "spec": { "ephemeralContainers": [{ "name": "e", "image": "x" }] } });
    let patch = async || {
        let request = ask("PATCH", &in_default("pods/a/ephemeralcontainers"));
        server.send(request.body("application/merge-patch+json", added.to_string()).by(jane())).await.code
    };
    assert_eq!(patch().await, 403);
    server.put(&format!("{ROLES}/writer"), &role("writer", &["patch"], &["pods/ephemeralcontainers"])).await;
    assert_eq!(patch().await, 200);
}

#[tokio::test]
async fn default_roles_can_be_bound() {
    let server = Server::start().await;
    server.create(BINDINGS, &binding("jane", "ClusterRole", "edit", "jane")).await;
    let made = ask("POST", &in_default("configmaps")).json(&config_map("a")).by(jane());
    assert_eq!(server.send(made).await.code, 201);
    let role = ask("POST", ROLES).json(&role("r", &["get"], &["pods"])).by(jane());
    expect![[r#"403 Forbidden: roles.rbac.authorization.k8s.io is forbidden: User "jane" cannot create resource "roles" in API group "rbac.authorization.k8s.io" in the namespace "default""#]]
        .assert_eq(&server.send(role).await.status());
    assert_eq!(server.get(&format!("{CLUSTER_ROLES}/admin")).await.code, 200);
    let review = json!({ "spec": { "namespace": "default" } });
    let rules = ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews").json(&review).by(jane());
    let rules = server.send(rules).await.json();
    let listed = rules["status"]["resourceRules"].as_array().unwrap();
    assert!(listed.iter().any(|rule| rule["resources"] == json!(["cronjobs", "jobs"])), "{rules}");
}

#[tokio::test]
async fn nobody_hands_out_what_he_does_not_hold() {
    let server = Server::start().await;
    server.create(BINDINGS, &binding("jane", "ClusterRole", "admin", "jane")).await;
    let send = |uri: &str, body: &Value| server.send(ask("POST", uri).json(body).by(jane()));
    assert_eq!(send(ROLES, &role("within", &["get"], &["pods"])).await.code, 201);
    expect![[r#"
        403 Forbidden: roles.rbac.authorization.k8s.io "beyond" is forbidden: user "jane" (groups=["devs", "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
        {APIGroups:[""], Resources:["nodes"], Verbs:["get"]}"#]]
    .assert_eq(&send(ROLES, &role("beyond", &["get"], &["pods", "nodes"])).await.status());
    let bound = send(BINDINGS, &binding("up", "ClusterRole", "cluster-admin", "jane")).await.status();
    assert!(bound.contains("attempting to grant RBAC permissions not currently held"), "{bound}");
    assert_eq!(send(BINDINGS, &binding("same", "ClusterRole", "view", "joe")).await.code, 201);
    expect![[r#"404 NotFound: roles.rbac.authorization.k8s.io "none" not found"#]]
        .assert_eq(&send(BINDINGS, &binding("none", "Role", "none", "joe")).await.status());

    // Who may escalate and bind, may.
    let free = json!({
        "metadata": { "name": "free" },
        "rules": [{ "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "clusterroles"], "verbs": ["escalate", "bind"] }],
    });
    server.create(ROLES, &free).await;
    server.create(BINDINGS, &binding("free", "Role", "free", "jane")).await;
    assert_eq!(send(ROLES, &role("beyond", &["get"], &["nodes"])).await.code, 201);
    assert_eq!(send(BINDINGS, &binding("up", "ClusterRole", "cluster-admin", "jane")).await.code, 201);
}
