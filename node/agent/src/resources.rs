//! Requests and limits: the pod's class of service, and what the runtime has to enforce.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container as Spec, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use tandem_runtime::Limits;

use crate::{pod, quantity};

const CPU_PERIOD_US: i64 = 100_000;
const CPU_QUOTA_US_MIN: i64 = 1_000;
const CPU_SHARES_MIN: i64 = 2;
const CPU_SHARES_MAX: i64 = 262_144;
const CPU_SHARES_PER_CORE: i64 = 1024;

const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1000;

/// How a pod is treated when the node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub(crate) fn name(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

type Quantities = BTreeMap<String, Quantity>;

fn amount(quantities: Option<&Quantities>, resource: &str) -> Option<i64> {
    let parsed = quantities?.get(resource).and_then(quantity::thousandths);
    parsed.filter(|amount| *amount > 0)
}

/// A container's request, or its limit where it requests nothing; in thousandths.
pub(crate) fn request(spec: &Spec, resource: &str) -> Option<i64> {
    let resources = spec.resources.as_ref()?;
    amount(resources.requests.as_ref(), resource).or_else(|| amount(resources.limits.as_ref(), resource))
}

fn limit(spec: &Spec, resource: &str) -> Option<i64> {
    amount(spec.resources.as_ref()?.limits.as_ref(), resource)
}

pub(crate) fn memory_limit(spec: &Spec) -> Option<u64> {
    limit(spec, "memory").map(bytes)
}

pub(crate) fn qos_class(pod: &Pod) -> QosClass {
    let mut any = false;
    let mut guaranteed = true;
    for (_, spec) in pod::containers(pod) {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (request(spec, resource), limit(spec, resource));
            any |= request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

fn shares(milli_cpu: i64) -> i64 {
    (milli_cpu * CPU_SHARES_PER_CORE / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

fn quota(milli_cpu: i64) -> i64 {
    (milli_cpu * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN)
}

fn bytes(thousandths: i64) -> u64 {
    u64::try_from(thousandths / 1000).unwrap_or(0)
}

/// The bigger the share of memory that a container asked for, the later it is chosen.
fn oom_score(class: QosClass, memory_request: Option<i64>, node_memory_bytes: u64) -> i64 {
    match class {
        QosClass::Guaranteed => OOM_GUARANTEED,
        QosClass::BestEffort => OOM_BEST_EFFORT,
        QosClass::Burstable => {
            let requested = memory_request.map_or(0, bytes);
            let share = requested.saturating_mul(1000).checked_div(node_memory_bytes).unwrap_or(0);
            let adjusted = 1000 - i64::try_from(share).unwrap_or(1000);
            // Never as early as a pod that asked for nothing, never as late as a guaranteed one.
            adjusted.clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
        }
    }
}

pub(crate) fn limits(pod: &Pod, spec: &Spec, node_memory_bytes: u64) -> Limits {
    let cpu_limit = limit(spec, "cpu");
    Limits {
        memory_bytes: limit(spec, "memory").map(bytes),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(request(spec, "cpu").unwrap_or(0))),
        oom_score_adj: oom_score(qos_class(pod), request(spec, "memory"), node_memory_bytes),
    }
}

/// The bounds of the pod's own cgroup: the sums, where every container has a limit.
pub(crate) fn pod_limits(pod: &Pod) -> Limits {
    let specs: Vec<&Spec> = pod::containers(pod).map(|(_, spec)| spec).collect();
    let sum = |resource: &str| specs.iter().map(|spec| limit(spec, resource)).sum::<Option<i64>>();
    let cpu = sum("cpu").filter(|_| !specs.is_empty());
    let requests = specs.iter().filter_map(|spec| request(spec, "cpu")).sum();
    Limits {
        memory_bytes: sum("memory").filter(|_| !specs.is_empty()).map(bytes),
        cpu_quota_us: cpu.map(quota),
        cpu_period_us: cpu.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(requests)),
        oom_score_adj: 0,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

    use super::*;

    fn quantities(pairs: Pairs<'_>) -> Option<Quantities> {
        let quantity = |(name, text): &(&str, &str)| ((*name).to_owned(), Quantity((*text).to_owned()));
        (!pairs.is_empty()).then(|| pairs.iter().map(quantity).collect())
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    /// Requests and limits of each container.
    fn pod(containers: &[(Pairs<'_>, Pairs<'_>)]) -> Pod {
        let containers = containers.iter().map(|(requests, limits)| Spec {
            resources: Some(ResourceRequirements {
                requests: quantities(requests),
                limits: quantities(limits),
                ..ResourceRequirements::default()
            }),
            ..Spec::default()
        });
        Pod { spec: Some(PodSpec { containers: containers.collect(), ..PodSpec::default() }), ..Pod::default() }
    }

    fn check(containers: &[(Pairs<'_>, Pairs<'_>)], wanted: expect_test::Expect) {
        let pod = pod(containers);
        let gib = 1 << 30;
        let specs: Vec<_> = pod::containers(&pod).map(|(_, spec)| limits(&pod, spec, gib)).collect();
        wanted.assert_eq(&format!("{:?}\n{specs:?}\npod {:?}", qos_class(&pod), pod_limits(&pod)));
    }

    #[test]
    fn nothing_asked_is_best_effort() {
        check(
            &[(&[], &[])],
            expect_test::expect![[r#"
            BestEffort
            [Limits { memory_bytes: None, cpu_quota_us: None, cpu_period_us: None, cpu_shares: Some(2), oom_score_adj: 1000 }]
            pod Limits { memory_bytes: None, cpu_quota_us: None, cpu_period_us: None, cpu_shares: Some(2), oom_score_adj: 0 }"#]],
        );
    }

    #[test]
    fn limits_alone_are_guaranteed() {
        check(
            &[(&[], &[("cpu", "500m"), ("memory", "64Mi")])],
            expect_test::expect![[r#"
            Guaranteed
            [Limits { memory_bytes: Some(67108864), cpu_quota_us: Some(50000), cpu_period_us: Some(100000), cpu_shares: Some(512), oom_score_adj: -997 }]
            pod Limits { memory_bytes: Some(67108864), cpu_quota_us: Some(50000), cpu_period_us: Some(100000), cpu_shares: Some(512), oom_score_adj: 0 }"#]],
        );
    }

    #[test]
    fn one_container_without_a_limit_frees_the_pod() {
        check(
            &[(&[("memory", "256Mi")], &[("memory", "512Mi")]), (&[], &[])],
            expect_test::expect![[r#"
            Burstable
            [Limits { memory_bytes: Some(536870912), cpu_quota_us: None, cpu_period_us: None, cpu_shares: Some(2), oom_score_adj: 750 }, Limits { memory_bytes: None, cpu_quota_us: None, cpu_period_us: None, cpu_shares: Some(2), oom_score_adj: 999 }]
            pod Limits { memory_bytes: None, cpu_quota_us: None, cpu_period_us: None, cpu_shares: Some(2), oom_score_adj: 0 }"#]],
        );
    }
}
