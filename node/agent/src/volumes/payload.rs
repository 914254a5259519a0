//! The files of volumes that are made of objects, fields and tokens.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{
        ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
    },
};

use super::{
    atomic::{File, Payload},
    token::Tokens,
};
use crate::{
    fields::{self, Placement},
    objects::{Age, Error, Objects},
    pod,
};

const MODE_DEFAULT: i32 = 0o644;

/// The volume is made of objects: it is written by the agent and read-only for the container.
pub(super) fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

pub(super) struct Reader<'a> {
    pub(super) objects: &'a Objects,
    pub(super) tokens: &'a Tokens,
    pub(super) pod: &'a Pod,
    pub(super) place: &'a Placement<'a>,
    pub(super) age: Age,
    pub(super) now: Timestamp,
}

impl Reader<'_> {
    pub(super) async fn payload(&self, volume: &Volume) -> Result<Payload, String> {
        let mut payload = Payload::new();
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
            let optional = source.optional.unwrap_or(false);
            self.config_map(&source.name, source.items.as_deref(), mode, optional, &mut payload).await?;
        } else if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
            let name = source.secret_name.as_deref().unwrap_or_default();
            let optional = source.optional.unwrap_or(false);
            self.secret(name, source.items.as_deref(), mode, optional, &mut payload).await?;
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
            self.downward(source.items.as_deref(), mode, &mut payload)?;
        } else if let Some(source) = &volume.projected {
            self.projected(source, &mut payload).await?;
        } else {
            return Err(format!("volumes of type {} are not supported by this node", kind_name(volume)));
        }
        Ok(payload)
    }

    async fn projected(&self, source: &ProjectedVolumeSource, payload: &mut Payload) -> Result<(), String> {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        for projection in source.sources.iter().flatten() {
            self.projection(projection, mode, payload).await?;
        }
        Ok(())
    }

    async fn projection(&self, part: &VolumeProjection, mode: i32, payload: &mut Payload) -> Result<(), String> {
        if let Some(source) = &part.config_map {
            let optional = source.optional.unwrap_or(false);
            return self.config_map(&source.name, source.items.as_deref(), mode, optional, payload).await;
        }
        if let Some(source) = &part.secret {
            let optional = source.optional.unwrap_or(false);
            return self.secret(&source.name, source.items.as_deref(), mode, optional, payload).await;
        }
        if let Some(source) = &part.downward_api {
            return self.downward(source.items.as_deref(), mode, payload);
        }
        if let Some(source) = &part.service_account_token {
            let token = self.tokens.get(self.pod, source, self.now).await?;
            return put(payload, &source.path, token.into_bytes(), mode);
        }
        Err("a source of the projected volume is not supported by this node".to_owned())
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: bool,
        payload: &mut Payload,
    ) -> Result<(), String> {
        match self.objects.config_map(pod::namespace(self.pod), name, self.age).await {
            Ok(map) => add(&config_map_entries(&map), items, mode, optional, &format!("configmap \"{name}\""), payload),
            Err(error) => missing(&error, optional),
        }
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: bool,
        payload: &mut Payload,
    ) -> Result<(), String> {
        match self.objects.secret(pod::namespace(self.pod), name, self.age).await {
            Ok(secret) => add(&secret_entries(&secret), items, mode, optional, &format!("secret \"{name}\""), payload),
            Err(error) => missing(&error, optional),
        }
    }

    fn downward(
        &self,
        items: Option<&[DownwardAPIVolumeFile]>,
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(selector), _) => fields::field(self.pod, selector, self.place)?,
                (None, Some(selector)) => fields::resource(self.pod, None, selector, self.place.size)?,
                (None, None) => return Err(format!("item {} names no field", item.path)),
            };
            put(payload, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }
}

fn missing(error: &Error, optional: bool) -> Result<(), String> {
    if optional && error.is_not_found() { Ok(()) } else { Err(error.to_string()) }
}

fn config_map_entries(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value): (_, &ByteString)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

fn secret_entries(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// Every entry under its key, or the chosen ones under the paths given for them.
fn add(
    entries: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    what: &str,
    payload: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return entries.iter().try_for_each(|(key, content)| put(payload, key, content.clone(), mode));
    };
    for item in items {
        match entries.get(&item.key) {
            Some(content) => put(payload, &item.path, content.clone(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => return Err(format!("{what} references non-existent key: {}", item.key)),
        }
    }
    Ok(())
}

fn put(payload: &mut Payload, path: &str, content: Vec<u8>, mode: i32) -> Result<(), String> {
    if !super::is_below(path) || path.starts_with("..") {
        return Err(format!("path \"{path}\" must be relative and must not contain '..'"));
    }
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    payload.insert(path.to_owned(), File { content, mode });
    Ok(())
}

/// The name of a volume's type as the API spells it.
fn kind_name(volume: &Volume) -> &'static str {
    let kinds = [
        (volume.csi.is_some(), "csi"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.image.is_some(), "image"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.fc.is_some(), "fc"),
        (volume.git_repo.is_some(), "gitRepo"),
        (volume.rbd.is_some(), "rbd"),
        (volume.cephfs.is_some(), "cephfs"),
        (volume.glusterfs.is_some(), "glusterfs"),
        (volume.flex_volume.is_some(), "flexVolume"),
    ];
    kinds.into_iter().find_map(|(there, name)| there.then_some(name)).unwrap_or("unknown")
}
