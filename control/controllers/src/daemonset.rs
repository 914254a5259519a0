//! DaemonSet: one pod on each node that its template fits.
//!
//! ```text
//!  plan ─┬─ no revision for the template yet ─> make it (history.rs)
//!        ├─ each node: missing, surplus, ended or misplaced pods ─> create, delete
//!        ├─ all in place, RollingUpdate ─> old pods go, within maxUnavailable or maxSurge (update.rs)
//!        └─ history, status
//! ```
//! A pod is bound to its node by affinity, so that the scheduler has the last word:
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#how-daemon-pods-are-scheduled>.

mod fit;
mod update;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus},
    core::v1::{Node, Pod},
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
use fit::Fit;

/// Pods that one plan creates or deletes; the next plan goes on from there.
const BURST: usize = 250;
/// How long a failed pod stays to be looked at, and its successor is waited for.
const FAILED_KEPT: Duration = Duration::from_secs(10);
const GENERATION: &str = "pod-template-generation";
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(crate) struct DaemonSets;

#[derive(Debug)]
pub(crate) struct View {
    set: Arc<DaemonSet>,
    nodes: Vec<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    free_revisions: Vec<Arc<ControllerRevision>>,
    /// Another object has the name of the revision to be.
    taken: bool,
}

impl Controller for DaemonSets {
    type Parent = DaemonSet;
    type View = View;

    const NAME: &'static str = "daemon-set";
    const READS: &'static [&'static str] = &["DaemonSet", "Pod", "Node", "ControllerRevision"];

    fn store(cache: &Cache) -> &Store<DaemonSet> {
        &cache.daemon_sets
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::DaemonSet(delta) => vec![delta.key()],
            Change::Node(delta) => {
                let same = |one: &Node, other: &Node| fit::traits(one) == fit::traits(other);
                let is_news = !matches!((&delta.old, &delta.new), (Some(old), Some(new)) if same(old, new));
                if is_news { cache.daemon_sets.keys() } else { Vec::new() }
            }
            Change::Pod(delta) => ownership::woken(&cache.daemon_sets, delta, wants),
            Change::ControllerRevision(delta) => history::woken::<DaemonSet>(delta),
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, set: Arc<DaemonSet>) -> Result<View, Error> {
        let (cache, meta) = (input.cache, &set.metadata);
        let (uid, namespace) = (object::uid(meta), object::namespace(meta));
        let spec = spec(&set);
        let name = line(&set, &spec).name();
        Ok(View {
            nodes: cache.nodes.all(),
            pods: cache.pods.controlled_by(uid),
            orphans: cache.pods.orphans(namespace),
            revisions: cache.controller_revisions.controlled_by(uid),
            free_revisions: cache.controller_revisions.orphans(namespace),
            taken: cache.controller_revisions.get(&Key::new(namespace, name)).is_some(),
            set,
        })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn wants(parent: &DaemonSet, pod: &Pod) -> bool {
    object::matches(selector(parent).as_ref(), &pod.metadata)
}

fn spec(set: &DaemonSet) -> DaemonSetSpec {
    set.spec.clone().unwrap_or_default()
}

fn selector(set: &DaemonSet) -> Option<Selector> {
    object::own_selector(&set.spec.as_ref()?.selector)
}

fn line<'a>(set: &'a DaemonSet, spec: &'a DaemonSetSpec) -> Line<'a, DaemonSet> {
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    Line { parent: set, template: &spec.template, collisions, hash_label: REVISION_HASH }
}

/// A node and the pods of the set that are on it or meant for it, the oldest first.
struct Place<'a> {
    node: &'a Node,
    fit: Fit,
    pods: Vec<&'a Arc<Pod>>,
}

/// One DaemonSet and what is known of its pods.
struct Round<'a> {
    set: &'a DaemonSet,
    spec: DaemonSetSpec,
    places: Vec<Place<'a>>,
    /// Pods for nodes that are not there.
    stray: Vec<&'a Arc<Pod>>,
    /// The hash in the labels of pods that are up to date.
    hash: String,
    now: Timestamp,
}

impl Round<'_> {
    fn is_updated(&self, pod: &Pod) -> bool {
        let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
        hash == Some(&self.hash)
    }

    fn availability(&self, pod: &Pod) -> Availability {
        pod::availability(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.availability(pod) == Availability::Yes
    }

    fn desired(&self) -> usize {
        self.places.iter().filter(|place| place.fit.runs).count()
    }

    fn rolling(&self) -> Option<(i32, i32)> {
        let strategy = self.spec.update_strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return None;
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let of = count(self.desired());
        let surge = object::share(rolling.max_surge.as_ref(), of, true);
        let unavailable = object::share(rolling.max_unavailable.as_ref(), of, true);
        Some((surge, if surge == 0 { unavailable.max(1) } else { unavailable }))
    }

    fn may_surge(&self) -> bool {
        self.rolling().is_some_and(|(surge, _)| surge > 0)
    }
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let set = &*view.set;
    let selector = selector(set);
    if selector.is_none() {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.";
        let note = Note::new(events::reference(set), Severity::Warning, "SelectingAll", message);
        return Plan::of(vec![Action::Event(note)]);
    }
    let claims = ownership::claim(set, selector.as_ref(), &view.pods, view.orphans.iter());
    let mut ownership = claims.actions;
    let old = ownership::claim(set, selector.as_ref(), &view.revisions, view.free_revisions.iter());
    ownership.extend(old.actions);
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
                return Plan::of(vec![Action::set_status(DaemonSet { status: Some(status), ..set.clone() })]);
            }
            None => {}
        }
    }
    let hash = history.current.and_then(|current| current.metadata.labels.as_ref()?.get(REVISION_HASH).cloned());
    let round = round(view, spec, claims.kept, hash.unwrap_or_default(), now);
    let mut plan = Plan::default();
    if !object::is_deleting(&set.metadata) {
        manage(&round, &mut plan);
        if plan.actions.is_empty() {
            plan.actions.extend(update::roll(&round));
        }
        let in_use = |revision: &ControllerRevision| {
            let hash = revision.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
            let of = |pod: &Arc<Pod>| pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH)) == hash;
            view.pods.iter().any(of)
        };
        plan.actions.extend(history.surplus(round.spec.revision_history_limit, in_use));
    }
    let status = status(&round, &mut plan);
    if set.status.as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(DaemonSet { status: Some(status), ..set.clone() }));
    }
    plan
}

fn round<'a>(
    view: &'a View,
    spec: DaemonSetSpec,
    mut pods: Vec<&'a Arc<Pod>>,
    hash: String,
    now: Timestamp,
) -> Round<'a> {
    pods.sort_by_key(|pod| (object::created(&pod.metadata), pod.metadata.name.clone()));
    let mut by_node: BTreeMap<&str, Vec<&'a Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        by_node.entry(fit::target(pod).unwrap_or_default()).or_default().push(pod);
    }
    let places = view
        .nodes
        .iter()
        .map(|node| Place {
            node,
            fit: fit::fit(&spec.template, node),
            pods: by_node.remove(object::name(&node.metadata)).unwrap_or_default(),
        })
        .collect();
    let stray = by_node.into_values().flatten().collect();
    Round { set: &view.set, spec, places, stray, hash, now }
}

/// Creates what is missing and deletes what is too much, node by node.
fn manage(round: &Round<'_>, plan: &mut Plan) {
    let set = round.set;
    let (mut create, mut remove, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for place in &round.places {
        let name = object::name(&place.node.metadata);
        if !place.fit.stays {
            remove.extend(place.pods.iter().copied().filter(|pod| !object::is_deleting(&pod.metadata)));
            continue;
        }
        let mut kept = Vec::new();
        for pod in place.pods.iter().copied().filter(|pod| !object::is_deleting(&pod.metadata)) {
            match ended(pod, name, round.now) {
                None => kept.push(pod),
                Some(Ended::Wait(wait)) => {
                    kept.push(pod);
                    plan.requeue_after(wait);
                }
                Some(Ended::Now(reason, message)) => {
                    remove.push(pod);
                    notes.push(Note::new(events::reference(set), Severity::Warning, reason, message));
                }
            }
        }
        if place.fit.runs && place.pods.is_empty() {
            create.push(name);
        }
        remove.extend(surplus(round, kept));
    }
    // Unscheduled pods for nodes that are gone would wait for ever.
    remove.extend(
        round.stray.iter().copied().filter(|pod| pod::node(pod).is_none() && !object::is_deleting(&pod.metadata)),
    );
    plan.actions.extend(notes.into_iter().map(Action::Event));
    plan.actions.extend(create.into_iter().take(BURST).map(|node| make(round, node)));
    plan.actions.extend(remove.into_iter().take(BURST).map(|pod| delete(set, pod)));
}

enum Ended {
    Wait(Duration),
    Now(&'static str, String),
}

/// A daemon never ends: one that did is replaced.
fn ended(pod: &Pod, node: &str, now: Timestamp) -> Option<Ended> {
    let (namespace, name) = (object::namespace(&pod.metadata), object::name(&pod.metadata));
    match pod::phase(pod) {
        "Failed" => {
            let since = pod::ended(pod);
            let kept = object::after(since, i64::try_from(FAILED_KEPT.as_secs()).unwrap_or(0));
            let left = object::until(kept, now);
            let message = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
            Some(if left.is_zero() { Ended::Now("FailedDaemonPod", message) } else { Ended::Wait(left) })
        }
        "Succeeded" => {
            let message =
                format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
            Some(Ended::Now("SucceededDaemonPod", message))
        }
        _ => None,
    }
}

/// One stays, the oldest; while the set may surge, one old and one new.
fn surplus<'a>(round: &Round<'_>, kept: Vec<&'a Arc<Pod>>) -> Vec<&'a Arc<Pod>> {
    if !round.may_surge() {
        return kept.into_iter().skip(1).collect();
    }
    let (new, old): (Vec<_>, Vec<_>) = kept.into_iter().partition(|pod| round.is_updated(pod));
    new.into_iter().skip(1).chain(old.into_iter().skip(1)).collect()
}

fn make(round: &Round<'_>, node: &str) -> Action {
    let (set, meta) = (round.set, &round.set.metadata);
    let owner = object::controller_reference(set);
    let mut pod = pod::from_template(&round.spec.template, object::namespace(meta), object::name(meta), owner);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), round.hash.clone());
    if let Some(generation) = object::annotation(meta, TEMPLATE_GENERATION) {
        labels.insert(GENERATION.to_owned(), generation.to_owned());
    }
    fit::bind(pod.spec.get_or_insert_default(), node);
    Action::Create { object: Box::new(pod), report: Some(report(set)) }
}

fn delete(set: &DaemonSet, pod: &Pod) -> Action {
    Action::Delete(Deletion { report: Some(report(set)), ..Deletion::of(pod) })
}

fn report(set: &DaemonSet) -> Report {
    Report { regarding: events::reference(set), noun: "pod" }
}

fn status(round: &Round<'_>, plan: &mut Plan) -> DaemonSetStatus {
    let before = round.set.status.clone().unwrap_or_default();
    let (mut current, mut ready, mut available, mut updated, mut misplaced) = (0, 0, 0, 0, 0);
    for place in &round.places {
        let alive: Vec<_> = place.pods.iter().filter(|pod| !object::is_deleting(&pod.metadata)).collect();
        if !place.fit.runs {
            misplaced += usize::from(!place.pods.is_empty());
            continue;
        }
        current += usize::from(!place.pods.is_empty());
        let Some(first) = alive.iter().find(|pod| pod::is_ready(pod)).or(alive.first()) else { continue };
        ready += usize::from(pod::is_ready(first));
        match round.availability(first) {
            Availability::Yes => available += 1,
            Availability::In(wait) => plan.requeue_after(wait),
            Availability::No => {}
        }
        updated += usize::from(alive.iter().any(|pod| round.is_updated(pod)));
    }
    let some = |number: usize| (number != 0).then(|| count(number));
    DaemonSetStatus {
        collision_count: before.collision_count,
        conditions: before.conditions,
        current_number_scheduled: count(current),
        desired_number_scheduled: count(round.desired()),
        number_available: some(available),
        number_misscheduled: count(misplaced),
        number_ready: count(ready),
        number_unavailable: some(round.desired() - available),
        observed_generation: round.set.metadata.generation,
        updated_number_scheduled: some(updated),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
