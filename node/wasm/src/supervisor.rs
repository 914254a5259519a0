//! The node's side: finds a host that runs, or starts one, and watches over it.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tandem_cri::{CriRuntime, Options, Source};
use tandem_runtime::{
    AttachRequest, Capabilities, ContainerId, ContainerSpec, ExecIo, ExecOutput, ExecRequest, Image, Limits, Notice,
    RegistryAuth, Runtime, Sandbox, SandboxId, SandboxSpec, Stats, StoredImage,
};
use tokio::{net::TcpStream, process::Command, sync::broadcast};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, transport::Channel};

use crate::{
    images::Registries,
    service::{
        PROTOCOL_MAX, PROTOCOL_MIN,
        v1::{self, host_client::HostClient},
    },
};

const GREETING_TIME: Duration = Duration::from_secs(5);
/// A host that comes back with ten thousand containers takes its time.
const START_TIME: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_millis(500);
const STOP_TIME: Duration = Duration::from_secs(15);
/// How often lists are compared where events are lost.
const POLL: Duration = Duration::from_secs(5);
const NOTICES: usize = 256;
const METRICS_BYTES: usize = 64 << 20;

/// How to run a host.
#[derive(Clone, Debug)]
pub struct Config {
    /// The host's folder, `D/node/wasm`.
    pub folder: PathBuf,
    /// The program that has the subcommand `wasm-host`; `None`: this one.
    pub program: Option<PathBuf>,
    pub registries: Registries,
    /// A cgroup for the host below every hierarchy's root, such as `/tandem/wasm-host`.
    pub cgroup: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A host runs, and this program is too old or too new for it.
    #[error("the wasm host on {}: {message}", socket.display())]
    Protocol { socket: PathBuf, message: String },
    #[error("the wasm host in {} does not answer; see {}", folder.display(), log.display())]
    Silent { folder: PathBuf, log: PathBuf },
    #[error("{operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// A wasm host that is watched over. It goes on when this is dropped; [`Supervised::down`] ends it.
pub struct Supervised {
    runtime: CriRuntime,
    client: HostClient<Channel>,
    places: Places,
    watching: CancellationToken,
    _watching: DropGuard,
}

#[derive(Clone)]
struct Places {
    config: Config,
    socket: PathBuf,
    log: PathBuf,
}

/// Finds the host of this folder, or starts one, and keeps it running.
pub async fn start(config: Config) -> Result<Arc<Supervised>, Error> {
    let places = Places { socket: config.folder.join("host.sock"), log: config.folder.join("host.log"), config };
    let folder = &places.config.folder;
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed("creating", folder))?;
    let registries = folder.join("registries.json");
    write_registries(&registries, &places.config.registries).map_err(failed("writing", &registries))?;
    let channel = tandem_cri::channel(&places.socket);
    let client = HostClient::new(channel).max_decoding_message_size(METRICS_BYTES);
    let response = places.ensure(&client).await?;
    for warning in &response.warnings {
        tracing::error!(warning, "the wasm host");
    }
    let notices = broadcast::Sender::new(NOTICES);
    let watching = CancellationToken::new();
    let watch = places.clone().watch(client.clone(), notices.clone(), watching.clone());
    // Ends with the token, which this object holds.
    drop(tokio::spawn(watch));
    let runtime = CriRuntime::lazy(&places.socket, options(notices));
    Ok(Arc::new(Supervised { runtime, client, places, _watching: watching.clone().drop_guard(), watching }))
}

fn options(notices: broadcast::Sender<Notice>) -> Options {
    Options {
        name: "wasm",
        capabilities: Capabilities {
            own_network: false,
            light_network: true,
            user_ids: false,
            terminals: false,
            own_images: true,
        },
        poll: POLL,
        changes: None,
        notices: Some(Source::new(move || {
            let notices = BroadcastStream::new(notices.subscribe());
            // What a slow listener missed is gone; notices are a courtesy.
            notices.filter_map(|notice| std::future::ready(notice.ok())).boxed()
        })),
        sandbox_image: None,
        counts_requests: true,
    }
}

fn write_registries(path: &Path, registries: &Registries) -> io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec_pretty(registries).map_err(io::Error::other)?)?;
    std::fs::rename(temporary, path)
}

/// Why a greeting was not answered.
enum Greeting {
    Nobody,
    Refused(String),
}

async fn greet(client: &HostClient<Channel>) -> Result<v1::HandshakeResponse, Greeting> {
    let request =
        v1::HandshakeRequest { min: PROTOCOL_MIN, max: PROTOCOL_MAX, client: env!("CARGO_PKG_VERSION").to_owned() };
    let mut client = client.clone();
    match tokio::time::timeout(GREETING_TIME, client.handshake(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if matches!(status.code(), Code::FailedPrecondition | Code::Unimplemented) => {
            Err(Greeting::Refused(status.message().to_owned()))
        }
        Ok(Err(_)) | Err(_) => Err(Greeting::Nobody),
    }
}

impl Places {
    /// Greets the host, after starting it where nobody answers.
    async fn ensure(&self, client: &HostClient<Channel>) -> Result<v1::HandshakeResponse, Error> {
        let refused = |message| Error::Protocol { socket: self.socket.clone(), message };
        match greet(client).await {
            Ok(response) => {
                tracing::info!(worker = response.worker, "found a wasm host that runs");
                return Ok(response);
            }
            Err(Greeting::Refused(message)) => return Err(refused(message)),
            Err(Greeting::Nobody) => {}
        }
        // One that is only between two workers keeps its lock, and the new one then gives way to it.
        self.spawn().map_err(|source| Error::Io {
            operation: "starting the wasm host in",
            path: self.config.folder.clone(),
            source,
        })?;
        let began = tokio::time::Instant::now();
        while began.elapsed() < START_TIME {
            match greet(client).await {
                Ok(response) => return Ok(response),
                Err(Greeting::Refused(message)) => return Err(refused(message)),
                Err(Greeting::Nobody) => tokio::time::sleep(LOOK).await,
            }
        }
        Err(Error::Silent { folder: self.config.folder.clone(), log: self.log.clone() })
    }

    fn spawn(&self) -> io::Result<()> {
        // This file, also when another one has taken its path: what runs knows that the two understand each other.
        let program = self.config.program.as_deref().unwrap_or(Path::new("/proc/self/exe"));
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut arguments: Vec<OsString> = vec!["wasm-host".into(), "--dir".into(), self.config.folder.clone().into()];
        arguments.extend(["--socket".into(), self.socket.clone().into()]);
        if let Some(cgroup) = &self.config.cgroup {
            arguments.extend(["--cgroup".into(), cgroup.into()]);
        }
        let mut child = Command::new(program)
            .arg0("tandem")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            // It makes itself a session; until then an interrupt at the terminal must not reach it.
            .process_group(0)
            .spawn()?;
        // Only so that no zombie stays; that it ended is seen by its silence.
        drop(tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                tracing::warn!(%status, "the wasm host has ended");
            }
        }));
        Ok(())
    }

    /// Passes notices on, and starts the host anew when it is gone.
    async fn watch(self, client: HostClient<Channel>, notices: broadcast::Sender<Notice>, over: CancellationToken) {
        let watch = async {
            loop {
                let stream = client.clone().notices(v1::NoticesRequest {}).await;
                if let Ok(stream) = stream {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(notice)) = stream.message().await {
                        // Without a listener there is nobody to tell.
                        drop(notices.send(from_wire(notice)));
                    }
                }
                tokio::time::sleep(RETRY).await;
                if let Err(error) = self.ensure(&client).await {
                    tracing::error!(%error, "the wasm host is gone and does not come back");
                }
            }
        };
        tokio::select! {
            () = watch => {}
            () = over.cancelled() => {}
        }
    }
}

fn from_wire(notice: v1::Notice) -> Notice {
    let v1::Notice { container, reason, message, warning } = notice;
    Notice { container: ContainerId(container), reason, message, warning }
}

impl Supervised {
    /// All containers' counts in the Prometheus text format.
    pub async fn metrics(&self) -> Result<String, tandem_runtime::Error> {
        let failed = |status: tonic::Status| tandem_runtime::Error::Failed {
            operation: "metrics of the wasm host",
            message: status.message().to_owned(),
        };
        let response = self.client.clone().metrics(v1::MetricsRequest {}).await.map_err(failed)?;
        Ok(response.into_inner().text)
    }

    /// The process id of the worker that answers at the moment.
    pub async fn worker(&self) -> Option<u32> {
        greet(&self.client).await.ok().map(|response| response.worker)
    }

    /// Ends the host and with it every component that it runs.
    pub async fn down(&self) -> Result<(), Error> {
        self.watching.cancel();
        down(&self.places.config.folder).await
    }
}

#[async_trait]
impl Runtime for Supervised {
    fn name(&self) -> &'static str {
        self.runtime.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.runtime.capabilities()
    }

    async fn image(&self, reference: &str) -> tandem_runtime::Result<Option<Image>> {
        self.runtime.image(reference).await
    }

    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> tandem_runtime::Result<Image> {
        self.runtime.pull(reference, auth).await
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> tandem_runtime::Result<SandboxId> {
        self.runtime.create_sandbox(spec).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> tandem_runtime::Result<()> {
        self.runtime.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> tandem_runtime::Result<()> {
        self.runtime.remove_sandbox(id).await
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> tandem_runtime::Result<ContainerId> {
        self.runtime.create(sandbox, spec).await
    }

    async fn start(&self, id: &ContainerId) -> tandem_runtime::Result<()> {
        self.runtime.start(id).await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> tandem_runtime::Result<()> {
        self.runtime.stop(id, grace).await
    }

    async fn remove(&self, id: &ContainerId) -> tandem_runtime::Result<()> {
        self.runtime.remove(id).await
    }

    async fn update(&self, id: &ContainerId, limits: &Limits) -> tandem_runtime::Result<()> {
        self.runtime.update(id, limits).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> tandem_runtime::Result<()> {
        self.runtime.reopen_log(id).await
    }

    async fn list(&self) -> tandem_runtime::Result<Vec<Sandbox>> {
        self.runtime.list().await
    }

    async fn stats(&self) -> tandem_runtime::Result<Vec<Stats>> {
        self.runtime.stats().await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.runtime.changes()
    }

    fn notices(&self) -> BoxStream<'static, Notice> {
        self.runtime.notices()
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> tandem_runtime::Result<ExecOutput> {
        self.runtime.exec(id, command, timeout).await
    }

    async fn images(&self) -> tandem_runtime::Result<Vec<StoredImage>> {
        Runtime::images(&self.runtime).await
    }

    async fn remove_image(&self, id: &str) -> tandem_runtime::Result<()> {
        self.runtime.remove_image(id).await
    }

    async fn exec_stream(&self, id: &ContainerId, request: ExecRequest, io: ExecIo) -> tandem_runtime::Result<i32> {
        self.runtime.exec_stream(id, request, io).await
    }

    async fn attach(&self, id: &ContainerId, request: AttachRequest, io: ExecIo) -> tandem_runtime::Result<()> {
        self.runtime.attach(id, request, io).await
    }

    async fn connect(&self, sandbox: &SandboxId, port: u16) -> tandem_runtime::Result<TcpStream> {
        self.runtime.connect(sandbox, port).await
    }
}

/// Ends the host of this folder, if one runs there, and with it every component that it runs.
pub async fn down(folder: &Path) -> Result<(), Error> {
    let socket = folder.join("host.sock");
    if tokio::net::UnixStream::connect(&socket).await.is_err() {
        return Ok(());
    }
    let mut client = HostClient::new(tandem_cri::channel(&socket));
    // It may end before it answers; what counts is that it is gone.
    drop(client.stop(v1::StopRequest {}).await);
    let began = tokio::time::Instant::now();
    while tokio::net::UnixStream::connect(&socket).await.is_ok() {
        if began.elapsed() > STOP_TIME {
            return Err(Error::Silent { folder: folder.to_owned(), log: folder.join("host.log") });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
