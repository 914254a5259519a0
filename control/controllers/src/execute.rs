//! Performs plans: the only place of this crate that writes to the API.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::Request,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tandem_api::Revision;
use tandem_client::events::{Note, Recorder, Severity};

use crate::{
    action::{Action, Deletion, Manifest, Report, Target},
    cache::{Expectation, Key},
    sign::{SignError, Signer, Usage},
};

/// Creates or deletes of one plan that are under way at a time.
const CONCURRENT: usize = 16;

/// Something that a controller tried and that did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", told(.0))]
    Api(#[from] kube::Error),
    #[error("the request could not be built: {0}")]
    Request(#[from] kube::core::request::Error),
    #[error("the object could not be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the API did not answer within {0:?}")]
    Timeout(Duration),
}

/// An answer of the API is its message: the client's own text repeats all fields of the status.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

impl Error {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Error::Api(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// Somebody else was faster, with a change or a deletion: the next plan is made from newer caches, nobody need know.
    pub(crate) fn is_race(&self) -> bool {
        self.status().is_some_and(|status| matches!(status.code, 404 | 409))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// The resource is there but cannot do what was asked.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.status().is_some_and(|status| matches!(status.code, 405 | 406))
    }

    /// The namespace goes away, and with it the reason for the write.
    fn is_terminating(&self) -> bool {
        let causes = |status: &kube::core::Status| {
            let details = status.details.as_ref();
            details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
        };
        self.status().is_some_and(|status| {
            status.code == 403 && (causes(status) || status.message.contains("because it is being terminated"))
        })
    }
}

/// Why the last plan for a key could not be performed; the next view has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`, as in conditions.
    pub reason: &'static str,
    pub message: String,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) expectations: Vec<Expectation>,
    pub(crate) failure: Option<Failure>,
    pub(crate) error: Option<Error>,
}

impl Outcome {
    fn wrote(&mut self, target: &Target, written: &Written) {
        let revision = written.metadata.resource_version.as_deref().and_then(Revision::parse);
        if let Some(Revision(revision)) = revision {
            self.expectations.push(Expectation::Revision { kind: target.kind.clone(), revision });
        }
    }

    fn failed(&mut self, reason: &'static str, error: Error) {
        if !error.is_race() {
            self.failure.get_or_insert(Failure { reason, message: error.to_string() });
        }
        self.error.get_or_insert(error);
    }
}

/// The part of an answer that matters here.
#[derive(Debug, Deserialize)]
struct Written {
    #[serde(default)]
    metadata: WrittenMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMeta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: Option<String>,
}

pub(crate) struct Executor {
    pub(crate) client: kube::Client,
    pub(crate) recorder: Recorder,
    pub(crate) signer: Arc<dyn Signer>,
}

impl Executor {
    pub(crate) async fn run(&self, actions: Vec<Action>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let is_told_anyway = matches!(action, Action::SetStatus(_));
            if outcome.error.is_some() && !is_told_anyway {
                continue;
            }
            match action {
                Action::Create { object, report } => {
                    let mut batch = vec![(object, report)];
                    while let Some(Action::Create { .. }) = actions.front() {
                        if let Some(Action::Create { object, report }) = actions.pop_front() {
                            batch.push((object, report));
                        }
                    }
                    self.create_all(batch, &mut outcome).await;
                }
                Action::Delete(deletion) => {
                    let mut batch = vec![deletion];
                    while let Some(Action::Delete(_)) = actions.front() {
                        if let Some(Action::Delete(deletion)) = actions.pop_front() {
                            batch.push(deletion);
                        }
                    }
                    self.delete_all(batch, &mut outcome).await;
                }
                Action::Event(note) => self.recorder.record(note),
                write => {
                    if let Err(error) = self.write(write, &mut outcome).await {
                        outcome.failed("FailedUpdate", error);
                    }
                }
            }
        }
        outcome
    }

    async fn write(&self, action: Action, outcome: &mut Outcome) -> Result<(), Error> {
        match action {
            Action::Update(object) => {
                let target = object.target();
                let body = object.body()?.into_bytes();
                let request = Request::new(&target.path).replace(&target.key.name, &PostParams::default(), body)?;
                outcome.wrote(&target, &self.client.request(request).await?);
            }
            Action::SetStatus(object) => self.put("status", object.as_ref(), outcome).await?,
            Action::Put { subresource, object } => self.put(subresource, object.as_ref(), outcome).await?,
            Action::Patch { target, body } => {
                let patch = Patch::Merge(RawValue::from_string(body.body()?)?);
                let request = Request::new(&target.path).patch(&target.key.name, &PatchParams::default(), &patch)?;
                outcome.wrote(&target, &self.client.request(request).await?);
            }
            Action::Sign { request, usage } => self.sign(*request, usage, outcome).await?,
            Action::Create { .. } | Action::Delete(_) | Action::Event(_) => {}
        }
        Ok(())
    }

    async fn put(&self, subresource: &str, object: &dyn Manifest, outcome: &mut Outcome) -> Result<(), Error> {
        let target = object.target();
        let (name, body) = (&target.key.name, object.body()?.into_bytes());
        let request =
            Request::new(&target.path).replace_subresource(subresource, name, &PostParams::default(), body)?;
        outcome.wrote(&target, &self.client.request(request).await?);
        Ok(())
    }

    async fn sign(
        &self,
        mut request: CertificateSigningRequest,
        usage: Usage,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        let certificate = self.signer.sign(&pem, usage)?;
        request.status.get_or_insert_default().certificate = Some(ByteString(certificate.into_bytes()));
        self.put("status", &request, outcome).await
    }

    /// Starts with one and doubles, as Kubernetes does: what fails for all (a quota, an admission rule) fails once.
    async fn create_all(&self, batch: Vec<(Box<dyn Manifest>, Option<Report>)>, outcome: &mut Outcome) {
        let mut batch = batch.into_iter();
        let mut size = 1;
        loop {
            let step: Vec<_> = batch.by_ref().take(size).collect();
            if step.is_empty() || outcome.error.is_some() {
                return;
            }
            let creates: Vec<_> =
                step.into_iter().map(|(object, report)| self.create(object, report).boxed()).collect();
            let results: Vec<_> = stream::iter(creates).buffer_unordered(size).collect().await;
            for (target, result) in results {
                match result {
                    Ok(Some(written)) => outcome.wrote(&target, &written),
                    Ok(None) => {}
                    Err(error) => outcome.failed("FailedCreate", error),
                }
            }
            size = (size * 2).min(CONCURRENT);
        }
    }

    async fn create(
        &self,
        object: Box<dyn Manifest>,
        report: Option<Report>,
    ) -> (Target, Result<Option<Written>, Error>) {
        let target = object.target();
        let result = self.post(&target, object.as_ref()).await;
        let result = match result {
            Err(error) if error.is_terminating() => return (target, Ok(None)),
            result => result,
        };
        if let Some(Report { regarding, noun }) = report {
            self.recorder.record(match &result {
                Ok(written) => {
                    let message = format!("Created {noun}: {}", written.metadata.name);
                    Note::new(regarding, Severity::Normal, "SuccessfulCreate", message)
                }
                Err(error) => {
                    Note::new(regarding, Severity::Warning, "FailedCreate", format!("Error creating: {error}"))
                }
            });
        }
        (target, result.map(Some))
    }

    async fn post(&self, target: &Target, object: &dyn Manifest) -> Result<Written, Error> {
        let request = Request::new(&target.path).create(&PostParams::default(), object.body()?.into_bytes())?;
        Ok(self.client.request(request).await?)
    }

    async fn delete_all(&self, batch: Vec<Deletion>, outcome: &mut Outcome) {
        let deletes: Vec<_> = batch.into_iter().map(|deletion| self.delete(deletion).boxed()).collect();
        let results: Vec<_> = stream::iter(deletes).buffer_unordered(CONCURRENT).collect().await;
        for (deletion, result) in results {
            match result {
                Ok(()) => outcome.expectations.push(Expectation::Deleted {
                    kind: deletion.target.kind,
                    key: deletion.target.key,
                    uid: deletion.uid,
                }),
                Err(error) => outcome.failed("FailedDelete", error),
            }
        }
    }

    async fn delete(&self, deletion: Deletion) -> (Deletion, Result<(), Error>) {
        let result = match self.request_deletion(&deletion).await {
            Err(error) if error.is_not_found() => return (deletion, Ok(())),
            result => result,
        };
        if let Some(Report { regarding, noun }) = deletion.report.clone() {
            let Key { name, .. } = &deletion.target.key;
            self.recorder.record(match &result {
                Ok(()) => Note::new(regarding, Severity::Normal, "SuccessfulDelete", format!("Deleted {noun}: {name}")),
                Err(error) => {
                    Note::new(regarding, Severity::Warning, "FailedDelete", format!("Error deleting: {error}"))
                }
            });
        }
        (deletion, result)
    }

    async fn request_deletion(&self, deletion: &Deletion) -> Result<(), Error> {
        let parameters = DeleteParams {
            grace_period_seconds: deletion.grace_seconds,
            propagation_policy: deletion.propagation.clone(),
            preconditions: Some(Preconditions {
                uid: Some(deletion.uid.clone()),
                resource_version: deletion.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let request = Request::new(&deletion.target.path).delete(&deletion.target.key.name, &parameters)?;
        self.client.request_text(request).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::ObjectMeta;
    use tokio::sync::mpsc;

    use super::*;
    use crate::testing::{Answer, Server, refuse_all_signing};

    fn pod(name: &str) -> Pod {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(name.into()),
            ..ObjectMeta::default()
        };
        Pod { metadata, ..Pod::default() }
    }

    fn report() -> Option<Report> {
        Some(Report { regarding: tandem_client::events::reference(&pod("owner")), noun: "pod" })
    }

    fn create(name: &str) -> Action {
        Action::Create { object: Box::new(pod(name)), report: report() }
    }

    async fn run(server: &Server, actions: Vec<Action>) -> (Outcome, Vec<String>) {
        let (recorder, notes) = Recorder::detached();
        let executor = Executor { client: server.client(), recorder, signer: refuse_all_signing() };
        (executor.run(actions).await, messages(notes))
    }

    fn messages(mut notes: mpsc::Receiver<Note>) -> Vec<String> {
        std::iter::from_fn(|| notes.try_recv().ok()).map(|note| format!("{}: {}", note.reason, note.message)).collect()
    }

    #[tokio::test]
    async fn writes_are_expected_to_be_seen() {
        let server = Server::new(|_| Answer::Written(7));
        let (outcome, notes) = run(&server, vec![create("a"), Action::Delete(Deletion::of(&pod("b")))]).await;
        assert!(outcome.error.is_none());
        assert_eq!(
            outcome.expectations,
            [
                Expectation::Revision { kind: "Pod".into(), revision: 7 },
                Expectation::Deleted { kind: "Pod".into(), key: Key::new("ns", "b"), uid: "b".into() },
            ]
        );
        assert_eq!(server.asked(), ["POST /api/v1/namespaces/ns/pods", "DELETE /api/v1/namespaces/ns/pods/b"]);
        assert_eq!(notes, ["SuccessfulCreate: Created pod: made"]);
    }

    #[tokio::test]
    async fn what_fails_for_all_fails_once_and_is_told() {
        let server =
            Server::new(
                |asked| if asked.starts_with("POST") { Answer::Forbidden("quota") } else { Answer::Written(8) },
            );
        let mut actions: Vec<Action> = ["a", "b", "c"].map(create).into();
        actions.push(Action::update(pod("other")));
        actions.push(Action::set_status(pod("owner")));
        let (outcome, notes) = run(&server, actions).await;
        assert_eq!(server.asked(), ["POST /api/v1/namespaces/ns/pods", "PUT /api/v1/namespaces/ns/pods/owner/status"]);
        assert_eq!(outcome.failure.unwrap().reason, "FailedCreate");
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with("FailedCreate: Error creating: "), "{notes:?}");
        assert!(!notes[0].contains("Status"), "{notes:?}");
    }

    #[tokio::test]
    async fn what_is_gone_already_is_deleted() {
        let server = Server::new(|_| Answer::NotFound);
        let (outcome, _) = run(&server, vec![Action::Delete(Deletion::of(&pod("a")))]).await;
        assert!(outcome.error.is_none());
    }

    #[tokio::test]
    async fn a_namespace_that_goes_is_no_failure() {
        let server = Server::new(|_| Answer::Terminating);
        let (outcome, notes) = run(&server, vec![create("a")]).await;
        assert!(outcome.error.is_none() && notes.is_empty());
    }

    #[tokio::test]
    async fn a_lost_race_is_no_failure_of_the_object() {
        let server = Server::new(|_| Answer::Conflict);
        let (outcome, _) = run(&server, vec![Action::update(pod("a"))]).await;
        assert!(outcome.error.is_some_and(|error| error.is_race()));
        assert_eq!(outcome.failure, None);
    }
}
