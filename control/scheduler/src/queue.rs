//! The pods that wait for a node. Pure: every method is told the time.
//!
//! ```text
//!  put ─> active ──┬─ pop ─> in flight ─┬─ bound ────────> stays until the API shows it
//!  woken ──────────┘                    ├─ failed ───────> backoff ─ time ─> active
//!  (when nothing is active)             └─ fits nowhere ─> unschedulable ─ wake ─> woken
//! ```

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::snapshot::PodInfo;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A pod that fits nowhere is tried again after this time even if nothing is known to have changed.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    Active,
    /// Did not fit before something changed; of one priority it comes after those that were not tried yet.
    Woken,
    Backoff(Instant),
    Unschedulable(Instant),
    InFlight,
}

/// Why a pod did not get a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setback {
    FitsNowhere,
    Error,
}

#[derive(Debug)]
struct Entry {
    pod: PodInfo,
    place: Place,
    sequence: u64,
    attempts: u32,
    queued: Instant,
    attempted: Instant,
}

/// A pod to be scheduled, with what is needed to put it back.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) pod: PodInfo,
    pub(crate) attempts: u32,
    pub(crate) queued: Instant,
    wakes: u64,
}

type Rank = (Reverse<i32>, u64, String);

/// Bounded by the number of pods.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<Rank>,
    woken: BTreeSet<Rank>,
    backoff: BTreeSet<(Instant, String)>,
    unschedulable: BTreeSet<(Instant, String)>,
    /// The pods that fit or not because of other pods or of their claims, wherever they wait.
    minding: HashSet<String>,
    sequence: u64,
    wakes: u64,
}

/// How many pods are where, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) active: usize,
    pub(crate) backoff: usize,
    pub(crate) unschedulable: usize,
}

impl Queue {
    /// A pod that needs a node, new or changed.
    pub(crate) fn put(&mut self, pod: PodInfo, now: Instant) {
        let uid = pod.uid.clone();
        if pod.minds_others() || pod.has_claims() {
            self.minding.insert(uid.clone());
        } else {
            self.minding.remove(&uid);
        }
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.sequence += 1;
            let (place, sequence) = (Place::Active, self.sequence);
            self.active.insert((Reverse(pod.priority), sequence, uid.clone()));
            self.entries.insert(uid, Entry { pod, place, sequence, attempts: 0, queued: now, attempted: now });
            return;
        };
        let may_fit = !entry.pod.fits_like(&pod);
        let place = entry.place;
        self.withdraw(&uid);
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pod = pod;
        }
        self.settle(&uid, if may_fit && matches!(place, Place::Unschedulable(_)) { Place::Active } else { place });
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.withdraw(uid);
        self.minding.remove(uid);
        self.entries.remove(uid);
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&PodInfo> {
        self.entries.get(uid).map(|entry| &entry.pod)
    }

    pub(crate) fn uids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// The pod whose turn it is: the highest priority first, then who has waited longest.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Taken> {
        self.mature(now);
        let priority = |places: &BTreeSet<Rank>| places.first().map(|(Reverse(priority), ..)| *priority);
        let next = if priority(&self.woken) > priority(&self.active) { &mut self.woken } else { &mut self.active };
        let (_, _, uid) = next.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts += 1;
        entry.attempted = now;
        Some(Taken { pod: entry.pod.clone(), attempts: entry.attempts, queued: entry.queued, wakes: self.wakes })
    }

    /// Puts a pod back that got no node. What changed while it was looked at may be what it waits for.
    pub(crate) fn put_back(&mut self, taken: &Taken, setback: Setback, now: Instant) {
        let uid = &taken.pod.uid;
        let Some(entry) = self.entries.get(uid).filter(|entry| entry.place == Place::InFlight) else { return };
        let place = match setback {
            Setback::Error => Place::Backoff(entry.attempted + backoff(entry.attempts)),
            Setback::FitsNowhere if taken.wakes == self.wakes => Place::Unschedulable(now),
            Setback::FitsNowhere => Place::Woken,
        };
        self.settle(uid, place);
    }

    /// Something has changed that may make room.
    pub(crate) fn wake(&mut self) {
        self.wakes += 1;
        while let Some((_, uid)) = self.unschedulable.pop_first() {
            self.settle(&uid, Place::Woken);
        }
    }

    /// The same, for those that mind other pods and that it may make room for.
    pub(crate) fn wake_minding(&mut self, may_fit: impl Fn(&PodInfo) -> bool) {
        self.wakes += 1;
        let waits = |uid: &String| match self.entries.get(uid) {
            Some(Entry { pod, place: Place::Unschedulable(since), .. }) if may_fit(pod) => Some((*since, uid.clone())),
            _ => None,
        };
        for waiting in self.minding.iter().filter_map(waits).collect::<Vec<_>>() {
            self.unschedulable.remove(&waiting);
            self.settle(&waiting.1, Place::Woken);
        }
    }

    /// Gives back everything in flight: for a scheduler that stops leading.
    pub(crate) fn land(&mut self) {
        let in_flight = self.entries.iter().filter(|(_, entry)| entry.place == Place::InFlight);
        for uid in in_flight.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.settle(&uid, Place::Active);
        }
    }

    /// When `pop` may have something, if nothing else happens before.
    pub(crate) fn due(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let flush = self.unschedulable.first().map(|(since, _)| *since + UNSCHEDULABLE_MAX);
        backoff.into_iter().chain(flush).min()
    }

    /// Whether `pop` has something now.
    pub(crate) fn has_next(&self) -> bool {
        !self.active.is_empty() || !self.woken.is_empty()
    }

    pub(crate) fn pending(&self) -> Pending {
        Pending {
            active: self.active.len() + self.woken.len(),
            backoff: self.backoff.len(),
            unschedulable: self.unschedulable.len(),
        }
    }

    fn mature(&mut self, now: Instant) {
        while self.backoff.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, uid)) = self.backoff.pop_first() else { break };
            self.settle(&uid, Place::Active);
        }
        while self.unschedulable.first().is_some_and(|(since, _)| *since + UNSCHEDULABLE_MAX <= now) {
            let Some((_, uid)) = self.unschedulable.pop_first() else { break };
            self.settle(&uid, Place::Woken);
        }
    }

    /// Takes the pod out of wherever it waits.
    fn withdraw(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        match entry.place {
            Place::Active => self.active.remove(&(Reverse(entry.pod.priority), entry.sequence, uid.to_owned())),
            Place::Woken => self.woken.remove(&(Reverse(entry.pod.priority), entry.sequence, uid.to_owned())),
            Place::Backoff(until) => self.backoff.remove(&(until, uid.to_owned())),
            Place::Unschedulable(since) => self.unschedulable.remove(&(since, uid.to_owned())),
            Place::InFlight => false,
        };
    }

    fn settle(&mut self, uid: &str, place: Place) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.place = place;
        let uid = uid.to_owned();
        match place {
            Place::Active => self.active.insert((Reverse(entry.pod.priority), entry.sequence, uid)),
            Place::Woken => self.woken.insert((Reverse(entry.pod.priority), entry.sequence, uid)),
            Place::Backoff(until) => self.backoff.insert((until, uid)),
            Place::Unschedulable(since) => self.unschedulable.insert((since, uid)),
            Place::InFlight => true,
        };
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::PodAffinityTerm;

    use super::*;
    use crate::snapshot::AffinityTerm;

    fn pod(uid: &str, priority: i32) -> PodInfo {
        PodInfo { uid: uid.into(), priority, ..PodInfo::default() }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|taken| taken.pod.uid)
    }

    #[test]
    fn priority_goes_before_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 0), ("c", 9)] {
            queue.put(pod(uid, priority), now);
        }
        queue.remove("b");
        assert_eq!(
            [pop(&mut queue, now), pop(&mut queue, now), pop(&mut queue, now)],
            [Some("c".into()), Some("a".into()), None]
        );
    }

    #[test]
    fn what_fits_nowhere_waits_for_a_change() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), start);
        let taken = queue.pop(start).unwrap();
        queue.put_back(&taken, Setback::FitsNowhere, start);
        assert_eq!(queue.pending(), Pending { unschedulable: 1, ..Pending::default() });
        queue.put(pod("a", 0), start);
        assert_eq!(pop(&mut queue, after(start, 5)), None, "its own status is no reason to try again");
        queue.wake();
        queue.put(pod("new", 0), start);
        let order = [pop(&mut queue, start), pop(&mut queue, start)];
        assert_eq!(order, [Some("new".into()), Some("a".into())], "new ones are not held up");
        queue.put(pod("high", 9), start);
        let taken = queue.pop(start).unwrap();
        queue.put_back(&taken, Setback::FitsNowhere, start);
        queue.wake();
        queue.put(pod("low", 8), start);
        assert_eq!(pop(&mut queue, start), Some("high".into()), "lower ones do not take the room made for it");
    }

    #[test]
    fn only_those_are_woken_for_whom_it_makes_room() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let term = AffinityTerm::of(&PodAffinityTerm::default(), "", &BTreeMap::new());
        for (uid, minds) in [("a", true), ("b", true), ("c", false)] {
            let pod_affinity = std::iter::repeat_n(term.clone(), usize::from(minds)).collect();
            queue.put(PodInfo { pod_affinity, ..pod(uid, 0) }, start);
            let taken = queue.pop(start).unwrap();
            queue.put_back(&taken, Setback::FitsNowhere, start);
        }
        queue.wake_minding(|pod| pod.uid != "a");
        assert_eq!([pop(&mut queue, start), pop(&mut queue, start)], [Some("b".into()), None]);
        assert_eq!(queue.pending(), Pending { unschedulable: 2, ..Pending::default() });
        queue.remove("a");
        queue.wake_minding(|_| true);
        assert_eq!(pop(&mut queue, start), None);
    }

    #[test]
    fn a_changed_pod_is_tried_again() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), start);
        let taken = queue.pop(start).unwrap();
        queue.put_back(&taken, Setback::FitsNowhere, start);
        let selecting = PodInfo { node_selector: [("a".into(), "b".into())].into(), ..pod("a", 0) };
        queue.put(selecting, start);
        assert_eq!(pop(&mut queue, start), Some("a".into()));
    }

    #[test]
    fn a_change_during_the_attempt_is_not_missed() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), start);
        let taken = queue.pop(start).unwrap();
        queue.wake();
        queue.put_back(&taken, Setback::FitsNowhere, start);
        assert_eq!(pop(&mut queue, start), Some("a".into()));
    }

    #[test]
    fn errors_back_off() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            let taken = queue.pop(now).unwrap();
            queue.put_back(&taken, Setback::Error, now);
            let due = queue.due().unwrap();
            waits.push(due.duration_since(now).as_secs());
            now = due;
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), start);
        let taken = queue.pop(start).unwrap();
        queue.put_back(&taken, Setback::FitsNowhere, start);
        assert_eq!(queue.due(), Some(after(start, 300)));
        assert_eq!(pop(&mut queue, after(start, 300)), Some("a".into()));
    }

    #[test]
    fn what_is_bound_stays_in_flight_until_it_is_removed() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), now);
        let taken = queue.pop(now).unwrap();
        queue.put(pod("a", 0), now);
        assert_eq!(pop(&mut queue, after(now, 1000)), None);
        queue.land();
        assert_eq!(pop(&mut queue, now), Some("a".into()), "another leader may not have bound it");
        queue.remove("a");
        queue.put_back(&taken, Setback::Error, now);
        assert_eq!(queue.due(), None, "a pod that is gone does not come back");
    }
}
