//! What a pod's failure means: <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy>.

use k8s_openapi::api::{
    batch::v1::{JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};

use super::Round;
use crate::{object, pod};

const FAIL_JOB: &str = "FailJob";
pub(super) const FAIL_INDEX: &str = "FailIndex";
pub(super) const IGNORE: &str = "Ignore";

/// The first rule that a failed pod meets.
pub(super) struct Matched<'a> {
    pub(super) action: &'a str,
    message: String,
}

pub(super) fn matched<'a>(spec: &'a JobSpec, pod: &Pod) -> Option<Matched<'a>> {
    let policy = spec.pod_failure_policy.as_ref()?;
    if pod::phase(pod) != "Failed" {
        return None;
    }
    policy.rules.iter().enumerate().find_map(|(index, rule)| {
        let why = exit(rule, pod).or_else(|| in_condition(rule, pod))?;
        let message = format!("{why} matching {} rule at index {index}", rule.action);
        Some(Matched { action: &rule.action, message })
    })
}

/// The message of the first pod that fails the whole Job.
pub(super) fn fails_job(round: &Round<'_>) -> Option<String> {
    let failed = round.pods.iter().filter(|pod| round.is_failed(pod));
    let mut matches = failed.filter_map(|pod| matched(round.spec, pod));
    matches.find(|matched| matched.action == FAIL_JOB).map(|matched| matched.message)
}

fn exit(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    containers.filter(|container| wanted.container_name.as_ref().is_none_or(|name| *name == container.name)).find_map(
        |container| {
            let code = exit_code(container).filter(|code| exit_matches(wanted, *code))?;
            let (namespace, name) = (object::namespace(&pod.metadata), object::name(&pod.metadata));
            Some(format!("Container {} for pod {namespace}/{name} failed with exit code {code}", container.name))
        },
    )
}

/// Zero is no failure, whatever a rule lists.
fn exit_code(container: &ContainerStatus) -> Option<i32> {
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    (code != 0).then_some(code)
}

fn exit_matches(wanted: &PodFailurePolicyOnExitCodesRequirement, code: i32) -> bool {
    match wanted.operator.as_str() {
        "In" => wanted.values.contains(&code),
        "NotIn" => !wanted.values.contains(&code),
        _ => false,
    }
}

fn in_condition(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let has = |kind: &str, status: &str| pod::condition(pod, kind).is_some_and(|condition| condition.status == status);
    let status = |status: &Option<String>| status.clone().unwrap_or_else(|| "True".to_owned());
    let found = rule.on_pod_conditions.iter().flatten().find(|wanted| has(&wanted.type_, &status(&wanted.status)))?;
    let (namespace, name) = (object::namespace(&pod.metadata), object::name(&pod.metadata));
    Some(format!("Pod {namespace}/{name} has condition {}", found.type_))
}
