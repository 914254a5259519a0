//! How far a recommendation is followed at once: stabilization windows, and policies that bound the rate of change.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Kubernetes' `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWN_WINDOW_SECONDS: i32 = 300;
/// The longest window and the longest period that a user may ask for.
const WINDOW_MAX: Duration = Duration::from_secs(3600);
/// One is made every 15 s; more come from changes of the autoscaler.
const REMEMBERED_MAX: usize = 1024;

/// A number at a moment: replicas that were recommended, or that were added or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) replicas: i32,
    pub(super) at: Timestamp,
}

/// A rescale of which the outcome has not been seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rescale {
    pub(super) from: i32,
    pub(super) to: i32,
    pub(super) reason: String,
    pub(super) at: Timestamp,
}

/// What was recommended and done lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) recommendations: Vec<Moment>,
    pub(super) added: Vec<Moment>,
    pub(super) taken: Vec<Moment>,
    pub(super) asked: Option<Rescale>,
    /// When requests last waited for the workload at zero.
    pub(super) woken: Option<Timestamp>,
}

fn is_after(moment: &Moment, seconds: i32, now: Timestamp) -> bool {
    let age = Duration::try_from(now.duration_since(moment.at)).unwrap_or(Duration::ZERO);
    age < Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl Past {
    /// Whoever begins to look starts from what there is.
    pub(super) fn begin(&mut self, replicas: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push(Moment { replicas, at: now });
        }
    }

    pub(super) fn recommend(&mut self, replicas: i32, now: Timestamp) {
        remember(&mut self.recommendations, Moment { replicas, at: now }, now);
    }

    /// Somebody waits for the workload: it is wanted with so many replicas, whatever was measured before.
    pub(super) fn wake(&mut self, replicas: i32, now: Timestamp) {
        self.woken = Some(now);
        self.recommend(replicas, now);
    }

    /// Takes note of a rescale that did happen.
    pub(super) fn settle(&mut self, rescale: &Rescale) {
        let change = rescale.to - rescale.from;
        let list = if change > 0 { &mut self.added } else { &mut self.taken };
        remember(list, Moment { replicas: change.abs(), at: rescale.at }, rescale.at);
    }

    fn changed(list: &[Moment], seconds: i32, now: Timestamp) -> i32 {
        let changes = list.iter().filter(|moment| is_after(moment, seconds, now)).map(|moment| moment.replicas);
        changes.fold(0, i32::saturating_add)
    }

    /// How many replicas there were when a period began.
    fn before(&self, seconds: i32, current: i32, now: Timestamp) -> i32 {
        let (added, taken) = (Past::changed(&self.added, seconds, now), Past::changed(&self.taken, seconds, now));
        current.saturating_sub(added).saturating_add(taken)
    }
}

fn remember(list: &mut Vec<Moment>, moment: Moment, now: Timestamp) {
    list.retain(|kept| Duration::try_from(now.duration_since(kept.at)).is_ok_and(|age| age <= WINDOW_MAX));
    if list.len() >= REMEMBERED_MAX {
        list.remove(0);
    }
    list.push(moment);
}

/// A condition's reason and message.
pub(super) type Words = (&'static str, &'static str);

const READY: Words = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Words = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Words = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Words = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Words = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Words = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FAST_UP: Words =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Words =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// The replicas that there may be, of those that are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) least: i32,
    pub(super) most: i32,
    pub(super) current: i32,
}

/// What becomes of a recommendation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    pub(super) replicas: i32,
    /// `AbleToScale` is true for this reason.
    pub(super) able: Words,
    /// Whether it was limited, and why.
    pub(super) limited: (bool, Words),
}

/// Applies windows and rates; the recommendation becomes a part of the past.
pub(super) fn limit(
    past: &mut Past,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    bounds: Bounds,
    desired: i32,
    now: Timestamp,
) -> Limited {
    let (stable, words) = match behavior {
        None => {
            let recent = past.recommendations.iter().filter(|moment| is_after(moment, DOWN_WINDOW_SECONDS, now));
            (recent.map(|moment| moment.replicas).fold(desired, i32::max), DOWN_STABILIZED)
        }
        Some(behavior) => stabilized(past, behavior, bounds.current, desired, now),
    };
    past.recommend(desired, now);
    let (replicas, why) = match behavior {
        None => within(bounds, stable),
        Some(behavior) => at_rate(past, behavior, bounds, stable, now),
    };
    let able = if stable == desired { READY } else { words };
    Limited { replicas, able, limited: (replicas != stable, why) }
}

/// Neither below what was recommended least, nor above what was recommended most, in the windows of both directions.
fn stabilized(
    past: &Past,
    behavior: &HorizontalPodAutoscalerBehavior,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> (i32, Words) {
    let window = |rules: &Option<HPAScalingRules>, default| {
        rules.as_ref().and_then(|rules| rules.stabilization_window_seconds).unwrap_or(default)
    };
    let recent = |seconds: i32| past.recommendations.iter().filter(move |moment| is_after(moment, seconds, now));
    let up = window(&behavior.scale_up, 0);
    let down = window(&behavior.scale_down, DOWN_WINDOW_SECONDS);
    let lowest = recent(up).map(|moment| moment.replicas).fold(desired, i32::min);
    let highest = recent(down).map(|moment| moment.replicas).fold(desired, i32::max);
    let stable = current.max(lowest).min(highest);
    (stable, if desired >= current { UP_STABILIZED } else { DOWN_STABILIZED })
}

/// Without rules of its own: at most doubled, or to four.
fn within(bounds: Bounds, desired: i32) -> (i32, Words) {
    let fastest = bounds.current.saturating_mul(2).max(4);
    let (most, why) = if bounds.most > fastest { (fastest, TOO_FAST_UP) } else { (bounds.most, TOO_MANY) };
    if desired < bounds.least {
        (bounds.least, TOO_FEW)
    } else if desired > most {
        (most, why)
    } else {
        (desired, WITHIN)
    }
}

fn at_rate(
    past: &Past,
    behavior: &HorizontalPodAutoscalerBehavior,
    bounds: Bounds,
    desired: i32,
    now: Timestamp,
) -> (i32, Words) {
    let current = bounds.current;
    if desired > current {
        let fastest = rate(past, behavior.scale_up.as_ref(), Direction::Up, current, now).max(current);
        let (most, why) = if bounds.most > fastest { (fastest, TOO_FAST_UP) } else { (bounds.most, TOO_MANY) };
        if desired > most {
            return (most, why);
        }
    } else if desired < current {
        let fastest = rate(past, behavior.scale_down.as_ref(), Direction::Down, current, now).min(current);
        let (least, why) = if bounds.least < fastest { (fastest, TOO_FAST_DOWN) } else { (bounds.least, TOO_FEW) };
        if desired < least {
            return (least, why);
        }
    }
    (desired, WITHIN)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// The furthest that the policies of a direction allow. The API server fills in what the user left out.
fn rate(past: &Past, rules: Option<&HPAScalingRules>, direction: Direction, current: i32, now: Timestamp) -> i32 {
    let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let proposals = rules.into_iter().flat_map(|rules| rules.policies.iter().flatten()).map(|policy| {
        let start = past.before(policy.period_seconds, current, now);
        match (policy.type_.as_str(), direction) {
            ("Pods", Direction::Up) => start.saturating_add(policy.value),
            ("Pods", Direction::Down) => start.saturating_sub(policy.value),
            (_, Direction::Up) => percent(start, 100 + i64::from(policy.value), true),
            (_, Direction::Down) => percent(start, 100 - i64::from(policy.value), false),
        }
    });
    // The most change is the highest number upwards and the lowest downwards.
    let found = match (select == "Min") == (direction == Direction::Up) {
        true => proposals.min(),
        false => proposals.max(),
    };
    found.unwrap_or(current)
}

/// Rounded up where it goes up, so that one becomes more at any rate; cut off where it goes down.
fn percent(of: i32, percent: i64, up: bool) -> i32 {
    let product = i64::from(of) * percent;
    let share = if up { product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0) } else { product / 100 };
    i32::try_from(share).unwrap_or(i32::MAX)
}
