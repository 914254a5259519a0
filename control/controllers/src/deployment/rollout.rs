//! How many pods each ReplicaSet of a Deployment may have: the arithmetic of rolling and scaling.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use tandem_client::events::{self, Note, Severity};

use super::{
    spec,
    template::{self, DESIRED_REPLICAS, MAX_REPLICAS},
};
use crate::object;

/// A ReplicaSet as it was seen and as it should become.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) seen: Arc<ReplicaSet>,
    pub(super) draft: ReplicaSet,
}

impl Set {
    fn of(seen: &Arc<ReplicaSet>) -> Set {
        Set { seen: seen.clone(), draft: (**seen).clone() }
    }

    pub(super) fn replicas(&self) -> i32 {
        replicas(&self.draft)
    }

    pub(super) fn available(&self) -> i32 {
        self.draft.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    /// Says whether it changed anything.
    fn resize(&mut self, to: i32, deployment: &Deployment) -> bool {
        let changed = self.replicas() != to;
        self.draft.spec.get_or_insert_default().replicas = Some(to);
        note_size(&mut self.draft, deployment);
        changed
    }
}

pub(super) struct Rollout<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) wanted: i32,
    surge: i32,
    unavailable: i32,
    pub(super) new: Option<Set>,
    /// Oldest first.
    pub(super) old: Vec<Set>,
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn scaled(deployment: &Deployment, set: &str, before: i32, after: i32) -> Note {
    let direction = if after > before { "up" } else { "down" };
    let message = format!("Scaled {direction} replica set {set} from {before} to {after}");
    Note::new(events::reference(deployment), Severity::Normal, "ScalingReplicaSet", message)
}

/// How many pods above and below the wanted number a rollout may go; never both zero, or it could not move.
fn fenceposts(deployment: &Deployment, wanted: i32) -> (i32, i32) {
    let spec = spec(deployment);
    if super::is_recreate(&spec) {
        return (0, 0);
    }
    let rolling = spec.strategy.and_then(|strategy| strategy.rolling_update).unwrap_or_default();
    let surge = object::share(rolling.max_surge.as_ref(), wanted, true);
    let unavailable = object::share(rolling.max_unavailable.as_ref(), wanted, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(wanted))
}

/// Writes down what a ReplicaSet's size was chosen for, so that the next change of scale can be told from a rollout.
pub(super) fn note_size(set: &mut ReplicaSet, deployment: &Deployment) {
    let wanted = spec(deployment).replicas.unwrap_or(1);
    let (surge, _) = fenceposts(deployment, wanted);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_REPLICAS.to_owned(), wanted.to_string());
    annotations.insert(MAX_REPLICAS.to_owned(), wanted.saturating_add(surge).to_string());
}

fn noted(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    object::annotation(&set.metadata, annotation)?.parse().ok()
}

impl<'a> Rollout<'a> {
    /// Tells the new ReplicaSet from the old ones, and brings the new one's annotations up to date.
    pub(super) fn of(deployment: &'a Deployment, sets: &[Arc<ReplicaSet>]) -> Rollout<'a> {
        let spec = spec(deployment);
        let wanted = spec.replicas.unwrap_or(1);
        let (surge, unavailable) = fenceposts(deployment, wanted);
        let new = sets.iter().find(|set| template::is_made_from(set, &spec.template));
        let is_new = |set: &ReplicaSet| new.is_some_and(|new| new.metadata.uid == set.metadata.uid);
        let old = sets.iter().filter(|set| !is_new(set)).map(Set::of).collect();
        let mut rollout = Rollout { deployment, wanted, surge, unavailable, new: new.map(Set::of), old };
        let next = rollout.next_revision();
        if let Some(new) = &mut rollout.new {
            template::annotate(&mut new.draft, deployment, next);
            new.draft.spec.get_or_insert_default().min_ready_seconds = spec.min_ready_seconds;
        }
        rollout
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| template::revision(&set.seen)).max().unwrap_or(0) + 1
    }

    pub(super) fn total(&self) -> i32 {
        self.sets().map(Set::replicas).sum()
    }

    pub(super) fn available(&self) -> i32 {
        self.sets().map(Set::available).sum()
    }

    pub(super) fn min_available(&self) -> i32 {
        self.wanted - self.unavailable
    }

    pub(super) fn replicas_of_a_new_set(&self) -> i32 {
        self.grown(0)
    }

    /// The size that the new ReplicaSet may grow to from `current`.
    fn grown(&self, current: i32) -> i32 {
        if super::is_recreate(&spec(self.deployment)) {
            return self.wanted;
        }
        let room = self.wanted + self.surge - self.total();
        current + room.min(self.wanted - current).max(0)
    }

    /// True when some ReplicaSet's size was chosen for another scale than the one that is wanted now.
    pub(super) fn is_scaling(&self) -> bool {
        let active = self.sets().filter(|set| replicas(&set.seen) > 0);
        active.filter_map(|set| noted(&set.seen, DESIRED_REPLICAS)).any(|desired| desired != self.wanted)
    }

    /// Says whether the new ReplicaSet changed size.
    pub(super) fn scale_new(&mut self) -> bool {
        let Some(current) = self.new.as_ref().map(Set::replicas) else { return false };
        if current == self.wanted {
            return false;
        }
        let to = if current > self.wanted { self.wanted } else { self.grown(current) };
        self.scale_new_to(to)
    }

    pub(super) fn scale_new_to(&mut self, to: i32) -> bool {
        let deployment = self.deployment;
        self.new.as_mut().is_some_and(|new| new.replicas() != to && new.resize(to, deployment))
    }

    /// Takes old pods away as far as availability allows: those that serve nothing first.
    pub(super) fn scale_old(&mut self) {
        let deployment = self.deployment;
        let unavailable_new = self.new.as_ref().map_or(0, |new| new.replicas() - new.available());
        let mut allowed = self.total() - self.min_available() - unavailable_new;
        if allowed <= 0 {
            return;
        }
        for set in &mut self.old {
            let idle = (set.replicas() - set.available()).min(allowed);
            if idle > 0 {
                set.resize(set.replicas() - idle, deployment);
                allowed -= idle;
            }
        }
        let mut surplus = self.available() - self.min_available();
        for set in &mut self.old {
            let step = set.replicas().min(surplus);
            if step > 0 {
                set.resize(set.replicas() - step, deployment);
                surplus -= step;
            }
        }
    }

    /// Says whether any old ReplicaSet still had to be scaled.
    pub(super) fn scale_old_to_zero(&mut self) -> bool {
        let deployment = self.deployment;
        let active = self.old.iter_mut().filter(|set| set.replicas() != 0);
        active.fold(false, |_, set| set.resize(0, deployment))
    }

    /// Brings a Deployment that is not rolling to its scale; one in the middle of a rollout keeps its proportions.
    pub(super) fn scale(&mut self) {
        let (deployment, wanted) = (self.deployment, self.wanted);
        let active = self.sets().filter(|set| set.replicas() > 0).count();
        if active <= 1 {
            if let Some(set) = self.active_or_latest().filter(|set| set.replicas() != wanted) {
                set.resize(wanted, deployment);
            }
            return;
        }
        if self.is_saturated() {
            self.scale_old_to_zero();
        } else if !super::is_recreate(&spec(deployment)) {
            self.scale_in_proportion();
        }
    }

    fn active_or_latest(&mut self) -> Option<&mut Set> {
        let position = self.old.iter().position(|set| set.replicas() > 0);
        match (position, &mut self.new) {
            (Some(position), _) => self.old.get_mut(position),
            (None, Some(new)) => Some(new),
            (None, None) => self.old.last_mut(),
        }
    }

    fn is_saturated(&self) -> bool {
        self.new.as_ref().is_some_and(|new| {
            let noted = noted(&new.draft, DESIRED_REPLICAS) == Some(self.wanted);
            noted && new.replicas() == self.wanted && new.available() == self.wanted
        })
    }

    fn scale_in_proportion(&mut self) {
        let deployment = self.deployment;
        let (wanted, surge) = (self.wanted, self.surge);
        let allowed = if wanted > 0 { wanted + surge } else { 0 };
        let to_add = allowed - self.total();
        let total_before = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let mut active: Vec<&mut Set> =
            self.old.iter_mut().chain(&mut self.new).filter(|set| set.replicas() > 0).collect();
        // The largest first; of equals the newest grows, and the oldest shrinks, first.
        active.sort_by(|one, other| {
            let by_age = object::created(&one.seen.metadata).cmp(&object::created(&other.seen.metadata));
            other.replicas().cmp(&one.replicas()).then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for set in &active {
            let left = to_add - added;
            let share = fraction(set, wanted, surge, total_before);
            let share = if to_add > 0 { share.min(left) } else { share.max(left) };
            let share = if left == 0 { 0 } else { share };
            added += share;
            sizes.push(set.replicas() + share);
        }
        if let Some(largest) = sizes.first_mut() {
            *largest = (*largest + to_add - added).max(0);
        }
        for (set, size) in active.into_iter().zip(sizes) {
            set.resize(size, deployment);
        }
    }
}

/// How much a ReplicaSet grows or shrinks when the whole goes from the scale that it was made for to the wanted one.
fn fraction(set: &Set, wanted: i32, surge: i32, total_before: i32) -> i32 {
    if wanted == 0 {
        return -set.replicas();
    }
    let before = noted(&set.draft, MAX_REPLICAS).unwrap_or(total_before);
    if before == 0 {
        return 0;
    }
    let exact = f64::from(set.replicas()) * f64::from(wanted + surge) / f64::from(before);
    #[allow(clippy::cast_possible_truncation, reason = "a product of pod counts, far below the limit")]
    let rounded = exact.round() as i32;
    rounded - set.replicas()
}
