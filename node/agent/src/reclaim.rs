//! Removes the folders of volumes that were deleted.
//!
//! ```text
//!  watch of the volumes on this node ─> must_go (pure) ─> no pod has it ─> remove the folder ─> let the object go
//! ```
//! A node that is away finds the object, and its folder, when it is back. What failed is tried again.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

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
            if let Err(why) = reclaim(&context, &api, &name, &volume).await {
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

async fn reclaim(
    context: &Context,
    api: &Api<PersistentVolume>,
    name: &str,
    volume: &PersistentVolume,
) -> Result<(), String> {
    let (directories, removed) = (context.directories.clone(), name.to_owned());
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
    if let Some(pod) = user(directories, &folder) {
        return Err(format!("pod {pod} on this node still has it"));
    }
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The uid of a pod whose remains on this node lead to the folder: one that was deleted by force may still run.
fn user(directories: &Directories, folder: &Path) -> Option<String> {
    let pods = std::fs::read_dir(directories.pods()).ok()?;
    let mut uids = pods.flatten().filter_map(|pod| pod.file_name().into_string().ok());
    uids.find(|uid| {
        let links = std::fs::read_dir(directories.volumes(uid)).ok().into_iter().flatten().flatten();
        links.into_iter().any(|link| std::fs::read_link(link.path()).is_ok_and(|target| target == folder))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_deleted_unused_and_here_goes() {
        let volume = |deleted: bool, finalizers: &[&str], policy: &str, node: &str| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {
                    "name": "v", "finalizers": finalizers, "labels": { words::NODE_LABEL: node },
                    "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z"),
                },
                "spec": {
                    "persistentVolumeReclaimPolicy": policy,
                    "csi": { "driver": words::PROVISIONER, "volumeHandle": "v" },
                },
            }))
            .unwrap()
        };
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
