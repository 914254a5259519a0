use expect_test::expect;
use tandem_api::Identity;

use super::*;

const MERGE: &str = "application/merge-patch+json";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const VOLUMES: &str = "/api/v1/persistentvolumes";

fn claim(name: &str, spec: &Value) -> Value {
    let mut claim = json!({ "metadata": { "name": name }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
    } });
    for (key, value) in spec.as_object().unwrap() {
        claim["spec"][key] = value.clone();
    }
    claim
}

fn volume(name: &str, more: &Value) -> Value {
    let mut volume = json!({
        "metadata": { "name": name, "labels": { "tandem.dev/node": "n1" }, "finalizers": ["tandem.dev/local-volume"] },
        "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"],
            "csi": { "driver": "tandem.dev/local", "volumeHandle": name },
        },
    });
    for (key, value) in more.as_object().unwrap() {
        volume["spec"][key] = value.clone();
    }
    volume
}

fn by(node: &str, ask: Ask) -> Ask {
    ask.by(Identity::node(node))
}

#[tokio::test]
async fn claims_begin_protected_and_with_the_newest_default_class() {
    let server = Server::start().await;
    let claims = in_default("persistentvolumeclaims");
    let made = server.create(&claims, &claim("a", &json!({}))).await;
    assert_eq!(made["spec"]["storageClassName"], "standard");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let none = server.create(&claims, &claim("b", &json!({ "storageClassName": "" }))).await;
    assert_eq!(none["spec"]["storageClassName"], "");
    server.clock.advance(std::time::Duration::from_secs(5));
    let marked = json!({ "name": "newer", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } });
    server.create(CLASSES, &json!({ "metadata": marked, "provisioner": "x.y/z" })).await;
    let newer = server.create(&claims, &claim("c", &json!({}))).await;
    assert_eq!(newer["spec"]["storageClassName"], "newer");
    let made = server.create(VOLUMES, &volume("v", &json!({}))).await;
    assert_eq!(made["metadata"]["finalizers"], json!(["tandem.dev/local-volume", "kubernetes.io/pv-protection"]));
}

#[tokio::test]
async fn bound_claims_do_not_grow() {
    let server = Server::start().await;
    let expanding =
        json!({ "metadata": { "name": "large" }, "provisioner": "tandem.dev/local", "allowVolumeExpansion": true });
    server.create(CLASSES, &expanding).await;
    let claims = in_default("persistentvolumeclaims");
    for (name, class) in [("a", "standard"), ("b", "large")] {
        server.create(&claims, &claim(name, &json!({ "storageClassName": class, "volumeName": "v" }))).await;
    }
    let grow = json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } });
    expect![[r#"403 Forbidden: persistentvolumeclaims "a" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"#]].assert_eq(&server.patch(&format!("{claims}/a"), MERGE, &grow).await.status());
    expect![[r#"403 Forbidden: persistentvolumeclaims "b" is forbidden: volumes of the provisioner tandem.dev/local cannot be expanded"#]].assert_eq(&server.patch(&format!("{claims}/b"), MERGE, &grow).await.status());
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    assert_eq!(server.patch(&format!("{claims}/a"), MERGE, &label).await.code, 200);
}

#[tokio::test]
async fn a_node_sees_the_storage_of_its_pods_and_lets_its_own_volumes_go() {
    let server = Server::start().await;
    server.default_account().await;
    let claims = in_default("persistentvolumeclaims");
    server.create(&claims, &claim("data", &json!({ "volumeName": "far" }))).await;
    server.create(VOLUMES, &volume("near", &json!({}))).await;
    let promised = json!({ "claimRef": { "namespace": "default", "name": "data" }, "csi": { "driver": "x.y", "volumeHandle": "h" } });
    server.create(VOLUMES, &volume("far", &promised)).await;
    let get = |node: &'static str, uri: String| {
        let server = &server;
        async move { server.send(by(node, ask("GET", &uri))).await.code }
    };
    let (data, far, near) = (format!("{claims}/data"), format!("{VOLUMES}/far"), format!("{VOLUMES}/near"));
    assert_eq!(
        [get("n1", data.clone()).await, get("n1", far.clone()).await, get("n1", near.clone()).await],
        [403, 403, 200]
    );
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = "n2".into();
    pod["spec"]["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }]);
    server.create(&in_default("pods"), &pod).await;
    assert_eq!([get("n2", data).await, get("n2", far).await, get("n2", near.clone()).await], [200, 200, 403]);
    let labelled = |node: &str| format!("{VOLUMES}?labelSelector=tandem.dev%2Fnode%3D{node}");
    assert_eq!(
        [get("n1", labelled("n1")).await, get("n1", labelled("n2")).await, get("n1", VOLUMES.into()).await],
        [200, 403, 403]
    );

    let finalizers = |all: &[&str]| json!({ "metadata": { "finalizers": all } });
    let patch = |node: &str, body: &Value| by(node, ask("PATCH", &near).header("content-type", MERGE).json(body));
    let freed = finalizers(&["kubernetes.io/pv-protection"]);
    expect![[r#"403 Forbidden: persistentvolumes "near" is forbidden: node "n1" can only remove the finalizer tandem.dev/local-volume of a deleted volume"#]].assert_eq(&server.send(patch("n1", &freed)).await.status());
    server.delete(&near).await;
    assert_eq!(server.send(patch("n2", &freed)).await.code, 403, "another node");
    assert_eq!(server.send(patch("n1", &finalizers(&[]))).await.code, 403, "the protection is not the node's to take");
    let mut more = freed.clone();
    more["spec"] = json!({ "persistentVolumeReclaimPolicy": "Delete" });
    assert_eq!(server.send(patch("n1", &more)).await.code, 403, "nothing else changes");
    assert_eq!(server.send(patch("n1", &freed)).await.code, 200);
}

#[tokio::test]
async fn a_node_makes_no_volume_by_applying_one() {
    let server = Server::start().await;
    let stolen = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "evil" }, "spec": {
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "hostPath": { "path": "/" },
        "claimRef": { "namespace": "default", "name": "data" },
    } });
    let applied = ask("PATCH", &format!("{VOLUMES}/evil?fieldManager=n1"))
        .body("application/apply-patch+yaml", stolen.to_string());
    assert_eq!(server.send(by("n1", applied)).await.code, 403);
    assert_eq!(server.get(&format!("{VOLUMES}/evil")).await.code, 404);
}

#[tokio::test]
async fn default_classes_that_were_removed_stay_away() {
    let server = Server::start().await;
    assert_eq!(server.delete(&format!("{CLASSES}/standard")).await.code, 200);
    server.api.bootstrap().await.unwrap();
    assert_eq!(server.get(&format!("{CLASSES}/standard")).await.code, 404);
}
