//! StatefulSet: pods with names that last, one after the other.
//!
//! ```text
//!  plan ─┬─ no revision for the template yet ─> make it (history.rs)
//!        ├─ claims follow their retention policy (identity.rs)
//!        ├─ each ordinal, from the first: ended ─> delete, missing ─> create ┐ OrderedReady waits for each,
//!        ├─ ordinals beyond, from the last: delete                           ┘ Parallel for none
//!        ├─ RollingUpdate, from the last to the partition: pods of an old revision go (update.rs)
//!        └─ history, status
//! ```
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#deployment-and-scaling-guarantees>

mod identity;
mod update;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::core::Selector;
use tandem_client::events::{self, Note, Severity};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Report},
    history::{self, Gap, History, Line, REVISION_HASH},
    object, ownership, pod,
    pod::Availability,
};

/// The label on a revision that its hash stands in.
const HASH: &str = "controller.kubernetes.io/hash";
/// Pods that one plan creates or deletes; the next plan goes on from there.
const BURST: usize = 250;

pub(crate) struct StatefulSets;

#[derive(Debug)]
pub(crate) struct View {
    set: Arc<StatefulSet>,
    pods: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    free_revisions: Vec<Arc<ControllerRevision>>,
    /// The claims of its namespace that have a name of one of its pods'.
    claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Another object has the name of the revision to be.
    taken: bool,
}

impl Controller for StatefulSets {
    type Parent = StatefulSet;
    type View = View;

    const NAME: &'static str = "statefulset";
    const READS: &'static [&'static str] = &["StatefulSet", "Pod", "ControllerRevision", "PersistentVolumeClaim"];

    fn store(cache: &Cache) -> &Store<StatefulSet> {
        &cache.stateful_sets
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::StatefulSet(delta) => vec![delta.key()],
            Change::Pod(delta) => ownership::woken(&cache.stateful_sets, delta, wants),
            Change::ControllerRevision(delta) => history::woken::<StatefulSet>(delta),
            Change::PersistentVolumeClaim(delta) => {
                let key = delta.key();
                let sets = cache.stateful_sets.in_namespace(&key.namespace);
                let mine = sets.iter().filter(|set| identity::is_claim_of(set, &key.name));
                mine.map(|set| Key::of(&set.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, set: Arc<StatefulSet>) -> Result<View, Error> {
        let (cache, meta) = (input.cache, &set.metadata);
        let (uid, namespace) = (object::uid(meta), object::namespace(meta));
        let mut claims = cache.claims.in_namespace(namespace);
        claims.retain(|claim| identity::is_claim_of(&set, object::name(&claim.metadata)));
        let spec = spec(&set);
        let name = line(&set, &spec).name();
        Ok(View {
            pods: cache.pods.controlled_by(uid),
            orphans: cache.pods.orphans(namespace),
            revisions: cache.controller_revisions.controlled_by(uid),
            free_revisions: cache.controller_revisions.orphans(namespace),
            taken: cache.controller_revisions.get(&Key::new(namespace, name)).is_some(),
            claims,
            set,
        })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn wants(parent: &StatefulSet, pod: &Pod) -> bool {
    object::matches(selector(parent).as_ref(), &pod.metadata)
}

fn spec(set: &StatefulSet) -> StatefulSetSpec {
    set.spec.clone().unwrap_or_default()
}

fn selector(set: &StatefulSet) -> Option<Selector> {
    object::own_selector(&set.spec.as_ref()?.selector)
}

fn line<'a>(set: &'a StatefulSet, spec: &'a StatefulSetSpec) -> Line<'a, StatefulSet> {
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    Line { parent: set, template: &spec.template, collisions, hash_label: HASH }
}

/// One StatefulSet and what is known of its pods.
struct Round<'a> {
    set: &'a StatefulSet,
    spec: StatefulSetSpec,
    /// The pods that have an ordinal that is wanted.
    places: BTreeMap<i32, &'a Arc<Pod>>,
    /// Pods of other ordinals, the highest first.
    condemned: Vec<&'a Arc<Pod>>,
    claims: &'a [Arc<PersistentVolumeClaim>],
    /// What the pods that are not updated yet are made from.
    current: &'a ControllerRevision,
    update: &'a ControllerRevision,
    now: Timestamp,
}

impl Round<'_> {
    /// The ordinals that are wanted; a user may ask for any number of them.
    fn ordinals(&self) -> Range<i32> {
        ordinals(&self.spec)
    }

    fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    /// Ordinals below it stay as they are; without a rolling update all do.
    fn partition(&self) -> Option<i32> {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return None;
        }
        Some(strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.partition).unwrap_or(0))
    }

    fn availability(&self, pod: &Pod) -> Availability {
        match pod::phase(pod) {
            "Running" => pod::availability(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now),
            _ => Availability::No,
        }
    }

    fn is_available(&self, pod: &Pod) -> bool {
        !object::is_deleting(&pod.metadata) && self.availability(pod) == Availability::Yes
    }

    /// What the pod of an ordinal is made from, when it is made now.
    fn revision(&self, ordinal: i32) -> &ControllerRevision {
        let kept = self.partition().is_some_and(|partition| ordinal - self.ordinals().start < partition);
        if kept { self.current } else { self.update }
    }
}

fn is_of(pod: &Pod, revision: &ControllerRevision) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
    label.map(String::as_str) == Some(object::name(&revision.metadata))
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let set = &*view.set;
    let selector = selector(set);
    if selector.is_none() {
        return Plan::default();
    }
    // Whoever has the name of a pod of another set is none of this one.
    let orphans = view.orphans.iter().filter(|pod| identity::ordinal(set, object::name(&pod.metadata)).is_some());
    let claims = ownership::claim(set, selector.as_ref(), &view.pods, orphans);
    let mut ownership = claims.actions;
    let revisions = ownership::claim(set, selector.as_ref(), &view.revisions, view.free_revisions.iter());
    ownership.extend(revisions.actions);
    if !ownership.is_empty() {
        return Plan::of(ownership);
    }
    let spec = spec(set);
    let history = History::of(&view.revisions, &spec.template);
    if !object::is_deleting(&set.metadata) {
        match history.gap(&line(set, &spec), view.taken) {
            Some(Gap::Write(write)) => return Plan::of(vec![*write]),
            Some(Gap::Taken) => {
                let mut status = set.status.clone().unwrap_or_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                return Plan::of(vec![Action::set_status(StatefulSet { status: Some(status), ..set.clone() })]);
            }
            None => {}
        }
    }
    let Some(update) = history.current else { return Plan::default() };
    let before = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let current = history.revisions.iter().find(|one| one.metadata.name.as_deref() == before).unwrap_or(&update);
    let (places, condemned) = places(set, &spec, claims.kept);
    let round = Round { set, spec, places, condemned, claims: &view.claims, current, update, now };
    let mut plan = Plan::default();
    if !object::is_deleting(&set.metadata) {
        plan.actions.extend(identity::retention(&round));
        manage(&round, &mut plan);
        let in_use = |revision: &ControllerRevision| {
            object::uid(&revision.metadata) == object::uid(&current.metadata)
                || view.pods.iter().any(|pod| is_of(pod, revision))
        };
        plan.actions.extend(history.surplus(round.spec.revision_history_limit, in_use));
    }
    let status = status(&round, &mut plan);
    if set.status.as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(StatefulSet { status: Some(status), ..set.clone() }));
    }
    plan
}

fn ordinals(spec: &StatefulSetSpec) -> Range<i32> {
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    start..start.saturating_add(spec.replicas.unwrap_or(1))
}

type Places<'a> = (BTreeMap<i32, &'a Arc<Pod>>, Vec<&'a Arc<Pod>>);

fn places<'a>(set: &StatefulSet, spec: &StatefulSetSpec, pods: Vec<&'a Arc<Pod>>) -> Places<'a> {
    let wanted = ordinals(spec);
    let with_ordinal = |pod: &'a Arc<Pod>| Some((identity::ordinal(set, object::name(&pod.metadata))?, pod));
    let (places, condemned): (BTreeMap<_, _>, BTreeMap<_, _>) =
        pods.into_iter().filter_map(with_ordinal).partition(|(ordinal, _)| wanted.contains(ordinal));
    (places, condemned.into_values().rev().collect())
}

/// Fills the places, then empties what is beyond, then updates; ordered, each step waits for the one before.
fn manage(round: &Round<'_>, plan: &mut Plan) {
    let (set, ordered, before) = (round.set, round.is_ordered(), plan.actions.len());
    for ordinal in round.ordinals() {
        let step = match round.places.get(&ordinal) {
            None => {
                plan.actions.extend(identity::create(round, ordinal));
                ordered
            }
            Some(pod) if object::is_deleting(&pod.metadata) => ordered,
            Some(pod) if pod::is_terminal(pod) => {
                let message = format!(
                    "StatefulSet {}/{} is recreating {} Pod {}",
                    object::namespace(&set.metadata),
                    object::name(&set.metadata),
                    pod::phase(pod).to_lowercase(),
                    object::name(&pod.metadata)
                );
                let reason =
                    if pod::phase(pod) == "Failed" { "RecreatingFailedPod" } else { "RecreatingTerminatedPod" };
                plan.actions.push(Action::Event(Note::new(events::reference(set), Severity::Warning, reason, message)));
                plan.actions.push(delete(set, pod));
                ordered
            }
            Some(pod) => ordered && !round.is_available(pod),
        };
        if step || plan.actions.len() - before >= BURST {
            return;
        }
    }
    let unhealthy = round.places.values().chain(round.condemned.iter().rev()).find(|pod| !round.is_available(pod));
    for pod in &round.condemned {
        let is_first_unhealthy = unhealthy.is_some_and(|first| first.metadata.uid == pod.metadata.uid);
        if object::is_deleting(&pod.metadata) || (!round.is_available(pod) && ordered && !is_first_unhealthy) {
            if ordered {
                return;
            }
            if object::is_deleting(&pod.metadata) {
                continue;
            }
        }
        plan.actions.push(delete(set, pod));
        if ordered || plan.actions.len() - before >= BURST {
            return;
        }
    }
    plan.actions.extend(update::roll(round));
}

fn delete(set: &StatefulSet, pod: &Pod) -> Action {
    Action::Delete(Deletion { report: Some(report(set, "pod")), ..Deletion::of(pod) })
}

fn report(set: &StatefulSet, noun: &'static str) -> Report {
    Report { regarding: events::reference(set), noun }
}

fn status(round: &Round<'_>, plan: &mut Plan) -> StatefulSetStatus {
    let before = round.set.status.clone().unwrap_or_default();
    let (mut replicas, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    for pod in round.places.values().chain(&round.condemned) {
        replicas += 1;
        ready += i32::from(pod::phase(pod) == "Running" && pod::is_ready(pod));
        match round.availability(pod) {
            Availability::Yes => available += 1,
            Availability::In(wait) => plan.requeue_after(wait),
            Availability::No => {}
        }
        if !object::is_deleting(&pod.metadata) {
            current += i32::from(is_of(pod, round.current));
            updated += i32::from(is_of(pod, round.update));
        }
    }
    let name = |revision: &ControllerRevision| revision.metadata.name.clone();
    let mut current_revision = name(round.current);
    // All pods are of the new revision: from now on it is the current one.
    if round.partition().is_some()
        && updated == replicas
        && ready == replicas
        && replicas == round.spec.replicas.unwrap_or(1)
    {
        current_revision = name(round.update);
        current = updated;
    }
    let some = |number: i32| (number != 0).then_some(number);
    StatefulSetStatus {
        available_replicas: Some(available),
        collision_count: Some(before.collision_count.unwrap_or(0)),
        conditions: before.conditions,
        current_replicas: some(current),
        current_revision,
        observed_generation: round.set.metadata.generation,
        ready_replicas: some(ready),
        replicas,
        update_revision: name(round.update),
        updated_replicas: some(updated),
    }
}

#[cfg(test)]
mod tests;
