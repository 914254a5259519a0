//! Classes and protection of claims and volumes.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#defaultstorageclass>

use serde_json::Value;
use tandem_api::{ApiError, Object, quantity::Quantity, volumes};
use tandem_store::Consistency;

use super::Request;
use crate::core::Core;

/// The class and the finalizers that claims and volumes begin with.
pub(super) async fn begin(core: &Core, request: &Request<'_>, object: &mut Object) -> Result<(), ApiError> {
    if request.creates("", "persistentvolumes") {
        protect(object, volumes::VOLUME_PROTECTION);
    }
    if request.creates("", "persistentvolumeclaims") {
        protect(object, volumes::CLAIM_PROTECTION);
        let has_class = object.at(&["spec", "storageClassName"]).is_some_and(|class| !class.is_null())
            || object.annotations().any(|(key, _)| key == volumes::OLD_CLASS);
        if !has_class && let Some(class) = default_class(core).await? {
            object.set(&["spec", "storageClassName"], class);
        }
    }
    Ok(())
}

fn protect(object: &mut Object, finalizer: &str) {
    let mut finalizers = object.array_at(&["metadata", "finalizers"]).to_vec();
    if !finalizers.iter().any(|mine| mine.as_str() == Some(finalizer)) {
        finalizers.push(Value::from(finalizer));
        object.set(&["metadata", "finalizers"], finalizers);
    }
}

/// The newest class that says it is the default; the name decides between those made in one second.
async fn default_class(core: &Core) -> Result<Option<String>, ApiError> {
    let classes = core.row("storage.k8s.io", "v1", "storageclasses")?;
    let mut defaults = core.objects.all(&classes, None, Consistency::Any).await?;
    let marks = [volumes::DEFAULT_CLASS, volumes::OLD_DEFAULT_CLASS];
    defaults.retain(|class| class.annotations().any(|(key, value)| marks.contains(&key) && value == "true"));
    let made = |class: &Object| class.str_at(&["metadata", "creationTimestamp"]).unwrap_or_default().to_owned();
    defaults.sort_by(|one, other| made(other).cmp(&made(one)).then_with(|| one.name().cmp(other.name())));
    Ok(defaults.first().map(|class| class.name().to_owned()))
}

fn size(claim: &Object) -> Option<Quantity> {
    Quantity::parse(claim.str_at(&["spec", "resources", "requests", "storage"])?).ok()
}

/// A bound claim grows only where somebody can make its volume grow.
pub(super) async fn resize(core: &Core, request: &Request<'_>, claim: &Object, old: &Object) -> Result<(), ApiError> {
    let is_bound = old.str_at(&["spec", "volumeName"]).is_some_and(|name| !name.is_empty());
    if !request.subresource.is_empty() || !is_bound || size(claim) <= size(old) {
        return Ok(());
    }
    let classes = core.row("storage.k8s.io", "v1", "storageclasses")?;
    let class = match old.str_at(&["spec", "storageClassName"]).filter(|name| !name.is_empty()) {
        Some(name) => core.objects.find(&classes, None, name).await?,
        None => None,
    };
    let expands = |class: &Object| class.at(&["allowVolumeExpansion"]) == Some(&Value::Bool(true));
    let Some(class) = class.filter(expands) else {
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                   support resize";
        return Err(request.forbidden(claim.name(), why));
    };
    if class.str_at(&["provisioner"]) == Some(volumes::PROVISIONER) {
        let why = format!("volumes of the provisioner {} cannot be expanded", volumes::PROVISIONER);
        return Err(request.forbidden(claim.name(), why));
    }
    Ok(())
}
