//! Getting images: pull policy, credentials, and the words in which it goes wrong.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use parking_lot::Mutex;
use tandem_api::Clock;
use tandem_runtime::{Image, RegistryAuth};

use crate::{
    events::Events,
    fault::Fault,
    objects::{Age, Objects},
    observed::{ImageKind, Kind},
    pod,
    registry::{self, Reference, Resolver},
    runtimes::Runtimes,
};

/// A pull that makes no end is given up.
const PULL_TIMEOUT: Duration = Duration::from_secs(600);

const KNOWN_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

pub(crate) struct Images {
    runtimes: Runtimes,
    resolver: Resolver,
    objects: Arc<Objects>,
    events: Events,
    clock: Arc<dyn Clock>,
    /// One pull of an image at a time; whoever waited finds it there.
    pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What images that are on the node are, by their id.
    known: Mutex<HashMap<String, ImageKind>>,
}

impl Images {
    pub(crate) fn new(
        runtimes: Runtimes,
        resolver: Resolver,
        objects: Arc<Objects>,
        events: Events,
        clock: Arc<dyn Clock>,
    ) -> Images {
        Images { runtimes, resolver, objects, events, clock, pulls: Mutex::default(), known: Mutex::default() }
    }

    /// What the container's image is, without fetching its content.
    pub(crate) async fn resolve(&self, pod: &Pod, spec: &Spec) -> Result<ImageKind, Fault> {
        let (reference, policy) = self.parse(pod, spec)?;
        let local = self.runtimes.local_image(image_name(spec)).await.map_err(|error| pull_fault(spec, &error))?;
        if let (PullPolicy::IfNotPresent, Some((_, image))) = (policy, &local)
            && let Some(kind) = self.known.lock().get(&image.id)
        {
            return Ok(*kind);
        }
        let id = local.as_ref().map(|(_, image)| image.id.clone());
        let local = local.map(|(kind, _)| kind);
        match (policy, local) {
            (PullPolicy::Never, None) => Err(self.never_pull(pod, spec)),
            (PullPolicy::Never, Some(kind)) => Ok(kind),
            // A container is told by the runtime that has it; what a component imports only its manifest tells.
            (PullPolicy::IfNotPresent, Some(kind)) if kind.kind == Kind::Container => Ok(kind),
            (PullPolicy::Always | PullPolicy::IfNotPresent, local) => {
                let kind = self.ask(pod, spec, &reference, local).await?;
                if let Some(id) = id {
                    self.remember(id, kind);
                }
                Ok(kind)
            }
        }
    }

    fn remember(&self, id: String, kind: ImageKind) {
        let mut known = self.known.lock();
        // Asking a registry again is all that forgetting costs.
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(id, kind);
    }

    async fn ask(
        &self,
        pod: &Pod,
        spec: &Spec,
        reference: &Reference,
        local: Option<ImageKind>,
    ) -> Result<ImageKind, Fault> {
        let auths = self.auths(pod, reference).await;
        let error = match (self.resolver.kind(reference, &auths).await, local) {
            (Ok(kind), _) => return self.runnable(pod, spec, kind),
            // What is here runs, whether its registry answers or not.
            (Err(_), Some(kind)) => return Ok(kind),
            (Err(error), None) => error,
        };
        if let registry::Error::Unreachable { .. } = error {
            // The runtime may know ways to a registry that the agent does not.
            if self.runtimes.get(Kind::Container).is_some() && self.resolver.is_direct(reference) {
                return Ok(ImageKind { kind: Kind::Container, sockets: false });
            }
            let message = format!("Failed to pull image \"{}\": {error}", image_name(spec));
            self.events.warning(pod, Some(&spec.name), "Failed", message);
            return Err(Fault::new("RegistryUnavailable", error.to_string()));
        }
        self.events.normal(pod, Some(&spec.name), "Pulling", pulling(spec));
        Err(self.failed_pull(pod, spec, &error.to_string()))
    }

    fn runnable(&self, pod: &Pod, spec: &Spec, image: ImageKind) -> Result<ImageKind, Fault> {
        if self.runtimes.get(image.kind).is_some() {
            return Ok(image);
        }
        let why = format!("{} is a container image, and this node runs components only", image_name(spec));
        Err(self.failed_pull(pod, spec, &why))
    }

    /// The image on the node, pulled where the policy says so.
    pub(crate) async fn ensure(&self, pod: &Pod, spec: &Spec, kind: Kind) -> Result<Image, Fault> {
        let (reference, policy) = self.parse(pod, spec)?;
        let Some(runtime) = self.runtimes.get(kind) else {
            let why = format!("{} cannot run here: there is no runtime for it", image_name(spec));
            return Err(self.failed_pull(pod, spec, &why));
        };
        let name = image_name(spec);
        if policy != PullPolicy::Always
            && let Some(image) = runtime.image(name).await.map_err(|error| pull_fault(spec, &error))?
        {
            let message =
                format!("Container image \"{name}\" already present on machine and can be accessed by the pod");
            self.events.normal(pod, Some(&spec.name), "Pulled", message);
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(self.never_pull(pod, spec));
        }
        self.events.normal(pod, Some(&spec.name), "Pulling", pulling(spec));
        let begun = self.clock.now();
        let turn = self.turn(name);
        let guard = turn.lock().await;
        let waited = self.clock.now();
        let pulled = self.pull(pod, &reference, name, runtime.as_ref()).await;
        drop(guard);
        self.forget_turn(name, &turn);
        let image = pulled.map_err(|message| self.failed_pull(pod, spec, &message))?;
        let done = self.clock.now();
        let message = format!(
            "Successfully pulled image \"{name}\" in {} ({} including waiting). Image size: {} bytes.",
            elapsed(done.duration_since(waited)),
            elapsed(done.duration_since(begun)),
            image.size_bytes
        );
        self.events.normal(pod, Some(&spec.name), "Pulled", message);
        Ok(image)
    }

    async fn pull(
        &self,
        pod: &Pod,
        reference: &Reference,
        name: &str,
        runtime: &dyn tandem_runtime::Runtime,
    ) -> Result<Image, String> {
        let auths = self.auths(pod, reference).await;
        let anonymous = auths.is_empty().then_some(None);
        let mut problem = String::new();
        for auth in anonymous.into_iter().chain(auths.iter().map(Some)) {
            match tokio::time::timeout(PULL_TIMEOUT, runtime.pull(name, auth)).await {
                Ok(Ok(image)) => return Ok(image),
                Ok(Err(error)) => problem = error.to_string(),
                Err(_) => problem = format!("pull of {name} took longer than {} s", PULL_TIMEOUT.as_secs()),
            }
        }
        Err(problem)
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.pulls.lock().entry(name.to_owned()).or_default().clone()
    }

    fn forget_turn(&self, name: &str, turn: &Arc<tokio::sync::Mutex<()>>) {
        let mut pulls = self.pulls.lock();
        // Two holders are this one and the table: nobody waits.
        if Arc::strong_count(turn) <= 2 {
            pulls.remove(name);
        }
    }

    fn parse(&self, pod: &Pod, spec: &Spec) -> Result<(Reference, PullPolicy), Fault> {
        let name = image_name(spec);
        let reference = Reference::parse(name).map_err(|invalid| {
            let message = format!("Failed to apply default image tag \"{name}\": {invalid}");
            self.events.warning(pod, Some(&spec.name), "InspectFailed", message.clone());
            self.events.warning(pod, Some(&spec.name), "Failed", "Error: InvalidImageName");
            Fault::new("InvalidImageName", message)
        })?;
        let policy = match spec.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            _ if reference.tag() == Some("latest") => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        };
        Ok((reference, policy))
    }

    async fn auths(&self, pod: &Pod, reference: &Reference) -> Vec<RegistryAuth> {
        let secrets = pod::spec(pod).and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
        let mut auths = Vec::new();
        for secret in secrets {
            let secret = match self.objects.secret(pod::namespace(pod), &secret.name, Age::Recent).await {
                Ok(secret) => secret,
                Err(error) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        secret.name
                    );
                    tracing::debug!(%error, "image pull secret");
                    self.events.warning(pod, None, "FailedToRetrieveImagePullSecret", message);
                    continue;
                }
            };
            let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
            if let Some(document) = data(".dockerconfigjson") {
                auths.extend(registry::credentials(&document.0, reference));
            } else if let Some(document) = data(".dockercfg") {
                auths.extend(registry::legacy_credentials(&document.0, reference));
            }
        }
        auths
    }

    fn never_pull(&self, pod: &Pod, spec: &Spec) -> Fault {
        let message = format!("Container image \"{}\" is not present with pull policy of Never", image_name(spec));
        self.events.warning(pod, Some(&spec.name), "ErrImageNeverPull", message.clone());
        self.events.warning(pod, Some(&spec.name), "Failed", "Error: ErrImageNeverPull");
        Fault::new("ErrImageNeverPull", message)
    }

    fn failed_pull(&self, pod: &Pod, spec: &Spec, why: &str) -> Fault {
        let message = format!("Failed to pull image \"{}\": {why}", image_name(spec));
        self.events.warning(pod, Some(&spec.name), "Failed", message);
        self.events.warning(pod, Some(&spec.name), "Failed", "Error: ErrImagePull");
        Fault::new("ErrImagePull", why)
    }
}

fn image_name(spec: &Spec) -> &str {
    spec.image.as_deref().unwrap_or_default()
}

fn pulling(spec: &Spec) -> String {
    format!("Pulling image \"{}\"", image_name(spec))
}

fn pull_fault(spec: &Spec, error: &tandem_runtime::Error) -> Fault {
    Fault::new("ImageInspectError", format!("Failed to inspect image \"{}\": {error}", image_name(spec)))
}

/// A duration in Go's words, to the millisecond: `1.204s`, `87ms`.
fn elapsed(duration: SignedDuration) -> String {
    let ms = duration.as_millis().max(0);
    if ms < 1000 { format!("{ms}ms") } else { format!("{}.{:03}s", ms / 1000, ms % 1000) }
}
