//! Removes the folders of volumes that were deleted.
//!
//! ```text
//!  watch of the volumes on this node ─> must_go (pure) ─> no pod has it ─> remove the folder ─> let the object go
//! ```
//! A node that is away finds the object, and its folder, when it is back. What failed is tried again.

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde::Serialize;
use tandem_client::volumes as words;
use tokio_util::sync::CancellationToken;

use crate::{config::Directories, context::Context, volumes};

const RETRY_PERIOD: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Freed {
    metadata: FreedMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FreedMeta {
    uid: Option<String>,
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let mine = watcher::Config::default().labels(&format!("{}={}", words::NODE_LABEL, context.node_name));
    let events = watcher::watcher(api.clone(), mine).default_backoff();
    futures::pin_mut!(events);
    // Bounded by the volumes of this node.
    let mut waiting: BTreeMap<String, PersistentVolume> = BTreeMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY_PERIOD), if !waiting.is_empty() => {}
            event = events.next() => match event {
                Some(Ok(event)) => note(&mut waiting, event, &context.node_name),
                Some(Err(error)) => {
                    tracing::debug!(%error, "watching the volumes of this node");
                    continue;
                }
                None => return,
            },
        }
        let mut left = BTreeMap::new();
        for (name, volume) in waiting {
            if let Err(why) = reclaim(&context.directories, &context.node_name, &api, &name, &volume).await {
                context.events.volume(&volume, "VolumeFailedDelete", &why);
                left.insert(name, volume);
            }
        }
        waiting = left;
    }
}

fn note(waiting: &mut BTreeMap<String, PersistentVolume>, event: Event<PersistentVolume>, node: &str) {
    let name = |volume: &PersistentVolume| volume.metadata.name.clone().unwrap_or_default();
    match event {
        Event::Init => waiting.clear(),
        Event::Apply(volume) | Event::InitApply(volume) if must_go(&volume, node) => {
            waiting.insert(name(&volume), volume);
        }
        Event::Apply(volume) | Event::InitApply(volume) | Event::Delete(volume) => {
            waiting.remove(&name(&volume));
        }
        Event::InitDone => {}
    }
}

/// Everybody is done with the volume, and its policy is that the data goes too.
fn must_go(volume: &PersistentVolume, node: &str) -> bool {
    words::waits_for_its_folder(volume) && !words::is_kept(volume) && words::home(volume) == Some(node)
}

/// `noted` may be long behind: only what the API says now counts for the end of data.
async fn reclaim(
    directories: &Directories,
    node: &str,
    api: &Api<PersistentVolume>,
    name: &str,
    noted: &PersistentVolume,
) -> Result<(), String> {
    let found = api.get_opt(name).await.map_err(|error| format!("cannot read persistentvolume \"{name}\": {error}"))?;
    let is_meant = |volume: &PersistentVolume| volume.metadata.uid == noted.metadata.uid && must_go(volume, node);
    // If not, the watch says what is to be done.
    let Some(volume) = found.filter(is_meant) else { return Ok(()) };
    let (directories, removed) = (directories.clone(), name.to_owned());
    let removal = tokio::task::spawn_blocking(move || remove(&directories, &removed)).await;
    removal.map_err(|error| error.to_string()).flatten()?;
    tracing::info!(volume = name, "removed the folder of a deleted volume");
    let meta = &volume.metadata;
    let left = meta.finalizers.iter().flatten().filter(|finalizer| *finalizer != words::FOLDER_FINALIZER);
    let freed = Freed {
        metadata: FreedMeta {
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            finalizers: left.cloned().collect(),
        },
    };
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&freed)).await {
        // Changed or gone meanwhile: the watch says what is to be done then.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        patched => patched.map(drop).map_err(|error| format!("cannot let persistentvolume \"{name}\" go: {error}")),
    }
}

fn remove(directories: &Directories, name: &str) -> Result<(), String> {
    let folder = volumes::folder_of(directories, name)?;
    let told = |error: io::Error| format!("cannot tell whether a pod still has {}: {error}", folder.display());
    if let Some(pod) = user(directories, &folder).map_err(told)? {
        return Err(format!("pod {pod} on this node still has it"));
    }
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The uid of a pod whose remains on this node lead to the folder: one that was deleted by force may still run.
/// What cannot be read may be one.
fn user(directories: &Directories, folder: &Path) -> io::Result<Option<String>> {
    let Some(folder) = present(std::fs::canonicalize(folder))? else { return Ok(None) };
    let Some(pods) = present(std::fs::read_dir(directories.pods()))? else { return Ok(None) };
    for pod in pods {
        let uid = pod?.file_name().into_string().map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let Some(volumes) = present(std::fs::read_dir(directories.volumes(&uid)))? else { continue };
        for volume in volumes {
            let target = present(std::fs::canonicalize(volume?.path()))?;
            if target.is_some_and(|target| target.starts_with(&folder)) {
                return Ok(Some(uid));
            }
        }
    }
    Ok(None)
}

/// Only what is not there counts as absent.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;
    use crate::testing::canned::Canned;

    fn volume(deleted: bool, finalizers: &[&str], policy: &str, node: &str) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {
                "name": "v", "uid": "u", "finalizers": finalizers, "labels": { words::NODE_LABEL: node },
                "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z"),
            },
            "spec": {
                "persistentVolumeReclaimPolicy": policy,
                "csi": { "driver": words::PROVISIONER, "volumeHandle": "v" },
            },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn the_api_is_asked_before_anything_goes() {
        const PATH: &str = "/api/v1/persistentvolumes/v";
        let node = tempfile::tempdir().unwrap();
        let directories = Directories::new(node.path());
        let folder = directories.persistent().join("v");
        std::fs::create_dir_all(&folder).unwrap();
        let finalizers = [words::FOLDER_FINALIZER];
        let noted = volume(true, &finalizers, "Delete", "n1");
        let meanwhile = |change: &dyn Fn(&mut PersistentVolume)| {
            let mut changed = noted.clone();
            change(&mut changed);
            (200, serde_json::to_value(changed).unwrap())
        };
        let status = |code: u16, reason: &str| {
            (code, json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code }))
        };
        let cases = [
            ("retained", meanwhile(&|changed| *changed = volume(true, &finalizers, "Retain", "n1")), true),
            ("made anew", meanwhile(&|volume| volume.metadata.uid = Some("other".to_owned())), true),
            (
                "in use",
                meanwhile(&|volume| {
                    volume.metadata.finalizers.as_mut().unwrap().push(words::VOLUME_PROTECTION.to_owned())
                }),
                true,
            ),
            ("gone", status(404, "NotFound"), true),
            ("unknown", status(503, "ServiceUnavailable"), false),
            ("not to be seen", status(403, "Forbidden"), false),
        ];
        for (case, (code, body), is_settled) in cases {
            let api = Canned::default();
            api.answer(PATH, code, body);
            let done = reclaim(&directories, "n1", &Api::all(api.client()), "v", &noted).await;
            assert_eq!(done.is_ok(), is_settled, "{case}: {done:?}");
            assert!(folder.exists(), "{case}");
            assert_eq!(api.asked(), [format!("GET {PATH}")], "{case}");
        }
        let (code, body) = meanwhile(&|_| ());
        let api = Canned::default();
        api.answer(PATH, code, body);
        assert_eq!(reclaim(&directories, "n1", &Api::all(api.client()), "v", &noted).await, Ok(()));
        assert!(!folder.exists());
        assert_eq!(api.asked(), [format!("GET {PATH}"), format!("PATCH {PATH}")]);
    }

    #[test]
    fn what_cannot_be_looked_into_may_use_the_folder() {
        let node = tempfile::tempdir().unwrap();
        let directories = Directories::new(node.path());
        let folder = directories.persistent().join("v");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(directories.pod("uid")).unwrap();
        // Not a folder: reading it fails, and not because nothing is there.
        std::fs::write(directories.volumes("uid"), "").unwrap();
        assert!(remove(&directories, "v").unwrap_err().contains("cannot tell"));
        std::fs::remove_file(directories.volumes("uid")).unwrap();
        std::fs::create_dir_all(directories.volumes("uid")).unwrap();
        // The same folder by another path, and what is in it.
        symlink(node.path(), node.path().join("alias")).unwrap();
        let link = directories.volumes("uid").join("data");
        for target in ["alias/volumes/v", "alias/pods/../volumes/v"] {
            symlink(node.path().join(target), &link).unwrap();
            assert_eq!(remove(&directories, "v"), Err("pod uid on this node still has it".to_owned()), "{target}");
            std::fs::remove_file(&link).unwrap();
        }
        symlink("/nowhere/at/all", &link).unwrap();
        assert_eq!(remove(&directories, "v"), Ok(()), "a link to nothing uses nothing");
        assert!(!folder.exists());
    }

    #[test]
    fn only_what_is_deleted_unused_and_here_goes() {
        let folder = [words::FOLDER_FINALIZER];
        let both = [words::FOLDER_FINALIZER, words::VOLUME_PROTECTION];
        assert!(must_go(&volume(true, &folder, "Delete", "n1"), "n1"));
        assert!(!must_go(&volume(false, &folder, "Delete", "n1"), "n1"), "not deleted");
        assert!(!must_go(&volume(true, &both, "Delete", "n1"), "n1"), "a claim has it");
        assert!(!must_go(&volume(true, &[], "Delete", "n1"), "n1"), "done");
        assert!(!must_go(&volume(true, &folder, "Retain", "n1"), "n1"), "its data stays");
        assert!(!must_go(&volume(true, &folder, "Delete", "n2"), "n1"), "another node's");
    }

    #[test]
    fn a_folder_goes_when_no_pod_leads_to_it_and_nothing_else_goes() {
        let node = tempfile::tempdir().unwrap();
        let directories = Directories::new(node.path());
        let folder = directories.persistent().join("v");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        symlink("/etc", folder.join("deep/out")).unwrap();
        std::fs::create_dir_all(directories.volumes("uid")).unwrap();
        let link = directories.volumes("uid").join("data");
        symlink(&folder, &link).unwrap();
        assert_eq!(remove(&directories, "v"), Err("pod uid on this node still has it".to_owned()));
        std::fs::remove_file(link).unwrap();
        assert_eq!(remove(&directories, "v"), Ok(()));
        assert_eq!(remove(&directories, "v"), Ok(()), "again");
        assert!(!folder.exists() && Path::new("/etc/passwd").exists());
        for name in ["", "..", "a/b", "../v", "/etc"] {
            assert!(remove(&directories, name).is_err(), "{name:?}");
        }
    }
}
