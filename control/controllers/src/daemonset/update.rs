//! Rolling updates: old pods go first, or, with surge, once the new one beside them serves.
//!
//! <https://kubernetes.io/docs/tasks/manage-daemon/update-daemon-set/>,
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-apps/1591-daemonset-surge>

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Place, Round, delete, make};
use crate::{action::Action, object};

/// The new and the old pod of a node that are not on their way out.
fn pair<'a>(round: &Round<'_>, place: &Place<'a>) -> (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>) {
    let alive = || place.pods.iter().copied().filter(|pod| !object::is_deleting(&pod.metadata));
    (alive().find(|pod| round.is_updated(pod)), alive().find(|pod| !round.is_updated(pod)))
}

pub(super) fn roll(round: &Round<'_>) -> Vec<Action> {
    match round.rolling() {
        None => Vec::new(),
        Some((0, unavailable)) => replace(round, usize::try_from(unavailable).unwrap_or(0)),
        Some((surge, unavailable)) => {
            surge_over(round, usize::try_from(surge).unwrap_or(0), usize::try_from(unavailable).unwrap_or(0))
        }
    }
}

/// Old pods that serve nobody go at once, others as far as enough are left.
fn replace(round: &Round<'_>, max: usize) -> Vec<Action> {
    let (mut broken, mut serving, mut unavailable) = (Vec::new(), Vec::new(), 0);
    for place in round.places.iter().filter(|place| place.fit.runs) {
        match pair(round, place) {
            (Some(new), _) => unavailable += usize::from(!round.is_available(new)),
            (None, Some(old)) if round.is_available(old) => serving.push(old),
            (None, Some(old)) => {
                unavailable += 1;
                broken.push(old);
            }
            (None, None) => unavailable += 1,
        }
    }
    let left = max.saturating_sub(unavailable);
    broken.into_iter().chain(serving.into_iter().take(left)).map(|pod| delete(round.set, pod)).collect()
}

/// A new pod is started beside the old one, which goes when the new one is available.
fn surge_over(round: &Round<'_>, max_surge: usize, max_unavailable: usize) -> Vec<Action> {
    let (mut actions, mut broken, mut serving) = (Vec::new(), Vec::new(), Vec::new());
    let (mut surging, mut unavailable) = (0, 0);
    for place in round.places.iter().filter(|place| place.fit.runs) {
        let name = object::name(&place.node.metadata);
        let leaving = place.pods.iter().any(|pod| object::is_deleting(&pod.metadata));
        match pair(round, place) {
            (Some(new), Some(old)) if round.is_available(new) => actions.push(delete(round.set, old)),
            (Some(_), Some(_)) => surging += 1,
            (Some(new), None) => unavailable += usize::from(!round.is_available(new)),
            (None, Some(old)) if round.is_available(old) => serving.push(name),
            (None, Some(_)) => broken.push(name),
            (None, None) => unavailable += usize::from(leaving),
        }
    }
    let left = (max_surge + max_unavailable.saturating_sub(unavailable)).saturating_sub(surging).min(max_surge);
    let nodes = broken.into_iter().chain(serving.into_iter().take(left));
    actions.extend(nodes.map(|node| make(round, node)));
    actions
}
