use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Amounts, ONE, PODS, Scope, add, amounts, list, text};
use crate::{Object, Quantity};

const NATIVE: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
/// What every container must name, if a quota limits it.
const REQUIRED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
const HUGE_PAGES: &str = "hugepages-";

/// Whether a quota's hard limit of this name is about what pods ask for.
pub(super) fn is_resource(name: &str) -> bool {
    let asked = name.strip_prefix("requests.");
    let base = asked.or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    NATIVE.contains(&base)
        || name.starts_with(HUGE_PAGES)
        || asked.is_some_and(|asked| asked.starts_with(HUGE_PAGES) || is_extended(asked))
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

pub(super) fn usage(pod: &Object, now: Timestamp, used: &mut Amounts) {
    if !is_charged(pod, now) {
        return;
    }
    let overhead = amounts(pod.at(&["spec", "overhead"]));
    let (mut requests, mut limits) = (held(pod, "requests"), held(pod, "limits"));
    add(&mut requests, &overhead);
    for (name, limit) in &mut limits {
        let more = overhead.get(name).copied().filter(|_| !limit.is_zero()).unwrap_or(Quantity::ZERO);
        *limit = limit.plus(more);
    }
    used.insert(PODS.to_owned(), ONE);
    used.extend(named(&requests, &limits));
}

/// A pod that has ended, or that should have ended and whose node does not answer, keeps nobody from starting another.
fn is_charged(pod: &Object, now: Timestamp) -> bool {
    if matches!(pod.str_at(&["status", "phase"]), Some("Succeeded" | "Failed")) {
        return false;
    }
    over_at(pod).is_none_or(|over| now <= over)
}

fn over_at(pod: &Object) -> Option<Timestamp> {
    let deleted: Timestamp = pod.deletion_timestamp()?.parse().ok()?;
    let grace = pod.i64_at(&["metadata", "deletionGracePeriodSeconds"])?;
    deleted.checked_add(SignedDuration::from_secs(grace)).ok()
}

/// The names that quotas have for requests and limits.
fn named(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut named = Amounts::new();
    for (name, amount) in requests {
        let native = NATIVE.contains(&name.as_str());
        if native || name.starts_with(HUGE_PAGES) {
            named.insert(name.clone(), *amount);
        }
        if native || name.starts_with(HUGE_PAGES) || is_extended(name) {
            named.insert(format!("requests.{name}"), *amount);
        }
    }
    let native = limits.iter().filter(|(name, _)| NATIVE.contains(&name.as_str()));
    named.extend(native.map(|(name, amount)| (format!("limits.{name}"), *amount)));
    named
}

/// What a pod asks for in all, of `requests` or of `limits`: what its containers need together, or more where one of its
/// init containers needs more; what the pod itself says goes before.
pub fn total(pod: &Object, kind: &str) -> Amounts {
    sum(pod, kind, |container| amounts(container.get("resources").and_then(|resources| resources.get(kind))))
}

/// What a pod has: what it asks for, or what its node still holds for it while it is resized, whichever is more. What
/// its node can never give it does not count.
fn held(pod: &Object, kind: &str) -> Amounts {
    let is_infeasible = pod.array_at(&["status", "conditions"]).iter().any(|condition| {
        text(condition, "type") == "PodResizePending"
            && text(condition, "status") == "True"
            && text(condition, "reason") == "Infeasible"
    });
    let statuses = || {
        let lists = ["containerStatuses", "initContainerStatuses"];
        lists.into_iter().flat_map(|list| pod.array_at(&["status", list]))
    };
    sum(pod, kind, |container| {
        let asked = amounts(container.get("resources").and_then(|resources| resources.get(kind)));
        let Some(status) = statuses().find(|status| text(status, "name") == text(container, "name")) else {
            return asked;
        };
        let mut held = amounts(status.get("resources").and_then(|resources| resources.get(kind)));
        if kind == "requests" {
            raise(&mut held, amounts(status.get("allocatedResources")));
        }
        if held.is_empty() || !is_infeasible {
            raise(&mut held, asked);
        }
        held
    })
}

fn sum(pod: &Object, kind: &str, of: impl Fn(&Value) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    for container in pod.array_at(&["spec", "containers"]) {
        add(&mut sum, &of(container));
    }
    let (mut beside, mut most) = (Amounts::new(), Amounts::new());
    for container in pod.array_at(&["spec", "initContainers"]) {
        let mut needed = of(container);
        if text(container, "restartPolicy") == "Always" {
            add(&mut sum, &needed);
            add(&mut beside, &needed);
            needed.clone_from(&beside);
        } else {
            add(&mut needed, &beside);
        }
        raise(&mut most, needed);
    }
    raise(&mut sum, most);
    sum.extend(amounts(pod.at(&["spec", "resources", kind])));
    sum
}

fn raise(into: &mut Amounts, to: Amounts) {
    for (name, amount) in to {
        let most = into.get(&name).map_or(amount, |before| amount.max(*before));
        into.insert(name, most);
    }
}

/// Which of the limited resources which containers do not name, in Kubernetes' words; `None` when none is missing.
pub fn missing<'a>(limited: impl Iterator<Item = &'a str>, pod: &Object) -> Option<String> {
    let parts = |resources: Option<&Value>| {
        let part = |kind: &str| amounts(resources.and_then(|resources| resources.get(kind)));
        named(&part("requests"), &part("limits"))
    };
    let whole = parts(pod.at(&["spec", "resources"]));
    let containers: Vec<(&str, Amounts)> = ["containers", "initContainers"]
        .iter()
        .flat_map(|kind| pod.array_at(&["spec", kind]))
        .map(|container| (text(container, "name"), parts(container.get("resources"))))
        .collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in limited.filter(|name| REQUIRED.contains(name) && !whole.contains_key(*name)) {
        for (container, _) in containers.iter().filter(|(_, given)| !given.contains_key(name)) {
            missing.entry(name).or_default().insert(container);
        }
    }
    let each = |(name, containers): (&str, BTreeSet<&str>)| {
        format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
    };
    let told: Vec<String> = missing.into_iter().map(each).collect();
    (!told.is_empty()).then(|| format!("must specify {}", told.join("; ")))
}

pub(super) fn is_in(scope: &Scope<'_>, pod: &Object) -> bool {
    let is_terminating = pod.i64_at(&["spec", "activeDeadlineSeconds"]).is_some_and(|seconds| seconds >= 0);
    let is_best_effort = pod.str_at(&["status", "qosClass"]) == Some("BestEffort");
    match scope.name {
        "Terminating" => is_terminating,
        "NotTerminating" => !is_terminating,
        "BestEffort" => is_best_effort,
        "NotBestEffort" => !is_best_effort,
        "PriorityClass" => has_priority_class(scope, pod),
        "CrossNamespacePodAffinity" => looks_beyond(pod),
        _ => false,
    }
}

fn has_priority_class(scope: &Scope<'_>, pod: &Object) -> bool {
    let class = pod.str_at(&["spec", "priorityClassName"]).unwrap_or_default();
    match scope.operator {
        "Exists" => !class.is_empty(),
        "DoesNotExist" => class.is_empty(),
        "In" => !class.is_empty() && scope.values.contains(&class),
        "NotIn" => !scope.values.contains(&class),
        _ => false,
    }
}

/// Whether the pod wants to be near, or away from, pods of other namespaces.
fn looks_beyond(pod: &Object) -> bool {
    let beyond = |term: &Value| !list(term, "namespaces").is_empty() || term.get("namespaceSelector").is_some();
    ["podAffinity", "podAntiAffinity"].iter().filter_map(|kind| pod.at(&["spec", "affinity", kind])).any(|affinity| {
        list(affinity, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(beyond)
            || list(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .filter_map(|weighted| weighted.get("podAffinityTerm"))
                .any(beyond)
    })
}
