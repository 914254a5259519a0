//! PodDisruptionBudget: how many of its pods may be evicted at this moment; the eviction subresource spends from it.
//!
//! <https://kubernetes.io/docs/tasks/run-application/configure-pdb/#specifying-a-poddisruptionbudget>

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use tandem_client::events::{self, Note, Severity};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan},
    object, pod,
};

const ALLOWED: &str = "DisruptionAllowed";
/// An eviction that led to no deletion within this time is forgotten.
const EVICTION_SECONDS: i64 = 120;

pub(crate) struct Budgets;

#[derive(Debug)]
pub(crate) struct View {
    budget: Arc<PodDisruptionBudget>,
    /// The pods that it covers.
    pods: Vec<Arc<Pod>>,
    /// How many pods their controllers want in all.
    scale: i32,
}

impl Controller for Budgets {
    type Parent = PodDisruptionBudget;
    type View = View;

    const NAME: &'static str = "disruption";
    const READS: &'static [&'static str] =
        &["PodDisruptionBudget", "Pod", "ReplicaSet", "ReplicationController", "Deployment", "StatefulSet"];

    fn store(cache: &Cache) -> &Store<PodDisruptionBudget> {
        &cache.budgets
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let all_in = |namespace: &str| -> Vec<Key> {
            cache.budgets.in_namespace(namespace).iter().map(|budget| Key::of(&budget.metadata)).collect()
        };
        match change {
            Change::PodDisruptionBudget(delta) => vec![delta.key()],
            Change::Pod(delta) => {
                let budgets = cache.budgets.in_namespace(&delta.key().namespace);
                let covers = |budget: &PodDisruptionBudget| delta.versions().any(|pod| covers(budget, pod));
                budgets.iter().filter(|budget| covers(budget)).map(|budget| Key::of(&budget.metadata)).collect()
            }
            Change::ReplicaSet(delta) => all_in(&delta.key().namespace),
            Change::ReplicationController(delta) => all_in(&delta.key().namespace),
            Change::Deployment(delta) => all_in(&delta.key().namespace),
            Change::StatefulSet(delta) => all_in(&delta.key().namespace),
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, budget: Arc<PodDisruptionBudget>) -> Result<View, Error> {
        let namespace = object::namespace(&budget.metadata);
        let mut pods = input.cache.pods.in_namespace(namespace);
        pods.retain(|pod| covers(&budget, pod));
        let scale = scale(input.cache, namespace, &pods);
        Ok(View { budget, pods, scale })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

/// A budget with an empty selector covers all pods of its namespace, one with none covers nothing.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| object::matches(object::selector(selector).as_ref(), &pod.metadata))
}

/// Each controller is asked once, and a ReplicaSet's Deployment in its place.
fn scale(cache: &Cache, namespace: &str, pods: &[Arc<Pod>]) -> i32 {
    let owners: BTreeSet<(&str, &str)> = pods
        .iter()
        .filter_map(|pod| object::controller_of(&pod.metadata))
        .map(|owner| (owner.kind.as_str(), owner.name.as_str()))
        .collect();
    let key = |name: &str| Key::new(namespace, name);
    let deployment = |owner: &OwnerReference| cache.deployments.get(&key(&owner.name));
    let mut scales: BTreeMap<String, i32> = BTreeMap::new();
    for (kind, name) in owners {
        match kind {
            "ReplicaSet" => {
                let Some(set) = cache.replica_sets.get(&key(name)) else { continue };
                let parent = object::controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
                if let Some(parent) = parent.and_then(&deployment) {
                    let wanted = parent.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                    scales.insert(object::uid(&parent.metadata).to_owned(), wanted);
                } else {
                    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                    scales.insert(object::uid(&set.metadata).to_owned(), wanted);
                }
            }
            "ReplicationController" => {
                let Some(controller) = cache.replication_controllers.get(&key(name)) else { continue };
                let wanted = controller.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                scales.insert(object::uid(&controller.metadata).to_owned(), wanted);
            }
            "StatefulSet" => {
                let Some(set) = cache.stateful_sets.get(&key(name)) else { continue };
                let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                scales.insert(object::uid(&set.metadata).to_owned(), wanted);
            }
            _ => {}
        }
    }
    scales.values().sum()
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let budget = &*view.budget;
    let Some(spec) = &budget.spec else { return Plan::default() };
    if object::is_deleting(&budget.metadata) {
        return Plan::default();
    }
    let before = budget.status.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let disrupted = disrupted(view, before.disrupted_pods.clone().unwrap_or_default(), now, &mut plan);
    let healthy = view.pods.iter().filter(|pod| {
        !object::is_deleting(&pod.metadata)
            && !disrupted.contains_key(object::name(&pod.metadata))
            && pod::is_ready(pod)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let (expected, desired) = wanted(view, spec);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions(before.conditions.clone(), budget.metadata.generation, allowed > 0, now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    };
    if view.pods.is_empty() && budget.status.as_ref() != Some(&status) {
        let message = "No matching pods found";
        plan.actions.push(Action::Event(Note::new(events::reference(budget), Severity::Normal, "NoPods", message)));
    }
    if budget.status.as_ref() != Some(&status) {
        plan.actions.push(Action::set_status(PodDisruptionBudget { status: Some(status), ..budget.clone() }));
    }
    plan
}

/// How many pods there should be, and how many of them have to be healthy.
fn wanted(view: &View, spec: &PodDisruptionBudgetSpec) -> (i32, i32) {
    if let Some(max) = &spec.max_unavailable {
        return (view.scale, (view.scale - object::share(Some(max), view.scale, true)).max(0));
    }
    match &spec.min_available {
        Some(IntOrString::Int(min)) => (i32::try_from(view.pods.len()).unwrap_or(i32::MAX), *min),
        share => (view.scale, object::share(share.as_ref(), view.scale, true)),
    }
}

/// The evicted pods that are not on their way out yet: they count as gone for a while.
fn disrupted(view: &View, before: BTreeMap<String, Time>, now: Timestamp, plan: &mut Plan) -> BTreeMap<String, Time> {
    let mut kept = BTreeMap::new();
    for (name, evicted) in before {
        let pod = view.pods.iter().find(|pod| object::name(&pod.metadata) == name);
        if pod.is_none_or(|pod| object::is_deleting(&pod.metadata)) {
            continue;
        }
        let left = object::until(object::after(evicted.0, EVICTION_SECONDS), now);
        if !left.is_zero() {
            plan.requeue_after(left);
            kept.insert(name, evicted);
        }
    }
    kept
}

fn conditions(
    before: Option<Vec<Condition>>,
    generation: Option<i64>,
    allowed: bool,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = before.unwrap_or_default();
    let (status, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let same = conditions.iter().find(|one| one.type_ == ALLOWED && one.status == status);
    let since = same.map_or_else(|| object::time(now), |one| one.last_transition_time.clone());
    conditions.retain(|one| one.type_ != ALLOWED);
    conditions.push(Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: since,
    });
    conditions
}

#[cfg(test)]
mod tests;
