//! What the scheduler writes: bindings, why a pod has none, and who makes room for it.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::Request,
};
use serde::Serialize;
use tandem_api::TRACE_ANNOTATION;
use tandem_client::{
    events::{Note, Severity},
    volumes::SELECTED_NODE,
};

use crate::{
    preemption::Victim,
    snapshot::{PREEMPTION, PodInfo},
};

/// A write that takes longer counts as failed.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// Victims of one preemption that are told at a time.
const VICTIMS_AT_A_TIME: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the binding could not be built: {0}")]
    Request(#[from] kube::core::request::Error),
    #[error("the binding could not be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("the API did not answer")]
    Timeout,
}

impl Error {
    fn code(&self) -> u16 {
        match self {
            Error::Api(kube::Error::Api(status)) => status.code,
            _ => 0,
        }
    }

    /// The pod is gone: there is nothing to schedule any more.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// The pod has changed meanwhile: the informer will say how.
    pub(crate) fn is_race(&self) -> bool {
        self.code() == 409
    }
}

/// Gives the pod its node. The uid keeps a successor with its name from getting it.
pub(crate) async fn bind(client: &kube::Client, pod: &PodInfo, node: &str) -> Result<(), Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let body = serde_json::to_vec(&binding)?;
    let request = Request::new(Pod::url_path(&(), Some(&pod.namespace)));
    client.request_text(request.create_subresource("binding", &pod.name, &PostParams::default(), body)?).await?;
    Ok(())
}

#[derive(Debug, Serialize)]
struct Selection<'a> {
    metadata: SelectionMeta<'a>,
}

#[derive(Debug, Serialize)]
struct SelectionMeta<'a> {
    annotations: BTreeMap<&'a str, Option<&'a str>>,
}

/// Tells claims which node their volumes are for, or that none is chosen any more.
pub(crate) async fn select(
    client: &kube::Client,
    pod: &PodInfo,
    claims: &[String],
    node: Option<&str>,
) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &pod.namespace);
    let annotations = BTreeMap::from([(SELECTED_NODE, node)]);
    let selection = Selection { metadata: SelectionMeta { annotations } };
    for claim in claims {
        api.patch(claim, &PatchParams::default(), &Patch::Merge(&selection)).await?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Identity<'a>>,
    status: Status<'a>,
}

/// Keeps a successor of the same name from what is meant for another pod.
#[derive(Debug, Serialize)]
struct Identity<'a> {
    uid: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    conditions: Option<[Condition<'a>; 1]>,
    /// Nothing is left as it is, nothing inside is taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    nominated_node_name: Option<Option<&'a str>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition<'a> {
    r#type: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_transition_time: Option<Time>,
}

async fn patch(client: &kube::Client, namespace: &str, name: &str, patch: &StatusPatch<'_>) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

/// What becomes of `status.nominatedNodeName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nomination {
    Keep,
    Set(String),
    Clear,
}

/// Writes the reason into the pod's condition, and where room is made for it, unless both are there already.
pub(crate) async fn explain(
    client: &kube::Client,
    pod: &PodInfo,
    message: &str,
    nomination: &Nomination,
    now: Timestamp,
) -> Result<(), Error> {
    let nominated_node_name = match nomination {
        Nomination::Set(node) if pod.nominated.as_ref() != Some(node) => Some(Some(node.as_str())),
        Nomination::Clear if pod.nominated.is_some() => Some(None),
        Nomination::Keep | Nomination::Set(_) | Nomination::Clear => None,
    };
    let is_said = pod.waiting_because.as_deref() == Some(message);
    if is_said && nominated_node_name.is_none() {
        return Ok(());
    }
    let condition = Condition {
        r#type: "PodScheduled",
        status: "False",
        reason: "Unschedulable",
        message,
        last_transition_time: pod.waiting_because.is_none().then_some(Time(now)),
    };
    let conditions = (!is_said).then_some([condition]);
    let status = Status { conditions, nominated_node_name };
    patch(client, &pod.namespace, &pod.name, &StatusPatch { metadata: None, status }).await
}

/// Takes back where room was made for a pod: one of higher priority needs it.
pub(crate) async fn denominate(client: &kube::Client, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let status = Status { conditions: None, nominated_node_name: Some(None) };
    patch(client, namespace, name, &StatusPatch { metadata: Some(Identity { uid }), status }).await
}

/// Has the victims end in order, and says which of them could not be told.
pub(crate) async fn preempt(
    client: &kube::Client,
    victims: &[Victim],
    scheduler: &str,
    now: Timestamp,
) -> Vec<(String, Error)> {
    let message = format!("{scheduler}: preempting to accommodate a higher priority pod");
    let running: Vec<Victim> = victims.iter().filter(|victim| !victim.terminating).cloned().collect();
    let told = stream::iter(running).map(|victim| {
        let (client, message) = (client.clone(), message.clone());
        async move {
            let end = tokio::time::timeout(WRITE_MAX, end(&client, &victim, &message, now)).await;
            let error = end.unwrap_or(Err(Error::Timeout)).err()?;
            // Who is gone, or another by now, makes room as well.
            let is_gone = error.is_not_found() || error.is_race();
            (!is_gone).then_some((victim.uid, error))
        }
    });
    told.buffer_unordered(VICTIMS_AT_A_TIME).filter_map(std::future::ready).collect().await
}

async fn end(client: &kube::Client, victim: &Victim, message: &str, now: Timestamp) -> Result<(), Error> {
    let condition = Condition {
        r#type: "DisruptionTarget",
        status: "True",
        reason: PREEMPTION,
        message,
        last_transition_time: Some(Time(now)),
    };
    let status = Status { conditions: Some([condition]), nominated_node_name: None };
    let uid = victim.uid.as_str();
    patch(client, &victim.namespace, &victim.name, &StatusPatch { metadata: Some(Identity { uid }), status }).await?;
    let api: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    let only = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
    api.delete(&victim.name, &DeleteParams { preconditions: Some(only), ..DeleteParams::default() }).await?;
    Ok(())
}

pub(crate) fn scheduled(pod: &PodInfo, node: &str) -> Note {
    let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
    note(pod, Severity::Normal, "Scheduled", message)
}

pub(crate) fn failed(pod: &PodInfo, message: String) -> Note {
    note(pod, Severity::Warning, "FailedScheduling", message)
}

pub(crate) fn preempted(victim: &Victim, pod: &PodInfo, node: &str) -> Note {
    let regarding = reference(&victim.namespace, &victim.name, &victim.uid);
    let message = format!("Preempted by pod {} on node {node}", pod.uid);
    Note::new(regarding, Severity::Normal, "Preempted", message)
}

fn reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

fn note(pod: &PodInfo, severity: Severity, reason: &str, message: String) -> Note {
    let regarding = reference(&pod.namespace, &pod.name, &pod.uid);
    let mut note = Note::new(regarding, severity, reason, message);
    note.annotations.extend(pod.trace.iter().map(|trace| (TRACE_ANNOTATION.to_owned(), trace.clone())));
    note
}
