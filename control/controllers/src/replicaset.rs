//! ReplicaSet and ReplicationController: as many pods as they say, no more and no fewer. They differ in how they say it
//! ([`Replicating`]).

mod controller;

use std::{collections::HashMap, marker::PhantomData, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};
use kube::core::Selector;
use tandem_client::events;

use crate::{
    Cache, Cached, Change, Controller, Delta, Error, Failure, Input, Key, Store,
    action::{Action, Deletion, Plan, Report},
    object, ownership, pod,
    pod::Availability,
    ranking,
};

/// Pods that one plan creates or deletes; the next plan goes on from there.
const BURST: usize = 500;

/// What a parent asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    replicas: i32,
    min_ready_seconds: i32,
    template: PodTemplateSpec,
}

/// A kind that keeps a number of pods alike.
pub(crate) trait Replicating: Cached + serde::Serialize {
    const NAME: &'static str;
    const READS: &'static [&'static str];

    fn store(cache: &Cache) -> &Store<Self>;
    fn delta(change: &Change) -> Option<&Delta<Self>>;
    fn wanted(&self) -> Wanted;
    /// `None` selects nothing.
    fn selector(&self) -> Option<Selector>;
    fn status(&self) -> Option<ReplicaSetStatus>;
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicating for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const READS: &'static [&'static str] = &["ReplicaSet", "Pod"];

    fn store(cache: &Cache) -> &Store<ReplicaSet> {
        &cache.replica_sets
    }

    fn delta(change: &Change) -> Option<&Delta<ReplicaSet>> {
        if let Change::ReplicaSet(delta) = change { Some(delta) } else { None }
    }

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone().unwrap_or_default();
        Wanted {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template.unwrap_or_default(),
        }
    }

    fn selector(&self) -> Option<Selector> {
        object::own_selector(&self.spec.as_ref()?.selector)
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> ReplicaSet {
        ReplicaSet { status: Some(status), ..self.clone() }
    }
}

pub(crate) struct Replicas<P>(PhantomData<P>);

impl<P> Default for Replicas<P> {
    fn default() -> Replicas<P> {
        Replicas(PhantomData)
    }
}

#[derive(Debug)]
pub(crate) struct View<P> {
    set: Arc<P>,
    /// The pods that it controls, and those of its namespace that nobody controls.
    owned: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    /// How many pods of the same Deployment each node runs.
    related: HashMap<String, usize>,
    failure: Option<Failure>,
}

impl<P: Replicating> Controller for Replicas<P> {
    type Parent = P;
    type View = View<P>;

    const NAME: &'static str = P::NAME;
    const READS: &'static [&'static str] = P::READS;

    fn store(cache: &Cache) -> &Store<P> {
        P::store(cache)
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match (change, P::delta(change)) {
            (_, Some(delta)) => vec![delta.key()],
            (Change::Pod(delta), _) => ownership::woken(P::store(cache), delta, |set: &P, pod: &Pod| {
                object::matches(set.selector().as_ref(), &pod.metadata)
            }),
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, set: Arc<P>) -> Result<View<P>, Error> {
        let (cache, meta) = (input.cache, set.metadata());
        let siblings = match object::controller_of(meta) {
            Some(owner) => P::store(cache).controlled_by(&owner.uid),
            None => vec![set.clone()],
        };
        let mut related = HashMap::new();
        for sibling in siblings {
            let pods = cache.pods.controlled_by(object::uid(sibling.metadata()));
            for node in pods.iter().filter(|pod| pod::is_active(pod)).filter_map(|pod| pod::node(pod)) {
                *related.entry(node.to_owned()).or_default() += 1;
            }
        }
        let owned = cache.pods.controlled_by(object::uid(meta));
        let orphans = cache.pods.orphans(object::namespace(meta));
        Ok(View { owned, orphans, related, failure: input.failure.cloned(), set })
    }

    fn plan(view: &View<P>, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn plan<P: Replicating>(view: &View<P>, now: Timestamp) -> Plan {
    let set = &view.set;
    let (selector, wanted) = (set.selector(), set.wanted());
    let mut plan = Plan::default();
    let orphans = view.orphans.iter().filter(|pod| pod::is_active(pod));
    let claims = ownership::claim(&**set, selector.as_ref(), &view.owned, orphans);
    plan.actions = claims.actions;
    let mut mine: Vec<&Arc<Pod>> = claims.kept.into_iter().filter(|pod| pod::is_active(pod)).collect();
    mine.extend(claims.adopted);
    if !object::is_deleting(set.metadata()) {
        let replicas = usize::try_from(wanted.replicas).unwrap_or(0);
        if mine.len() < replicas {
            plan.actions.extend((mine.len()..replicas).take(BURST).map(|_| create(&**set, &wanted.template)));
        } else if mine.len() > replicas {
            let surplus = (mine.len() - replicas).min(BURST);
            ranking::rank(&mut mine, &view.related, now);
            plan.actions.extend(mine.iter().take(surplus).map(|pod| delete(&**set, pod)));
        }
    }
    let (status, next) = status(view, &wanted, &mine, now);
    if set.status().as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(set.with_status(status)));
    }
    if let Some(next) = next {
        plan.requeue_after(next);
    }
    plan
}

fn create<P: Replicating>(set: &P, template: &PodTemplateSpec) -> Action {
    let meta = set.metadata();
    let owner = object::controller_reference(set);
    let pod = pod::from_template(template, object::namespace(meta), object::name(meta), owner);
    Action::Create { object: Box::new(pod), report: Some(report(set)) }
}

fn delete<P: Replicating>(set: &P, pod: &Pod) -> Action {
    Action::Delete(Deletion { report: Some(report(set)), ..Deletion::of(pod) })
}

fn report<P: Replicating>(set: &P) -> Report {
    Report { regarding: events::reference(set), noun: "pod" }
}

fn status<P: Replicating>(
    view: &View<P>,
    wanted: &Wanted,
    pods: &[&Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let labels = wanted.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let mut status = ReplicaSetStatus {
        observed_generation: view.set.metadata().generation,
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
        match pod::availability(pod, wanted.min_ready_seconds, now) {
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

fn conditions<P: Replicating>(view: &View<P>, now: Timestamp) -> Option<Vec<ReplicaSetCondition>> {
    let before = view.set.status().and_then(|status| status.conditions).unwrap_or_default();
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
