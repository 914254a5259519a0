use super::MAX;
use crate::{
    profile::{Fit, Strategy},
    snapshot::{NodeInfo, PodInfo, Resources},
};

/// How the node would be used with the pod on it, as the profile's strategy likes it.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo, fit: &Fit) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (resource, weight) in &fit.resources {
        let (has, uses, wants) = amounts(resource, pod, node);
        // A resource that few nodes have counts only for those who want it.
        let is_extended = !matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pods");
        if has <= 0 || (is_extended && wants <= 0) {
            continue;
        }
        sum += weight * points(uses.saturating_add(wants), has, &fit.strategy);
        weights += weight;
    }
    if weights == 0 { 0 } else { sum / weights }
}

/// What the node has, what its pods use and what the pod wants. Of CPU and memory pods use something, whatever they say.
fn amounts(resource: &str, pod: &PodInfo, node: &NodeInfo) -> (i64, i64, i64) {
    let of = |read: fn(&Resources) -> i64, uses: &Resources, wants: &Resources| {
        (read(&node.allocatable), read(uses), read(wants))
    };
    match resource {
        "cpu" => of(|amounts| amounts.milli_cpu, &node.presumed, &pod.presumed),
        "memory" => of(|amounts| amounts.memory, &node.presumed, &pod.presumed),
        "ephemeral-storage" => of(|amounts| amounts.ephemeral_storage, &node.requested, &pod.requests),
        "pods" => of(|amounts| amounts.pods, &node.requested, &pod.requests),
        _ => {
            let of = |amounts: &Resources| amounts.extended.get(resource).copied().unwrap_or(0);
            (of(&node.allocatable), of(&node.requested), of(&pod.requests))
        }
    }
}

fn points(used: i64, has: i64, strategy: &Strategy) -> i64 {
    let percent = if used > has { None } else { i64::try_from(i128::from(used) * 100 / i128::from(has)).ok() };
    match strategy {
        Strategy::LeastAllocated if used > has => 0,
        Strategy::LeastAllocated => {
            i64::try_from(i128::from(has - used) * i128::from(MAX) / i128::from(has)).unwrap_or(0)
        }
        Strategy::MostAllocated => percent.unwrap_or(MAX),
        Strategy::RequestedToCapacityRatio(shape) => along(shape, percent.unwrap_or(100)),
    }
}

/// The score at a use, on the lines between the points of the shape.
fn along(shape: &[(i64, i64)], percent: i64) -> i64 {
    let Some(after) = shape.iter().position(|(use_, _)| percent <= *use_) else {
        return shape.last().map_or(0, |(_, score)| *score);
    };
    let (upper_use, upper) = shape[after];
    match after.checked_sub(1).map(|before| shape[before]) {
        Some((lower_use, lower)) if upper_use > lower_use => {
            lower + (upper - lower) * (percent - lower_use) / (upper_use - lower_use)
        }
        _ => upper,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_like_different_use() {
        let shape = Strategy::RequestedToCapacityRatio(vec![(0, 0), (50, 100), (100, 20)]);
        for (used, least, most, ratio) in
            [(0, 100, 0, 0), (25, 75, 25, 50), (50, 50, 50, 100), (75, 25, 75, 60), (110, 0, 100, 20)]
        {
            let all = [&Strategy::LeastAllocated, &Strategy::MostAllocated, &shape]
                .map(|strategy| points(used, 100, strategy));
            assert_eq!(all, [least, most, ratio], "{used}");
        }
    }

    #[test]
    fn resources_that_are_not_wanted_do_not_count() {
        let mut node =
            NodeInfo { allocatable: Resources { milli_cpu: 1000, ..Resources::default() }, ..NodeInfo::default() };
        node.allocatable.extended.insert("gpu".into(), 4);
        let mut pod = PodInfo { presumed: Resources { milli_cpu: 500, ..Resources::default() }, ..PodInfo::default() };
        let fit = Fit { strategy: Strategy::MostAllocated, resources: vec![("cpu".into(), 1), ("gpu".into(), 3)] };
        assert_eq!(score(&pod, &node, &fit), 50);
        pod.requests.extended.insert("gpu".into(), 4);
        assert_eq!(score(&pod, &node, &fit), (50 + 300) / 4);
    }
}
