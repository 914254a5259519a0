//! How many replicas one metric asks for.
//!
//! `ceil(replicas * use / target)`, unless the ratio is within the tolerance. Pods that were not measured, or are not
//! ready yet, are first left out and then counted so that they dampen whatever would be done.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::usage::{self, Reading};
use crate::{object, pod};

/// CPU is not counted in this time after a pod's start unless it is ready: starting costs more than running.
const INITIALIZATION: Duration = Duration::from_secs(300);
/// A pod that became unready within this time after its start has never been ready.
const FIRST_READINESS: Duration = Duration::from_secs(30);

/// How far from the target use may be before anything is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn has(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// What a metric is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Percent of what the pods request.
    Utilization(i32),
    /// Thousandths, for each pod.
    Average(i64),
}

/// What a metric is, and how many replicas it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent of what is requested, where that was asked.
    pub(super) utilization: Option<i32>,
    /// Thousandths, for each pod.
    pub(super) average: i64,
}

impl Proposal {
    /// Of a workload without pods, which have nothing that could be measured.
    pub(super) const ZERO: Proposal = Proposal { replicas: 0, utilization: None, average: 0 };
}

/// One metric of one target at one moment.
pub(super) struct Question<'a> {
    pub(super) current: i32,
    pub(super) goal: Goal,
    pub(super) tolerance: Tolerance,
    pub(super) resource: &'a str,
    pub(super) container: Option<&'a str>,
    pub(super) pods: &'a [Pod],
    pub(super) readings: BTreeMap<String, Reading>,
    pub(super) now: Timestamp,
}

/// The pods by what is known of their use.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

pub(super) fn propose(question: &Question<'_>) -> Result<Proposal, String> {
    if question.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = groups(question);
    let mut measured: BTreeMap<&str, i64> = question
        .readings
        .iter()
        .filter(|(name, _)| !groups.ignored.contains(*name) && !groups.unready.contains(*name))
        .map(|(name, reading)| (name.as_str(), reading.milli))
        .collect();
    if measured.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match question.goal {
        Goal::Utilization(_) => requests(question)?,
        Goal::Average(_) => BTreeMap::new(),
    };
    let (ratio, utilization, average) = ratio(&measured, &requests, question.goal)?;
    let proposal = |replicas| Proposal { replicas, utilization, average };
    let scales_up_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !scales_up_unready && groups.missing.is_empty() {
        return Ok(proposal(match question.tolerance.has(ratio) {
            true => question.current,
            false => ceil(ratio, groups.ready),
        }));
    }
    // As far from a change as they could be: at their target when it would go down, idle when it would go up.
    for name in &groups.missing {
        let assumed = match question.goal {
            Goal::Utilization(target) if ratio < 1.0 => {
                let request = requests.get(name.as_str()).copied().unwrap_or(0);
                request.saturating_mul(i64::from(target.max(100))) / 100
            }
            Goal::Utilization(_) if ratio == 1.0 => continue,
            Goal::Average(target) if ratio < 1.0 => target,
            _ => 0,
        };
        measured.insert(name, assumed);
    }
    if scales_up_unready {
        measured.extend(groups.unready.iter().map(|name| (name.as_str(), 0)));
    }
    let (new, _, _) = self::ratio(&measured, &requests, question.goal)?;
    let turned = (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0);
    if question.tolerance.has(new) || turned {
        return Ok(proposal(question.current));
    }
    let replicas = ceil(new, measured.len());
    let turned = (new < 1.0 && replicas > question.current) || (new > 1.0 && replicas < question.current);
    Ok(proposal(if turned { question.current } else { replicas }))
}

/// What a value of one thing asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole {
    /// Thousandths, as is the goal.
    pub(super) value: i64,
    pub(super) goal: i64,
    pub(super) tolerance: Tolerance,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a float becomes the nearest integer")]
impl Whole {
    /// Where the goal is that of all pods together.
    pub(super) fn replicas(self, current: i32, ready: usize) -> i32 {
        let ratio = self.value as f64 / self.goal as f64;
        match current {
            // Nobody shares it: so many times the goal takes so many pods.
            0 => ratio.ceil() as i32,
            _ if self.tolerance.has(ratio) => current,
            _ => ceil(ratio, ready),
        }
    }

    /// Where the goal is that of each pod, and what each has of the value.
    pub(super) fn per_pod(self, running: i32) -> (i32, i64) {
        let each = self.value as f64 / f64::from(running.max(1));
        let ratio = each / self.goal as f64;
        let replicas = if running > 0 && self.tolerance.has(ratio) {
            running
        } else {
            (self.value as f64 / self.goal as f64).ceil() as i32
        };
        (replicas, each.ceil() as i64)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a float becomes the nearest integer")]
fn ceil(ratio: f64, pods: usize) -> i32 {
    (ratio * pods as f64).ceil() as i32
}

/// Use against the goal, the percentage where that is the goal, and the use of each pod.
#[allow(clippy::cast_precision_loss, reason = "amounts of pods are far below what a float counts exactly")]
fn ratio(
    measured: &BTreeMap<&str, i64>,
    requests: &BTreeMap<&str, i64>,
    goal: Goal,
) -> Result<(f64, Option<i32>, i64), String> {
    match goal {
        Goal::Utilization(target) => {
            let known = measured.iter().filter_map(|(name, used)| Some((*used, *requests.get(name)?)));
            let (mut used, mut requested, mut count) = (0_i64, 0_i64, 0_i64);
            for (use_, request) in known {
                used = used.saturating_add(use_);
                requested = requested.saturating_add(request);
                count += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let percent = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
            Ok((f64::from(percent) / f64::from(target), Some(percent), used / count.max(1)))
        }
        Goal::Average(target) => {
            let total = measured.values().fold(0_i64, |total, used| total.saturating_add(*used));
            let average = total / i64::try_from(measured.len().max(1)).unwrap_or(i64::MAX);
            Ok((average as f64 / target as f64, None, average))
        }
    }
}

fn groups(question: &Question<'_>) -> Groups {
    let mut groups = Groups::default();
    for one in question.pods {
        let name = object::name(&one.metadata).to_owned();
        if object::is_deleting(&one.metadata) || pod::phase(one) == "Failed" {
            groups.ignored.insert(name);
        } else if pod::phase(one) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(reading) = question.readings.get(&name) {
            if question.resource == "cpu" && is_starting(one, *reading, question.now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether what was measured is the work of starting rather than of serving.
fn is_starting(one: &Pod, reading: Reading, now: Timestamp) -> bool {
    let started = one.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(condition), Some(started)) = (pod::condition(one, "Ready"), started) else { return true };
    let changed = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let unready = condition.status == "False";
    let after = |at: Timestamp, by: Duration| at.checked_add(by).unwrap_or(Timestamp::MAX);
    if after(started, INITIALIZATION) > now {
        return unready || reading.at < after(changed, reading.window);
    }
    unready && after(started, FIRST_READINESS) > changed
}

/// What each pod requests of the resource, in thousandths.
fn requests<'a>(question: &Question<'a>) -> Result<BTreeMap<&'a str, i64>, String> {
    let (resource, container) = (question.resource, question.container);
    let mut requests = BTreeMap::new();
    for one in question.pods {
        let name = object::name(&one.metadata);
        let Some(spec) = &one.spec else { continue };
        let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
        if let (None, Some(whole)) = (container, whole.and_then(usage::milli)) {
            requests.insert(name, whole);
            continue;
        }
        let is_sidecar = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
        let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
        let mut sum = 0_i64;
        for part in spec.containers.iter().chain(sidecars) {
            if container.is_some_and(|wanted| wanted != part.name) {
                continue;
            }
            let request = part.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
            let request = request.and_then(usage::milli);
            let missing = || format!("missing request for {resource} in container {} of Pod {name}", part.name);
            sum = sum.saturating_add(request.ok_or_else(missing)?);
        }
        requests.insert(name, sum);
    }
    Ok(requests)
}
