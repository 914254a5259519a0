//! A pod's volumes as folders of the node, and what of them a container sees.
//!
//! ```text
//!  Pod.volumes ─> payload (pure) ─> atomic writer ─> pods/UID/volumes/NAME ─┐
//!                 emptyDir, hostPath ──────────────────────────────────────┼─> Mount
//!                 claim ─> its volume (API) ─> link to its folder ─────────┘
//! ```
//!
//! A volume type that is not known is an error that the pod shows, never an empty folder.

mod atomic;
mod claims;
mod group;
mod host_path;
mod payload;
mod sub_path;
mod token;

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, EmptyDirVolumeSource, Pod, Volume};
use tandem_api::Clock;
use tandem_runtime::Mount;

use crate::{
    config::Directories,
    env::{self, Environment},
    fault::Fault,
    fields::Placement,
    objects::{Age, Objects},
    pod, quantity,
};

const POD_FOLDER_MODE: u32 = 0o750;
const EMPTY_DIR_MODE: u32 = 0o777;
const PROJECTED_FOLDER_MODE: u32 = 0o755;

/// True for a relative path that names something below where it starts.
pub(crate) fn is_below(path: &str) -> bool {
    !path.is_empty() && !path.contains('\0') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

pub(crate) use claims::folder_of;

pub(crate) struct Volumes {
    directories: Directories,
    objects: Arc<Objects>,
    tokens: token::Tokens,
    claims: claims::Claims,
    clock: Arc<dyn Clock>,
}

impl Volumes {
    pub(crate) fn new(
        directories: Directories,
        objects: Arc<Objects>,
        client: kube::Client,
        node_name: &str,
        clock: Arc<dyn Clock>,
    ) -> Volumes {
        let claims = claims::Claims::new(client.clone(), node_name.to_owned(), directories.clone());
        Volumes { directories, objects, tokens: token::Tokens::new(client), claims, clock }
    }

    /// Makes every volume that a container of the pod mounts, and gives their names.
    pub(crate) async fn set_up(&self, pod: &Pod, place: &Placement<'_>) -> Result<BTreeSet<String>, Fault> {
        let folder = self.directories.pod(pod::uid(pod));
        make_folder(&folder, POD_FOLDER_MODE).map_err(|error| Fault::new("FailedMount", error))?;
        for volume in used(pod) {
            self.set_up_one(pod, volume, place, Age::Now).await.map_err(|why| {
                let message = format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name);
                Fault::new("FailedMount", message)
            })?;
        }
        Ok(used(pod).map(|volume| volume.name.clone()).collect())
    }

    /// Brings volumes made of objects and tokens up to date; the first problem is told, the others are still tried.
    pub(crate) async fn refresh(&self, pod: &Pod, place: &Placement<'_>) -> Result<(), String> {
        let mut problem = Ok(());
        for volume in used(pod).filter(|volume| payload::is_projected(volume)) {
            if let Err(why) = self.set_up_one(pod, volume, place, Age::Recent).await {
                problem = problem.and(Err(format!("volume \"{}\": {why}", volume.name)));
            }
        }
        problem
    }

    async fn set_up_one(&self, pod: &Pod, volume: &Volume, place: &Placement<'_>, age: Age) -> Result<(), String> {
        let folder = self.folder(pod, &volume.name);
        if let Some(source) = &volume.host_path {
            return host_path::check(source);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.claims.set_up(pod, source, &folder).await;
        }
        let group = pod::spec(pod).and_then(|spec| spec.security_context.as_ref()?.fs_group);
        if let Some(source) = &volume.empty_dir {
            return empty_dir(&folder, source, group);
        }
        let read = payload::Reader { objects: &self.objects, tokens: &self.tokens, pod, place, age, now: self.now() };
        let payload = read.payload(volume).await?;
        make_folder(&folder, PROJECTED_FOLDER_MODE)?;
        atomic::write(&folder, &payload, group, self.now()).map_err(|error| format!("cannot write the volume: {error}"))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn folder(&self, pod: &Pod, volume: &str) -> PathBuf {
        self.directories.volumes(pod::uid(pod)).join(volume)
    }

    /// What the container sees, in the order of its mounts.
    pub(crate) fn mounts(&self, pod: &Pod, spec: &Spec, environment: &Environment) -> Result<Vec<Mount>, String> {
        if spec.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
            return Err("volumeDevices are not supported by this node".to_owned());
        }
        let mut mounts = Vec::new();
        for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
            let volumes = pod::spec(pod).and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| format!("volume \"{}\" of the mount is not in the pod", mount.name))?;
            if let Some(propagation) = mount.mount_propagation.as_deref().filter(|mode| *mode != "None") {
                return Err(format!("mountPropagation {propagation} is not supported by this node"));
            }
            let folder = self.folder(pod, &volume.name);
            let root = match (&volume.host_path, &volume.persistent_volume_claim) {
                (Some(source), _) => PathBuf::from(&source.path),
                (None, Some(_)) => std::fs::read_link(&folder)
                    .map_err(|error| format!("volume \"{}\" is not set up: {error}", volume.name))?,
                (None, None) => folder,
            };
            let expression = mount.sub_path_expr.as_deref().filter(|path| !path.is_empty());
            let sub_path = match expression {
                Some(expression) => Some(expand_sub_path(expression, environment)?),
                None => mount.sub_path.clone().filter(|path| !path.is_empty()),
            };
            let host = match sub_path {
                None => root,
                Some(path) => {
                    let place = self.directories.pod(pod::uid(pod)).join("subpaths").join(&spec.name);
                    sub_path::bind(&root, &path, &place.join(index.to_string()), payload::is_projected(volume))?
                }
            };
            let claim = volume.persistent_volume_claim.as_ref();
            let read_only = mount.read_only.unwrap_or(false)
                || payload::is_projected(volume)
                || claim.is_some_and(|claim| claim.read_only.unwrap_or(false));
            mounts.push(Mount { host, container: mount.mount_path.clone(), read_only });
        }
        Ok(mounts)
    }

    /// Takes away everything that the pod has on the node's disk but its logs.
    pub(crate) fn tear_down(&self, uid: &str) -> Result<(), String> {
        let folder = self.directories.pod(uid);
        sub_path::unmount_below(&folder)?;
        self.tokens.forget(uid);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", folder.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Unmounts what the agent mounted for any pod.
pub(crate) fn unmount_all(pods: &Path) -> Result<(), String> {
    sub_path::unmount_below(pods)
}

fn expand_sub_path(expression: &str, environment: &Environment) -> Result<String, String> {
    let missing = std::cell::Cell::new(false);
    let expanded = env::expand(expression, |name| {
        let value = environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        missing.set(missing.get() || value.is_none());
        value
    });
    if missing.get() {
        return Err(format!("failed to expand subPath expression \"{expression}\": a variable is missing"));
    }
    Ok(expanded)
}

/// The volumes that any container mounts.
fn used(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod::spec(pod).and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter(|volume| {
        pod::all_containers(pod)
            .any(|(_, container)| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name))
    })
}

/// Whether every volume that any container mounts is among those that were made. An ephemeral container may bring more.
pub(crate) fn are_made(pod: &Pod, made: &BTreeSet<String>) -> bool {
    used(pod).all(|volume| made.contains(&volume.name))
}

fn make_folder(path: &Path, mode: u32) -> Result<(), String> {
    let made = std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    made.map_err(|error| format!("cannot make {}: {error}", path.display()))
}

fn empty_dir(folder: &Path, source: &EmptyDirVolumeSource, group: Option<i64>) -> Result<(), String> {
    let exists = folder.is_dir();
    if !exists {
        make_folder(folder, EMPTY_DIR_MODE)?;
    }
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            let size = source.size_limit.as_ref().and_then(quantity::units).filter(|size| *size > 0);
            sub_path::mount_memory(folder, size)?;
            make_folder(folder, EMPTY_DIR_MODE)?;
        }
        other => return Err(format!("emptyDir medium {other} is not supported by this node")),
    }
    if let (false, Some(group)) = (exists, group) {
        atomic::give_to_group(folder, group, true).map_err(|error| format!("cannot set fsGroup: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
