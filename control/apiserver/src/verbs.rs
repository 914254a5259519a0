//! One file a verb; none of them names a kind.

mod create;
mod delete;
mod deletecollection;
mod get;
mod list;
mod patch;
mod update;
mod watch;

use axum::response::Response;
use tandem_api::ApiError;
use tandem_registry::ResourceDef;

use crate::{
    call::Call,
    core::Core,
    options::WriteOptions,
    request::{self, ResourcePath, Verb},
    write::{Author, Target},
};

/// A verb on a resource itself, its row found and its path checked.
pub(crate) async fn serve(
    core: &std::sync::Arc<Core>,
    call: &Call,
    def: std::sync::Arc<ResourceDef>,
) -> Result<Response, ApiError> {
    let path = call.path()?;
    if !def.allows(call.info.verb.as_str()) {
        return Err(request::method_not_allowed());
    }
    if let Some(warning) = def.custom.as_ref().and_then(|custom| custom.deprecation.as_deref()) {
        call.warn(warning);
    }
    match call.info.verb {
        Verb::Get => get(core, call, &def).await,
        Verb::List => list::list(core, call, &def).await,
        Verb::Watch => watch::watch(core, call, def.clone()).await,
        Verb::Create if path.name.is_none() => create::create(core, call, &def).await,
        Verb::Update => update(core, call, &def).await,
        Verb::Patch => patch(core, call, &def).await,
        Verb::Delete => delete::delete(core, call, &def).await,
        Verb::DeleteCollection => deletecollection::delete(core, call, &def).await,
        Verb::Create | Verb::Head | Verb::Options => Err(request::method_not_allowed()),
    }
}

/// Whether the path leads where objects of the row are.
pub(crate) fn check_place(def: &ResourceDef, path: &ResourcePath, verb: Verb) -> Result<(), ApiError> {
    let is_own_namespace = def.group.is_empty() && def.plural == "namespaces";
    match (def.is_namespaced(), path.namespace.is_some()) {
        (true, true) => Ok(()),
        (false, false) => Ok(()),
        (false, true) if is_own_namespace => Ok(()),
        (false, true) => Err(request::not_found()),
        (true, false) if path.name.is_some() => Err(request::not_found()),
        (true, false) if matches!(verb, Verb::List | Verb::Watch) => Ok(()),
        (true, false) => Err(request::method_not_allowed()),
    }
}

/// The object that a path names.
pub(crate) fn target<'a>(def: &'a ResourceDef, path: &'a ResourcePath) -> Result<Target<'a>, ApiError> {
    Ok(Target {
        def,
        namespace: path.namespace.as_deref().filter(|_| def.is_namespaced()),
        name: path.name.as_deref().ok_or_else(request::method_not_allowed)?,
        subresource: path.subresource.as_deref().unwrap_or_default(),
    })
}

pub(crate) fn author<'a>(call: &'a Call, options: &'a WriteOptions) -> Author<'a> {
    let warnings = Some(&call.warnings);
    Author { identity: &call.identity, trace: &call.audit.trace, options, fence: call.fence, warnings }
}

pub(crate) use delete::delete_options;
pub(crate) use get::get;
pub(crate) use patch::{patch, patch_subresource};
pub(crate) use update::update;
