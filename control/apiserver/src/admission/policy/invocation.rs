//! Which policies a request meets, and all that they need to know: looked up before anything is evaluated.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tandem_api::{ApiError, Object};
use tandem_registry::ResourceDef;
use tandem_store::Consistency;

use super::{
    super::{
        Operation, Request,
        matching::{self, Attributes, Place},
    },
    authorizer::Authorizer,
    compile::{Binding, Hook, ParamRef, Policy},
};
use crate::{
    authz::{self, rbac::Grants},
    core::Core,
};

/// How many objects one binding may give to its policy.
const PARAMS_MAX: usize = 1_000;

/// A policy that a request meets through one binding.
#[derive(Debug)]
pub(super) struct Invocation {
    pub(super) policy: Arc<Policy>,
    pub(super) binding: Arc<Binding>,
    /// The row as which the request matched.
    pub(super) def: Arc<ResourceDef>,
    /// One evaluation each; `None` for one without.
    pub(super) params: Result<Vec<Option<Object>>, String>,
    request: Value,
}

impl Invocation {
    pub(super) fn key(&self, param: Option<&Object>) -> String {
        let (namespace, name) = param.map_or(("", ""), |param| (param.namespace().unwrap_or_default(), param.name()));
        format!("{}/{}/{namespace}/{name}", self.policy.name, self.binding.name)
    }
}

/// What is around a request.
pub(super) struct Around {
    namespace: Option<Object>,
    authorizer: Option<Authorizer>,
}

/// What expressions may read.
#[derive(Clone, Debug)]
pub(super) struct Input<'a> {
    pub(super) object: Option<&'a Object>,
    pub(super) old: Option<&'a Object>,
    pub(super) request: &'a Value,
    pub(super) namespace: Option<&'a Object>,
    pub(super) params: Option<&'a Object>,
    pub(super) authorizer: Option<Authorizer>,
}

impl Around {
    pub(super) fn input<'a>(
        &'a self,
        invocation: &'a Invocation,
        object: Option<&'a Object>,
        old: Option<&'a Object>,
        params: Option<&'a Object>,
    ) -> Input<'a> {
        Input {
            object,
            old,
            request: &invocation.request,
            namespace: self.namespace.as_ref(),
            params,
            authorizer: self.authorizer.clone(),
        }
    }
}

pub(super) async fn find(
    core: &Core,
    request: &Request<'_>,
    hooks: &[Hook],
    object: Option<&Object>,
    old: Option<&Object>,
) -> Result<(Vec<Invocation>, Around), ApiError> {
    let registry = core.registry();
    let others = matching::equivalents(&registry, request.def);
    let places: Vec<Place<'_>> = others.iter().map(|def| Place::of(def)).collect();
    let own_name = object.or(old).map(Object::name).unwrap_or_default();
    let asked = Attributes {
        operation: request.operation.as_str(),
        place: Place::of(request.def),
        subresource: request.subresource,
        name: if request.name.is_empty() { own_name } else { request.name },
        namespace: request.namespace.unwrap_or_default(),
    };
    let matched = |hook: &Hook| Some((hook.clone(), hook.policy.resources.matched(&asked, &places)?));
    let candidates: Vec<(Hook, Place<'_>)> = hooks.iter().filter_map(matched).collect();
    let mut around = Around { namespace: None, authorizer: None };
    if candidates.is_empty() {
        return Ok((Vec::new(), around));
    }
    around.namespace = namespace(core, request).await?;
    let selected_by = if request.is("", "namespaces") { object.or(old) } else { around.namespace.as_ref() };
    let mut found = Vec::new();
    for (hook, place) in candidates {
        if !hook.policy.resources.selects(&asked, selected_by, object, old) {
            continue;
        }
        let same = |def: &&Arc<ResourceDef>| Place::of(def) == place;
        let def = others.iter().find(same).cloned().unwrap_or_else(|| Arc::new(request.def.clone()));
        let bound = |binding: &&Arc<Binding>| {
            binding.resources.as_ref().is_none_or(|resources| {
                resources.matched(&asked, &places).is_some() && resources.selects(&asked, selected_by, object, old)
            })
        };
        let bindings: Vec<Arc<Binding>> = hook.bindings.iter().filter(bound).cloned().collect();
        for binding in bindings {
            let params = params(core, &hook.policy, &binding, asked.namespace).await;
            let policy = hook.policy.clone();
            let described = describe(core, request, &asked, &def);
            found.push(Invocation { policy, binding, def: def.clone(), params, request: described });
        }
    }
    if found.iter().any(|invocation| invocation.policy.reads_authorizer) {
        around.authorizer = Some(authorizer(request, &asked, core.grants.grants(core).await?));
    }
    Ok((found, around))
}

fn authorizer(request: &Request<'_>, asked: &Attributes<'_>, grants: Arc<Grants>) -> Authorizer {
    let resource = match asked.subresource {
        "" => asked.place.resource.to_owned(),
        sub => format!("{}/{sub}", asked.place.resource),
    };
    let name = Some(asked.name).filter(|name| !name.is_empty());
    let own = authz::Attributes::resource("", asked.place.group, &resource, request.namespace, name);
    Authorizer::new(grants, request.identity.clone(), own)
}

async fn namespace(core: &Core, request: &Request<'_>) -> Result<Option<Object>, ApiError> {
    let Some(name) = request.namespace.filter(|_| request.def.is_namespaced()) else { return Ok(None) };
    let def = core.row("", "v1", "namespaces")?;
    let found = core.objects.find(&def, None, name).await?;
    found.map(Some).ok_or_else(|| ApiError::not_found("", "namespaces", name))
}

/// What a binding gives to its policy: nothing to evaluate where the parameters are missing and that is allowed.
async fn params(
    core: &Core,
    policy: &Policy,
    binding: &Binding,
    namespace: &str,
) -> Result<Vec<Option<Object>>, String> {
    let (Some(kind), Some(param)) = (&policy.params, &binding.param) else { return Ok(vec![None]) };
    let def = core.registry().by_kind(&kind.group, &kind.version, &kind.kind);
    let def = def.ok_or_else(|| format!("paramKind kind `{kind}` not known"))?;
    if !def.is_namespaced() && !param.namespace.is_empty() {
        return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
    }
    let place = if param.namespace.is_empty() { namespace } else { &param.namespace };
    if def.is_namespaced() && place.is_empty() {
        return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned());
    }
    let found = look_up(core, &def, param, place).await.map_err(|error| error.message)?;
    if found.len() > PARAMS_MAX {
        return Err(format!("{} objects are selected as params: {PARAMS_MAX} are possible", found.len()));
    }
    if found.is_empty() && param.denies_without {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found.into_iter().map(Some).collect())
}

async fn look_up(core: &Core, def: &ResourceDef, param: &ParamRef, place: &str) -> Result<Vec<Object>, ApiError> {
    let place = Some(place).filter(|_| def.is_namespaced());
    if !param.name.is_empty() {
        return Ok(core.objects.find(def, place, &param.name).await?.into_iter().collect());
    }
    let Some(selector) = &param.selector else { return Ok(Vec::new()) };
    let all = core.objects.all(def, place, Consistency::Any).await?;
    Ok(all.into_iter().filter(|object| selector.matches(object)).collect())
}

/// `request`: the part of an AdmissionRequest that expressions see.
fn describe(core: &Core, request: &Request<'_>, asked: &Attributes<'_>, matched: &ResourceDef) -> Value {
    let identity = request.identity;
    let mut described = Map::new();
    let kind = |def: &ResourceDef| match def.subresource(request.subresource) {
        // Who connects sends options of a kind of its own.
        Some(sub) if request.operation == Operation::Connect => {
            json!({ "group": sub.kind.group, "version": sub.kind.version, "kind": sub.kind.kind })
        }
        _ => json!({ "group": def.group, "version": def.version, "kind": def.kind }),
    };
    let resource = |def: &ResourceDef| json!({ "group": def.group, "version": def.version, "resource": def.plural });
    let mut set = |key: &str, value: Value| described.insert(key.to_owned(), value);
    set("uid", core.entropy.uid().into());
    set("kind", kind(matched));
    set("resource", resource(matched));
    set("requestKind", kind(request.def));
    set("requestResource", resource(request.def));
    for (key, text) in [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", asked.name),
        ("namespace", asked.namespace),
    ] {
        if !text.is_empty() {
            set(key, text.into());
        }
    }
    set("operation", asked.operation.into());
    let mut user = json!({ "username": identity.name, "groups": identity.groups });
    if !identity.uid.is_empty() {
        user["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    set("userInfo", user);
    set("dryRun", request.options.dry_run.into());
    set("options", request.options.described(request.operation.options()));
    Value::Object(described)
}
