//! Tells the API what became of a pod: only what changed, and never more than one request at a time.

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodIP, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde::Serialize;

use crate::{context::Context, pod};

/// The conditions that the agent decides; all others are somebody else's.
const OWN_CONDITIONS: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

/// A strategic merge patch of the status. Lists without a merge key are replaced as a whole.
#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    metadata: Target<'a>,
    status: Change<'a>,
}

/// The uid makes the patch fail where another pod has the name by now.
#[derive(Debug, Serialize)]
struct Target<'a> {
    uid: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change<'a> {
    #[serde(flatten)]
    status: &'a PodStatus,
    conditions: Vec<ConditionPatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "podIPs")]
    pod_ips: Vec<AddressChange<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cleared>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cleared>,
}

/// `null`: the field goes away.
type Cleared = ();

/// Merged by type with the condition that is there: what is not said would stay, so what is absent is `null`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConditionChange<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    status: &'a str,
    last_transition_time: Option<&'a Time>,
    observed_generation: Option<i64>,
    reason: Option<&'a str>,
    message: Option<&'a str>,
}

/// A condition that is not there any more.
#[derive(Debug, Serialize)]
struct ConditionGone<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(rename = "$patch")]
    patch: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ConditionPatch<'a> {
    Is(ConditionChange<'a>),
    Gone(ConditionGone<'a>),
}

impl<'a> ConditionChange<'a> {
    fn of(condition: &'a PodCondition) -> ConditionChange<'a> {
        ConditionChange {
            kind: &condition.type_,
            status: &condition.status,
            last_transition_time: condition.last_transition_time.as_ref(),
            observed_generation: condition.observed_generation,
            reason: condition.reason.as_deref(),
            message: condition.message.as_deref(),
        }
    }
}

#[derive(Debug, Serialize)]
struct AddressChange<'a> {
    ip: &'a str,
    #[serde(rename = "$patch", skip_serializing_if = "Option::is_none")]
    patch: Option<&'static str>,
}

/// The status as the agent owns it, taken from what the API has.
fn own_part(status: &PodStatus) -> PodStatus {
    let conditions = status.conditions.iter().flatten();
    let mut own: Vec<PodCondition> =
        conditions.filter(|condition| OWN_CONDITIONS.contains(&condition.type_.as_str())).cloned().collect();
    sort(&mut own);
    let tidy = |list: &Option<Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        let mut list = list.clone().filter(|list| !list.is_empty());
        for container in list.iter_mut().flatten() {
            // An empty state and no state are the same, and which one comes back is the server's choice.
            container.last_state = container.last_state.take().filter(|state| *state != Default::default());
            container.resources = container.resources.take().filter(|all| *all != Default::default());
            container.container_id = container.container_id.take().filter(|id| !id.is_empty());
        }
        list
    };
    PodStatus {
        conditions: Some(own),
        container_statuses: tidy(&status.container_statuses),
        ephemeral_container_statuses: tidy(&status.ephemeral_container_statuses),
        host_ip: status.host_ip.clone(),
        init_container_statuses: tidy(&status.init_container_statuses),
        message: status.message.clone().filter(|text| !text.is_empty()),
        observed_generation: status.observed_generation,
        phase: status.phase.clone(),
        pod_ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        qos_class: status.qos_class.clone(),
        reason: status.reason.clone().filter(|text| !text.is_empty()),
        start_time: status.start_time.clone(),
        ..PodStatus::default()
    }
}

fn sort(conditions: &mut [PodCondition]) {
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    for condition in conditions {
        condition.last_probe_time = None;
        condition.reason = condition.reason.take().filter(|text| !text.is_empty());
        condition.message = condition.message.take().filter(|text| !text.is_empty());
    }
}

/// Whether the API's status has to be changed to say this.
pub(crate) fn differs(api: Option<&PodStatus>, wanted: &PodStatus) -> bool {
    own_part(&api.cloned().unwrap_or_default()) != own_part(wanted)
}

/// The status to decide with: what the agent reported last, with the conditions that others set since.
pub(crate) fn merged(api: Option<&PodStatus>, own: Option<&PodStatus>) -> PodStatus {
    let api = api.cloned().unwrap_or_default();
    let Some(own) = own else { return api };
    let foreign = api.conditions.iter().flatten().filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str()));
    let mut merged = own.clone();
    merged.conditions = Some(own.conditions.iter().flatten().chain(foreign).cloned().collect());
    // Whoever declares a pod ended has the last word.
    if matches!(api.phase.as_deref(), Some("Failed" | "Succeeded")) {
        merged.phase = api.phase;
        merged.reason = api.reason;
        merged.message = api.message;
    }
    merged
}

/// The conditions that are to be there, and those of the agent's own that are not any more.
fn conditions<'a>(last: &PodStatus, wanted: &'a PodStatus) -> Vec<ConditionPatch<'a>> {
    let has = |status: &PodStatus, kind: &str| status.conditions.iter().flatten().any(|one| one.type_ == kind);
    let gone = OWN_CONDITIONS.iter().filter(|kind| has(last, kind) && !has(wanted, kind));
    let gone = gone.map(|kind| ConditionPatch::Gone(ConditionGone { kind, patch: "delete" }));
    let there = wanted.conditions.iter().flatten().map(|one| ConditionPatch::Is(ConditionChange::of(one)));
    there.chain(gone).collect()
}

impl Context {
    /// Sends the status; gives the pod as the API has it then, or `None` where there is no such pod.
    pub(crate) async fn report(&self, api_pod: &Pod, wanted: &PodStatus) -> Result<Option<Pod>, kube::Error> {
        let Ok(_permit) = self.patches.acquire().await else { return Ok(None) };
        let last = api_pod.status.clone().unwrap_or_default();
        let status = PodStatus { pod_ips: None, conditions: None, ..wanted.clone() };
        let new: Vec<&str> = wanted.pod_ips.iter().flatten().map(|address: &PodIP| address.ip.as_str()).collect();
        let stale = last.pod_ips.iter().flatten().map(|address| address.ip.as_str()).filter(|ip| !new.contains(ip));
        let stale = stale.map(|ip| AddressChange { ip, patch: Some("delete") });
        let patch = StatusPatch {
            metadata: Target { uid: pod::uid(api_pod) },
            status: Change {
                status: &status,
                conditions: conditions(&last, wanted),
                pod_ips: new.iter().map(|ip| AddressChange { ip, patch: None }).chain(stale).collect(),
                reason: (last.reason.is_some() && wanted.reason.is_none()).then_some(()),
                message: (last.message.is_some() && wanted.message.is_none()).then_some(()),
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod::namespace(api_pod));
        self.metrics.patched();
        let sent = api.patch_status(pod::name(api_pod), &PatchParams::default(), &Patch::Strategic(&patch)).await;
        match sent {
            Ok(pod) => Ok(Some(pod)),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{observed::Probes, status::pod_status, testing};

    #[test]
    fn a_patch_replaces_what_changed_and_clears_what_went() {
        let status = PodStatus { phase: Some("Running".to_owned()), ..PodStatus::default() };
        let ready = PodCondition { type_: "Ready".to_owned(), status: "True".to_owned(), ..PodCondition::default() };
        let resize = PodCondition { type_: "PodResizePending".to_owned(), ..PodCondition::default() };
        let resized = PodStatus { conditions: Some(vec![resize]), ..PodStatus::default() };
        let wanted = PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() };
        let patch = StatusPatch {
            metadata: Target { uid: "uid-1" },
            status: Change {
                status: &status,
                conditions: conditions(&resized, &wanted),
                pod_ips: vec![
                    AddressChange { ip: "10.0.0.2", patch: None },
                    AddressChange { ip: "10.0.0.1", patch: Some("delete") },
                ],
                reason: Some(()),
                message: None,
            },
        };
        expect![[r#"{"metadata":{"uid":"uid-1"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":null,"observedGeneration":null,"reason":null,"message":null},{"type":"PodResizePending","$patch":"delete"}],"podIPs":[{"ip":"10.0.0.2"},{"ip":"10.0.0.1","$patch":"delete"}],"reason":null}}"#]]
            .assert_eq(&serde_json::to_string(&patch).unwrap());
    }

    #[test]
    fn a_status_that_came_back_needs_no_patch() {
        let pod = testing::pod(&["a"]);
        let now = testing::at(0) + jiff::SignedDuration::from_millis(345);
        let status = pod_status(&pod, &testing::prepared(&pod), &Probes::default(), now);
        let json = serde_json::to_vec(&status).unwrap();
        let back: PodStatus = serde_json::from_slice(&json).unwrap();
        assert!(!differs(Some(&back), &status));
        assert!(differs(None, &status));
    }

    #[test]
    fn foreign_conditions_and_an_end_from_outside_are_kept() {
        let gate = PodCondition { type_: "example.org/gate".into(), status: "True".into(), ..Default::default() };
        let api = PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some("Evicted".to_owned()),
            conditions: Some(vec![gate]),
            ..PodStatus::default()
        };
        let own = PodStatus { phase: Some("Running".to_owned()), ..PodStatus::default() };
        let merged = merged(Some(&api), Some(&own));
        assert_eq!((merged.phase.as_deref(), merged.reason.as_deref()), (Some("Failed"), Some("Evicted")));
        assert_eq!(merged.conditions.unwrap().len(), 1);
    }
}
