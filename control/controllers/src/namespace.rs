//! Namespace deletion: pods go first, then everything else, then the namespace.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::{
    api::{ApiResource, DynamicObject, ListParams, ObjectMeta},
    core::Request,
};
use serde::Deserialize;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Target},
    object, resources,
};

/// The finalizer that holds a namespace until it is empty.
const FINALIZER: &str = "kubernetes";
/// Objects that one plan deletes.
const BURST: usize = 500;
/// When to look again at what has not gone yet; a change of its pods wakes the controller earlier.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct Namespaces;

#[derive(Debug)]
pub(crate) struct View {
    namespace: Arc<Namespace>,
    /// What is still in it; `None` when it is not being deleted.
    contents: Option<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    remaining: Vec<Remaining>,
    /// Resources that could not be listed, and why.
    unknown: Vec<String>,
    /// Groups whose resources are not known: there may be objects of them.
    undiscovered: Vec<String>,
}

/// The objects of one resource.
#[derive(Debug)]
struct Remaining {
    resource: ApiResource,
    objects: Vec<ObjectMeta>,
}

pub(crate) fn is_ending(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    object::is_deleting(&namespace.metadata) || phase == Some("Terminating")
}

impl Controller for Namespaces {
    type Parent = Namespace;
    type View = View;

    const NAME: &'static str = "namespace";
    const READS: &'static [&'static str] = &["Namespace"];

    fn store(cache: &Cache) -> &Store<Namespace> {
        &cache.namespaces
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Namespace(delta) => vec![delta.key()],
            Change::Pod(delta) if delta.new.is_none() => {
                let key = Key::new("", delta.key().namespace);
                cache.namespaces.get(&key).filter(|namespace| is_ending(namespace)).map(|_| key).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, namespace: Arc<Namespace>) -> Result<View, Error> {
        if !object::is_deleting(&namespace.metadata) {
            return Ok(View { namespace, contents: None });
        }
        let name = object::name(&namespace.metadata);
        let undiscovered = resources::undiscovered(input.client).await?;
        let mut contents = Contents { undiscovered, ..Contents::default() };
        for resource in resources::all(input.client).await?.into_iter().filter(|resource| resource.namespaced) {
            match list(input.client, &resource.api, name).await {
                Ok(objects) if objects.is_empty() => {}
                Ok(objects) => contents.remaining.push(Remaining { resource: resource.api, objects }),
                Err(error) if error.is_not_found() || error.is_unsupported() => {}
                Err(error) => contents.unknown.push(format!("{}: {error}", resource.api.plural)),
            }
        }
        Ok(View { namespace, contents: Some(contents) })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

#[derive(Deserialize)]
struct Listed {
    items: Vec<ListedObject>,
}

#[derive(Deserialize)]
struct ListedObject {
    metadata: ObjectMeta,
}

async fn list(client: &kube::Client, resource: &ApiResource, namespace: &str) -> Result<Vec<ObjectMeta>, Error> {
    let path = <DynamicObject as kube::Resource>::url_path(resource, Some(namespace));
    let listed: Listed = client.request(Request::new(path).list_metadata(&ListParams::default())?).await?;
    Ok(listed.items.into_iter().map(|object| object.metadata).collect())
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let Some(contents) = &view.contents else { return Plan::default() };
    let namespace = &view.namespace;
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    let mut plan = Plan::default();
    if contents.remaining.is_empty() && contents.unknown.is_empty() && contents.undiscovered.is_empty() {
        if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            let mut empty = (**namespace).clone();
            let rest = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
            empty.spec.get_or_insert_default().finalizers = Some(rest);
            plan.actions.push(Action::Put { subresource: "finalize", object: Box::new(empty) });
        }
        return plan;
    }
    // Pods may use everything else while they end, so they go first.
    let pods = contents.remaining.iter().find(|one| one.resource.group.is_empty() && one.resource.kind == "Pod");
    let doomed: Vec<&Remaining> = match pods {
        Some(pods) => vec![pods],
        None => contents.remaining.iter().collect(),
    };
    let deletions = doomed.into_iter().flat_map(|one| {
        let fresh = one.objects.iter().filter(|meta| !object::is_deleting(meta));
        fresh.map(|meta| Deletion::new(Target::dynamic(&one.resource, Key::of(meta)), object::uid(meta).to_owned()))
    });
    plan.actions.extend(deletions.take(BURST).map(Action::Delete));
    let conditions = conditions(namespace, contents, now);
    let mut status = namespace.status.clone().unwrap_or_default();
    if status.conditions.as_ref() != Some(&conditions) {
        status.conditions = Some(conditions);
        plan.actions.push(Action::set_status(Namespace { status: Some(status), ..(**namespace).clone() }));
    }
    plan.requeue_after(AGAIN);
    plan
}

/// What `kubectl describe namespace` shows of a namespace that does not want to go, in Kubernetes' words.
fn conditions(namespace: &Namespace, contents: &Contents, now: Timestamp) -> Vec<NamespaceCondition> {
    let before = namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let condition = |type_: &str, is_bad: bool, (reason, message): (&str, String)| {
        let status = if is_bad { "True" } else { "False" };
        let old = before.iter().find(|old| old.type_ == type_ && old.status == status);
        let changed = old.and_then(|old| old.last_transition_time.clone()).unwrap_or_else(|| object::time(now));
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(changed),
        }
    };
    let mut holders: BTreeMap<&str, usize> = BTreeMap::new();
    for meta in contents.remaining.iter().flat_map(|one| &one.objects) {
        for finalizer in meta.finalizers.iter().flatten() {
            *holders.entry(finalizer).or_default() += 1;
        }
    }
    let mut resources: Vec<String> = contents.remaining.iter().map(remaining_text).collect();
    resources.sort();
    let holding: Vec<String> =
        holders.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances")).collect();
    let content_failed = !contents.unknown.is_empty();
    vec![
        condition("NamespaceDeletionDiscoveryFailure", !contents.undiscovered.is_empty(), {
            if contents.undiscovered.is_empty() {
                ("ResourcesDiscovered", "All resources successfully discovered".to_owned())
            } else {
                ("DiscoveryFailed", undiscovered_text(&contents.undiscovered))
            }
        }),
        condition("NamespaceDeletionGroupVersionParsingFailure", false, {
            ("ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned())
        }),
        condition("NamespaceDeletionContentFailure", content_failed, {
            if content_failed {
                ("ContentDeletionFailed", contents.unknown.join(", "))
            } else {
                ("ContentDeleted", "All content successfully deleted, may be waiting on finalization".to_owned())
            }
        }),
        condition("NamespaceContentRemaining", !resources.is_empty(), {
            if resources.is_empty() {
                ("ContentRemoved", "All content successfully removed".to_owned())
            } else {
                ("SomeResourcesRemain", format!("Some resources are remaining: {}", resources.join(", ")))
            }
        }),
        condition("NamespaceFinalizersRemaining", !holding.is_empty(), {
            if holding.is_empty() {
                ("ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
            } else {
                let message = format!("Some content in the namespace has finalizers remaining: {}", holding.join(", "));
                ("SomeFinalizersRemain", message)
            }
        }),
    ]
}

fn undiscovered_text(groups: &[String]) -> String {
    let why: Vec<String> =
        groups.iter().map(|group| format!("{group}: stale GroupVersion discovery: {group}")).collect();
    let (count, why) = (groups.len(), why.join(", "));
    format!(
        "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {why}"
    )
}

/// `pods. has 2 resource instances`
fn remaining_text(one: &Remaining) -> String {
    format!("{}.{} has {} resource instances", one.resource.plural, one.resource.group, one.objects.len())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::{
        api::core::v1::{ConfigMap, NamespaceSpec, NamespaceStatus, Pod},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;
    use crate::action::testing::describe;

    fn meta(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.trim_end_matches(['!', '*']).into()),
            namespace: Some("a".into()),
            uid: Some(name.into()),
            deletion_timestamp: name.ends_with('!').then_some(Time(Timestamp::UNIX_EPOCH)),
            finalizers: name.ends_with('*').then(|| vec!["example.com/hold".into()]),
            ..ObjectMeta::default()
        }
    }

    fn check(pods: &[&str], maps: &[&str], unknown: &[&str], expect: Expect) {
        let mut namespace = Namespace {
            spec: Some(NamespaceSpec { finalizers: Some(vec![FINALIZER.into()]) }),
            status: Some(NamespaceStatus { phase: Some("Terminating".into()), conditions: None }),
            ..Namespace::default()
        };
        namespace.metadata.name = Some("a".into());
        namespace.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let remaining = [(ApiResource::erase::<Pod>(&()), pods), (ApiResource::erase::<ConfigMap>(&()), maps)];
        let remaining = remaining.into_iter().filter(|(_, names)| !names.is_empty());
        let remaining = remaining
            .map(|(resource, names)| Remaining { resource, objects: names.iter().map(|name| meta(name)).collect() });
        let (undiscovered, unknown): (Vec<&str>, Vec<&str>) = unknown.iter().partition(|text| text.contains('/'));
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let contents =
            Contents { remaining: remaining.collect(), unknown: owned(unknown), undiscovered: owned(undiscovered) };
        let view = View { namespace: Arc::new(namespace), contents: Some(contents) };
        expect.assert_eq(&describe(&plan(&view, Timestamp::UNIX_EPOCH), |action| {
            let Some(namespace) = action.object::<Namespace>() else { return String::new() };
            let conditions = namespace.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let bad = conditions.filter(|condition| condition.status == "True");
            bad.map(|condition| condition.message.clone().unwrap()).collect::<Vec<_>>().join("; ")
        }));
    }

    #[test]
    fn pods_go_first() {
        check(
            &["p", "q!"],
            &["m"],
            &[],
            expect![[r#"
            delete Pod a/p
            status Namespace a Some resources are remaining: configmaps. has 1 resource instances, pods. has 2 resource instances
            again in 1s
        "#]],
        );
    }

    #[test]
    fn then_everything_else() {
        check(
            &[],
            &["m", "held*", "going!"],
            &[],
            expect![[r#"
            delete ConfigMap a/m
            delete ConfigMap a/held
            status Namespace a Some resources are remaining: configmaps. has 3 resource instances; Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances
            again in 1s
        "#]],
        );
    }

    #[test]
    fn what_cannot_be_listed_keeps_the_namespace() {
        check(
            &[],
            &[],
            &["widgets: no answer"],
            expect![[r#"
            status Namespace a widgets: no answer
            again in 1s
        "#]],
        );
    }

    #[test]
    fn a_group_that_is_not_known_keeps_the_namespace() {
        check(
            &[],
            &[],
            &["example.com/v1"],
            expect![[r#"
            status Namespace a Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: example.com/v1: stale GroupVersion discovery: example.com/v1
            again in 1s
        "#]],
        );
    }

    #[test]
    fn an_empty_namespace_is_let_go() {
        check(
            &[],
            &[],
            &[],
            expect![[r#"
            finalize Namespace a
        "#]],
        );
    }
}
