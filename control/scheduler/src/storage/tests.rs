use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{Profile, schedule};

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn class(name: &str, mode: &str, provisioner: &str) -> StorageClass {
    read(json!({ "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": mode }))
}

fn claim(name: &str, class: &str, volume: &str, annotations: Value) -> PersistentVolumeClaim {
    let phase = if annotations.get(volumes::BIND_COMPLETED).is_some() { "Bound" } else { "Pending" };
    read(json!({
        "status": { "phase": phase },
        "metadata": { "name": name, "namespace": "ns", "annotations": annotations },
        "spec": { "storageClassName": class, "volumeName": volume, "accessModes": ["ReadWriteOnce"],
                  "resources": { "requests": { "storage": "1Gi" } } },
    }))
}

fn volume(name: &str, class: &str, node: &str) -> PersistentVolume {
    let term = json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [node] }] });
    read(json!({
        "metadata": { "name": name },
        "spec": { "storageClassName": class, "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" },
                  "nodeAffinity": { "required": { "nodeSelectorTerms": [term] } } },
    }))
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in ["n1", "n2"] {
        snapshot.add_node(NodeInfo {
            name: name.into(),
            allocatable: crate::Resources { pods: 9, ..Default::default() },
            ..NodeInfo::default()
        });
    }
    let storage = &mut snapshot.storage;
    for class in [
        class("late", "WaitForFirstConsumer", volumes::PROVISIONER),
        class("by-hand", "WaitForFirstConsumer", volumes::NO_PROVISIONER),
        class("now", "Immediate", volumes::PROVISIONER),
    ] {
        storage.classes.take(Event::Apply(class));
    }
    snapshot
}

fn pod(uid: &str, claims: &[&str]) -> PodInfo {
    let claims = claims.iter().map(ToString::to_string).collect();
    PodInfo { uid: uid.into(), name: uid.into(), namespace: "ns".into(), claims, ..PodInfo::default() }
}

fn place(snapshot: &Snapshot, claims: &[&str]) -> String {
    schedule(&pod("p", claims), snapshot, &Profile::default(), 0).unwrap_or_else(|refused| refused.to_string())
}

fn bound() -> Value {
    json!({ volumes::BIND_COMPLETED: "yes" })
}

#[test]
fn pods_say_in_kubernetes_words_why_their_claims_keep_them() {
    let mut snapshot = cluster();
    let of = |why: &str| format!("0/2 nodes are available: {why}.");
    assert_eq!(place(&snapshot, &["c"]), of("persistentvolumeclaim \"c\" not found"));
    snapshot.storage.claims.take(Event::Apply(claim("c", "now", "", json!({}))));
    assert_eq!(place(&snapshot, &["c"]), of("pod has unbound immediate PersistentVolumeClaims"));
    snapshot.storage.claims.take(Event::Apply(claim("c", "by-hand", "", json!({}))));
    assert_eq!(place(&snapshot, &["c"]), of("2 node(s) didn't find available persistent volumes to bind"));
    snapshot.storage.claims.take(Event::Apply(claim("c", "late", "gone", bound())));
    assert_eq!(
        place(&snapshot, &["c"]),
        of("2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
    );
    snapshot.storage.volumes.take(Event::Apply(volume("gone", "late", "n3")));
    assert_eq!(place(&snapshot, &["c"]), of("2 node(s) had volume node affinity conflict"));
}

#[test]
fn a_pod_goes_where_its_volumes_are_or_can_be() {
    let mut snapshot = cluster();
    snapshot.storage.claims.take(Event::Apply(claim("c", "late", "", json!({}))));
    assert_eq!(place(&snapshot, &["c"]), "n1", "anywhere");
    snapshot.storage.claims.take(Event::Apply(claim("c", "late", "", json!({ volumes::SELECTED_NODE: "n2" }))));
    assert_eq!(place(&snapshot, &["c"]), "n2", "where its volume is being made");
    snapshot.storage.claims.take(Event::Apply(claim("a", "by-hand", "", json!({}))));
    snapshot.storage.claims.take(Event::Apply(claim("b", "by-hand", "", json!({}))));
    snapshot.storage.volumes.take(Event::Apply(volume("v1", "by-hand", "n2")));
    assert_eq!(place(&snapshot, &["a"]), "n2");
    assert!(place(&snapshot, &["a", "b"]).contains("didn't find available"), "two claims need two volumes");
    snapshot.storage.volumes.take(Event::Apply(volume("v2", "by-hand", "n2")));
    assert_eq!(place(&snapshot, &["a", "b"]), "n2");
}

#[test]
fn a_claim_for_one_pod_has_one() {
    let mut snapshot = cluster();
    let mut exclusive = claim("c", "late", "v", bound());
    exclusive.spec.as_mut().unwrap().access_modes = Some(vec![volumes::READ_WRITE_ONCE_POD.to_owned()]);
    snapshot.storage.claims.take(Event::Apply(exclusive));
    snapshot.storage.volumes.take(Event::Apply(volume("v", "late", "n1")));
    assert_eq!(place(&snapshot, &["c"]), "n1");
    snapshot.assume(&pod("other", &["c"]), "n1");
    assert_eq!(
        place(&snapshot, &["c"]),
        "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod \
         access mode."
    );
}

#[test]
fn a_pod_is_bound_after_its_claims() {
    let mut snapshot = cluster();
    let (pod, node) = (pod("p", &["c"]), snapshot.node("n1").cloned().unwrap());
    let standing = |snapshot: &Snapshot| snapshot.storage.standing(&pod, &node);
    assert_eq!(standing(&snapshot), Standing::Elsewhere, "it is gone");
    snapshot.storage.claims.take(Event::Apply(claim("c", "late", "", json!({}))));
    assert_eq!(snapshot.storage.to_select(&pod, "n1"), ["c"]);
    assert_eq!(standing(&snapshot), Standing::Waiting);
    snapshot.storage.claims.take(Event::Apply(claim("c", "late", "v", bound())));
    assert!(snapshot.storage.to_select(&pod, "n1").is_empty());
    let mut late = claim("c", "late", "v", bound());
    late.status = None;
    snapshot.storage.claims.take(Event::Apply(late));
    assert_eq!(standing(&snapshot), Standing::Waiting, "its status is not written yet");
    snapshot.storage.claims.take(Event::Apply(claim("c", "late", "v", bound())));
    assert_eq!(standing(&snapshot), Standing::Waiting, "the volume is not seen yet");
    snapshot.storage.volumes.take(Event::Apply(volume("v", "late", "n1")));
    assert_eq!(standing(&snapshot), Standing::Bound);
    snapshot.storage.volumes.take(Event::Apply(volume("v", "late", "n2")));
    assert_eq!(standing(&snapshot), Standing::Elsewhere);
}

/// The volume with its promise to a claim.
fn promised(mut volume: PersistentVolume, claim: &str) -> PersistentVolume {
    volume.spec.as_mut().unwrap().claim_ref = Some(read(json!({ "namespace": "ns", "name": claim })));
    volume
}

#[test]
fn a_pod_whose_volume_went_to_another_looks_on_other_nodes() {
    let mut snapshot = cluster();
    let told = || json!({ volumes::SELECTED_NODE: "n1" });
    for event in [claim("c1", "by-hand", "", told()), claim("c2", "by-hand", "", told())] {
        snapshot.storage.claims.take(Event::Apply(event));
    }
    let on = |name: &str, node: &str| volume(name, "by-hand", node);
    let (pod, node) = (pod("p2", &["c2"]), snapshot.node("n1").cloned().unwrap());
    snapshot.storage.volumes.take(Event::Apply(on("pv-a", "n1")));
    assert_eq!(snapshot.storage.standing(&pod, &node), Standing::Waiting, "it may get it");
    snapshot.storage.volumes.take(Event::Apply(promised(on("pv-a", "n1"), "c2")));
    assert_eq!(snapshot.storage.standing(&pod, &node), Standing::Waiting, "it gets it");
    snapshot.storage.volumes.take(Event::Apply(promised(on("pv-a", "n1"), "c1")));
    assert_eq!(snapshot.storage.standing(&pod, &node), Standing::Elsewhere);
    assert!(place(&snapshot, &["c2"]).contains("2 node(s) didn't find available"), "there is none");
    snapshot.storage.volumes.take(Event::Apply(on("pv-b", "n2")));
    assert_eq!(place(&snapshot, &["c2"]), "n2", "whatever the claim was told before");
    assert_eq!(snapshot.storage.to_select(&pod, "n2"), ["c2"], "and it is told anew");
    assert_eq!(snapshot.storage.standing(&pod, snapshot.node("n2").unwrap()), Standing::Waiting);
}

#[test]
fn a_list_says_what_is_gone() {
    let mut storage = Storage::default();
    storage.claims.take(Event::Apply(claim("a", "", "", json!({}))));
    for event in [Event::Init, Event::InitApply(claim("b", "", "", json!({}))), Event::InitDone] {
        storage.claims.take(event);
    }
    assert!(storage.claims.get("ns", "a").is_none() && storage.claims.get("ns", "b").is_some());
    assert!(storage.claims.is_listed() && !storage.is_listed());
}

#[test]
fn two_pods_are_not_given_the_same_volume() {
    let mut snapshot = cluster();
    snapshot.storage.volumes.take(Event::Apply(volume("v", "by-hand", "n1")));
    for name in ["a", "b"] {
        snapshot.storage.claims.take(Event::Apply(claim(name, "by-hand", "", json!({}))));
    }
    let first = pod("first", &["a"]);
    assert_eq!(schedule(&first, &snapshot, &Profile::default(), 0).unwrap(), "n1");
    snapshot.assume(&first, "n1");
    let refused = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    assert_eq!(place(&snapshot, &["b"]), refused, "before the first claim is bound");
    snapshot.forget("first");
    assert_eq!(place(&snapshot, &["b"]), "n1", "given back");
}

#[test]
fn a_node_that_was_chosen_in_vain_is_forgotten() {
    let mut snapshot = cluster();
    let chosen = || json!({ volumes::SELECTED_NODE: "n2" });
    for (name, class, annotations) in
        [("late", "late", chosen()), ("by-hand", "by-hand", chosen()), ("none", "late", json!({}))]
    {
        snapshot.storage.claims.take(Event::Apply(claim(name, class, "", annotations)));
    }
    let stuck = |snapshot: &Snapshot| snapshot.storage.to_deselect(&pod("p", &["late", "by-hand", "none"]));
    assert_eq!(stuck(&snapshot), ["late"]);
    let mut made = volume("made", "late", "n2");
    made.spec.as_mut().unwrap().claim_ref = Some(read(json!({ "name": "late", "namespace": "ns" })));
    snapshot.storage.volumes.take(Event::Apply(made));
    assert_eq!(stuck(&snapshot), [""; 0], "its volume is being made there");
}
