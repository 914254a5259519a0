//! ReplicaSet: as many pods as it says, no more and no fewer.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus},
    core::v1::Pod,
};
use kube::core::Selector;
use tandem_client::events;

use crate::{
    Cache, Change, Controller, Error, Failure, Input, Key, Store,
    action::{Action, Deletion, Plan, Report},
    object, ownership, pod,
    pod::Availability,
    ranking,
};

/// Pods that one plan creates or deletes; the next plan goes on from there.
const BURST: usize = 500;

pub(crate) struct ReplicaSets;

#[derive(Debug)]
pub(crate) struct View {
    set: Arc<ReplicaSet>,
    /// The pods that it controls, and those of its namespace that nobody controls.
    owned: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    /// How many pods of the same Deployment each node runs.
    related: HashMap<String, usize>,
    failure: Option<Failure>,
}

impl Controller for ReplicaSets {
    type Parent = ReplicaSet;
    type View = View;

    const NAME: &'static str = "replicaset";
    const READS: &'static [&'static str] = &["ReplicaSet", "Pod"];

    fn store(cache: &Cache) -> &Store<ReplicaSet> {
        &cache.replica_sets
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::ReplicaSet(delta) => vec![delta.key()],
            Change::Pod(delta) => ownership::woken(&cache.replica_sets, delta, |set: &ReplicaSet, pod: &Pod| {
                object::matches(selector(set).as_ref(), &pod.metadata)
            }),
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, set: Arc<ReplicaSet>) -> Result<View, Error> {
        let (cache, meta) = (input.cache, &set.metadata);
        let siblings = match object::controller_of(meta) {
            Some(owner) => cache.replica_sets.controlled_by(&owner.uid),
            None => vec![set.clone()],
        };
        let mut related = HashMap::new();
        for sibling in siblings {
            let pods = cache.pods.controlled_by(object::uid(&sibling.metadata));
            for node in pods.iter().filter(|pod| pod::is_active(pod)).filter_map(|pod| pod::node(pod)) {
                *related.entry(node.to_owned()).or_default() += 1;
            }
        }
        let owned = cache.pods.controlled_by(object::uid(meta));
        let orphans = cache.pods.orphans(object::namespace(meta));
        Ok(View { owned, orphans, related, failure: input.failure.cloned(), set })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn spec(set: &ReplicaSet) -> ReplicaSetSpec {
    set.spec.clone().unwrap_or_default()
}

fn selector(set: &ReplicaSet) -> Option<Selector> {
    object::own_selector(&set.spec.as_ref()?.selector)
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let set = &view.set;
    let selector = selector(set);
    let mut plan = Plan::default();
    let orphans = view.orphans.iter().filter(|pod| pod::is_active(pod));
    let claims = ownership::claim(&**set, selector.as_ref(), &view.owned, orphans);
    plan.actions = claims.actions;
    let mut mine: Vec<&Arc<Pod>> = claims.kept.into_iter().filter(|pod| pod::is_active(pod)).collect();
    mine.extend(claims.adopted);
    if !object::is_deleting(&set.metadata) {
        let wanted = usize::try_from(spec(set).replicas.unwrap_or(1)).unwrap_or(0);
        if mine.len() < wanted {
            plan.actions.extend((mine.len()..wanted).take(BURST).map(|_| create(set)));
        } else if mine.len() > wanted {
            let surplus = (mine.len() - wanted).min(BURST);
            ranking::rank(&mut mine, &view.related, now);
            plan.actions.extend(mine.iter().take(surplus).map(|pod| delete(set, pod)));
        }
    }
    let (status, next) = status(view, &mine, now);
    if set.status.as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(ReplicaSet { status: Some(status), ..(**set).clone() }));
    }
    if let Some(next) = next {
        plan.requeue_after(next);
    }
    plan
}

fn create(set: &ReplicaSet) -> Action {
    let (meta, template) = (&set.metadata, spec(set).template.unwrap_or_default());
    let owner = object::controller_reference(set);
    let pod = pod::from_template(&template, object::namespace(meta), object::name(meta), owner);
    Action::Create { object: Box::new(pod), report: Some(report(set)) }
}

fn delete(set: &ReplicaSet, pod: &Pod) -> Action {
    Action::Delete(Deletion { report: Some(report(set)), ..Deletion::of(pod) })
}

fn report(set: &ReplicaSet) -> Report {
    Report { regarding: events::reference(set), noun: "pod" }
}

fn status(view: &View, pods: &[&Arc<Pod>], now: Timestamp) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let (set, spec) = (&view.set, spec(&view.set));
    let labels = spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let mut status = ReplicaSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(pods.len()),
        conditions: conditions(view, now),
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut available, mut next) = (0, 0, 0, None);
    for pod in pods {
        let has =
            |label: (&String, &String)| pod.metadata.labels.as_ref().and_then(|own| own.get(label.0)) == Some(label.1);
        labelled += i32::from(labels.iter().all(has));
        ready += i32::from(pod::is_ready(pod));
        match pod::availability(pod, spec.min_ready_seconds.unwrap_or(0), now) {
            Availability::Yes => available += 1,
            Availability::In(wait) => next = Some(next.map_or(wait, |other: std::time::Duration| other.min(wait))),
            Availability::No => {}
        }
    }
    // Kubernetes leaves zeros out.
    let some = |value: i32| (value != 0).then_some(value);
    status.fully_labeled_replicas = some(labelled);
    status.ready_replicas = some(ready);
    status.available_replicas = some(available);
    (status, next)
}

fn conditions(view: &View, now: Timestamp) -> Option<Vec<ReplicaSetCondition>> {
    let before = view.set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (old, mut conditions): (Vec<_>, Vec<_>) =
        before.into_iter().partition(|condition| condition.type_ == "ReplicaFailure");
    if let Some(failure) = &view.failure {
        let same = |condition: &ReplicaSetCondition| {
            condition.status == "True" && condition.reason.as_deref() == Some(failure.reason)
        };
        conditions.push(old.into_iter().find(same).unwrap_or_else(|| ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(object::time(now)),
        }));
    }
    (!conditions.is_empty()).then_some(conditions)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "replicaset/tests.rs"]
mod tests;
