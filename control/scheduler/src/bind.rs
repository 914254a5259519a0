//! What the scheduler writes: bindings, and why a pod has none.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Resource,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    core::Request,
};
use serde::Serialize;
use tandem_api::TRACE_ANNOTATION;
use tandem_client::{
    events::{Note, Severity},
    volumes::SELECTED_NODE,
};

use crate::snapshot::PodInfo;

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
    annotations: BTreeMap<&'a str, &'a str>,
}

/// Tells claims which node their volumes are for.
pub(crate) async fn select(client: &kube::Client, pod: &PodInfo, claims: &[String], node: &str) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &pod.namespace);
    let annotations = BTreeMap::from([(SELECTED_NODE, node)]);
    let selection = Selection { metadata: SelectionMeta { annotations } };
    for claim in claims {
        api.patch(claim, &PatchParams::default(), &Patch::Merge(&selection)).await?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Waiting<'a> {
    status: WaitingStatus<'a>,
}

#[derive(Debug, Serialize)]
struct WaitingStatus<'a> {
    conditions: [Condition<'a>; 1],
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

/// Writes the reason into the pod's condition, unless it is there already.
pub(crate) async fn explain(client: &kube::Client, pod: &PodInfo, message: &str, now: Timestamp) -> Result<(), Error> {
    if pod.waiting_because.as_deref() == Some(message) {
        return Ok(());
    }
    let condition = Condition {
        r#type: "PodScheduled",
        status: "False",
        reason: "Unschedulable",
        message,
        last_transition_time: pod.waiting_because.is_none().then_some(Time(now)),
    };
    let waiting = Waiting { status: WaitingStatus { conditions: [condition] } };
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(&waiting)).await?;
    Ok(())
}

pub(crate) fn scheduled(pod: &PodInfo, node: &str) -> Note {
    let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
    note(pod, Severity::Normal, "Scheduled", message)
}

pub(crate) fn failed(pod: &PodInfo, message: String) -> Note {
    note(pod, Severity::Warning, "FailedScheduling", message)
}

fn note(pod: &PodInfo, severity: Severity, reason: &str, message: String) -> Note {
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    };
    let mut note = Note::new(regarding, severity, reason, message);
    note.annotations.extend(pod.trace.iter().map(|trace| (TRACE_ANNOTATION.to_owned(), trace.clone())));
    note
}
