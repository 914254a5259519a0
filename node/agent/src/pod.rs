//! What a Pod object says, as the agent asks it.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerStatus, EphemeralContainer, Pod, PodSpec, PodStatus, Probe,
};
use sha2::{Digest, Sha256};
use tandem_api::{TRACE_ANNOTATION, WASM_RUNTIME_CLASS};
use tandem_runtime::PodRef;

/// What Kubernetes grants where a pod says nothing.
const GRACE_SECONDS_DEFAULT: i64 = 30;

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// `NAME_NAMESPACE(UID)`, as messages about back-off name a pod.
pub(crate) fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub(crate) fn reference(pod: &Pod, attempt: u32) -> PodRef {
    PodRef { name: name(pod).to_owned(), namespace: namespace(pod).to_owned(), uid: uid(pod).to_owned(), attempt }
}

pub(crate) fn trace(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(TRACE_ANNOTATION).map(String::as_str)
}

pub(crate) fn deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub(crate) fn grace_seconds(pod: &Pod) -> i64 {
    let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(GRACE_SECONDS_DEFAULT).max(0)
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The pod says that all its containers are components.
pub(crate) fn wants_components(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()) == Some(WASM_RUNTIME_CLASS)
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Runs to its end before the next one.
    Init,
    /// An init container that stays: `restartPolicy: Always`.
    Sidecar,
    Main,
    /// Added to a pod that runs, to look into it: started once, whatever becomes of it.
    Ephemeral,
}

/// The containers that a pod is made of with their parts, in the order in which they start: without the ephemeral.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = (Part, &Spec)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let part = |container: &Spec| if is_sidecar(container) { Part::Sidecar } else { Part::Init };
    init.iter().map(move |container| (part(container), container)).chain(main.iter().map(|c| (Part::Main, c)))
}

/// The ephemeral containers, as the containers that they are.
pub(crate) fn ephemeral(pod: &Pod) -> impl Iterator<Item = Spec> {
    let added = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    added.iter().map(as_container)
}

/// Every container that a pod names.
pub(crate) fn all_containers(pod: &Pod) -> impl Iterator<Item = (Part, Cow<'_, Spec>)> {
    let made_of = containers(pod).map(|(part, spec)| (part, Cow::Borrowed(spec)));
    made_of.chain(ephemeral(pod).map(|spec| (Part::Ephemeral, Cow::Owned(spec))))
}

pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Part, Cow<'a, Spec>)> {
    all_containers(pod).find(|(_, container)| container.name == name)
}

/// The container whose processes an ephemeral one wants to see.
pub(crate) fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let added = pod.spec.as_ref()?.ephemeral_containers.as_ref()?;
    let target = added.iter().find(|container| container.name == name)?.target_container_name.as_deref();
    target.filter(|target| !target.is_empty())
}

/// The two types have the same fields, and of these an ephemeral container may use some.
fn as_container(added: &EphemeralContainer) -> Spec {
    Spec {
        args: added.args.clone(),
        command: added.command.clone(),
        env: added.env.clone(),
        env_from: added.env_from.clone(),
        image: added.image.clone(),
        image_pull_policy: added.image_pull_policy.clone(),
        name: added.name.clone(),
        security_context: added.security_context.clone(),
        stdin: added.stdin,
        stdin_once: added.stdin_once,
        termination_message_path: added.termination_message_path.clone(),
        termination_message_policy: added.termination_message_policy.clone(),
        tty: added.tty,
        volume_devices: added.volume_devices.clone(),
        volume_mounts: added.volume_mounts.clone(),
        working_dir: added.working_dir.clone(),
        ..Spec::default()
    }
}

fn is_sidecar(container: &Spec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// When an ended container is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

pub(crate) fn pod_restart_policy(pod: &Pod) -> RestartPolicy {
    policy(pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()))
}

fn policy(text: Option<&str>) -> RestartPolicy {
    match text {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// The policy of one container: its own, else the pod's; an init container that must end is never run again after
/// success, whatever the pod says.
pub(crate) fn restart_policy(pod: &Pod, part: Part, container: &Spec) -> RestartPolicy {
    let own = container.restart_policy.as_deref();
    let chosen = if own.is_some() { policy(own) } else { pod_restart_policy(pod) };
    match (part, chosen) {
        (Part::Sidecar, _) => RestartPolicy::Always,
        (Part::Ephemeral, _) => RestartPolicy::Never,
        (Part::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (Part::Init | Part::Main, chosen) => chosen,
    }
}

/// Whether a rule of the container starts it anew after this exit code, whatever its policy says.
pub(crate) fn restart_rule(container: &Spec, code: i32) -> bool {
    container.restart_policy_rules.iter().flatten().filter(|rule| rule.action == "Restart").any(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let named = codes.values.iter().flatten().any(|value| *value == code);
        match codes.operator.as_str() {
            "In" => named,
            "NotIn" => !named,
            _ => false,
        }
    })
}

/// Changes when the container must be made anew: with its name or image, as Kubernetes has it.
pub(crate) fn spec_hash(container: &Spec) -> u64 {
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or_default().as_bytes());
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// What the API or the cache last said about a container.
pub(crate) fn last_status<'a>(pod: &'a Pod, part: Part, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let list = match part {
        Part::Main => status.container_statuses.as_ref(),
        Part::Init | Part::Sidecar => status.init_container_statuses.as_ref(),
        Part::Ephemeral => status.ephemeral_container_statuses.as_ref(),
    };
    list?.iter().find(|status| status.name == name)
}

pub(crate) fn condition_is_true(status: Option<&PodStatus>, kind: &str) -> bool {
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

pub(crate) fn liveness_grace(probe: Option<&Probe>, pod: &Pod) -> i64 {
    probe.and_then(|probe| probe.termination_grace_period_seconds).unwrap_or_else(|| grace_seconds(pod))
}

pub(crate) fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}
