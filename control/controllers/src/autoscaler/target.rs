//! What is scaled: anything that has a `scale` subresource.

use k8s_openapi::{
    api::autoscaling::{v1::Scale, v2::HorizontalPodAutoscaler},
    apimachinery::pkg::apis::meta::v1::APIResourceList,
};
use kube::core::Request;
use serde::Serialize;
use tandem_api::names;

use crate::{
    Error, Key,
    action::{self, Manifest},
    object,
};

/// The scale of a target and where it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Target {
    pub(super) scale: Scale,
    #[serde(skip)]
    place: action::Target,
}

impl Target {
    #[cfg(test)]
    pub(super) fn new(scale: Scale, place: action::Target) -> Target {
        Target { scale, place }
    }

    /// How many replicas it is to have.
    pub(super) fn wanted(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
    }

    /// How many it was seen to have.
    pub(super) fn running(&self) -> i32 {
        self.scale.status.as_ref().map_or(0, |status| status.replicas)
    }

    /// The selector of its pods, as `labelSelector=` takes it.
    pub(super) fn selector(&self) -> Option<&str> {
        let status = self.scale.status.as_ref()?;
        status.selector.as_deref().filter(|selector| !selector.is_empty())
    }

    /// The same with another number of replicas, to be written.
    pub(super) fn scaled(&self, replicas: i32) -> Target {
        let mut target = self.clone();
        target.scale.spec.get_or_insert_default().replicas = Some(replicas);
        target
    }
}

impl Manifest for Target {
    fn target(&self) -> action::Target {
        self.place.clone()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Reads the scale of an autoscaler's target; the error is told to its user.
pub(super) async fn find(client: &kube::Client, autoscaler: &HorizontalPodAutoscaler) -> Result<Target, String> {
    let reference = &autoscaler.spec.scale_target_ref;
    if !names::dns1123_subdomain(&reference.name).is_empty() {
        return Err(format!("{} {:?} not found", reference.kind, reference.name));
    }
    let found = resource(client, reference.api_version.as_deref(), &reference.kind).await?;
    let namespace = object::namespace(&autoscaler.metadata);
    let root = if found.group.is_empty() { "api" } else { "apis" };
    let place = action::Target {
        kind: reference.kind.clone(),
        path: format!("/{root}/{}/namespaces/{namespace}/{}", found.version, found.plural),
        key: Key::new(namespace, &reference.name),
    };
    let scale = read(client, &place).await.map_err(|error| error.to_string())?;
    Ok(Target { scale, place })
}

/// A resource by its kind.
pub(super) struct Found {
    pub(super) group: String,
    /// With the group.
    version: String,
    pub(super) plural: String,
}

pub(super) async fn resource(client: &kube::Client, version: Option<&str>, kind: &str) -> Result<Found, String> {
    let version = version.filter(|version| !version.is_empty()).unwrap_or("v1");
    let group = version.split_once('/').map(|(group, _)| group).unwrap_or_default();
    let no_match = || format!("no matches for kind {kind:?} in group {group:?}");
    // Both become parts of a path.
    let parts: Vec<&str> = version.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| !names::dns1123_subdomain(part).is_empty()) {
        return Err(format!("unexpected GroupVersion string: {version}"));
    }
    let listed = match parts.len() {
        1 => client.list_core_api_resources(version).await,
        _ => client.list_api_group_resources(version).await,
    };
    let resources = match listed.map_err(Error::from) {
        Ok(resources) => resources,
        Err(error) if error.is_not_found() => return Err(no_match()),
        Err(error) => return Err(error.to_string()),
    };
    let plural = plural(&resources, kind).ok_or_else(no_match)?;
    Ok(Found { group: group.to_owned(), version: version.to_owned(), plural: plural.to_owned() })
}

fn plural<'a>(resources: &'a APIResourceList, kind: &str) -> Option<&'a str> {
    let found = resources.resources.iter().find(|one| one.kind == kind && one.namespaced && !one.name.contains('/'));
    found.map(|one| one.name.as_str())
}

async fn read(client: &kube::Client, place: &action::Target) -> Result<Scale, Error> {
    let request = Request::new(&place.path).get_subresource("scale", &place.key.name)?;
    Ok(client.request(request).await?)
}
