use std::{fs, os::unix::fs::MetadataExt};

use serde_json::json;

use super::*;
use crate::testing::{canned::Canned, with_spec};

const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/c";
const VOLUME: &str = "/api/v1/persistentvolumes/v";

/// An API with a claim that is bound to a volume of node n1.
fn api() -> Canned {
    let api = Canned::default();
    let claim = json!({
        "metadata": { "name": "c", "namespace": "default", "uid": "u" },
        "spec": { "volumeName": "v" }, "status": { "phase": "Bound" },
    });
    let volume = json!({
        "metadata": { "name": "v", "labels": { volumes::NODE_LABEL: "n1" } },
        "spec": { "claimRef": { "uid": "u" }, "csi": { "driver": volumes::PROVISIONER, "volumeHandle": "v" } },
    });
    api.answer(CLAIM, 200, claim);
    api.answer(VOLUME, 200, volume);
    api
}

async fn set_up(api: &Canned, node: &Path, group: i64) -> Result<(), String> {
    let pod = with_spec(crate::testing::pod(&["a"]), |spec| {
        spec.security_context.get_or_insert_default().fs_group = Some(group)
    });
    let source = PersistentVolumeClaimVolumeSource { claim_name: "c".to_owned(), ..Default::default() };
    let directories = Directories::new(node);
    let link = directories.volumes("uid-1").join("data");
    Claims::new(api.client(), "n1".to_owned(), directories).set_up(&pod, &source, &link).await
}

#[tokio::test]
async fn a_volume_is_given_to_its_group_once() {
    let (node, api) = (tempfile::tempdir().unwrap(), api());
    set_up(&api, node.path(), 1234).await.unwrap();
    let folder = node.path().join("volumes/v");
    let group = |path: &Path| fs::metadata(path).unwrap().gid();
    assert_eq!(group(&folder), 1234, "this test changes groups, so it needs root");
    // As a program of the pod leaves its files.
    fs::write(folder.join("file"), "").unwrap();
    std::os::unix::fs::chown(folder.join("file"), None, Some(77)).unwrap();
    set_up(&api, node.path(), 1234).await.unwrap();
    assert_eq!(group(&folder.join("file")), 77, "what is in use is left alone");
}

#[tokio::test]
async fn a_known_volume_is_mounted_while_the_api_is_in_trouble() {
    let (node, api) = (tempfile::tempdir().unwrap(), api());
    let status = |code: u16| json!({ "kind": "Status", "status": "Failure", "reason": "Test", "code": code });
    api.answer(VOLUME, 503, status(503));
    assert!(set_up(&api, node.path(), 1234).await.is_err(), "not known yet");
    let working = self::api();
    set_up(&working, node.path(), 1234).await.unwrap();
    for (path, code) in [(CLAIM, 429), (CLAIM, 503), (VOLUME, 500), (VOLUME, 503)] {
        let api = self::api();
        api.answer(path, code, status(code));
        assert_eq!(set_up(&api, node.path(), 1234).await, Ok(()), "{path} {code}");
    }
    for (path, code) in [(CLAIM, 403), (CLAIM, 404), (VOLUME, 403), (VOLUME, 404)] {
        let api = self::api();
        api.answer(path, code, status(code));
        assert!(set_up(&api, node.path(), 1234).await.is_err(), "{path} {code}");
    }
}
