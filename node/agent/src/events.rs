//! Events of pods and of the node, with the trace of the request that made the pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, Pod};
use tandem_api::TRACE_ANNOTATION;
use tandem_client::events::{Note, Recorder, Severity, reference};

use crate::pod::{self, Part};

#[derive(Clone, Debug)]
pub(crate) struct Events {
    recorder: Recorder,
    node: ObjectReference,
}

impl Events {
    pub(crate) fn new(recorder: Recorder, node_name: &str) -> Events {
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node_name.to_owned()),
            // As the kubelet has it: a node's Events are found by its name in place of the uid.
            uid: Some(node_name.to_owned()),
            ..ObjectReference::default()
        };
        Events { recorder, node }
    }

    pub(crate) fn normal(&self, pod: &Pod, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.record(pod, container, Severity::Normal, reason, message.into());
    }

    pub(crate) fn warning(&self, pod: &Pod, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.record(pod, container, Severity::Warning, reason, message.into());
    }

    pub(crate) fn node(&self, reason: &str, message: impl Into<String>) {
        self.recorder.record(Note::new(self.node.clone(), Severity::Normal, reason, message));
    }

    pub(crate) fn node_warning(&self, reason: &str, message: impl Into<String>) {
        self.recorder.record(Note::new(self.node.clone(), Severity::Warning, reason, message));
    }

    pub(crate) fn volume(&self, volume: &PersistentVolume, reason: &str, message: &str) {
        tracing::warn!(volume = volume.metadata.name, reason, message, "event");
        self.recorder.record(Note::new(reference(volume), Severity::Warning, reason, message));
    }

    fn record(&self, pod: &Pod, container: Option<&str>, severity: Severity, reason: &str, message: String) {
        let trace = pod::trace(pod);
        tracing::info!(
            pod = pod::name(pod),
            namespace = pod::namespace(pod),
            container,
            trace,
            reason,
            message,
            "event"
        );
        let mut regarding = reference(pod);
        regarding.field_path = container.map(|name| match pod::container(pod, name) {
            Some((Part::Init | Part::Sidecar, _)) => format!("spec.initContainers{{{name}}}"),
            Some((Part::Ephemeral, _)) => format!("spec.ephemeralContainers{{{name}}}"),
            Some((Part::Main, _)) | None => format!("spec.containers{{{name}}}"),
        });
        let mut note = Note::new(regarding, severity, reason, message);
        note.annotations =
            trace.map(|trace| (TRACE_ANNOTATION.to_owned(), trace.to_owned())).into_iter().collect::<BTreeMap<_, _>>();
        self.recorder.record(note);
    }
}
