//! The volumes of claims: where on the node the data is, and that this pod may have it.

use std::{
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, LocalVolumeSource, Node, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimVolumeSource, PersistentVolumeSpec, Pod,
};
use kube::Api;
use tandem_client::volumes;

use super::{group, host_path, is_below, make_folder};
use crate::{config::Directories, pod};

/// As open as an emptyDir: what runs in the pods may be any user; the folders above it let nobody else in.
const FOLDER_MODE: u32 = 0o777;

/// Why a claim has no place on the node yet.
enum Trouble {
    /// The API says so.
    Refused(String),
    /// The API did not answer.
    Unknown(String),
}

pub(super) struct Claims {
    client: kube::Client,
    node_name: String,
    directories: Directories,
}

/// A place, and whether the pod's group gets it.
struct Place {
    path: PathBuf,
    grouped: bool,
}

impl Claims {
    pub(super) fn new(client: kube::Client, node_name: String, directories: Directories) -> Claims {
        Claims { client, node_name, directories }
    }

    /// Makes `link` lead to the claim's data. A link and not a mount: what removes the pod's folder never reaches it.
    pub(super) async fn set_up(
        &self,
        pod: &Pod,
        source: &PersistentVolumeClaimVolumeSource,
        link: &Path,
    ) -> Result<(), String> {
        let known = std::fs::read_link(link).ok();
        let place = match self.find(pod, &source.claim_name, known.is_some()).await {
            Ok(place) => place,
            // It was there before: containers may start again while the API does not answer.
            Err(Trouble::Unknown(_)) if known.is_some() => return Ok(()),
            Err(Trouble::Unknown(why) | Trouble::Refused(why)) => return Err(why),
        };
        // What was set up before is in use, and its files are those of the pod.
        if known.as_ref() == Some(&place.path) {
            return Ok(());
        }
        let security = pod::spec(pod).and_then(|spec| spec.security_context.as_ref());
        if let Some(wanted) = security.and_then(|security| security.fs_group).filter(|_| place.grouped) {
            let lazily = security.and_then(|security| security.fs_group_change_policy.as_deref());
            let (path, lazily) = (place.path.clone(), lazily == Some("OnRootMismatch"));
            let given = tokio::task::spawn_blocking(move || group::give(&path, wanted, lazily)).await;
            given.map_err(|error| error.to_string()).flatten().map_err(|why| format!("cannot set fsGroup: {why}"))?;
        }
        lead(link, &place.path).map_err(|error| format!("cannot link {}: {error}", link.display()))
    }

    async fn find(&self, pod: &Pod, name: &str, is_known: bool) -> Result<Place, Trouble> {
        let refused = |why: String| Err(Trouble::Refused(why));
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let Some(claim) = claims.get_opt(name).await.map_err(|error| unknown("persistentvolumeclaim", name, &error))?
        else {
            return refused(format!("persistentvolumeclaim \"{name}\" not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() && !is_known {
            return refused("PVC is being deleted".to_owned());
        }
        let Some(volume_name) = volumes::volume_name(&claim).filter(|_| volumes::phase(&claim) == "Bound") else {
            return refused("PVC is not bound".to_owned());
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get_opt(volume_name).await.map_err(|error| unknown("persistentvolume", volume_name, &error))?;
        let Some(volume) = found else { return refused(format!("persistentvolume \"{volume_name}\" not found")) };
        let holder = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
        if holder.is_none() || holder != claim.metadata.uid.as_deref() {
            return refused(format!("persistentvolume \"{volume_name}\" is bound to another claim"));
        }
        self.check_node(&volume, volume_name).await?;
        self.place(&volume, volume_name).map_err(Trouble::Refused)
    }

    /// A pod that names its node itself was not scheduled to where its volumes are.
    async fn check_node(&self, volume: &PersistentVolume, name: &str) -> Result<(), Trouble> {
        if volume.spec.as_ref().is_none_or(|spec| spec.node_affinity.is_none()) {
            return Ok(());
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get(&self.node_name).await.map_err(|error| unknown("node", &self.node_name, &error))?;
        if volumes::reaches_node(volume, &node) {
            return Ok(());
        }
        Err(Trouble::Refused(format!("persistentvolume \"{name}\" had volume node affinity conflict with this node")))
    }

    fn place(&self, volume: &PersistentVolume, name: &str) -> Result<Place, String> {
        let none = PersistentVolumeSpec::default();
        let spec = volume.spec.as_ref().unwrap_or(&none);
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err("volume has volumeMode Block, but is specified in volumeMounts".to_owned());
        }
        if spec.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err("mountOptions are not supported by this node".to_owned());
        }
        if let Some(source) = &spec.host_path {
            host_path::check(source)?;
            return Ok(Place { path: PathBuf::from(&source.path), grouped: false });
        }
        if let Some(source) = &spec.local {
            return local(source);
        }
        match &spec.csi {
            Some(source) if source.driver == volumes::PROVISIONER => self.folder(volume, source, name),
            Some(source) => Err(format!("the CSI driver {} is not supported by this node", source.driver)),
            None => Err(format!("the type of persistentvolume \"{name}\" is not supported by this node")),
        }
    }

    fn folder(
        &self,
        volume: &PersistentVolume,
        source: &CSIPersistentVolumeSource,
        name: &str,
    ) -> Result<Place, String> {
        if source.volume_handle != name {
            return Err(format!("volumeHandle \"{}\" must be the name of the volume", source.volume_handle));
        }
        if volumes::home(volume) != Some(self.node_name.as_str()) {
            return Err(format!("the folder of persistentvolume \"{name}\" is not on this node"));
        }
        let path = folder_of(&self.directories, name)?;
        if !path.is_dir() {
            make_folder(&path, FOLDER_MODE)?;
        }
        Ok(Place { path, grouped: true })
    }
}

/// Where the node keeps the data of a volume that was provisioned on it.
pub(crate) fn folder_of(directories: &Directories, volume: &str) -> Result<PathBuf, String> {
    if !is_below(volume) || volume.contains('/') {
        return Err(format!("\"{volume}\" cannot be the name of a folder"));
    }
    Ok(directories.persistent().join(volume))
}

/// Only that the object is not there, or not this node's to read, is the API's word; all else is trouble of its own.
fn unknown(kind: &str, name: &str, error: &kube::Error) -> Trouble {
    let why = format!("cannot read {kind} \"{name}\": {error}");
    let refused = matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404));
    if refused { Trouble::Refused(why) } else { Trouble::Unknown(why) }
}

fn local(source: &LocalVolumeSource) -> Result<Place, String> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("local path \"{}\" must be absolute and must not contain '..'", source.path));
    }
    match std::fs::metadata(&path) {
        Ok(found) if found.is_dir() => Ok(Place { path, grouped: true }),
        Ok(_) => Err(format!("local path \"{}\" is not a directory", source.path)),
        Err(error) => Err(format!("path \"{}\" does not exist: {error}", source.path)),
    }
}

/// Renamed into its place, so that there is an old link or the new one.
fn lead(link: &Path, target: &Path) -> std::io::Result<()> {
    if let Some(parent) = link.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let next = link.with_extension("next");
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &next)?;
    std::fs::rename(&next, link)
}

#[cfg(test)]
mod tests;
