use std::{collections::HashMap, fmt, future::Future, io, path::Path, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use hyper_util::rt::TokioIo;
use tandem_runtime::{
    AttachRequest, Capabilities, ContainerId, ContainerSpec, ExecIo, ExecOutput, ExecRequest, Image, Limits, Network,
    Notice, RegistryAuth, Result, Runtime, Sandbox, SandboxId, SandboxSpec, Stats, StoredImage,
};
use tokio::net::{TcpStream, UnixStream};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    Error, annotations, convert, error,
    observe::{self, Known},
    requests,
    streams::{self, Dialect},
    v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};

/// Calls that do one thing in the runtime. Making a sandbox includes running the network plugins.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// How long `connect` waits for the first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A list of ten thousand pods with their annotations takes tens of megabytes.
const MESSAGE_LIMIT: usize = 256 << 20;

/// What differs between the runtimes that speak CRI.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scheme of container ids: `containerd`, `wasm`.
    pub name: &'static str,
    pub capabilities: Capabilities,
    /// How often lists are compared where the runtime has no events.
    pub poll: Duration,
    /// Wake-ups from beside CRI.
    pub changes: Option<Source<()>>,
    /// Where [`Runtime::notices`] come from; CRI has none.
    pub notices: Option<Source<Notice>>,
    /// The image of sandboxes, which [`Runtime::images`] leaves out.
    pub sandbox_image: Option<&'static str>,
    /// Whether the runtime takes requests for its containers and counts them: [`crate::requests`].
    pub counts_requests: bool,
}

/// A stream that can be opened several times.
pub struct Source<T> {
    pub(crate) open: Arc<dyn Fn() -> BoxStream<'static, T> + Send + Sync>,
}

impl<T> Source<T> {
    pub fn new(open: impl Fn() -> BoxStream<'static, T> + Send + Sync + 'static) -> Source<T> {
        Source { open: Arc::new(open) }
    }
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Source<T> {
        Source { open: Arc::clone(&self.open) }
    }
}

impl<T> fmt::Debug for Source<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Source")
    }
}

/// A runtime behind a CRI socket. It survives the other end: calls fail while it is away and work again after.
#[derive(Clone, Debug)]
pub struct CriRuntime {
    channel: Channel,
    pub(crate) options: Options,
    pub(crate) known: Arc<Known>,
    dialect: Arc<Dialect>,
}

/// A gRPC channel over a unix socket, which connects when it is used and again when it broke.
pub fn channel(socket: &Path) -> Channel {
    let socket: Arc<PathBuf> = Arc::new(socket.to_owned());
    let connector = tower::service_fn(move |_: Uri| {
        let socket = Arc::clone(&socket);
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket.as_path()).await?)) }
    });
    // Runtimes refuse an authority that is a path, so the name is a plain one.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

impl CriRuntime {
    /// Checks that a CRI v1 runtime answers on `socket`.
    pub async fn connect(socket: &Path, options: Options) -> std::result::Result<CriRuntime, Error> {
        let runtime = CriRuntime::lazy(socket, options);
        let unreachable = |message: String| Error::Unreachable { socket: socket.to_owned(), message };
        let mut client = runtime.runtime();
        let version = client.version(v1::VersionRequest::default());
        let version = tokio::time::timeout(CONNECT_TIMEOUT, version)
            .await
            .map_err(|_| unreachable(format!("no answer within {CONNECT_TIMEOUT:?}")))?
            .map_err(|status| unreachable(status.message().to_owned()))?
            .into_inner();
        if version.runtime_api_version != "v1" {
            return Err(Error::Version { socket: socket.to_owned(), version: version.runtime_api_version });
        }
        Ok(runtime)
    }

    /// For a socket that is not there yet.
    pub fn lazy(socket: &Path, options: Options) -> CriRuntime {
        CriRuntime { channel: channel(socket), options, known: Arc::default(), dialect: Arc::default() }
    }

    /// For calls that the trait does not have.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) async fn within<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        bounded(operation, "", CALL_TIMEOUT, call).await
    }

    fn accepts(&self, network: &Network) -> Result<()> {
        let Capabilities { own_network, light_network, .. } = self.options.capabilities;
        match network {
            Network::Own if !own_network => Err(tandem_runtime::Error::Unsupported("a network namespace of its own")),
            Network::Join { .. } | Network::Light { .. } if !light_network => {
                Err(tandem_runtime::Error::Unsupported("the network namespace of somebody else"))
            }
            Network::Own | Network::Host { .. } | Network::Join { .. } | Network::Light { .. } => Ok(()),
        }
    }

    /// The spec of a sandbox, which CRI wants again with each container.
    async fn spec_of(&self, sandbox: &SandboxId) -> Result<SandboxSpec> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.0.clone(), verbose: false };
        let mut client = self.runtime();
        let answer = bounded("create", &sandbox.0, CALL_TIMEOUT, client.pod_sandbox_status(request)).await?;
        answer
            .status
            .and_then(|status| convert::recalled(&status.labels, &status.annotations))
            .ok_or_else(|| error::failed("create", format!("sandbox {sandbox} was not made by this program")))
    }

    async fn image_status(&self, reference: &str) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        let mut client = self.images();
        Ok(bounded("image status", reference, CALL_TIMEOUT, client.image_status(request)).await?.image)
    }

    /// CRI takes a group only together with a user; a pod may name the group alone and leave the user to the image.
    async fn fill_in_user(&self, config: &mut v1::ContainerConfig) -> Result<()> {
        let image = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) else {
            return Ok(());
        };
        if context.run_as_group.is_none() || context.run_as_user.is_some() {
            return Ok(());
        }
        let Some(image) = self.image_status(&image).await? else { return Ok(()) };
        if image.username.is_empty() {
            context.run_as_user = Some(image.uid.unwrap_or_default());
        } else {
            context.run_as_username = image.username;
        }
        Ok(())
    }

    /// The sandbox that an earlier, interrupted call made for the same spec.
    async fn made_before(&self, spec: &SandboxSpec) -> Option<SandboxId> {
        let (sandboxes, _) = self.lists().await.ok()?;
        let found = sandboxes.into_iter().find(|item| {
            item.state() == v1::PodSandboxState::SandboxReady
                && convert::recalled(&item.labels, &item.annotations).is_some_and(|known| known.pod == spec.pod)
        })?;
        Some(SandboxId(found.id))
    }

    async fn created_before(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Option<ContainerId> {
        let (_, containers) = self.lists().await.ok()?;
        let hash = format!("{:x}", spec.spec_hash);
        let metadata = v1::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt };
        let found = containers.into_iter().find(|item| {
            item.pod_sandbox_id == sandbox.0
                && item.metadata.as_ref() == Some(&metadata)
                && item.annotations.get(annotations::HASH) == Some(&hash)
                && item.state() == v1::ContainerState::ContainerCreated
        })?;
        Some(ContainerId(found.id))
    }
}

async fn bounded<T>(
    operation: &'static str,
    subject: &str,
    limit: Duration,
    call: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(error::call(operation, subject, &status)),
        Err(_) => Err(tandem_runtime::Error::Timeout { operation }),
    }
}

/// What is gone already need not be removed.
fn gone_is_done<T>(result: Result<T>) -> Result<()> {
    match result {
        Ok(_) | Err(tandem_runtime::Error::NotFound { .. }) => Ok(()),
        Err(other) => Err(other),
    }
}

fn image_spec(reference: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

/// Whole seconds, as CRI counts them; never zero for a time that is not.
fn seconds(duration: Duration) -> i64 {
    let up = u64::from(duration.subsec_nanos() > 0);
    i64::try_from(duration.as_secs().saturating_add(up)).unwrap_or(i64::MAX)
}

fn image(reference: &str, found: v1::Image) -> Image {
    Image {
        digest: repository_digest(reference, &found),
        id: found.id,
        size_bytes: found.size,
        user_id: match (found.uid, found.username.is_empty()) {
            (Some(uid), _) => Some(uid.value),
            (None, true) => Some(0),
            (None, false) => None,
        },
    }
}

/// An image can be known under several repositories; the one that was asked for goes first.
fn repository_digest(reference: &str, image: &v1::Image) -> String {
    let bare = reference.split('@').next().unwrap_or(reference);
    let bare = match bare.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => bare,
    };
    let ends_with = |digest: &&String| {
        digest.split('@').next().is_some_and(|known| known == bare || known.ends_with(&format!("/{bare}")))
    };
    let digests = &image.repo_digests;
    digests.iter().find(ends_with).or_else(|| digests.first()).cloned().unwrap_or_else(|| image.id.clone())
}

fn create_directory(operation: &'static str, path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| error::failed(operation, format!("{}: {source}", path.display())))
}

#[async_trait]
impl Runtime for CriRuntime {
    fn name(&self) -> &'static str {
        self.options.name
    }

    fn capabilities(&self) -> Capabilities {
        self.options.capabilities
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.image_status(reference).await?.map(|found| image(reference, found)))
    }

    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image> {
        let request = v1::PullImageRequest {
            image: Some(image_spec(reference)),
            auth: auth.map(convert::auth_config),
            sandbox_config: None,
        };
        // As long as it takes: the runtime itself gives up when nothing moves any more.
        let answer = self.images().pull_image(request).await.map_err(|status| error::pull(&status))?;
        let id = answer.into_inner().image_ref;
        match self.image_status(&id).await? {
            Some(found) => Ok(image(reference, found)),
            None => Err(error::failed("pull", format!("{reference}: {id} is gone again"))),
        }
    }

    async fn images(&self) -> Result<Vec<StoredImage>> {
        let mut client = self.images();
        let listed = bounded("list images", "", CALL_TIMEOUT, client.list_images(v1::ListImagesRequest::default()));
        let images = listed.await?.images.into_iter().filter(|image| {
            !image.pinned && !image.repo_tags.iter().any(|tag| Some(tag.as_str()) == self.options.sandbox_image)
        });
        let stored = |image: v1::Image| StoredImage {
            names: image.repo_tags.into_iter().chain(image.repo_digests).collect(),
            id: image.id,
            size_bytes: image.size,
        };
        Ok(images.map(stored).collect())
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        let request = v1::RemoveImageRequest { image: Some(image_spec(id)) };
        let mut client = self.images();
        gone_is_done(bounded("remove image", id, CALL_TIMEOUT, client.remove_image(request)).await)
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxId> {
        self.accepts(&spec.network)?;
        create_directory("create sandbox", &spec.log_directory)?;
        let request =
            v1::RunPodSandboxRequest { config: Some(convert::sandbox_config(spec)), runtime_handler: String::new() };
        let mut client = self.runtime();
        match bounded("create sandbox", &spec.pod.name, CALL_TIMEOUT, client.run_pod_sandbox(request)).await {
            Ok(answer) => Ok(SandboxId(answer.pod_sandbox_id)),
            Err(error) => self.made_before(spec).await.ok_or(error),
        }
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.0.clone() };
        let mut client = self.runtime();
        gone_is_done(bounded("stop sandbox", &id.0, CALL_TIMEOUT, client.stop_pod_sandbox(request)).await)
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        // CRI removes only what is stopped; containerd 1.6 refuses a running sandbox.
        self.stop_sandbox(id).await?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.0.clone() };
        let mut client = self.runtime();
        gone_is_done(bounded("remove sandbox", &id.0, CALL_TIMEOUT, client.remove_pod_sandbox(request)).await)
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId> {
        let place = self.spec_of(sandbox).await?;
        let mut config = convert::container_config(&place, spec);
        self.fill_in_user(&mut config).await?;
        if let Some(parent) = place.log_directory.join(&config.log_path).parent() {
            create_directory("create", parent)?;
        }
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.0.clone(),
            config: Some(config),
            sandbox_config: Some(convert::sandbox_config(&place)),
        };
        let mut client = self.runtime();
        let call = bounded("create", &spec.name, CALL_TIMEOUT, client.create_container(request));
        match Box::pin(call).await {
            Ok(answer) => Ok(ContainerId(answer.container_id)),
            Err(error) => self.created_before(sandbox, spec).await.ok_or(error),
        }
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        let request = v1::StartContainerRequest { container_id: id.0.clone() };
        let mut client = self.runtime();
        let Err(error) = bounded("start", &id.0, CALL_TIMEOUT, client.start_container(request)).await else {
            return Ok(());
        };
        match self.container_status(id.0.clone()).await {
            Ok(Some(status)) if status.state() == v1::ContainerState::ContainerRunning => Ok(()),
            _ => Err(error),
        }
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: id.0.clone(), timeout: seconds(grace) };
        let mut client = self.runtime();
        gone_is_done(bounded("stop", &id.0, CALL_TIMEOUT + grace, client.stop_container(request)).await)
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: id.0.clone() };
        let mut client = self.runtime();
        gone_is_done(bounded("remove", &id.0, CALL_TIMEOUT, client.remove_container(request)).await)
    }

    async fn update(&self, id: &ContainerId, limits: &Limits) -> Result<()> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.0.clone(),
            linux: Some(convert::changed_resources(limits)),
            ..Default::default()
        };
        let mut client = self.runtime();
        bounded("update", &id.0, CALL_TIMEOUT, client.update_container_resources(request)).await.map(drop)
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<()> {
        let request = v1::ReopenContainerLogRequest { container_id: id.0.clone() };
        let mut client = self.runtime();
        bounded("reopen the log", &id.0, CALL_TIMEOUT, client.reopen_container_log(request)).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<Sandbox>> {
        self.observe().await
    }

    async fn stats(&self) -> Result<Vec<Stats>> {
        let mut client = self.runtime();
        let request = v1::ListContainerStatsRequest::default();
        let answer = self.within("stats", client.list_container_stats(request)).await?;
        let new = answer.stats.iter().filter_map(|one| one.attributes.as_ref());
        if new.into_iter().any(|attributes| !self.known.knows(&attributes.id)) {
            self.observe().await?;
        }
        let mut requests = match self.options.counts_requests {
            true => {
                let asked = client.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {});
                requests::counts(self.within("metrics", asked).await?)
            }
            false => HashMap::new(),
        };
        Ok(answer
            .stats
            .into_iter()
            .filter_map(|one| {
                let id = &one.attributes.as_ref()?.id;
                let (sandbox, requests) = (self.known.owner(id)?, requests.remove(id));
                Some(Stats { requests, ..stats(sandbox, one)? })
            })
            .collect())
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.hints()
    }

    fn notices(&self) -> BoxStream<'static, Notice> {
        match &self.options.notices {
            Some(source) => (source.open)(),
            None => stream::pending().boxed(),
        }
    }

    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let request =
            v1::ExecSyncRequest { container_id: id.0.clone(), cmd: command.to_vec(), timeout: seconds(timeout) };
        let mut client = self.runtime();
        // The runtime ends the command at the timeout; ours is only for a runtime that does not answer.
        let limit = if timeout.is_zero() { Duration::MAX } else { timeout + CALL_TIMEOUT };
        let answer = bounded("exec", &id.0, limit, client.exec_sync(request)).await?;
        Ok(ExecOutput { code: answer.exit_code, stdout: answer.stdout, stderr: answer.stderr })
    }

    async fn exec_stream(&self, id: &ContainerId, request: ExecRequest, io: ExecIo) -> Result<i32> {
        let url = || async {
            let request = v1::ExecRequest {
                container_id: id.0.clone(),
                cmd: request.command.clone(),
                tty: request.tty,
                stdin: request.stdin,
                stdout: request.stdout,
                // A terminal has one output; CRI refuses to be asked for a second one.
                stderr: request.stderr && !request.tty,
            };
            let mut client = self.runtime();
            Ok(bounded("exec", &id.0, CALL_TIMEOUT, client.exec(request)).await?.url)
        };
        streams::run(&self.dialect, request.streams(), io, url).await
    }

    async fn attach(&self, id: &ContainerId, request: AttachRequest, io: ExecIo) -> Result<()> {
        let url = || async {
            let request = v1::AttachRequest {
                container_id: id.0.clone(),
                stdin: request.stdin,
                tty: request.tty,
                stdout: request.stdout,
                stderr: request.stderr && !request.tty,
            };
            let mut client = self.runtime();
            Ok(bounded("attach", &id.0, CALL_TIMEOUT, client.attach(request)).await?.url)
        };
        streams::attach(&self.dialect, request, io, url).await.map(drop).map_err(error::of_attach)
    }

    async fn connect(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream> {
        self.connect_into(sandbox, port).await
    }
}

fn stats(sandbox: SandboxId, one: v1::ContainerStats) -> Option<Stats> {
    let value = |number: Option<v1::UInt64Value>| number.map(|number| number.value).unwrap_or_default();
    let attributes = one.attributes?;
    let cpu = one.cpu?;
    let memory = one.memory.unwrap_or_default();
    Some(Stats {
        sandbox: Some(sandbox),
        container: Some(ContainerId(attributes.id)),
        name: attributes.metadata.map(|metadata| metadata.name).unwrap_or_default(),
        at: Some(observe::nanoseconds(cpu.timestamp)),
        cpu_ns: value(cpu.usage_core_nano_seconds),
        memory_working_set_bytes: value(memory.working_set_bytes),
        memory_usage_bytes: value(memory.usage_bytes),
        memory_rss_bytes: value(memory.rss_bytes),
        requests: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_to_whole_seconds() {
        let table = [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)];
        for (milliseconds, expected) in table {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), expected, "{milliseconds}");
        }
    }

    #[test]
    fn the_digest_of_the_repository_that_was_asked_for_comes_first() {
        let image = v1::Image {
            id: "sha256:1".into(),
            repo_digests: vec!["registry.tandem/web@sha256:2".into(), "docker.io/library/nginx@sha256:2".into()],
            ..Default::default()
        };
        assert_eq!(repository_digest("nginx:1.25", &image), "docker.io/library/nginx@sha256:2");
        assert_eq!(repository_digest("registry.tandem/web", &image), "registry.tandem/web@sha256:2");
        assert_eq!(repository_digest("localhost:5000/a", &image), "registry.tandem/web@sha256:2");
        assert_eq!(repository_digest("x", &v1::Image { id: "sha256:1".into(), ..Default::default() }), "sha256:1");
    }
}
