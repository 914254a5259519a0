//! Takes the steps of plans. Nothing is decided here: a step that fails is told, and the next plan goes on.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{Container as Spec, Pod, ResourceRequirements},
    node::v1::RuntimeClass,
};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use tandem_api::WASM_RUNTIME_CLASS;
use tandem_runtime::{AddressClass, ContainerId, Limits, Mount, Network, Runtime, SandboxId};

use crate::{
    config::log_file,
    container::{self, ContainerInput},
    context::Context,
    env::{self, Sources},
    fault::Fault,
    hooks,
    observed::{ImageKind, Kind, Observed},
    plan::{self, CLEAN_FAILED, NetworkChoice, SANDBOX_STOP_FAILED, STOP_FAILED, Step, StopReason},
    pod,
    resize::{self, RESIZE_FAILED},
    resources, rotation,
    sandbox::{self, SandboxInput},
};

/// What the container gets after its `preStop` used up the grace period.
const GRACE_MIN: Duration = Duration::from_secs(2);
const CGROUP_PATIENCE: Duration = Duration::from_millis(500);
const CGROUP_PAUSE: Duration = Duration::from_millis(20);
/// What a RuntimeClass of containers names.
const DEFAULT_HANDLER: &str = "runc";
const RESOLVER: &str = "/etc/resolv.conf";

/// The pod and what was known of it when the step was planned.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) pod: Arc<Pod>,
    pub(crate) seen: Arc<Observed>,
}

/// What a step brought about, beyond what the runtimes list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Done {
    Nothing,
    /// Look at the runtime again.
    Changed(Kind),
    Resolved(String, ImageKind),
    /// The volumes of these names.
    Mounted(BTreeSet<String>),
    SandboxStopped(Kind, SandboxId),
    Stopped(Kind, ContainerId, StopReason),
    Resized(Vec<(ContainerId, ResourceRequirements)>),
    Cleaned,
    Confirmed,
}

impl Context {
    pub(crate) async fn execute(&self, step: &Step, job: &Job) -> Result<Done, Fault> {
        match step {
            Step::Mount => self.mount(job).await,
            Step::Resolve { container } => {
                let spec = find(&job.pod, container)?;
                let kind = self.images.resolve(&job.pod, &spec).await?;
                Ok(Done::Resolved(container.clone(), kind))
            }
            Step::CreateSandbox { kind, network, attempt } => self.create_sandbox(job, *kind, network, *attempt).await,
            Step::StopSandbox { kind, id } => {
                let stopped = self.runtime(*kind)?.stop_sandbox(id).await;
                stopped.map_err(|error| Fault::new(SANDBOX_STOP_FAILED, format!("error killing pod: {error}")))?;
                Ok(Done::SandboxStopped(*kind, id.clone()))
            }
            Step::RemoveSandbox { kind, id } => self.remove_sandbox(job, *kind, id).await,
            Step::Start { container, kind, sandbox, attempt, backoff_seconds } => {
                let spec = find(&job.pod, container)?;
                self.start(job, &spec, *kind, sandbox, *attempt, *backoff_seconds).await?;
                Ok(Done::Changed(*kind))
            }
            Step::Refuse { container, message } => {
                self.events.warning(&job.pod, Some(container), "Failed", format!("Error: {message}"));
                Err(Fault::new("CreateContainerError", message.clone()))
            }
            Step::Stop { container, kind, id, grace_seconds, why } => {
                let grace = Duration::from_secs(u64::try_from(*grace_seconds).unwrap_or(0));
                self.stop(job, container, *kind, id, grace, *why).await?;
                Ok(Done::Stopped(*kind, id.clone(), *why))
            }
            Step::Resize { containers } => self.resize(job, containers).await,
            Step::Remove { kind, id } => {
                let runtime = self.runtime(*kind)?;
                let removed = match runtime.stop(id, Duration::ZERO).await {
                    Ok(()) => runtime.remove(id).await,
                    Err(error) => Err(error),
                };
                removed.map_err(|error| Fault::new("FailedRemove", error.to_string()))?;
                self.forget(job, |container, _| container == id);
                Ok(Done::Changed(*kind))
            }
            Step::Clean => self.clean(&job.pod).await,
            Step::Confirm => self.confirm(&job.pod).await,
            // The worker itself gives up a step; there is nothing to do for it here.
            Step::Cancel(_) => Ok(Done::Nothing),
        }
    }

    fn runtime(&self, kind: Kind) -> Result<&Arc<dyn Runtime>, Fault> {
        self.runtimes.get(kind).ok_or_else(|| Fault::new("NoRuntime", "this node has no runtime for containers"))
    }

    async fn mount(&self, job: &Job) -> Result<Done, Fault> {
        let made = self.volumes.set_up(&job.pod, &self.placement(&job.seen)).await.inspect_err(|fault| {
            self.events.warning(&job.pod, None, "FailedMount", fault.message.clone());
        })?;
        Ok(Done::Mounted(made))
    }

    async fn create_sandbox(
        &self,
        job: &Job,
        kind: Kind,
        network: &NetworkChoice,
        attempt: u32,
    ) -> Result<Done, Fault> {
        let pod = &job.pod;
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("Failed to create pod sandbox: {error}");
            self.events.warning(pod, None, "FailedCreatePodSandBox", message.clone());
            Fault::new("FailedCreatePodSandBox", message)
        };
        self.check_sandbox(pod, kind).await.map_err(|why| failed(&why))?;
        let log_directory = self.directories.logs(pod);
        std::fs::create_dir_all(&log_directory).map_err(|error| failed(&error))?;
        // Components are held within their limits by their host; ten thousand of them need no cgroup each.
        if kind == Kind::Container {
            let made = self.hierarchies.create(&self.cgroup(pod), &resources::pod_limits(pod));
            made.map_err(|error| failed(&format!("cannot make the pod's cgroup: {error}")))?;
        }
        let joined = match network {
            NetworkChoice::Join(id) => Some(id.0.clone()),
            NetworkChoice::Own | NetworkChoice::Host | NetworkChoice::Light => None,
        };
        let network = self.network(job, network).await.map_err(|why| failed(&why))?;
        if matches!(network, Network::Light { .. }) && sandbox::has_sysctls(pod) {
            return Err(failed(&"sysctls need a container in the pod: components share one network namespace"));
        }
        let resolver = std::fs::read_to_string(RESOLVER).unwrap_or_default();
        let spec = sandbox::sandbox_spec(
            pod,
            SandboxInput {
                node_name: &self.node_name,
                attempt,
                network,
                joined,
                settings: &self.settings,
                resolver: &resolver,
                log_directory,
                cgroup_parent: self.cgroup(pod),
            },
        );
        self.runtime(kind)?.create_sandbox(&spec).await.map_err(|error| failed(&error))?;
        Ok(Done::Changed(kind))
    }

    /// What a sandbox is asked for and this node cannot give is refused: less isolation than was asked for is none.
    async fn check_sandbox(&self, pod: &Pod, kind: Kind) -> Result<(), String> {
        sandbox::check(pod)?;
        let Some(name) = pod::spec(pod).and_then(|spec| spec.runtime_class_name.as_deref()) else { return Ok(()) };
        if name.is_empty() || name == WASM_RUNTIME_CLASS {
            return Ok(());
        }
        let class = Api::<RuntimeClass>::all(self.client.clone()).get(name).await;
        let handler = class.map_err(|error| format!("cannot read RuntimeClass {name:?}: {error}"))?.handler;
        match (kind, handler.as_str()) {
            (Kind::Container, DEFAULT_HANDLER) | (Kind::Component, WASM_RUNTIME_CLASS | DEFAULT_HANDLER) => Ok(()),
            _ => Err(format!("no runtime for {handler:?} is configured")),
        }
    }

    async fn network(&self, job: &Job, choice: &NetworkChoice) -> Result<Network, String> {
        match choice {
            NetworkChoice::Own => Ok(Network::Own),
            NetworkChoice::Host => Ok(Network::Host { address: self.node_ip }),
            NetworkChoice::Light => {
                let address = self.addresses.allocate(pod::uid(&job.pod), AddressClass::Light).await;
                let address = address.map_err(|error| error.to_string())?;
                Ok(Network::Light { namespace: self.light_namespace.clone(), address })
            }
            NetworkChoice::Join(id) => {
                let host = job.seen.sandboxes.iter().map(|seen| &seen.sandbox).find(|sandbox| sandbox.id == *id);
                let joined = host.and_then(|host| Some((host.network_namespace.clone()?, host.address?)));
                let (namespace, address) = joined.ok_or_else(|| format!("sandbox {id} has no network to join"))?;
                Ok(Network::Join { namespace, address })
            }
        }
    }

    async fn remove_sandbox(&self, job: &Job, kind: Kind, id: &SandboxId) -> Result<Done, Fault> {
        let runtime = self.runtime(kind)?;
        let removed = match runtime.stop_sandbox(id).await {
            Ok(()) => runtime.remove_sandbox(id).await,
            Err(error) => Err(error),
        };
        removed.map_err(|error| {
            let message = format!("error killing pod: {error}");
            self.events.warning(&job.pod, None, "FailedKillPod", message.clone());
            Fault::new(SANDBOX_STOP_FAILED, message)
        })?;
        self.forget(job, |_, sandbox| sandbox == id);
        Ok(Done::Changed(kind))
    }

    async fn start(
        &self,
        job: &Job,
        spec: &Spec,
        kind: Kind,
        sandbox: &SandboxId,
        attempt: u32,
        backoff_seconds: i64,
    ) -> Result<(), Fault> {
        let pod = &job.pod;
        let name = Some(spec.name.as_str());
        let failed = |reason: &'static str, message: String| {
            self.events.warning(pod, name, "Failed", format!("Error: {message}"));
            Fault::new(reason, message)
        };
        let runtime = self.runtime(kind)?;
        let image = self.images.ensure(pod, spec, kind).await?;
        let config = |message: String| failed("CreateContainerConfigError", message);
        let sources = Sources::read(&self.objects, pod, spec).await.map_err(|error| config(error.to_string()))?;
        let services = self.services.list().await.ok_or_else(|| {
            config("services have not yet been read at least once, cannot construct envvars".to_owned())
        })?;
        let environment =
            env::environment(pod, spec, &sources, &services, &self.placement(&job.seen)).map_err(config)?;
        let mut mounts = self.volumes.mounts(pod, spec, &environment).map_err(config)?;
        if kind == Kind::Container {
            mounts.extend(self.own_mounts(job, spec, attempt, &mounts).map_err(|error| config(error.to_string()))?);
        }
        let target = match pod::target(pod, &spec.name) {
            Some(target) => Some(plan::target(&job.seen, kind, target).map_err(config)?),
            None => None,
        };
        let input = ContainerInput {
            image,
            target,
            attempt,
            backoff_seconds,
            environment,
            mounts,
            limits: resources::limits(pod, spec, self.size.memory_bytes),
            has_user: runtime.capabilities().user_ids,
            seccomp_directory: self.directories.seccomp(),
        };
        let made = container::container_spec(pod, spec, input).map_err(config)?;
        let log = self.directories.logs(pod).join(log_file(&spec.name, attempt));
        let made_folder = log.parent().map_or(Ok(()), std::fs::create_dir_all);
        made_folder.map_err(|error| failed("CreateContainerError", format!("cannot make the log folder: {error}")))?;
        let begun = tokio::time::Instant::now();
        let id =
            runtime.create(sandbox, &made).await.map_err(|error| failed("CreateContainerError", error.to_string()))?;
        self.events.normal(pod, name, "Created", "Container created");
        runtime.start(&id).await.map_err(|error| failed("RunContainerError", error.to_string()))?;
        self.events.normal(pod, name, "Started", "Container started");
        self.metrics.started(kind, begun.elapsed());
        self.post_start(job, spec, runtime.as_ref(), &id).await
    }

    async fn post_start(&self, job: &Job, spec: &Spec, runtime: &dyn Runtime, id: &ContainerId) -> Result<(), Fault> {
        let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(());
        };
        let target = hooks::Target { runtime, id, spec, address: job.seen.address(), http: &self.http };
        if let Err(why) = hooks::run(hook, &target).await {
            let message = format!("PostStartHook failed: {why}");
            self.events.warning(&job.pod, Some(&spec.name), "FailedPostStartHook", message.clone());
            let grace = Duration::from_secs(u64::try_from(pod::grace_seconds(&job.pod)).unwrap_or(0));
            if let Err(error) = runtime.stop(id, grace).await {
                tracing::warn!(%id, %error, "cannot stop a container whose postStart failed");
            }
            return Err(Fault::new("PostStartHookError", message));
        }
        Ok(())
    }

    /// `/etc/hosts` and the file for last words, unless the pod mounts its own there.
    fn own_mounts(&self, job: &Job, spec: &Spec, attempt: u32, taken: &[Mount]) -> std::io::Result<Vec<Mount>> {
        let uid = pod::uid(&job.pod);
        let mut mounts = Vec::new();
        let mut add = |host: std::path::PathBuf, path: &str| {
            if !taken.iter().any(|mount| mount.container.trim_end_matches('/') == path) {
                mounts.push(Mount { host, container: path.to_owned(), read_only: false });
            }
        };
        if !pod::host_network(&job.pod) {
            let hosts = self.directories.pod(uid).join("etc-hosts");
            std::fs::write(&hosts, hosts_file(&job.pod, job.seen.address(), &self.settings.dns_domain))?;
            add(hosts, "/etc/hosts");
        }
        let words = self.directories.last_words(uid, &spec.name, attempt);
        words.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(&words, "")?;
        std::fs::set_permissions(&words, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        add(words, container::termination_path(spec));
        Ok(mounts)
    }

    async fn stop(
        &self,
        job: &Job,
        name: &str,
        kind: Kind,
        id: &ContainerId,
        grace: Duration,
        why: StopReason,
    ) -> Result<(), Fault> {
        let pod = &job.pod;
        let restarts = pod::pod_restart_policy(pod) != pod::RestartPolicy::Never;
        let suffix = if restarts { ", will be restarted" } else { "" };
        let message = match why {
            StopReason::Deleted | StopReason::Ended => format!("Stopping container {name}"),
            StopReason::Liveness => format!("Container {name} failed liveness probe{suffix}"),
            StopReason::Startup => format!("Container {name} failed startup probe{suffix}"),
            StopReason::Changed => format!("Container {name} definition changed{suffix}"),
            StopReason::Resized => format!("Container {name} resize requires restart"),
        };
        self.events.normal(pod, Some(name), "Killing", message);
        let runtime = self.runtime(kind)?;
        let begun = tokio::time::Instant::now();
        let spec = pod::container(pod, name).map(|(_, spec)| spec);
        let hook = spec.as_deref().and_then(|spec| Some((spec, spec.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let Some((spec, hook)) = hook {
            let target =
                hooks::Target { runtime: runtime.as_ref(), id, spec, address: job.seen.address(), http: &self.http };
            let problem = match tokio::time::timeout(grace, hooks::run(hook, &target)).await {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some(format!("PreStopHook failed: {why}")),
                Err(_) => Some("PreStopHook did not end within the grace period".to_owned()),
            };
            if let Some(problem) = problem {
                self.events.warning(pod, Some(name), "FailedPreStopHook", problem);
            }
        }
        let left = grace.saturating_sub(begun.elapsed()).max(GRACE_MIN.min(grace));
        runtime.stop(id, left).await.map_err(|error| {
            let message = format!("error killing container {name}: {error}");
            self.events.warning(pod, Some(name), "FailedKillPod", message.clone());
            Fault::new(STOP_FAILED, message)
        })
    }

    /// Gives each container what it is allotted. The pod's own bounds are wide enough meanwhile.
    async fn resize(&self, job: &Job, containers: &[(String, Kind, ContainerId)]) -> Result<Done, Fault> {
        let pod = &job.pod;
        let failed = |message: String| {
            self.events.warning(pod, None, "ResizeError", format!("Pod resize error: {message}"));
            Fault::new(RESIZE_FAILED, message)
        };
        let has_cgroup = job.seen.ready_sandbox(Kind::Container).is_some();
        let bounds = |limits: &Limits| match has_cgroup {
            true => {
                self.hierarchies.set(&self.cgroup(pod), limits).map_err(|error| format!("the pod's cgroup: {error}"))
            }
            false => Ok(()),
        };
        let mut before = Pod::clone(pod);
        let mut resized = Vec::new();
        for (name, kind, id) in containers {
            let (part, spec) =
                pod::container(pod, name).ok_or_else(|| Fault::new(RESIZE_FAILED, format!("no container {name}")))?;
            self.check_memory(*kind, id, &spec).await.map_err(failed)?;
            let held = job.seen.latest(name).and_then(|container| resize::applied(pod, part, container, &job.seen));
            before = resize::with(before, &held.map(|held| (name.clone(), held)).into_iter().collect());
            resized.push((*kind, id, spec.into_owned()));
        }
        let (old, new) = (resources::pod_limits(&before), resources::pod_limits(pod));
        bounds(&resize::wider(&old, &new)).map_err(failed)?;
        for (kind, id, spec) in &resized {
            let limits = resources::limits(pod, spec, self.size.memory_bytes);
            let updated = self.runtime(*kind)?.update(id, &limits).await;
            updated.map_err(|error| failed(format!("container {}: {error}", spec.name)))?;
        }
        bounds(&new).map_err(failed)?;
        self.events.normal(pod, None, "ResizeCompleted", "Pod resize completed");
        let given = resized.into_iter().map(|(_, id, spec)| (id.clone(), spec.resources.unwrap_or_default()));
        Ok(Done::Resized(given.collect()))
    }

    /// A container that uses more than its new limit would be ended for it.
    async fn check_memory(&self, kind: Kind, id: &ContainerId, spec: &Spec) -> Result<(), String> {
        let Some(limit) = resources::memory_limit(spec) else { return Ok(()) };
        let stats =
            self.runtime(kind).map_err(|fault| fault.message)?.stats().await.map_err(|error| error.to_string())?;
        let used = stats.iter().find(|stats| stats.container.as_ref() == Some(id));
        match used.map(|stats| stats.memory_working_set_bytes).filter(|used| *used > limit) {
            Some(used) => {
                Err(format!("cannot decrease the memory limit of container {} to {limit}: it uses {used}", spec.name))
            }
            None => Ok(()),
        }
    }

    /// What removed containers left: their logs and last words. A pod that is restarted for ever must not fill the disk.
    fn forget(&self, job: &Job, is_gone: impl Fn(&ContainerId, &SandboxId) -> bool) {
        let (logs, uid) = (self.directories.logs(&job.pod), pod::uid(&job.pod));
        for sandbox in job.seen.sandboxes.iter().map(|seen| &seen.sandbox) {
            for gone in sandbox.containers.iter().filter(|container| is_gone(&container.id, &sandbox.id)) {
                let log = logs.join(log_file(&gone.name, gone.attempt));
                let words = self.directories.last_words(uid, &gone.name, gone.attempt);
                for path in rotation::parts(&log).into_iter().chain([words]) {
                    match std::fs::remove_file(&path) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            tracing::warn!(%error, path = %path.display(), "cannot remove what a container left");
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    async fn clean(&self, pod: &Pod) -> Result<Done, Fault> {
        let failed = |why: String| Fault::new(CLEAN_FAILED, why);
        self.addresses.release(pod::uid(pod)).await.map_err(|error| failed(error.to_string()))?;
        self.volumes.tear_down(pod::uid(pod)).map_err(failed)?;
        self.remove_cgroup(&self.cgroup(pod)).await.map_err(failed)?;
        match std::fs::remove_dir_all(self.directories.logs(pod)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(format!("cannot remove the pod's logs: {error}")))
            }
            _ => Ok(Done::Cleaned),
        }
    }

    /// The last process of a pod may take a moment to leave its cgroup.
    async fn remove_cgroup(&self, path: &str) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + CGROUP_PATIENCE;
        loop {
            match self.hierarchies.remove(path) {
                Ok(()) => return Ok(()),
                Err(error) if tokio::time::Instant::now() > deadline => {
                    return Err(format!("cannot remove cgroup {path}: {error}"));
                }
                Err(_) => tokio::time::sleep(CGROUP_PAUSE).await,
            }
        }
    }

    async fn confirm(&self, pod: &Pod) -> Result<Done, Fault> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match api.delete(pod::name(pod), &parameters).await {
            Ok(_) => Ok(Done::Confirmed),
            // Gone already, or its name is another pod's by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Done::Confirmed),
            Err(error) => {
                Err(Fault::new("FailedDelete", format!("cannot tell the API that the pod has ended: {error}")))
            }
        }
    }
}

fn find<'a>(pod: &'a Pod, container: &str) -> Result<Cow<'a, Spec>, Fault> {
    let spec = pod::container(pod, container).map(|(_, spec)| spec);
    spec.ok_or_else(|| Fault::new("CreateContainerConfigError", format!("the pod has no container {container}")))
}

/// The hosts file of a pod: itself, the machine, and what the pod adds.
fn hosts_file(pod: &Pod, address: Option<std::net::Ipv4Addr>, domain: &str) -> String {
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    if let Some(address) = address {
        let hostname = sandbox::hostname(pod);
        let subdomain = pod::spec(pod).and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
        match subdomain {
            Some(subdomain) => {
                let full = format!("{hostname}.{subdomain}.{}.svc.{domain}", pod::namespace(pod));
                text.push_str(&format!("{address}\t{full}\t{hostname}\n"));
            }
            None => text.push_str(&format!("{address}\t{hostname}\n")),
        }
    }
    let aliases = pod::spec(pod).and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    text
}
