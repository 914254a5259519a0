//! Nodes that fall silent: marked not ready, tainted, and their pods given up as far as these tolerate it.
//!
//! ```text
//!  heartbeat (Lease, or Ready's own) older than the grace ─> conditions Unknown, pods not ready
//!  Ready False ─> taint not-ready, Ready Unknown ─> taint unreachable     (NoSchedule and NoExecute)
//!  NoExecute ─> pods that do not tolerate it are deleted, others when their time is over
//! ```
//! When all nodes are silent it is rather this side that is cut off: then no node is given up, and patience begins anew
//! when the first of them is heard again. Nodes of a zone are given up one after the other.

mod zones;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, Pod, PodCondition, Taint},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;
use serde::Serialize;
use tandem_client::{
    events::{self, Note, Severity},
    tolerations::tolerates,
};

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan, Target},
    object, pod,
};
use zones::{Pace, Turn};

/// Where nodes renew their Leases.
pub(crate) const LEASES: &str = "kube-node-lease";
const READY: &str = "Ready";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that are taints when they are true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that nobody knows any more once the node is silent.
const REPORTED: [&str; 4] = [READY, "MemoryPressure", "DiskPressure", "PIDPressure"];
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How often within the grace a node is looked at.
const LOOKS: u32 = 4;
/// Pods that one plan marks, and deletes.
const BURST: usize = 500;

pub(crate) struct NodeLifecycle {
    grace: Duration,
    /// The last heartbeat of each node and when it was first seen here: clocks of nodes may differ from ours.
    heartbeats: Mutex<HashMap<String, Heartbeat>>,
    pace: Mutex<Pace>,
}

#[derive(Clone, Debug)]
struct Heartbeat {
    beat: Option<Timestamp>,
    seen: Timestamp,
}

#[derive(Debug)]
pub(crate) struct View {
    node: Arc<Node>,
    /// When the node was last heard of, by our clock.
    heard: Timestamp,
    grace: Duration,
    others: Others,
    /// When it may be given up, if it is to be.
    turn: Turn,
    /// Its pods; none while the node is well.
    pods: Vec<Arc<Pod>>,
}

/// What is known of the nodes beside one that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// One of them was heard of after this one had fallen silent.
    Heard,
    /// None was heard of since: they may have fallen silent with it.
    Unheard,
    /// None is ready, or there is none: Kubernetes calls it a full disruption.
    Down,
}

/// How new a Lease is: one from the cache may be older than what was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Newest,
    Perhaps,
}

impl NodeLifecycle {
    pub(crate) fn new(grace: Duration) -> NodeLifecycle {
        NodeLifecycle { grace, heartbeats: Mutex::default(), pace: Mutex::default() }
    }

    /// When the node was last heard of. Renewals of a Lease are not all written down, so a cache may be behind:
    /// before a node counts as silent, its Lease is read.
    async fn listen(&self, input: &Input<'_>, node: &Node) -> Result<Timestamp, Error> {
        let name = object::name(&node.metadata);
        let cached = input.cache.leases.get(&Key::new(LEASES, name));
        let heard = self.heard(node, cached.as_deref(), Told::Perhaps, input.now);
        if !object::until(object::after(heard, seconds(self.grace / LOOKS)), input.now).is_zero() {
            return Ok(heard);
        }
        let leases = kube::Api::<Lease>::namespaced(input.client.clone(), LEASES);
        Ok(self.heard(node, leases.get_opt(name).await?.as_ref(), Told::Newest, input.now))
    }

    /// The others, for a node that is given up from `deadline` on.
    fn others(&self, cache: &Cache, name: &str, deadline: Timestamp) -> Others {
        let heartbeats = self.heartbeats.lock();
        let mut others = Others::Down;
        for node in cache.nodes.all() {
            let other = object::name(&node.metadata);
            if other == name || status_of(&node, READY) != "True" {
                continue;
            }
            if heartbeats.get(other).is_some_and(|last| last.seen > deadline) {
                return Others::Heard;
            }
            others = Others::Unheard;
        }
        others
    }

    /// Asks for the node's turn, if it is to be given up and is not yet.
    fn turn(&self, cache: &Cache, node: &Node, is_held: bool, now: Timestamp) -> Turn {
        let name = object::name(&node.metadata);
        let is_well = matches!(status_of(node, READY), "True" | "");
        if is_well || is_given_up(node) || is_held {
            self.pace.lock().settle(name);
            return Turn::Now;
        }
        let (zone, all) = (zones::zone_of(node), cache.nodes.all());
        // Where nobody is well it is not the nodes that failed: as in Kubernetes, none is given up then.
        let any_well = all.iter().any(|other| status_of(other, READY) == "True");
        let of_zone = all.iter().map(AsRef::as_ref).filter(|other| zones::zone_of(other) == zone);
        let pause = if any_well { zones::pause(of_zone) } else { None };
        self.pace.lock().ask(name, zone, pause, now)
    }

    fn heard(&self, node: &Node, lease: Option<&Lease>, told: Told, now: Timestamp) -> Timestamp {
        let name = object::name(&node.metadata);
        let lease = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        let reported = condition(node, READY).and_then(|ready| ready.last_heartbeat_time.clone());
        let beat = lease.map(|time| time.0).max(reported.map(|time| time.0));
        let mut heartbeats = self.heartbeats.lock();
        let last = heartbeats.entry(name.to_owned()).or_insert(Heartbeat { beat, seen: now });
        let is_new = match told {
            // A node whose clock was set back is alive, too.
            Told::Newest => last.beat != beat,
            Told::Perhaps => last.beat < beat,
        };
        if is_new {
            *last = Heartbeat { beat, seen: now };
        }
        last.seen
    }
}

impl Controller for NodeLifecycle {
    type Parent = Node;
    type View = View;

    const NAME: &'static str = "node-lifecycle";
    const READS: &'static [&'static str] = &["Node", "Lease", "Pod"];

    fn store(cache: &Cache) -> &Store<Node> {
        &cache.nodes
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Node(delta) => {
                if delta.new.is_none() {
                    self.heartbeats.lock().remove(&delta.key().name);
                    self.pace.lock().settle(&delta.key().name);
                }
                let mut keys = vec![delta.key()];
                let is_ready =
                    |node: &Option<Arc<Node>>| node.as_ref().is_some_and(|node| status_of(node, READY) == "True");
                if is_ready(&delta.old) != is_ready(&delta.new) {
                    // Whether the others can be given up depends on all of them.
                    let unwell = cache.nodes.all().into_iter().filter(|node| is_unwell(node));
                    keys.extend(unwell.map(|node| Key::of(&node.metadata)));
                }
                keys
            }
            Change::Lease(delta) => vec![Key::new("", delta.key().name)],
            // A pod that came to a node which is not well.
            Change::Pod(delta) => {
                let node = delta.new.as_ref().and_then(|pod| pod::node(pod)).map(|name| Key::new("", name));
                node.filter(|key| cache.nodes.get(key).is_some_and(|node| is_unwell(&node))).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, node: Arc<Node>) -> Result<View, Error> {
        let heard = self.listen(input, &node).await?;
        let name = object::name(&node.metadata);
        let deadline = object::after(heard, seconds(self.grace));
        let silent = object::until(deadline, input.now).is_zero();
        let is_unknown = silent || status_of(&node, READY) == "Unknown";
        let others = if is_unknown { self.others(input.cache, name, deadline) } else { Others::Heard };
        let mut pods = if silent || is_unwell(&node) { input.cache.pods.all() } else { Vec::new() };
        pods.retain(|pod| pod::node(pod) == Some(name) && !pod::is_terminal(pod));
        let turn = self.turn(input.cache, &node, others != Others::Heard, input.now);
        Ok(View { node, heard, grace: self.grace, others, turn, pods })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn status_of<'a>(node: &'a Node, kind: &str) -> &'a str {
    condition(node, kind).map_or("", |condition| condition.status.as_str())
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Its pods are being sent away because of what became of it.
fn is_given_up(node: &Node) -> bool {
    let is_ours = |taint: &Taint| [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    taints(node).iter().any(|taint| is_ours(taint) && taint.effect == "NoExecute")
}

fn is_unwell(node: &Node) -> bool {
    status_of(node, READY) != "True" || taints(node).iter().any(|taint| taint.effect == "NoExecute")
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let node = &view.node;
    let mut plan = Plan::default();
    if object::is_deleting(&node.metadata) {
        return plan;
    }
    let deadline = object::after(view.heard, seconds(view.grace));
    let rest = object::until(deadline, now);
    let is_silent = rest.is_zero();
    if !is_silent {
        plan.requeue_after(rest.min(view.grace / LOOKS));
    }
    let known = status_of(node, READY);
    let hold = hold(view, is_silent);
    match hold {
        Hold::None => {}
        Hold::Still => plan.requeue_after(view.grace / LOOKS),
        // A node that is heard again wakes this one; this is for what is missed.
        Hold::Back => plan.requeue_after(view.grace),
    }
    if is_silent && known != "Unknown" {
        // The taints follow in the next plan: this one has written the node.
        plan.actions.push(Action::set_status(silenced(node, now)));
        plan.actions.push(Action::Event(Note::new(
            events::reference(&**node),
            Severity::Normal,
            "NodeNotReady",
            format!("Node {} status is now: NodeNotReady", object::name(&node.metadata)),
        )));
    } else {
        let may_begin = hold == Hold::None && (view.turn == Turn::Now || is_given_up(node));
        match view.turn {
            Turn::In(rest) => plan.requeue_after(rest),
            // When more of its zone is well, that wakes this one.
            Turn::Never => plan.requeue_after(view.grace),
            Turn::Now => {}
        }
        let wanted = wanted_taints(node, hold, may_begin, now);
        if wanted != taints(node) {
            plan.actions.push(set_taints(node, wanted));
        }
    }
    if is_silent {
        let serving = view.pods.iter().filter(|pod| pod::is_ready(pod)).take(BURST);
        plan.actions.extend(serving.map(|pod| Action::set_status(not_ready(pod, now))));
    }
    evict(view, hold, now, &mut plan);
    plan
}

/// Whether the node is not given up, though it is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    None,
    /// Nothing goes further until another node is heard of.
    Still,
    /// What has begun is taken back.
    Back,
}

fn hold(view: &View, is_silent: bool) -> Hold {
    match view.others {
        Others::Heard => Hold::None,
        Others::Down if is_silent || status_of(&view.node, READY) == "Unknown" => Hold::Back,
        Others::Unheard if is_silent => Hold::Still,
        Others::Down | Others::Unheard => Hold::None,
    }
}

/// The node with everything that it reported marked as not known any more.
fn silenced(node: &Node, now: Timestamp) -> Node {
    let mut node = node.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in REPORTED {
        let old = conditions.iter().position(|condition| condition.type_ == kind);
        let (reason, message) = match old {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let unknown = NodeCondition {
            type_: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: old.and_then(|index| conditions[index].last_heartbeat_time.clone()),
            last_transition_time: Some(object::time(now)),
        };
        match old {
            Some(index) if conditions[index].status == "Unknown" => {}
            Some(index) => conditions[index] = unknown,
            None => conditions.push(unknown),
        }
    }
    node
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added: None }
}

/// The taints that the node's conditions ask for, and those that others have put on it. `may_begin` says whether pods may
/// begin to be sent away.
fn wanted_taints(node: &Node, hold: Hold, may_begin: bool, now: Timestamp) -> Vec<Taint> {
    let mut own = Vec::new();
    match status_of(node, READY) {
        "True" => {}
        "Unknown" => {
            own.push(taint(UNREACHABLE, "NoSchedule"));
            let has_begun = taints(node).iter().any(|taint| taint.key == UNREACHABLE && taint.effect == "NoExecute");
            if may_begin || (hold == Hold::Still && has_begun) {
                own.push(taint(UNREACHABLE, "NoExecute"));
            }
        }
        // A node that has said nothing yet keeps pods away, but sends none away.
        "" => own.push(taint(NOT_READY, "NoSchedule")),
        _ => {
            own.push(taint(NOT_READY, "NoSchedule"));
            // It says so itself: whoever else is silent does not matter.
            if may_begin || hold != Hold::None {
                own.push(taint(NOT_READY, "NoExecute"));
            }
        }
    }
    for (kind, key) in PRESSURES {
        if status_of(node, kind) == "True" {
            own.push(taint(key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        own.push(taint(UNSCHEDULABLE, "NoSchedule"));
    }
    let is_ours = |taint: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
            || PRESSURES.iter().any(|(_, key)| *key == taint.key)
    };
    let same = |one: &Taint, other: &Taint| one.key == other.key && one.effect == other.effect;
    let kept = taints(node).iter().filter(|taint| !is_ours(taint) || own.iter().any(|own| same(own, taint)));
    let mut wanted: Vec<Taint> = kept.cloned().collect();
    for taint in own {
        if !wanted.iter().any(|there| same(there, &taint)) {
            wanted.push(Taint { time_added: Some(object::time(now)), ..taint });
        }
    }
    for taint in wanted.iter_mut().filter(|taint| taint.effect == "NoExecute" && taint.time_added.is_none()) {
        // From now on the pods' patience counts.
        taint.time_added = Some(object::time(now));
    }
    wanted
}

#[derive(Debug, Serialize)]
struct Tainted {
    metadata: TaintedMeta,
    spec: TaintedSpec,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TaintedMeta {
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<String>,
}

#[derive(Debug, Serialize)]
struct TaintedSpec {
    taints: Vec<Taint>,
}

fn set_taints(node: &Node, taints: Vec<Taint>) -> Action {
    let metadata = TaintedMeta { resource_version: node.metadata.resource_version.clone() };
    Action::patch(Target::of(node), Tainted { metadata, spec: TaintedSpec { taints } })
}

/// Replaces a condition; its time stays when its status does.
fn set_condition(pod: &mut Pod, kind: &str, status: &str, reason: Option<(&str, String)>, now: Timestamp) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == kind);
    let mut new = old.map(|index| conditions.remove(index)).unwrap_or_default();
    if new.status != status {
        new.last_transition_time = Some(object::time(now));
    }
    if let Some((reason, message)) = reason {
        (new.reason, new.message) = (Some(reason.to_owned()), Some(message));
    }
    conditions.push(PodCondition { type_: kind.to_owned(), status: status.to_owned(), ..new });
}

fn not_ready(pod: &Pod, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    set_condition(&mut pod, READY, "False", None, now);
    pod
}

/// The pod with the condition that tells why it is taken away.
pub(crate) fn disrupted(pod: &Pod, reason: &str, message: String, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    set_condition(&mut pod, "DisruptionTarget", "True", Some((reason, message)), now);
    pod
}

/// Deletes the pods that do not put up with the node's NoExecute taints, or no longer.
fn evict(view: &View, hold: Hold, now: Timestamp, plan: &mut Plan) {
    let counts = |taint: &&Taint| {
        // The taints of others mean what they say, whoever is silent.
        let is_ours = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
        taint.effect == "NoExecute" && (hold == Hold::None || !is_ours)
    };
    let taints: Vec<&Taint> = taints(&view.node).iter().filter(counts).collect();
    if taints.is_empty() {
        return;
    }
    let is_mirror = |pod: &Pod| object::annotation(&pod.metadata, MIRROR).is_some();
    let mut left = BURST;
    for pod in view.pods.iter().filter(|pod| !object::is_deleting(&pod.metadata) && !is_mirror(pod)) {
        let Some(end) = patience_ends(pod, &taints, now) else { continue };
        match object::until(end, now) {
            Duration::ZERO if left > 0 => {
                left -= 1;
                let name = Key::of(&pod.metadata);
                let note = format!("Marking for deletion Pod {name}");
                let reference = events::reference(&**pod);
                plan.actions.push(Action::Event(Note::new(reference, Severity::Normal, "TaintManagerEviction", note)));
                let message = "Taint manager: deleting due to NoExecute taint".to_owned();
                plan.actions.push(Action::set_status(disrupted(pod, "DeletionByTaintManager", message, now)));
                plan.actions.push(Action::Delete(Deletion::of(&**pod)));
            }
            Duration::ZERO => plan.requeue_after(Duration::from_secs(1)),
            rest => plan.requeue_after(rest),
        }
    }
}

/// When the pod has to go; `None` if it may stay for ever.
fn patience_ends(pod: &Pod, taints: &[&Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let ends = taints.iter().filter_map(|taint| {
        let tolerating: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if tolerating.is_empty() {
            return Some(Timestamp::MIN);
        }
        // The shortest patience counts; a toleration without a limit alone is patient for ever.
        let limit = tolerating.iter().filter_map(|toleration| toleration.toleration_seconds).min()?;
        let since = taint.time_added.as_ref().map_or(now, |Time(since)| *since);
        Some(object::after(since, limit.max(0)))
    });
    ends.min()
}

#[cfg(test)]
mod tests;
