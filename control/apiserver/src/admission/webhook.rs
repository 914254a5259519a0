//! Admission webhooks: who is asked about a request, and what becomes of the answers.
//!
//! ```text
//!  configurations ─ follow ─> Hook (rules, selectors, conditions) ─ names the request? ─> AdmissionReview (review)
//!  mutating:   one after the other, each sees what those before it made; again when that is changed and they ask for it
//!  validating: all at once, after everything else
//! ```
//! Where no webhook is configured, requests pay for looking at two empty streams of changes.

mod follow;
mod hook;
mod review;

use std::{collections::BTreeSet, sync::Arc};

use futures::future::join_all;
use serde_json::{Value, json};
use tandem_api::{ApiError, Object};
use tandem_registry::{ResourceDef, fields};

use super::Request;
use crate::{conversion, core::Core, decode::Expected, patch};
use hook::{Asked, Hook};
use review::{Sort, kind_of};

pub(crate) use follow::Follower;

const GROUP: &str = "admissionregistration.k8s.io";
/// What no webhook is asked about, so that one that refuses everything can be removed.
const EXEMPT: [&str; 6] = [
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];
/// What is not a webhook's to change.
const KEPT: [&str; 9] = [
    "uid",
    "namespace",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
];

/// Which webhooks have been asked about one request, and which are to be asked again.
#[derive(Default)]
pub(super) struct Turn {
    is_second: bool,
    asked: BTreeSet<String>,
    again: BTreeSet<String>,
    /// The object after the last webhook.
    last: Option<Object>,
}

impl Turn {
    /// Those who were asked before, and wish it so, see what has changed since.
    fn changed(&mut self) {
        self.again.append(&mut self.asked);
    }

    /// Begins the round of those who are asked again.
    pub(super) fn second(&mut self, object: &Object) {
        self.is_second = true;
        if self.last.as_ref() != Some(object) {
            self.changed();
        }
    }
}

fn is_exempt(request: &Request<'_>) -> bool {
    request.def.group == GROUP && EXEMPT.contains(&request.def.plural.as_str())
}

/// Asks the mutating webhooks. Whether the object is another one now.
pub(super) async fn mutate(
    core: &Core,
    request: &Request<'_>,
    mut object: Option<&mut Object>,
    old: Option<&Object>,
    turn: &mut Turn,
) -> Result<bool, ApiError> {
    let hooks = core.hooks.hooks(core).await?;
    if hooks.mutating.is_empty() || is_exempt(request) {
        return Ok(false);
    }
    let scene = Scene::new(core, request);
    let mut changed = false;
    for hook in &hooks.mutating {
        if turn.is_second && !turn.again.contains(&hook.id) {
            continue;
        }
        let Some(row) = scene.row(hook, object.as_deref(), old).await? else { continue };
        let shown = scene.shown(row, object.as_deref()).await?;
        let old = scene.shown(row, old).await?;
        let patch = scene.ask(hook, Sort::Mutating, row, shown.as_ref(), old.as_ref()).await?;
        if let Some(patch) = patch {
            let (Some(object), Some(shown)) = (object.as_deref_mut(), shown) else {
                return Err(ApiError::internal(format!(
                    "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                    hook.name
                )));
            };
            let patched = scene.patched(hook, row, &shown, object, &patch).await?;
            if patched != *object {
                *object = patched;
                changed = true;
                turn.changed();
            }
        }
        if hook.is_reinvoked {
            turn.asked.insert(hook.id.clone());
        }
    }
    turn.last = object.cloned();
    Ok(changed)
}

/// Asks the validating webhooks, all at once.
pub(super) async fn validate(
    core: &Core,
    request: &Request<'_>,
    object: Option<&Object>,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    let hooks = core.hooks.hooks(core).await?;
    if hooks.validating.is_empty() || is_exempt(request) {
        return Ok(());
    }
    let scene = Scene::new(core, request);
    let mut asked = Vec::new();
    for hook in &hooks.validating {
        let Some(row) = scene.row(hook, object, old).await? else { continue };
        let (shown, old) = (scene.shown(row, object).await?, scene.shown(row, old).await?);
        let scene = &scene;
        asked.push(async move { scene.ask(hook, Sort::Validating, row, shown.as_ref(), old.as_ref()).await });
    }
    join_all(asked).await.into_iter().try_for_each(|answer| answer.map(drop))
}

/// One request, as webhooks are asked about it.
struct Scene<'a> {
    core: &'a Core,
    request: &'a Request<'a>,
    /// Other rows of the same objects.
    others: Vec<Arc<ResourceDef>>,
}

impl<'a> Scene<'a> {
    fn new(core: &'a Core, request: &'a Request<'a>) -> Scene<'a> {
        let def = request.def;
        let same = |other: &Arc<ResourceDef>| {
            let place = (&other.storage.group, &other.storage.plural) == (&def.storage.group, &def.storage.plural);
            let is_own = other.group == def.group && other.version == def.version;
            place && !is_own && (request.subresource.is_empty() || other.subresource(request.subresource).is_some())
        };
        let others = core.registry().all().into_iter().filter(same).collect();
        Scene { core, request, others }
    }

    /// The row through which the webhook sees the object; `None` where it is not asked.
    async fn row(
        &self,
        hook: &Hook,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> Result<Option<&ResourceDef>, ApiError> {
        let request = self.request;
        let asked = |row: &ResourceDef| {
            hook.names(&Asked {
                operation: request.operation,
                group: &row.group,
                version: &row.version,
                resource: &row.plural,
                subresource: request.subresource,
                is_namespaced: request.def.is_namespaced(),
            })
        };
        let row = if asked(request.def) {
            request.def
        } else {
            let mut others = self.others.iter().filter(|_| hook.takes_equivalents);
            match others.find(|row| asked(row)) {
                Some(row) => row,
                None => return Ok(None),
            }
        };
        let is_asked = hook.selects(object, old) && self.is_in_namespace(hook, object).await?;
        Ok(is_asked.then_some(row))
    }

    /// Namespaces are selected by their own labels; what is in none is always selected.
    async fn is_in_namespace(&self, hook: &Hook, object: Option<&Object>) -> Result<bool, ApiError> {
        let request = self.request;
        let is_namespace = request.is("", "namespaces");
        if hook.namespaces.is_empty() || (!is_namespace && request.namespace.is_none()) {
            return Ok(true);
        }
        if let (true, Some(object)) = (is_namespace && request.subresource.is_empty(), object) {
            return Ok(hook.namespaces.matches(object));
        }
        let name = if is_namespace { request.name } else { request.namespace.unwrap_or_default() };
        let namespaces = self.core.row("", "v1", "namespaces")?;
        let found = self.core.objects.find(&namespaces, None, name).await?;
        let found = found.ok_or_else(|| ApiError::not_found("", "namespaces", name))?;
        Ok(hook.namespaces.matches(&found))
    }

    /// The object in a row's version.
    async fn shown(&self, row: &ResourceDef, object: Option<&Object>) -> Result<Option<Object>, ApiError> {
        let Some(object) = object.cloned() else { return Ok(None) };
        let sub = self.request.subresource;
        if kind_of(row, sub) == kind_of(self.request.def, sub) {
            return Ok(Some(object));
        }
        conversion::between(self.core, self.request.def, row, object).await.map(Some)
    }

    /// Asks one webhook. Its patch, where it has one; a refusal is the error.
    async fn ask(
        &self,
        hook: &Hook,
        sort: Sort,
        row: &ResourceDef,
        object: Option<&Object>,
        old: Option<&Object>,
    ) -> Result<Option<Vec<u8>>, ApiError> {
        let (request, core) = (self.request, self.core);
        let value = |object: Option<&Object>| object.map_or(Value::Null, |object| Value::Object(object.0.clone()));
        let name = if request.name.is_empty() { object.map_or("", Object::name) } else { request.name };
        let uid = core.entropy.uid();
        let mut review = review::request(request, row, name, &uid);
        let (object, old) = (value(object), value(old));
        if hook.has_conditions() {
            match hook.conditions_hold(&review, &object, &old) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) if hook.is_required => return Err(request.forbidden(name, why)),
                Err(error) => {
                    tracing::warn!(hook = hook.name, error, "a webhook is left out: its conditions cannot be told");
                    return Ok(None);
                }
            }
        }
        if request.options.dry_run && !hook.is_harmless {
            let why = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(ApiError::bad_request(why));
        }
        review["object"] = object;
        review["oldObject"] = old;
        let version = format!("admission.k8s.io/{}", hook.review_version);
        let body = json!({ "kind": "AdmissionReview", "apiVersion": version, "request": review }).to_string();
        let answer = match core.webhooks.call(&hook.client, hook.patience, body).await {
            Ok(answer) => review::read(hook, sort, &uid, &answer)
                .map_err(|why| format!("received invalid webhook response: {why}")),
            Err(why) => Err(format!("failed to call webhook: {why}")),
        };
        let verdict = match answer {
            Ok(verdict) => verdict,
            Err(why) if hook.is_required => {
                return Err(ApiError::internal(format!("failed calling webhook {:?}: {why}", hook.name)));
            }
            Err(error) => {
                tracing::warn!(
                    hook = hook.name,
                    error,
                    "a webhook cannot be asked, and the request goes on without it"
                );
                return Ok(None);
            }
        };
        if let Some(warnings) = request.warnings {
            verdict.warnings.into_iter().for_each(|warning| warnings.add(warning));
        }
        match verdict.refusal {
            Some(refusal) => Err(refusal),
            None => Ok(verdict.patch),
        }
    }

    /// What a patch makes of the object: of its kind, without what the schema does not know, and the same object still.
    async fn patched(
        &self,
        hook: &Hook,
        row: &ResourceDef,
        shown: &Object,
        object: &Object,
        patch: &[u8],
    ) -> Result<Object, ApiError> {
        let (request, core) = (self.request, self.core);
        let failed = |error: ApiError| ApiError::internal(error.message);
        let mut new = patch::json_patch(shown, patch).map_err(failed)?;
        if !shown.name().is_empty() && new.name() != shown.name() {
            return Err(ApiError::internal(format!(
                "admission webhook {:?} attempted to change metadata.name from {:?} to {:?}",
                hook.name,
                shown.name(),
                new.name()
            )));
        }
        let kind = kind_of(request.def, request.subresource);
        if kind_of(row, request.subresource) != kind {
            new = conversion::between(core, row, request.def, new).await?;
        }
        for key in ["apiVersion", "kind"] {
            keep(&mut new, object, &[key]);
        }
        for key in KEPT {
            keep(&mut new, object, &["metadata", key]);
        }
        let is_own = request.is_own();
        let expected = if is_own { Expected::object(request.def) } else { Expected::kind(core, &kind)? };
        let schema = core.schema();
        fields::types(&schema, &expected.type_name, &new).map_err(failed)?;
        fields::prune(&schema, &expected.type_name, &mut new);
        if is_own {
            request.def.default(&mut new);
        }
        Ok(new)
    }
}

fn keep(new: &mut Object, object: &Object, path: &[&str]) {
    match object.at(path) {
        Some(value) => new.set(path, value.clone()),
        None => {
            new.remove(path);
        }
    }
}
