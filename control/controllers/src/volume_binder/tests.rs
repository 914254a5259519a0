use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::action::testing::describe;

fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": { "name": "c", "namespace": "ns", "uid": "u", "annotations": {} },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
        "status": { "phase": "Pending" },
    });
    change(&mut claim);
    serde_json::from_value(claim).unwrap()
}

fn volume(name: &str, change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
    let mut volume = json!({
        "metadata": { "name": name, "uid": name },
        "spec": { "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "2Gi" }, "hostPath": { "path": "/d" } },
        "status": { "phase": "Available" },
    });
    change(&mut volume);
    Arc::new(serde_json::from_value(volume).unwrap())
}

fn class(provisioner: &str) -> Option<Arc<StorageClass>> {
    let class = json!({
        "metadata": { "name": "standard" }, "provisioner": provisioner, "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    Some(Arc::new(serde_json::from_value(class).unwrap()))
}

fn node() -> Option<Arc<Node>> {
    let node = json!({ "metadata": { "name": "n1", "labels": { "kubernetes.io/hostname": "n1" } } });
    Some(Arc::new(serde_json::from_value(node).unwrap()))
}

fn show(action: &Action) -> String {
    if let Some(claim) = action.object::<PersistentVolumeClaim>() {
        let keys: Vec<&str> = claim.metadata.annotations.iter().flatten().map(|(key, _)| key.as_str()).collect();
        let volume = volumes::volume_name(claim).unwrap_or_default();
        return format!("[{volume}] {} {}", volumes::phase(claim), keys.join(" "));
    }
    let Some(volume) = action.object::<PersistentVolume>() else { return String::new() };
    let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone());
    format!("for {}", uid.unwrap_or_default())
}

fn check(
    claim: PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    class: Option<Arc<StorageClass>>,
    node: Option<Arc<Node>>,
    expected: Expect,
) {
    let view = View { claim: Arc::new(claim), volumes: volumes.to_vec(), class, node };
    expected.assert_eq(&describe(&VolumeBinder::plan(&view, Timestamp::UNIX_EPOCH), show));
}

fn of_class(class: &str) -> impl FnOnce(&mut Value) {
    move |claim: &mut Value| claim["spec"]["storageClassName"] = class.into()
}

#[test]
fn a_claim_is_bound_in_two_steps() {
    check(
        claim(|_| ()),
        &[volume("v", |_| ())],
        None,
        None,
        expect![[r#"
        update PersistentVolume v for u
        update PersistentVolumeClaim ns/c [v] Pending pv.kubernetes.io/bind-completed pv.kubernetes.io/bound-by-controller
    "#]],
    );
    let promised =
        volume("v", |volume| volume["spec"]["claimRef"] = json!({ "namespace": "ns", "name": "c", "uid": "u" }));
    let bound = claim(|claim| {
        claim["spec"]["volumeName"] = "v".into();
        claim["metadata"]["annotations"] = json!({ volumes::BIND_COMPLETED: "yes" });
    });
    check(
        bound,
        &[promised],
        None,
        None,
        expect![[r#"
        status PersistentVolumeClaim ns/c [v] Bound pv.kubernetes.io/bind-completed
    "#]],
    );
}

#[test]
fn what_a_user_names_is_checked() {
    let named = |name: &str| claim(|claim| claim["spec"]["volumeName"] = name.into());
    let small = volume("v", |volume| volume["spec"]["capacity"]["storage"] = "1Mi".into());
    check(
        named("v"),
        &[small],
        None,
        None,
        expect![[r#"
        event Warning VolumeMismatch: Cannot bind to requested volume "v": requested PV is too small
    "#]],
    );
    let other = volume("v", |volume| volume["spec"]["claimRef"] = json!({ "namespace": "ns", "name": "d" }));
    check(
        named("v"),
        &[other],
        None,
        None,
        expect![[r#"
        event Warning FailedBinding: volume "v" already bound to a different claim.
    "#]],
    );
    check(named("none"), &[], None, None, expect![[""]]);
}

#[test]
fn a_claim_without_its_volume_is_lost() {
    let bound = |phase: &str| {
        claim(|claim| {
            claim["spec"]["volumeName"] = "v".into();
            claim["metadata"]["annotations"] = json!({ volumes::BIND_COMPLETED: "yes" });
            claim["status"]["phase"] = phase.into();
        })
    };
    check(
        bound("Bound"),
        &[],
        None,
        None,
        expect![[r#"
        status PersistentVolumeClaim ns/c [v] Lost pv.kubernetes.io/bind-completed
        event Warning ClaimLost: Bound claim has lost its PersistentVolume. Any data on the volume is lost!
    "#]],
    );
    check(bound("Lost"), &[], None, None, expect![[""]]);
}

#[test]
fn a_volume_is_made_where_the_scheduler_chose() {
    let selected = claim(|claim| {
        claim["spec"]["storageClassName"] = "standard".into();
        claim["metadata"]["annotations"] = json!({ volumes::SELECTED_NODE: "n1" });
    });
    check(
        claim(of_class("standard")),
        &[],
        class(volumes::PROVISIONER),
        None,
        expect![[r#"
        event Normal WaitForFirstConsumer: waiting for first consumer to be created before binding
    "#]],
    );
    check(
        selected.clone(),
        &[],
        class(volumes::PROVISIONER),
        node(),
        expect![[r#"
        create PersistentVolume pvc-u for u
        event Normal ProvisioningSucceeded: Successfully provisioned volume pvc-u
    "#]],
    );
    check(
        selected.clone(),
        &[],
        class(volumes::NO_PROVISIONER),
        node(),
        expect![[r#"
        event Warning ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner
    "#]],
    );
    check(
        selected.clone(),
        &[],
        class("ebs.csi.aws.com"),
        node(),
        expect![[r#"
        update PersistentVolumeClaim ns/c [] Pending volume.kubernetes.io/selected-node volume.kubernetes.io/storage-provisioner
        event Normal ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'ebs.csi.aws.com' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.
    "#]],
    );
    let shared = PersistentVolumeClaim {
        spec: selected.spec.clone().map(|spec| k8s_openapi::api::core::v1::PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteMany".to_owned()]),
            ..spec
        }),
        ..selected
    };
    check(
        shared,
        &[],
        class(volumes::PROVISIONER),
        node(),
        expect![[r#"
        event Warning ProvisioningFailed: failed to provision volume with StorageClass "standard": only ReadWriteOnce and ReadWriteOncePod are supported
    "#]],
    );
}

#[test]
fn a_claim_that_nobody_serves_says_so() {
    check(
        claim(|_| ()),
        &[],
        None,
        None,
        expect![[r#"
        event Normal FailedBinding: no persistent volumes available for this claim and no storage class is set
    "#]],
    );
    check(
        claim(of_class("fast")),
        &[],
        None,
        None,
        expect![[r#"
        event Warning ProvisioningFailed: storageclass.storage.k8s.io "fast" not found
    "#]],
    );
}

#[test]
fn a_node_that_appears_wakes_the_claims_that_were_told_it() {
    let cache = Cache::default();
    let told = |name: &str, node: &str, phase: &str| {
        claim(|claim| {
            claim["metadata"]["name"] = name.into();
            claim["metadata"]["annotations"] = json!({ volumes::SELECTED_NODE: node });
            claim["status"]["phase"] = phase.into();
        })
    };
    for claim in [told("waits", "n1", "Pending"), told("has", "n1", BOUND), told("other", "n2", "Pending")] {
        cache.claims.apply(claim);
    }
    let wakes = |node: &Node| VolumeBinder.wakes(&cache, &Change::Node(cache.nodes.apply(node.clone())));
    let mut node = node().unwrap().as_ref().clone();
    assert_eq!(wakes(&node), [Key::new("ns", "waits")]);
    assert_eq!(wakes(&node), [], "its heartbeat");
    node.metadata.labels.get_or_insert_default().insert("zone".to_owned(), "z".to_owned());
    assert_eq!(wakes(&node), [Key::new("ns", "waits")], "its labels");
    assert_eq!(VolumeBinder.wakes(&cache, &Change::Node(cache.nodes.remove(&node))), []);
}
