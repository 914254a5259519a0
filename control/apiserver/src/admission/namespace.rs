use tandem_api::{ApiError, Cause, Object};

use super::Request;
use crate::core::Core;

/// Namespaces that the cluster cannot be without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Things are created in namespaces that exist and stay.
pub(super) async fn exists(core: &Core, request: &Request<'_>, object: &Object) -> Result<(), ApiError> {
    let Some(name) = request.namespace.filter(|_| request.def.is_namespaced()) else { return Ok(()) };
    let namespaces = core.row("", "v1", "namespaces")?;
    let found = core.objects.find(&namespaces, None, name).await?;
    let found = found.ok_or_else(|| ApiError::not_found("", "namespaces", name))?;
    let ending = found.deletion_timestamp().is_some() || found.str_at(&["status", "phase"]) == Some("Terminating");
    if !ending {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let own = if object.name().is_empty() { object.generate_name() } else { object.name() };
    let mut error = request.forbidden(own, why);
    error.details.causes = vec![Cause {
        reason: "NamespaceTerminating".to_owned(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".to_owned(),
    }];
    Err(error)
}

pub(super) fn may_go(request: &Request<'_>) -> Result<(), ApiError> {
    if IMMORTAL.contains(&request.name) {
        return Err(request.forbidden(request.name, "this namespace may not be deleted"));
    }
    Ok(())
}
