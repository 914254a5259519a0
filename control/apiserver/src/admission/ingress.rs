use std::cmp::Reverse;

use tandem_api::{ApiError, DEFAULT_INGRESS_CLASS_ANNOTATION, INGRESS_CLASS_ANNOTATION, Object};
use tandem_store::Consistency;

use crate::core::Core;

/// Gives an Ingress that names no class the default one: of several the newest, and of those the first by name.
pub(super) async fn default_class(core: &Core, ingress: &mut Object) -> Result<(), ApiError> {
    let named = ingress.at(&["spec", "ingressClassName"]).is_some_and(|name| !name.is_null());
    if named || ingress.str_at(&["metadata", "annotations", INGRESS_CLASS_ANNOTATION]).is_some() {
        return Ok(());
    }
    let classes = core.row("networking.k8s.io", "v1", "ingressclasses")?;
    let all = core.objects.all(&classes, None, Consistency::Any).await?;
    let is_default =
        |class: &Object| class.str_at(&["metadata", "annotations", DEFAULT_INGRESS_CLASS_ANNOTATION]) == Some("true");
    let created = |class: &Object| class.str_at(&["metadata", "creationTimestamp"]).unwrap_or_default().to_owned();
    let defaults = all.into_iter().filter(is_default);
    if let Some(class) = defaults.min_by_key(|class| (Reverse(created(class)), class.name().to_owned())) {
        ingress.set(&["spec", "ingressClassName"], class.name());
    }
    Ok(())
}
