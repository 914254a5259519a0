use expect_test::expect;
use tandem_api::Identity;

use super::*;

const MERGE: &str = "application/merge-patch+json";

#[tokio::test]
async fn nothing_is_allowed_by_default() {
    let server = Server::start().await;
    expect![[r#"403 Forbidden: deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API group "apps" in the namespace "default""#]]
        .assert_eq(&server.send(ask("GET", DEPLOYMENTS).by(Identity::user("jane", &[]))).await.status());
    expect![[r#"403 Forbidden: pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" at the cluster scope"#]]
        .assert_eq(&server.send(ask("GET", "/api/v1/pods").unknown()).await.status());
    expect!["401 Unauthorized: Unauthorized"].assert_eq(
        &server.send(ask("GET", "/api/v1/pods").unknown().header("authorization", "Bearer x")).await.status(),
    );
    assert_eq!(server.send(ask("GET", "/apis").by(Identity::user("jane", &[]))).await.code, 200);
}

#[tokio::test]
async fn tokens_of_service_accounts() {
    let server = Server::start().await;
    server.default_account().await;
    let request = json!({ "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {} });
    let token = server.create(&in_default("serviceaccounts/default/token"), &request).await;
    let token = token["status"]["token"].as_str().unwrap().to_owned();
    let whoami = |token: String| {
        let review = json!({ "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1" });
        let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        ask("POST", uri).json(&review).unknown().header("authorization", &format!("Bearer {token}"))
    };
    let me = server.send(whoami(token.clone())).await.json();
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    let review = json!({ "spec": { "token": token } });
    let answer = server.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(answer["status"]["authenticated"], true);
    server.clock.advance(std::time::Duration::from_secs(3700));
    assert_eq!(server.send(whoami(token.clone())).await.code, 401);
    let short = json!({ "spec": { "expirationSeconds": 5 } });
    assert_eq!(server.post(&in_default("serviceaccounts/default/token"), &short).await.code, 422);
    let fresh = server.create(&in_default("serviceaccounts/default/token"), &request).await;
    let fresh = fresh["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(server.send(whoami(fresh.clone())).await.code, 201);
    server.delete(&in_default("serviceaccounts/default")).await;
    assert_eq!(server.send(whoami(fresh)).await.code, 401);
}

#[tokio::test]
async fn bootstrap_tokens_may_ask_for_a_certificate() {
    let server = Server::start().await;
    let secret = json!({
        "metadata": { "name": "bootstrap-token-abcdef" }, "type": "bootstrap.kubernetes.io/token",
        "stringData": { "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true" },
    });
    server.create("/api/v1/namespaces/kube-system/secrets", &secret).await;
    let with = |uri: &str, token: &str| ask("GET", uri).unknown().header("authorization", &format!("Bearer {token}"));
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    assert_eq!(server.send(with(requests, "abcdef.0123456789abcdef")).await.code, 200);
    assert_eq!(server.send(with("/api/v1/pods", "abcdef.0123456789abcdef")).await.code, 403);
    assert_eq!(server.send(with(requests, "abcdef.0123456789abcdee")).await.code, 401);
}

#[tokio::test]
async fn impersonation() {
    let server = Server::start().await;
    let as_jane = server.send(ask("GET", "/api/v1/pods").header("impersonate-user", "jane")).await;
    assert!(as_jane.status().contains("User \"jane\" cannot list"), "{}", as_jane.status());
    let as_master =
        ask("GET", "/api/v1/pods").header("impersonate-user", "jane").header("impersonate-group", "system:masters");
    assert_eq!(server.send(as_master).await.code, 200);
    let by_jane = ask("GET", "/api/v1/pods").by(Identity::user("jane", &[])).header("impersonate-user", "root");
    assert!(server.send(by_jane).await.status().contains("cannot impersonate resource \"users\""));
}

#[tokio::test]
async fn who_is_impersonated_is_readable_or_refused() {
    let server = Server::start().await;
    let with = async |headers: &[(&str, &[u8])]| {
        let mut pods = ask("GET", "/api/v1/pods");
        for (name, value) in headers {
            pods.request = pods.request.header(*name, header::HeaderValue::from_bytes(value).unwrap());
        }
        server.send(pods).await
    };
    let jane = with(&[("impersonate-user", "jané".as_bytes())]).await;
    assert!(jane.status().contains("User \"jané\" cannot list"), "{}", jane.status());
    expect!["400 BadRequest: invalid impersonation header impersonate-user: it must be UTF-8 and not empty"]
        .assert_eq(&with(&[("impersonate-user", b"jan\xe9")]).await.status());
    expect!["400 BadRequest: invalid impersonation header impersonate-user: it must be UTF-8 and not empty"]
        .assert_eq(&with(&[("impersonate-user", b"")]).await.status());
    let master = ("impersonate-group", "system:masters".as_bytes());
    for (name, value) in [
        ("impersonate-group", &b"\xff"[..]),
        ("impersonate-group", b""),
        ("impersonate-uid", b"\xff"),
        ("impersonate-extra-scopes", b"\xff"),
        ("impersonate-extra-%ff", b"x"),
        ("impersonate-extra-", b"x"),
        ("impersonate-other", b""),
    ] {
        let answer = with(&[("impersonate-user", b"jane"), master, (name, value)]).await;
        assert_eq!(answer.code, 400, "{name}: {}", answer.text());
    }
}

#[tokio::test]
async fn nodes_see_what_their_pods_need() {
    let server = Server::start().await;
    server.default_account().await;
    for name in ["used", "other"] {
        server.create(&in_default("secrets"), &json!({ "metadata": { "name": name } })).await;
    }
    let mut body = pod("a");
    body["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": "used" } }]);
    server.create(&in_default("pods"), &body).await;
    let node = || Identity::node("n1");
    let code = async |method: &str, uri: &str| server.send(ask(method, uri).by(node())).await.code;
    assert_eq!(code("GET", &in_default("secrets/used")).await, 403);
    let bind = json!({ "target": { "kind": "Node", "name": "n1" } });
    server.create(&in_default("pods/a/binding"), &bind).await;
    assert_eq!(code("GET", &in_default("secrets/used")).await, 200);
    assert_eq!(code("GET", &in_default("secrets/other")).await, 403);
    assert_eq!(code("GET", "/api/v1/pods").await, 200);
    assert_eq!(code("DELETE", &in_default("pods/a")).await, 200);
    let other = server.send(ask("DELETE", &in_default("pods/a")).by(Identity::node("n2"))).await;
    assert_eq!(other.code, 403);
    let register = |name: &str| {
        ask("POST", "/api/v1/nodes").json(&json!({ "metadata": { "name": name } })).by(Identity::node("n1"))
    };
    assert_eq!(server.send(register("n1")).await.code, 201);
    assert_eq!(server.send(register("n2")).await.code, 403);
}

#[tokio::test]
async fn access_reviews() {
    let server = Server::start().await;
    let review = json!({ "spec": { "user": "jane", "resourceAttributes": { "verb": "list", "resource": "pods" } } });
    let answer = server.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
    assert_eq!(answer["status"]["allowed"], false);
    let own = json!({ "spec": { "resourceAttributes": { "verb": "*", "resource": "*", "group": "*" } } });
    let answer = server.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &own).await;
    assert_eq!(answer["status"]["allowed"], true);
    let rules = server
        .create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &json!({ "spec": { "namespace": "default" } }))
        .await;
    assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    assert_eq!(server.get("/apis/authorization.k8s.io/v1/subjectaccessreviews").await.code, 405);
}

#[tokio::test]
async fn registry_clients_are_asked_to_log_in() {
    let server = Server::start().await;
    let images = Router::new().route("/v2/", axum::routing::get(async || "registry"));
    let router = server.api.layers(images);
    let server = Server { router, ..server };
    let anonymous = server.send(ask("GET", "/v2/").unknown()).await;
    assert_eq!((anonymous.code, anonymous.header(header::WWW_AUTHENTICATE)), (401, "Basic realm=\"tandem\""));
    server.default_account().await;
    let token = server.create(&in_default("serviceaccounts/default/token"), &json!({ "spec": {} })).await;
    use base64::Engine as _;
    let basic =
        base64::engine::general_purpose::STANDARD.encode(format!("any:{}", token["status"]["token"].as_str().unwrap()));
    let known = server.send(ask("GET", "/v2/").unknown().header("authorization", &format!("Basic {basic}"))).await;
    assert_eq!((known.code, known.text().as_str()), (200, "registry"));
}

#[tokio::test]
async fn nodes_label_themselves_only_as_a_kubelet_does() {
    let server = Server::start().await;
    let send = async |method: &str, uri: &str, kind: &str, body: Value| {
        server.send(ask(method, uri).body(kind, body.to_string()).by(Identity::node("n1"))).await
    };
    let register = async |labels: Value| {
        let body = json!({ "metadata": { "name": "n1", "labels": labels } });
        send("POST", "/api/v1/nodes", "application/json", body).await
    };
    let role = json!({ "node-role.kubernetes.io/control-plane": "", "x.k8s.io/y": "1", "example.com/a": "1" });
    expect![[r#"403 Forbidden: nodes "n1" is forbidden: node "n1" is not allowed to set the following labels: node-role.kubernetes.io/control-plane, x.k8s.io/y"#]].assert_eq(&register(role).await.status());
    let own = json!({
        "kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": "a",
        "node.kubernetes.io/instance-type": "m", "a.kubelet.kubernetes.io/b": "1", "example.com/a": "1",
    });
    assert_eq!(register(own).await.code, 201);
    let uri = "/api/v1/nodes/n1";
    let administrator =
        json!({ "metadata": { "labels": { "node-restriction.kubernetes.io/tier": "a", "kubernetes.io/role": "x" } } });
    assert_eq!(server.patch(uri, MERGE, &administrator).await.code, 200);
    let label = async |uri: &str, name: &str, value: Value| {
        send("PATCH", uri, MERGE, json!({ "metadata": { "labels": { name: value } } })).await
    };
    expect![[r#"403 Forbidden: nodes "n1" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/tier"#]].assert_eq(&label(uri, "node-restriction.kubernetes.io/tier", Value::Null).await.status());
    for uri in [uri, "/api/v1/nodes/n1/status"] {
        assert_eq!(label(uri, "kubernetes.io/role", "y".into()).await.code, 403, "{uri}");
        assert_eq!(label(uri, "example.com/a", Value::Null).await.code, 200, "{uri}");
        assert_eq!(label(uri, "topology.kubernetes.io/region", "eu".into()).await.code, 200, "{uri}");
    }
}

#[tokio::test]
async fn nodes_do_not_label_pods() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    server.create(&in_default("pods/a/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } })).await;
    let send = async |body: Value| {
        let patch = ask("PATCH", &in_default("pods/a/status")).body(MERGE, body.to_string());
        server.send(patch.by(Identity::node("n1"))).await
    };
    expect![[r#"403 Forbidden: pods "a" is forbidden: node "n1" cannot update labels through pod status"#]]
        .assert_eq(&send(json!({ "metadata": { "labels": { "app": "web" } } })).await.status());
    let answer = send(json!({ "metadata": { "labels": {} }, "status": { "phase": "Running" } })).await;
    assert_eq!(answer.json()["status"]["phase"], "Running", "{}", answer.text());
}
