use expect_test::expect;
use tandem_api::Identity;

use super::*;

const CLASSES: &str = "/apis/networking.k8s.io/v1/ingressclasses";
const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";

fn ingress(name: &str, spec: Value) -> Value {
    let mut ingress = json!({ "metadata": { "name": name }, "spec": spec });
    ingress["spec"]["defaultBackend"] = json!({ "service": { "name": "s", "port": { "number": 80 } } });
    ingress
}

#[tokio::test]
async fn an_ingress_without_a_class_gets_the_default_one() {
    let server = Server::start().await;
    let class = async |made: &Value| server.create(INGRESSES, made).await["spec"]["ingressClassName"].clone();
    assert_eq!(class(&ingress("plain", json!({}))).await, "tandem");
    assert_eq!(class(&ingress("other", json!({ "ingressClassName": "other" }))).await, "other");
    let mut annotated = ingress("annotated", json!({}));
    annotated["metadata"]["annotations"] = json!({ "kubernetes.io/ingress.class": "tandem" });
    assert_eq!(class(&annotated).await, Value::Null);
    annotated["metadata"]["name"] = "both".into();
    annotated["spec"]["ingressClassName"] = "other".into();
    expect![[r#"422 Invalid: Ingress.networking.k8s.io "both" is invalid: annotations.kubernetes.io/ingress.class: Invalid value: "tandem": must match `ingressClassName` when both are specified"#]]
        .assert_eq(&server.post(INGRESSES, &annotated).await.status());
    server.clock.advance(std::time::Duration::from_secs(5));
    let newer = json!({
        "metadata": { "name": "newer", "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } },
        "spec": { "controller": "example.com/other" },
    });
    server.create(CLASSES, &newer).await;
    assert_eq!(class(&ingress("late", json!({}))).await, "newer");
}

#[tokio::test]
async fn nodes_read_the_certificates_of_ingresses_that_they_serve() {
    let server = Server::start().await;
    server.create(CLASSES, &json!({ "metadata": { "name": "other" }, "spec": { "controller": "x.y/z" } })).await;
    for name in ["ours", "theirs", "nobodys"] {
        let data = json!({ "tls.crt": "", "tls.key": "" });
        let secret = json!({ "metadata": { "name": name }, "type": "kubernetes.io/tls", "data": data });
        server.create(&in_default("secrets"), &secret).await;
    }
    server.create(&in_default("secrets"), &json!({ "metadata": { "name": "password" } })).await;
    let tls = |secret: &str, class: &str| json!({ "ingressClassName": class, "tls": [{ "secretName": secret }] });
    server.create(INGRESSES, &ingress("ours", tls("ours", "tandem"))).await;
    server.create(INGRESSES, &ingress("theirs", tls("theirs", "other"))).await;
    server.create(INGRESSES, &ingress("curious", tls("password", "tandem"))).await;
    let code = async |uri: &str| server.send(ask("GET", &in_default(uri)).by(Identity::node("n1"))).await.code;
    assert_eq!(code("secrets/ours").await, 200);
    assert_eq!(code("secrets?fieldSelector=metadata.name%3Dours").await, 200);
    assert_eq!(code("secrets/theirs").await, 403);
    assert_eq!(code("secrets/password").await, 403, "it is no certificate");
    assert_eq!(code("secrets/nobodys").await, 403);
    assert_eq!(code("secrets").await, 403);
    assert_eq!(code("configmaps/ours").await, 403);
    server.delete(&format!("{INGRESSES}/ours")).await;
    assert_eq!(code("secrets/ours").await, 403);
}
