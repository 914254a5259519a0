//! Deployment: moves pods from one template to the next, ReplicaSet by ReplicaSet.
//!
//! ```text
//!  plan ─┬─ paused, or scaled ─> scale all in proportion            ┐
//!        ├─ RollingUpdate ─> new set up, old sets down, within      ├─> status (status.rs)
//!        │                   maxSurge and maxUnavailable            │
//!        └─ Recreate ─> old sets to zero, then the new set up       ┘
//! ```
//! The arithmetic is in `rollout.rs`, what a new ReplicaSet looks like in `template.rs`.

mod rollout;
mod status;
mod template;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};
use serde::Serialize;
use tandem_client::events::{self, Note, Severity};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Target},
    object,
    ownership::{self, controller_key},
    pod,
};
use rollout::Rollout;

/// Which rollout of the Deployment a ReplicaSet belongs to; the highest is the current one.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";

pub(crate) struct Deployments;

#[derive(Debug)]
pub(crate) struct View {
    deployment: Arc<Deployment>,
    sets: Vec<Arc<ReplicaSet>>,
    orphans: Vec<Arc<ReplicaSet>>,
    /// The pods of all its ReplicaSets; only Recreate looks at them.
    pods: Vec<Arc<Pod>>,
    /// The name of the ReplicaSet for the template as it is now, and whether it is taken.
    candidate: String,
    taken: bool,
}

impl Controller for Deployments {
    type Parent = Deployment;
    type View = View;

    const NAME: &'static str = "deployment";
    const READS: &'static [&'static str] = &["Deployment", "ReplicaSet", "Pod"];

    fn store(cache: &Cache) -> &Store<Deployment> {
        &cache.deployments
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Deployment(delta) => vec![delta.key()],
            Change::ReplicaSet(delta) => ownership::woken(&cache.deployments, delta, wants),
            // Only Recreate waits for pods to go.
            Change::Pod(delta) if delta.new.as_ref().is_none_or(|pod| pod::is_terminal(pod)) => {
                let sets = delta.versions().filter_map(|pod| controller_key::<ReplicaSet, _>(&**pod));
                let sets = sets.filter_map(|key| cache.replica_sets.get(&key));
                sets.filter_map(|set| controller_key::<Deployment, _>(&*set)).take(1).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, deployment: Arc<Deployment>) -> Result<View, Error> {
        let (cache, meta) = (input.cache, &deployment.metadata);
        let mut sets = cache.replica_sets.controlled_by(object::uid(meta));
        object::by_age(&mut sets);
        let pods = if is_recreate(&spec(&deployment)) {
            sets.iter().flat_map(|set| cache.pods.controlled_by(object::uid(&set.metadata))).collect()
        } else {
            Vec::new()
        };
        let candidate = template::set_name(&deployment);
        let taken = cache.replica_sets.get(&Key::new(object::namespace(meta), &candidate)).is_some();
        let orphans = cache.replica_sets.orphans(object::namespace(meta));
        Ok(View { deployment, sets, orphans, pods, candidate, taken })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn wants(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let Some(spec) = &deployment.spec else { return false };
    object::matches(object::own_selector(&spec.selector).as_ref(), &set.metadata)
}

fn spec(deployment: &Deployment) -> DeploymentSpec {
    deployment.spec.clone().unwrap_or_default()
}

fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let deployment = &*view.deployment;
    let spec = spec(deployment);
    if object::is_empty(&spec.selector) {
        return selects_all(deployment);
    }
    let claims = claims(view);
    if !claims.is_empty() {
        return Plan::of(claims);
    }
    let mut rollout = Rollout::of(deployment, &view.sets);
    if object::is_deleting(&deployment.metadata) {
        return conclude(view, &rollout, Vec::new(), status::counted(&rollout, now), now);
    }
    if let Some(status) = status::paused_or_resumed(deployment, now) {
        return Plan::of(vec![Action::set_status(Deployment { status: Some(status), ..deployment.clone() })]);
    }
    let is_paused = spec.paused.unwrap_or(false);
    if is_paused || rollout.is_scaling() {
        rollout.scale();
        let cleanup = cleanup(&spec, &rollout);
        let status = status::counted(&rollout, now);
        return conclude(view, &rollout, cleanup, status, now);
    }
    let needs_new = if is_recreate(&spec) {
        let scaled_down = rollout.scale_old_to_zero();
        let must_wait = scaled_down || old_pods_run(view, &rollout);
        if !must_wait {
            rollout.scale_new_to(spec.replicas.unwrap_or(1));
        }
        !must_wait && rollout.new.is_none()
    } else {
        if rollout.new.is_some() && !rollout.scale_new() {
            rollout.scale_old();
        }
        rollout.new.is_none()
    };
    if needs_new {
        return start(view, &rollout, now);
    }
    let status = status::progressed(&rollout, now);
    let cleanup = if status::is_complete(deployment, &status) { cleanup(&spec, &rollout) } else { Vec::new() };
    conclude(view, &rollout, cleanup, status, now)
}

fn selects_all(deployment: &Deployment) -> Plan {
    let message = "This deployment is selecting all pods. A non-empty selector is required.";
    let note = Note::new(events::reference(deployment), Severity::Warning, "SelectingAll", message);
    let mut actions = vec![Action::Event(note)];
    let mut status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        status.observed_generation = deployment.metadata.generation;
        actions.push(Action::set_status(Deployment { status: Some(status), ..deployment.clone() }));
    }
    Plan::of(actions)
}

/// Makes the ReplicaSet for the template of now.
fn start(view: &View, rollout: &Rollout<'_>, now: Timestamp) -> Plan {
    let deployment = rollout.deployment;
    if view.taken {
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        return Plan::of(vec![Action::set_status(Deployment { status: Some(status), ..deployment.clone() })]);
    }
    let set = template::new_set(rollout, &view.candidate);
    let replicas = rollout::replicas(&set);
    let status = status::started(rollout, &view.candidate, now);
    let mut actions = vec![Action::create(set)];
    if replicas > 0 {
        actions.push(Action::Event(rollout::scaled(deployment, &view.candidate, 0, replicas)));
    }
    actions.extend(updates(rollout));
    actions.push(Action::set_status(Deployment { status: Some(status), ..deployment.clone() }));
    Plan::of(actions)
}

fn conclude(
    view: &View,
    rollout: &Rollout<'_>,
    cleanup: Vec<Action>,
    status: DeploymentStatus,
    now: Timestamp,
) -> Plan {
    let deployment = rollout.deployment;
    let mut plan = Plan::of(updates(rollout));
    plan.actions.extend(cleanup);
    let revision = rollout.new.as_ref().and_then(|set| object::annotation(&set.draft.metadata, REVISION));
    if let Some(next) = status::stuck_in(deployment, &status, now) {
        plan.requeue_after(next);
    }
    if revision.is_some() && revision != object::annotation(&deployment.metadata, REVISION) {
        // The status follows in the next plan: this one has written the Deployment.
        plan.actions.push(set_revision(deployment, revision.unwrap_or_default()));
    } else if view.deployment.status.as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(Deployment { status: Some(status), ..deployment.clone() }));
    }
    plan
}

fn updates(rollout: &Rollout<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    for set in rollout.sets() {
        if set.draft != *set.seen {
            actions.push(Action::update(set.draft.clone()));
        }
        let (before, after) = (rollout::replicas(&set.seen), rollout::replicas(&set.draft));
        if before != after {
            let name = object::name(&set.seen.metadata);
            actions.push(Action::Event(rollout::scaled(rollout.deployment, name, before, after)));
        }
    }
    actions
}

#[derive(Debug, Serialize)]
struct Annotated {
    metadata: AnnotatedMeta,
}

#[derive(Debug, Serialize)]
struct AnnotatedMeta {
    uid: Option<String>,
    annotations: BTreeMap<&'static str, String>,
}

fn set_revision(deployment: &Deployment, revision: &str) -> Action {
    let annotations = [(REVISION, revision.to_owned())].into();
    let metadata = AnnotatedMeta { uid: deployment.metadata.uid.clone(), annotations };
    Action::patch(Target::of(deployment), Annotated { metadata })
}

/// Adopts ReplicaSets whose labels match and that nobody owns, releases its own that match no more.
fn claims(view: &View) -> Vec<Action> {
    let deployment = &*view.deployment;
    let alive = |set: &&Arc<ReplicaSet>| !object::is_deleting(&set.metadata);
    let strangers = view.sets.iter().filter(alive).filter(|set| !wants(deployment, set));
    let mut actions: Vec<Action> = strangers.map(|set| ownership::release(deployment, &**set)).collect();
    if !object::is_deleting(&deployment.metadata) {
        let wanted = view.orphans.iter().filter(alive).filter(|set| wants(deployment, set));
        actions.extend(wanted.map(|set| ownership::adopt(deployment, &**set)));
    }
    actions
}

/// Recreate never runs two versions side by side: not even while pods of the old one are on their way out.
fn old_pods_run(view: &View, rollout: &Rollout<'_>) -> bool {
    let new = rollout.new.as_ref().map(|set| object::uid(&set.seen.metadata));
    rollout.old.iter().any(|set| set.seen.status.as_ref().is_some_and(|status| status.replicas > 0))
        || view.pods.iter().any(|pod| {
            let owner = object::controller_of(&pod.metadata).map(|owner| owner.uid.as_str());
            owner != new && !pod::is_terminal(pod)
        })
}

/// The ReplicaSets beyond the history that the user wants to keep.
fn cleanup(spec: &DeploymentSpec, rollout: &Rollout<'_>) -> Vec<Action> {
    let Some(limit) = spec.revision_history_limit.and_then(|limit| usize::try_from(limit).ok()) else {
        return Vec::new();
    };
    let mut old: Vec<&Arc<ReplicaSet>> =
        rollout.old.iter().map(|set| &set.seen).filter(|set| !object::is_deleting(&set.metadata)).collect();
    old.sort_by_key(|set| (template::revision(set), object::created(&set.metadata)));
    let surplus = old.len().saturating_sub(limit);
    let is_idle = |set: &ReplicaSet| {
        let status = set.status.clone().unwrap_or_default();
        rollout::replicas(set) == 0 && status.replicas == 0 && set.metadata.generation <= status.observed_generation
    };
    old.into_iter().take(surplus).filter(|set| is_idle(set)).map(|set| Action::Delete(Deletion::of(&**set))).collect()
}

#[cfg(test)]
mod tests;
