//! ResourceQuota: how much of it is used. Admission charges what is made; this controller sees what has gone.
//!
//! A charge is written together with the object that it is for, so it changes the quota. What is listed after a version
//! of the quota was read has all objects that were charged before it, and a usage that was counted from it is refused
//! when more was charged meanwhile: nobody gets what another one was just given.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ResourceQuota, ResourceQuotaStatus},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ListMeta},
};
use kube::{
    api::{DynamicObject, ListParams},
    core::Request,
};
use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};
use tandem_api::{
    Object,
    quota::{self, Amounts, Counted},
};

use crate::{
    Cache, Change, Controller, Delta, Error, Input, Key, Store,
    action::{Action, Plan},
    object, pod, resources,
};

/// How often everything is counted again, as in Kubernetes: some objects go without anybody being told.
const RESYNC: Duration = Duration::from_secs(300);
/// Until its limits were taken over nobody charged the quota: what was made in that moment is counted after this time.
const AFTERWARDS: Duration = Duration::from_secs(1);
const PAGE: u32 = 500;

pub(crate) struct Quotas;

#[derive(Debug)]
pub(crate) struct View {
    quota: Arc<ResourceQuota>,
    /// The same, as the rules of quotas read it.
    plain: Object,
    found: Vec<Found>,
}

/// The objects of one resource in the quota's namespace.
#[derive(Debug)]
struct Found {
    group: String,
    resource: String,
    objects: Objects,
}

#[derive(Debug)]
enum Objects {
    /// How many there are; nothing else of them counts.
    Number(i64),
    All(Vec<Object>),
}

impl Controller for Quotas {
    type Parent = ResourceQuota;
    type View = View;

    const NAME: &'static str = "resourcequota";
    const READS: &'static [&'static str] = &["ResourceQuota"];

    fn store(cache: &Cache) -> &Store<ResourceQuota> {
        &cache.quotas
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let counting = |namespace: &str, group: &str, resource: &str| -> Vec<Key> {
            let counted = Counted { group, resource };
            let quotas = cache.quotas.in_namespace(namespace);
            quotas.iter().filter(|quota| counts(quota, counted)).map(|quota| Key::of(&quota.metadata)).collect()
        };
        match change {
            Change::ResourceQuota(delta) if is_news(delta) => vec![delta.key()],
            Change::Pod(delta) if delta.new.as_ref().is_none_or(|pod| pod::is_terminal(pod)) => {
                counting(&delta.key().namespace, "", "pods")
            }
            Change::Service(delta) if is_other(delta, |service| &service.spec) => {
                counting(&delta.key().namespace, "", "services")
            }
            Change::PersistentVolumeClaim(delta) if is_other(delta, |claim| &claim.spec) => {
                counting(&delta.key().namespace, "", "persistentvolumeclaims")
            }
            // The others have told of it already.
            Change::Gone(gone) if Counted { group: &gone.group, resource: &gone.plural }.is_plain() => {
                counting(&gone.namespace, &gone.group, &gone.plural)
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, quota: Arc<ResourceQuota>) -> Result<View, Error> {
        let plain: Object = serde_json::from_slice(&serde_json::to_vec(&*quota)?)?;
        let namespace = object::namespace(&quota.metadata);
        let mut found = Vec::new();
        for counted in limited(&quota).filter_map(Counted::by).collect::<BTreeSet<_>>() {
            match find(input.client, namespace, counted).await {
                Ok(Some(objects)) => {
                    let (group, resource) = (counted.group.to_owned(), counted.resource.to_owned());
                    found.push(Found { group, resource, objects });
                }
                Ok(None) => {}
                // A resource that the server does not have.
                Err(error) if error.is_not_found() || error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(View { quota, plain, found })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn limited(quota: &ResourceQuota) -> impl Iterator<Item = &str> {
    let hard = quota.spec.iter().filter_map(|spec| spec.hard.as_ref());
    hard.flat_map(|hard| hard.keys()).map(String::as_str)
}

fn counts(quota: &ResourceQuota, counted: Counted<'_>) -> bool {
    limited(quota).any(|name| Counted::by(name) == Some(counted))
}

/// Whether more than the usage has changed, which admission raises with everything that is made.
fn is_news(delta: &Delta<ResourceQuota>) -> bool {
    is_other(delta, |quota| &quota.spec) || delta.old.is_none()
}

/// Whether what was there has gone, or has another spec now.
fn is_other<K, T: PartialEq>(delta: &Delta<K>, spec: impl Fn(&K) -> &T) -> bool {
    match (&delta.old, &delta.new) {
        (Some(old), Some(new)) => spec(old) != spec(new),
        (old, _) => old.is_some(),
    }
}

#[derive(Deserialize)]
struct Listed<T> {
    metadata: ListMeta,
    items: Vec<T>,
}

/// What there is now; `None` where the server has no such resource.
async fn find(client: &kube::Client, namespace: &str, counted: Counted<'_>) -> Result<Option<Objects>, Error> {
    let Some(path) = path(client, namespace, counted).await? else { return Ok(None) };
    if counted.is_plain() {
        let request = Request::new(path).list_metadata(&ListParams::default().limit(1))?;
        let listed: Listed<IgnoredAny> = client.request(request).await?;
        let seen = i64::try_from(listed.items.len()).unwrap_or(i64::MAX);
        return Ok(Some(Objects::Number(seen + listed.metadata.remaining_item_count.unwrap_or(0))));
    }
    all(client, &path).await.map(|objects| Some(Objects::All(objects)))
}

async fn path(client: &kube::Client, namespace: &str, counted: Counted<'_>) -> Result<Option<String>, Error> {
    if counted.group.is_empty() {
        return Ok(Some(format!("/api/v1/namespaces/{namespace}/{}", counted.resource)));
    }
    let known = resources::all(client).await?;
    let mine = known
        .into_iter()
        .find(|one| one.namespaced && one.api.group == counted.group && one.api.plural == counted.resource);
    Ok(mine.map(|one| <DynamicObject as kube::Resource>::url_path(&one.api, Some(namespace))))
}

async fn all<T: DeserializeOwned>(client: &kube::Client, path: &str) -> Result<Vec<T>, Error> {
    let mut page = ListParams::default().limit(PAGE);
    let mut items = Vec::new();
    loop {
        let listed: Listed<T> = client.request(Request::new(path).list(&page)?).await?;
        items.extend(listed.items);
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(items),
        }
    }
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if object::is_deleting(&view.quota.metadata) {
        return plan;
    }
    plan.requeue_after(RESYNC);
    let used = used(view, now);
    let hard = view.quota.spec.as_ref().and_then(|spec| spec.hard.clone());
    let before = view.quota.status.clone().unwrap_or_default();
    let same_hard = before.hard.clone().unwrap_or_default() == hard.clone().unwrap_or_default();
    if same_hard && quota::amounts(view.plain.at(&["status", "used"])) == used {
        return plan;
    }
    if !same_hard {
        plan.requeue_after(AFTERWARDS);
    }
    let used = used.into_iter().map(|(name, amount)| (name, Quantity(amount.to_string()))).collect();
    let status = ResourceQuotaStatus { hard, used: Some(used) };
    plan.actions.push(Action::set_status(ResourceQuota { status: Some(status), ..(*view.quota).clone() }));
    plan
}

/// The usage of everything that is limited and known.
fn used(view: &View, now: Timestamp) -> Amounts {
    let mut used = Amounts::new();
    for found in &view.found {
        let counted = Counted { group: &found.group, resource: &found.resource };
        let names: Vec<&str> = limited(&view.quota).filter(|name| Counted::by(name) == Some(counted)).collect();
        let mut sum: Amounts = names.iter().map(|name| ((*name).to_owned(), tandem_api::Quantity::ZERO)).collect();
        match &found.objects {
            Objects::Number(number) if counted.is_in_scope(&view.plain, &Object::default()) => {
                sum.values_mut().for_each(|count| *count = tandem_api::Quantity::from_i64(*number));
            }
            Objects::Number(_) => {}
            Objects::All(objects) => {
                for object in objects.iter().filter(|object| counted.is_in_scope(&view.plain, object)) {
                    let mut usage = counted.usage(object, now);
                    usage.retain(|name, _| names.contains(&name.as_str()));
                    quota::add(&mut sum, &usage);
                }
            }
        }
        used.extend(sum);
    }
    used
}

#[cfg(test)]
mod tests;
