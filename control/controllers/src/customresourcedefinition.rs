//! CustomResourceDefinitions: whose names are accepted, which kinds are established, and the objects of those that go.

mod names;
mod types;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::{
    api::{ApiResource, DynamicObject, ListParams, ObjectMeta},
    core::Request,
};
use serde::{Deserialize, Serialize};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Target},
    object,
};

pub(crate) use types::CustomResourceDefinition;
use types::{Condition, ESTABLISHED, Status, TERMINATING, set};

/// The finalizer that holds a definition until its objects are gone; the API server sets it when the deletion begins.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Objects that one plan deletes.
const BURST: u32 = 500;
/// When to look again at objects that have not gone yet.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct Definitions;

#[derive(Debug)]
pub(crate) struct View {
    definition: Arc<CustomResourceDefinition>,
    /// The other definitions of its group.
    others: Vec<Arc<CustomResourceDefinition>>,
    /// Of one that is being deleted: its kind, and the objects that are left, though no more than one plan can delete.
    instances: Option<(ApiResource, Vec<ObjectMeta>)>,
}

impl Controller for Definitions {
    type Parent = CustomResourceDefinition;
    type View = View;

    const NAME: &'static str = "customresourcedefinition";
    const READS: &'static [&'static str] = &["CustomResourceDefinition"];

    fn store(cache: &Cache) -> &Store<CustomResourceDefinition> {
        &cache.definitions
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let Change::CustomResourceDefinition(delta) = change else { return Vec::new() };
        let groups: Vec<&str> = delta.versions().map(|one| one.spec.group.as_str()).collect();
        let neighbours = cache.definitions.all().into_iter().filter(|one| groups.contains(&one.spec.group.as_str()));
        neighbours.map(|one| Key::of(&one.metadata)).chain([delta.key()]).collect()
    }

    async fn view(&self, input: &Input<'_>, definition: Arc<CustomResourceDefinition>) -> Result<View, Error> {
        let is_other = |one: &Arc<CustomResourceDefinition>| {
            one.spec.group == definition.spec.group && one.metadata.uid != definition.metadata.uid
        };
        let others = input.cache.definitions.all().into_iter().filter(is_other).collect();
        let instances = match resource(&definition).filter(|_| is_ending(&definition)) {
            Some(resource) => {
                let listed = list(input.client, &resource).await?;
                Some((resource, listed))
            }
            None => None,
        };
        Ok(View { definition, others, instances })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        if is_ending(&view.definition) { end(view, now) } else { accept(view, now) }
    }
}

fn is_ending(definition: &CustomResourceDefinition) -> bool {
    object::is_deleting(&definition.metadata)
}

/// Whether its kind is served.
pub(crate) fn is_established(definition: &CustomResourceDefinition) -> bool {
    let status = definition.status.as_ref();
    let established = status.and_then(|status| types::find(&status.conditions, ESTABLISHED));
    established.is_some_and(|condition| condition.status == "True")
}

/// How the objects of a definition are reached; `None` where nobody can have made any.
fn resource(definition: &CustomResourceDefinition) -> Option<ApiResource> {
    let status = definition.status.as_ref()?;
    let established = types::find(&status.conditions, ESTABLISHED)?;
    let spec = &definition.spec;
    let served = spec.versions.iter().find(|version| version.served);
    let version = served.or(spec.versions.first())?.name.clone();
    (established.status == "True").then(|| ApiResource {
        group: spec.group.clone(),
        api_version: format!("{}/{version}", spec.group),
        version,
        // Of the spec, which cannot change: whoever writes the status must not choose what is deleted.
        kind: spec.names.kind.clone(),
        plural: spec.names.plural.clone(),
    })
}

#[derive(Deserialize)]
struct Listed {
    metadata: ListMeta,
    items: Vec<ListedObject>,
}

#[derive(Deserialize)]
struct ListedObject {
    metadata: ObjectMeta,
}

/// A burst of the objects that nobody deletes yet, or what is left where there are none: those that are held by others
/// hold up nobody else.
async fn list(client: &kube::Client, resource: &ApiResource) -> Result<Vec<ObjectMeta>, Error> {
    let path = <DynamicObject as kube::Resource>::url_path(resource, None);
    let (mut page, mut held) = (ListParams::default().limit(BURST), Vec::new());
    loop {
        let listed: Listed = client.request(Request::new(path.as_str()).list_metadata(&page)?).await?;
        let found: Vec<ObjectMeta> = listed.items.into_iter().map(|object| object.metadata).collect();
        let next = listed.metadata.continue_.filter(|next| !next.is_empty());
        if found.iter().any(|meta| !object::is_deleting(meta)) {
            return Ok(found);
        }
        held.extend(found.into_iter().take(1));
        match next {
            Some(next) => page = page.continue_token(&next),
            None => return Ok(held),
        }
    }
}

/// Decides on the names and, once all of them are accepted, establishes the kind for good.
fn accept(view: &View, now: Timestamp) -> Plan {
    let definition = &view.definition;
    let before = definition.status.clone().unwrap_or_default();
    let mut status = before.clone();
    let (accepted, condition) = names::decide(definition, &view.others);
    let is_accepted = condition.status == "True";
    status.accepted_names = accepted;
    set(&mut status.conditions, condition, now);
    let was_established = types::find(&before.conditions, ESTABLISHED).is_some_and(|old| old.status == "True");
    if !was_established {
        set(&mut status.conditions, established(is_accepted), now);
    }
    if status == before { Plan::default() } else { Plan::of(vec![set_status(definition, status)]) }
}

fn established(is_accepted: bool) -> Condition {
    if is_accepted {
        Condition::new(ESTABLISHED, "True", "InitialNamesAccepted", "the initial names have been accepted")
    } else {
        Condition::new(ESTABLISHED, "False", "NotAccepted", "not all names are accepted")
    }
}

fn set_status(definition: &CustomResourceDefinition, status: Status) -> Action {
    Action::set_status(CustomResourceDefinition { status: Some(status), ..definition.clone() })
}

#[derive(Debug, Serialize)]
struct Held {
    metadata: HeldMeta,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HeldMeta {
    resource_version: Option<String>,
    finalizers: Vec<String>,
}

/// Deletes the objects, and lets the definition go when none is left.
fn end(view: &View, now: Timestamp) -> Plan {
    let definition = &view.definition;
    let finalizers = definition.metadata.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Plan::default();
    }
    let Some((resource, objects)) = view.instances.as_ref().filter(|(_, objects)| !objects.is_empty()) else {
        let rest = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
        let metadata = HeldMeta { resource_version: definition.metadata.resource_version.clone(), finalizers: rest };
        return Plan::of(vec![Action::patch(Target::of(&**definition), Held { metadata })]);
    };
    let fresh = objects.iter().filter(|meta| !object::is_deleting(meta));
    let deletions = fresh.map(|meta| {
        Action::Delete(Deletion::new(Target::dynamic(resource, Key::of(meta)), object::uid(meta).to_owned()))
    });
    let mut plan = Plan::of(deletions.collect());
    let mut status = definition.status.clone().unwrap_or_default();
    let message = "CustomResource deletion is in progress";
    set(&mut status.conditions, Condition::new(TERMINATING, "True", "InstanceDeletionInProgress", message), now);
    if definition.status.as_ref() != Some(&status) {
        plan.actions.push(set_status(definition, status));
    }
    plan.requeue_after(AGAIN);
    plan
}
