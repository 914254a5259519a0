//! Pods that get other resources while they run.
//!
//! ```text
//!  spec (wanted) ─ fits the node? ─> allotted (what the pod is run with) ─ Step::Resize ─> applied (what the runtime has)
//! ```
//! What is allotted stands in `status.containerStatuses[].resources` once it is applied, so a restarted agent finds it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container as Spec, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use parking_lot::Mutex;
use tandem_runtime::{Container, Limits};

use crate::{
    fields::NodeSize,
    observed::Observed,
    pod::{self, Part},
    quantity, resources,
};

/// Container annotation: the resources that a container was made with, as JSON.
pub(crate) const RESOURCES_ANNOTATION: &str = "tandem.dev/resources";
/// The annotation of a pod that a node runs from a file of its own.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The reason of a step that could not give a container its new resources.
pub(crate) const RESIZE_FAILED: &str = "Error";
/// How often a resize that the node has no room for is tried again.
pub(crate) const RETRY_SECONDS: i64 = 5;
const RESIZED: [&str; 2] = ["cpu", "memory"];

/// What each container of a pod is run with.
pub(crate) type Allotted = BTreeMap<String, ResourceRequirements>;

/// Why the pod does not have what its spec asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// `Deferred`, while others have the room, or `Infeasible`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// CPU in thousandths and memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) milli_cpu: i64,
    pub(crate) memory_bytes: i64,
}

impl Need {
    fn plus(self, other: Need) -> Need {
        Need {
            milli_cpu: self.milli_cpu.saturating_add(other.milli_cpu),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    fn max(self, other: Need) -> Need {
        Need { milli_cpu: self.milli_cpu.max(other.milli_cpu), memory_bytes: self.memory_bytes.max(other.memory_bytes) }
    }

    pub(crate) fn of_node(size: NodeSize) -> Need {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Need {
            milli_cpu: number(size.cpus.saturating_mul(1000)),
            memory_bytes: number(size.memory_bytes.saturating_sub(crate::node::MEMORY_KEPT_BYTES)),
        }
    }
}

/// What the pods of the node hold together: whoever grows takes his part before another one can.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<BTreeMap<String, Need>>);

impl Room {
    pub(crate) fn hold(&self, uid: &str, need: Need) {
        self.0.lock().insert(uid.to_owned(), need);
    }

    pub(crate) fn leave(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// Takes what the pod wants, if the node has it.
    fn take(&self, uid: &str, wanted: Need, has: Need, capacity: Need) -> Result<(), Pending> {
        let mut held = self.0.lock();
        let others =
            held.iter().filter(|(other, _)| *other != uid).fold(Need::default(), |sum, (_, need)| sum.plus(*need));
        fits(wanted, has, others, capacity)?;
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }
}

/// Whether a pod may have what it wants beside what the others hold. What does not grow fits as it did.
fn fits(wanted: Need, has: Need, others: Need, capacity: Need) -> Result<(), Pending> {
    let parts = |need: Need| [("memory", need.memory_bytes), ("cpu", need.milli_cpu)];
    let all = parts(wanted).into_iter().zip(parts(has)).zip(parts(others)).zip(parts(capacity));
    let all: Vec<_> =
        all.map(|((((name, wanted), (_, has)), (_, others)), (_, most))| (name, wanted, has, others, most)).collect();
    if let Some((name, wanted, _, _, most)) = all.iter().find(|(_, wanted, has, _, most)| wanted > has && wanted > most)
    {
        let message = format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {most}");
        return Err(Pending { reason: "Infeasible", message });
    }
    let short = |(_, wanted, has, others, most): &&(&str, i64, i64, i64, i64)| {
        wanted > has && wanted.saturating_add(*others) > *most
    };
    match all.iter().find(short) {
        None => Ok(()),
        Some((name, wanted, _, used, most)) => {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {most}"
            );
            Err(Pending { reason: "Deferred", message })
        }
    }
}

/// The most that a pod asks for at any time.
pub(crate) fn need(pod: &Pod) -> Need {
    let (mut sum, mut beside, mut peak) = (Need::default(), Need::default(), Need::default());
    for (part, spec) in pod::containers(pod) {
        let own = Need {
            milli_cpu: resources::request(spec, "cpu").unwrap_or(0),
            memory_bytes: resources::request(spec, "memory").unwrap_or(0) / 1000,
        };
        match part {
            Part::Init => peak = peak.max(own.plus(beside)),
            Part::Sidecar => {
                beside = beside.plus(own);
                sum = sum.plus(own);
            }
            Part::Main | Part::Ephemeral => sum = sum.plus(own),
        }
    }
    sum.max(peak)
}

/// What of a pod's resources can change while it runs, as numbers.
fn amounts(resources: Option<&ResourceRequirements>) -> Vec<Option<i64>> {
    let of = |list: Option<&BTreeMap<String, Quantity>>, name: &str| {
        list.and_then(|list| list.get(name)).and_then(quantity::thousandths).filter(|amount| *amount > 0)
    };
    let lists = resources.map(|resources| [resources.requests.as_ref(), resources.limits.as_ref()]);
    lists.into_iter().flatten().flat_map(|list| RESIZED.map(|name| of(list, name))).collect()
}

pub(crate) fn same(one: Option<&ResourceRequirements>, other: Option<&ResourceRequirements>) -> bool {
    let none = ResourceRequirements::default();
    amounts(one.or(Some(&none))) == amounts(other.or(Some(&none)))
}

/// What the pod was given when it was last looked at: by this agent, or by the one before it. A container that never
/// ran has what its spec says.
pub(crate) fn allotted(pod: &Pod, before: Option<&Allotted>) -> Allotted {
    let of = |(part, spec): (Part, &Spec)| {
        let given = before.and_then(|before| before.get(&spec.name)).cloned();
        let known = || {
            let status = pod::last_status(pod, part, &spec.name).filter(|status| status.container_id.is_some())?;
            status.resources.clone()
        };
        let resources = given.or_else(known).or_else(|| spec.resources.clone()).unwrap_or_default();
        (spec.name.clone(), resources)
    };
    pod::containers(pod).map(of).collect()
}

/// What the containers of a pod that is run have.
pub(crate) fn given(pod: &Pod) -> Allotted {
    pod::containers(pod).map(|(_, spec)| (spec.name.clone(), spec.resources.clone().unwrap_or_default())).collect()
}

/// The pod as it is run: its containers have what they are allotted.
pub(crate) fn with(mut pod: Pod, allotted: &Allotted) -> Pod {
    let Some(spec) = pod.spec.as_mut() else { return pod };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let Some(given) = allotted.get(&container.name) else { continue };
        if !same(container.resources.as_ref(), Some(given)) {
            container.resources = Some(given.clone());
        }
    }
    pod
}

/// Allots what the spec asks for, if there is room; else the pod is run with what it had, and why is told.
pub(crate) fn allot(pod: Pod, before: Option<&Allotted>, room: &Room, capacity: Need) -> (Pod, Option<Pending>) {
    let run = with(pod.clone(), &allotted(&pod, before));
    let (wanted, has) = (need(&pod), need(&run));
    let uid = pod::uid(&pod);
    let resources = |pod: &Pod| -> Vec<_> {
        pod::containers(pod)
            .map(|(_, spec)| amounts(spec.resources.as_ref().or(Some(&ResourceRequirements::default()))))
            .collect()
    };
    let is_over = matches!(pod::phase(&pod), "Succeeded" | "Failed");
    if is_over || resources(&pod) == resources(&run) || pod::deleted(&pod) {
        room.hold(uid, if is_over { Need::default() } else { has });
        return (run, None);
    }
    let is_mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR_ANNOTATION));
    let taken = if is_mirror {
        let message = "In-place resize of static-pods is not supported".to_owned();
        Err(Pending { reason: "Infeasible", message })
    } else {
        room.take(uid, wanted, has, capacity)
    };
    match taken {
        Ok(()) => (pod, None),
        Err(pending) => {
            room.hold(uid, has);
            (run, Some(pending))
        }
    }
}

/// The resources that a running container has, where that is known.
pub(crate) fn applied(pod: &Pod, part: Part, container: &Container, seen: &Observed) -> Option<ResourceRequirements> {
    if let Some(applied) = seen.applied.get(&container.id) {
        return Some(applied.clone());
    }
    let told = pod::last_status(pod, part, &container.name)
        .filter(|status| status.container_id.as_deref() == Some(seen.status_id(&container.id).as_str()))
        .and_then(|status| status.resources.clone());
    told.or_else(|| serde_json::from_str(container.annotations.get(RESOURCES_ANNOTATION)?).ok())
}

/// What is to become of a running container that does not have what it is allotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    InPlace,
    Restart,
}

pub(crate) fn change(pod: &Pod, part: Part, spec: &Spec, container: &Container, seen: &Observed) -> Change {
    if part == Part::Init || part == Part::Ephemeral {
        return Change::None;
    }
    let Some(applied) = applied(pod, part, container, seen) else { return Change::None };
    let (old, new) = (resize_parts(&applied), resize_parts(&spec.resources.clone().unwrap_or_default()));
    let changed: Vec<&str> =
        RESIZED.into_iter().zip(old.iter().zip(&new)).filter(|(_, (a, b))| a != b).map(|(name, _)| name).collect();
    let restarts = |name: &&str| {
        let policy = spec.resize_policy.iter().flatten().find(|policy| policy.resource_name == **name);
        policy.is_some_and(|policy| policy.restart_policy == "RestartContainer")
    };
    match (changed.is_empty(), changed.iter().any(restarts)) {
        (true, _) => Change::None,
        (false, true) => Change::Restart,
        (false, false) => Change::InPlace,
    }
}

/// Request and limit of each resource.
fn resize_parts(resources: &ResourceRequirements) -> [[Option<i64>; 2]; 2] {
    let all = amounts(Some(resources));
    let at = |index: usize| all.get(index).copied().flatten();
    [[at(0), at(2)], [at(1), at(3)]]
}

/// The wider of two bounds of a pod's cgroup: while its containers change, neither may be in the way.
pub(crate) fn wider(one: &Limits, other: &Limits) -> Limits {
    let both = one.cpu_quota_us.zip(other.cpu_quota_us).map(|(one, other)| one.max(other));
    Limits {
        memory_bytes: one.memory_bytes.zip(other.memory_bytes).map(|(one, other)| one.max(other)),
        cpu_quota_us: both,
        cpu_period_us: both.and(one.cpu_period_us),
        cpu_shares: one.cpu_shares.max(other.cpu_shares),
        oom_score_adj: 0,
    }
}

#[cfg(test)]
mod tests;
