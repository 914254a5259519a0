//! Which pods have to go so that one of higher priority fits. Pure.
//!
//! ```text
//!  nodes that others' going may help ─> without all lower pods, does it fit? ─> take back, the important first,
//!  those that still leave room ─> victims ─> the node on which that does the least harm
//! ```
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/#preemption>

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};

use crate::{
    NodeInfo, NodeName, PodInfo, Profile, Snapshot, Unschedulable,
    filters::{Cycle, Trial},
    histogram,
    snapshot::Placed,
};

/// Of a large cluster only so many nodes with victims are compared, or this share of its nodes if that is more.
const CANDIDATES_MIN: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

/// A pod that has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// It is ending already.
    pub terminating: bool,
    pub priority: i32,
}

/// Where room is to be made, and by whose going; the most important one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    pub node: NodeName,
    pub victims: Vec<Victim>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Evict(Preemption),
    /// It may not, or not again; a nomination that it has stays.
    Ineligible(String),
    /// Nobody's going would help; a nomination is over.
    Helpless(String),
}

/// Decides for a pod that fits nowhere. `turn` is where the search begins; the same arguments give the same verdict.
pub fn preempt(pod: &PodInfo, snapshot: &Snapshot, profile: &Profile, turn: usize, refused: &Unschedulable) -> Verdict {
    if let Some(why) = ineligible(pod, snapshot, refused) {
        return Verdict::Ineligible(why.to_owned());
    }
    let (cycle, budgets) = (Cycle::new(pod, snapshot), Budget::all(snapshot));
    let nodes = &refused.resolvable;
    let begin = if nodes.is_empty() { 0 } else { turn % nodes.len() };
    let enough = (refused.nodes * CANDIDATES_PERCENT / 100).max(CANDIDATES_MIN);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    if refused.nodes > nodes.len() {
        reasons.insert("Preemption is not helpful for scheduling".to_owned(), refused.nodes - nodes.len());
    }
    let (mut found, mut kindest): (Vec<Candidate<'_>>, usize) = (Vec::new(), usize::MAX);
    for node in nodes[begin..].iter().chain(&nodes[..begin]).filter_map(|name| snapshot.node(name)) {
        match try_on(node, pod, &cycle, snapshot, profile, &budgets) {
            Ok(candidate) => {
                kindest = kindest.min(candidate.violations);
                found.push(candidate);
            }
            Err(why) => why.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
        if found.len() >= enough && kindest == 0 {
            break;
        }
    }
    match found.into_iter().min_by_key(Candidate::harm) {
        Some(candidate) => Verdict::Evict(candidate.chosen()),
        None => Verdict::Helpless(format!("0/{} nodes are available: {}.", refused.nodes, histogram(&reasons))),
    }
}

fn ineligible(pod: &PodInfo, snapshot: &Snapshot, refused: &Unschedulable) -> Option<&'static str> {
    if pod.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node = snapshot.nominations.of(&pod.uid)?;
    // Where nobody's going helps any more, room may be made elsewhere.
    if !refused.resolvable.iter().any(|name| name == node) {
        return None;
    }
    let goes = |other: &Placed| other.terminating && other.preempted && other.priority < pod.priority;
    snapshot.pods_on(node).any(goes).then_some("not eligible due to terminating pod on the nominated node.")
}

/// How many pods of a PodDisruptionBudget may still go.
#[derive(Debug)]
struct Budget {
    namespace: String,
    selector: Selector,
    disrupted: BTreeSet<String>,
    left: i32,
}

impl Budget {
    /// A budget that selects everything by saying nothing covers, here, nothing: as in Kubernetes.
    fn all(snapshot: &Snapshot) -> Vec<Budget> {
        let read = snapshot.budgets.all().filter_map(|budget| {
            let selector = Selector::try_from(budget.spec.as_ref()?.selector.clone()?).ok()?;
            let status = budget.status.clone().unwrap_or_default();
            Some(Budget {
                namespace: budget.metadata.namespace.clone().unwrap_or_default(),
                selector,
                disrupted: status.disrupted_pods.unwrap_or_default().into_keys().collect(),
                left: status.disruptions_allowed.unwrap_or(0),
            })
        });
        read.filter(|budget| !budget.selector.selects_all()).collect()
    }

    fn covers(&self, pod: &Placed) -> bool {
        let is_new = !self.disrupted.contains(&pod.name);
        self.namespace == pod.namespace && is_new && self.selector.matches(&pod.labels)
    }
}

/// The pods whose going would break a budget, and the others; both in the order in which they came.
fn by_budget<'a>(pods: Vec<&'a Placed>, budgets: &[Budget]) -> (Vec<&'a Placed>, Vec<&'a Placed>) {
    let mut left: Vec<i32> = budgets.iter().map(|budget| budget.left).collect();
    pods.into_iter().partition(|pod| {
        let mut breaks = false;
        for (_, left) in budgets.iter().zip(&mut left).filter(|(budget, _)| budget.covers(pod)) {
            *left -= 1;
            breaks |= *left < 0;
        }
        breaks
    })
}

/// A node with the pods that would have to go.
#[derive(Debug)]
struct Candidate<'a> {
    node: &'a NodeInfo,
    victims: Vec<&'a Placed>,
    violations: usize,
}

/// What going harms: fewer budgets broken, lower priorities, fewer pods, pods that started later.
type Harm = (usize, i32, i64, usize, Reverse<Timestamp>);

impl Candidate<'_> {
    fn harm(&self) -> Harm {
        let highest = self.victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
        // Each pod counts, also those of priorities below zero.
        let weight = |victim: &&Placed| i64::from(victim.priority) - i64::from(i32::MIN);
        let sum = self.victims.iter().map(weight).fold(0, i64::saturating_add);
        let eldest =
            self.victims.iter().filter(|victim| victim.priority == highest).map(|victim| started(victim)).min();
        (self.violations, highest, sum, self.victims.len(), Reverse(eldest.unwrap_or(Timestamp::MAX)))
    }

    fn chosen(self) -> Preemption {
        let victim = |victim: &&Placed| Victim {
            uid: victim.uid.clone(),
            namespace: victim.namespace.clone(),
            name: victim.name.clone(),
            terminating: victim.terminating,
            priority: victim.priority,
        };
        Preemption { node: self.node.name.clone(), victims: self.victims.iter().map(victim).collect() }
    }
}

/// A pod that has not started yet is the youngest.
fn started(pod: &Placed) -> Timestamp {
    pod.started.unwrap_or(Timestamp::MAX)
}

/// The more important pod comes first; the uid only makes the order certain.
fn importance(pod: &Placed) -> (Reverse<i32>, Timestamp, &str) {
    (Reverse(pod.priority), started(pod), &pod.uid)
}

/// The least that has to go from the node, or why that would not help.
fn try_on<'a>(
    node: &'a NodeInfo,
    pod: &'a PodInfo,
    cycle: &Cycle<'a>,
    snapshot: &'a Snapshot,
    profile: &Profile,
    budgets: &[Budget],
) -> Result<Candidate<'a>, Vec<String>> {
    let mut lower: Vec<&Placed> = snapshot.pods_on(&node.name).filter(|other| other.priority < pod.priority).collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    let mut trial = cycle.trial(node);
    lower.iter().for_each(|other| trial.displace(other));
    let reasons = trial.reasons(profile.filters);
    if !reasons.is_empty() {
        return Err(reasons.iter().map(ToString::to_string).collect());
    }
    lower.sort_by(|one, other| importance(one).cmp(&importance(other)));
    let (violating, others) = by_budget(lower, budgets);
    let may_stay = |trial: &mut Trial<'a>, other: &'a Placed| {
        trial.place(other);
        let fits = trial.reasons(profile.filters).is_empty();
        if !fits {
            trial.displace(other);
        }
        fits
    };
    let mut victims: Vec<&Placed> = violating.into_iter().filter(|other| !may_stay(&mut trial, other)).collect();
    let violations = victims.len();
    victims.extend(others.into_iter().filter(|other| !may_stay(&mut trial, other)));
    if victims.is_empty() {
        return Err(vec![format!("expected at least one victim pod on node {:?}", node.name)]);
    }
    victims.sort_by(|one, other| importance(one).cmp(&importance(other)));
    Ok(Candidate { node, victims, violations })
}

#[cfg(test)]
#[path = "preemption/tests.rs"]
mod tests;
