//! A Deployment's status: counts, and conditions with the reasons that `kubectl rollout status` understands.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::{rollout::Rollout, spec};
use crate::object;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
const FOUND_NEW_SET: &str = "FoundNewReplicaSet";
const SET_UPDATED: &str = "ReplicaSetUpdated";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

fn condition(type_: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(object::time(now)),
        last_transition_time: Some(object::time(now)),
    }
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn reason(condition: &DeploymentCondition) -> &str {
    condition.reason.as_deref().unwrap_or_default()
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    let Some(conditions) = &mut status.conditions else { return };
    conditions.retain(|condition| condition.type_ != type_);
    if conditions.is_empty() {
        status.conditions = None;
    }
}

/// Keeps what is there when status and reason are the same: times tell when something changed.
fn set(status: &mut DeploymentStatus, new: DeploymentCondition) {
    let old = find(status, &new.type_);
    if old.is_some_and(|old| old.status == new.status && old.reason == new.reason) {
        return;
    }
    replace(status, new);
}

fn replace(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = find(status, &new.type_).filter(|old| old.status == new.status) {
        new.last_transition_time = old.last_transition_time.clone();
    }
    remove(status, &new.type_.clone());
    status.conditions.get_or_insert_default().push(new);
}

fn deadline(deployment: &Deployment) -> Option<i32> {
    spec(deployment).progress_deadline_seconds.filter(|deadline| *deadline != i32::MAX)
}

/// The status with its counts and its availability, and the other conditions as they were.
pub(super) fn counted(rollout: &Rollout<'_>, now: Timestamp) -> DeploymentStatus {
    let before = rollout.deployment.status.clone().unwrap_or_default();
    let actual =
        |status: Option<&k8s_openapi::api::apps::v1::ReplicaSetStatus>| status.map_or(0, |status| status.replicas);
    let available = rollout.available();
    // Kubernetes leaves zeros out.
    let some = |count: i32| (count != 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: rollout.deployment.metadata.generation,
        replicas: some(rollout.sets().map(|set| actual(set.seen.status.as_ref())).sum()),
        updated_replicas: some(rollout.new.as_ref().map_or(0, |set| actual(set.seen.status.as_ref()))),
        ready_replicas: some(rollout.sets().filter_map(|set| set.seen.status.as_ref()?.ready_replicas).sum()),
        available_replicas: some(available),
        unavailable_replicas: some((rollout.total() - available).max(0)),
        collision_count: before.collision_count,
        conditions: before.conditions,
        terminating_replicas: before.terminating_replicas,
    };
    set(
        &mut status,
        if available >= rollout.min_available() {
            let message = "Deployment has minimum availability.".to_owned();
            condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, now)
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
        },
    );
    status
}

/// The status at the moment that a ReplicaSet was made for a new template.
pub(super) fn started(rollout: &Rollout<'_>, name: &str, now: Timestamp) -> DeploymentStatus {
    let mut status = counted(rollout, now);
    if deadline(rollout.deployment).is_some() {
        let message = format!("Created new replica set {name:?}");
        set(&mut status, condition(PROGRESSING, "True", NEW_SET_CREATED, message, now));
    }
    status
}

/// The status of a rollout under way or done, with how it progresses.
pub(super) fn progressed(rollout: &Rollout<'_>, now: Timestamp) -> DeploymentStatus {
    let deployment = rollout.deployment;
    let mut status = counted(rollout, now);
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else {
        progress(rollout, &mut status, now);
    }
    let failures = rollout.new.iter().chain(&rollout.old).flat_map(|set| set.seen.status.iter());
    let failure = failures
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == REPLICA_FAILURE);
    match failure {
        None => remove(&mut status, REPLICA_FAILURE),
        Some(failure) => set(
            &mut status,
            DeploymentCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: failure.status.clone(),
                reason: failure.reason.clone(),
                message: failure.message.clone(),
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time.clone(),
            },
        ),
    }
    status
}

fn progress(rollout: &Rollout<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    let deployment = rollout.deployment;
    let new = rollout.new.as_ref().map(|set| object::name(&set.seen.metadata));
    let subject = match new {
        Some(name) => format!("ReplicaSet {name:?}"),
        None => format!("Deployment {:?}", object::name(&deployment.metadata)),
    };
    if let Some(name) = new.filter(|_| find(status, PROGRESSING).is_none()) {
        let message = format!("Found new replica set {name:?}");
        set(status, condition(PROGRESSING, "True", FOUND_NEW_SET, message, now));
    }
    let is_settled = status.replicas == status.updated_replicas
        && find(status, PROGRESSING).is_some_and(|condition| reason(condition) == NEW_SET_AVAILABLE);
    if is_settled {
        return;
    }
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(status, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now));
    } else if has_progressed(deployment, status) {
        let message = format!("{subject} is progressing.");
        replace(status, condition(PROGRESSING, "True", SET_UPDATED, message, now));
    } else if has_timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set(status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
    }
}

pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = spec(deployment).replicas.unwrap_or(1);
    let is_wanted = |count: Option<i32>| count.unwrap_or(0) == wanted;
    is_wanted(status.updated_replicas)
        && is_wanted(status.replicas)
        && is_wanted(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let before = deployment.status.clone().unwrap_or_default();
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    status.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(status) < old(&before)
        || status.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || status.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

fn expiry(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let since = find(status, PROGRESSING)?.last_update_time.as_ref()?.0;
    Some(object::after(since, deadline(deployment)?.into()))
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(condition) = find(status, PROGRESSING) else { return false };
    match reason(condition) {
        NEW_SET_AVAILABLE => false,
        TIMED_OUT => true,
        _ => expiry(deployment, status).is_some_and(|expiry| expiry < now),
    }
}

/// When to look again whether a rollout that does not move has missed its deadline.
pub(super) fn stuck_in(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let condition = find(status, PROGRESSING)?;
    if is_complete(deployment, status) || matches!(reason(condition), NEW_SET_AVAILABLE | TIMED_OUT | PAUSED) {
        return None;
    }
    // A second later, as times on the wire have whole seconds.
    Some(object::until(expiry(deployment, status)?, now) + Duration::from_secs(1))
}

/// A pause must not count against the deadline: entering and leaving it restarts the clock.
pub(super) fn paused_or_resumed(deployment: &Deployment, now: Timestamp) -> Option<DeploymentStatus> {
    deadline(deployment)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    let current = find(&status, PROGRESSING).map(reason);
    if current == Some(TIMED_OUT) {
        return None;
    }
    let is_paused = spec(deployment).paused.unwrap_or(false);
    let (reason, message) = match (is_paused, current == Some(PAUSED)) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => (RESUMED, "Deployment is resumed"),
        _ => return None,
    };
    set(&mut status, condition(PROGRESSING, "Unknown", reason, message.to_owned(), now));
    Some(status)
}
