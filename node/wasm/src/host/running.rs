use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_runtime::Requests;
use tokio::sync::{oneshot, watch};

use super::{Host, HostError, KILLED, annotations};
use crate::{
    engine::{Blueprint, Cpu, Ending, GuestStreams, Lanes, MemoryAccount, Preopen, Program, Pulse, SocketRules},
    live::Input,
    metrics::Metrics,
    network::{Attachment, Dialer},
    outgoing::Outgoing,
    output::{LogFile, Output},
    serve::{Service, ServiceParts},
    state::{ContainerRecord, Exit, Kind, SandboxRecord},
};

/// A process without a handler for SIGTERM ends with this, and a component cannot have one.
const TERMINATED: i32 = 143;

/// A container that runs.
pub(crate) struct Running {
    pub(crate) program: Arc<Program>,
    pub(crate) cpu: Arc<Cpu>,
    pub(crate) memory: Arc<MemoryAccount>,
    pub(crate) log: Arc<LogFile>,
    pub(crate) work: Work,
    stop: watch::Sender<Option<Duration>>,
    ended: watch::Receiver<bool>,
}

pub(crate) enum Work {
    Http(Arc<Service>),
    Command(Box<CommandWork>),
}

pub(crate) struct CommandWork {
    pub(crate) blueprint: Blueprint,
    /// `None`: at its end from the start.
    pub(crate) input: Option<Input>,
    pub(crate) metrics: Metrics,
}

impl Running {
    pub(crate) fn blueprint(&self) -> &Blueprint {
        match &self.work {
            Work::Http(service) => &service.blueprint,
            Work::Command(command) => &command.blueprint,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        match &self.work {
            Work::Http(service) => &service.metrics,
            Work::Command(command) => &command.metrics,
        }
    }

    /// The standard input, where clients may send to it.
    pub(super) fn input(&self) -> Option<&Input> {
        match &self.work {
            Work::Http(_) => None,
            Work::Command(command) => command.input.as_ref(),
        }
    }

    /// Instances alive and requests queued.
    pub(crate) fn load(&self) -> (u64, u64) {
        match &self.work {
            Work::Http(service) => (service.live_instances() as u64, service.queued() as u64),
            Work::Command(_) => (1, 0),
        }
    }

    /// Counts of requests, of what takes any.
    pub(crate) fn requests(&self) -> Option<Requests> {
        let Work::Http(service) = &self.work else { return None };
        let (answered, duration_us) = service.metrics.totals();
        let in_flight = service.live_instances().saturating_add(service.queued());
        Some(Requests { answered, duration_us, in_flight: in_flight as u64 })
    }

    pub(super) fn ask_to_stop(&self, grace: Duration) {
        self.stop.send_if_modified(|asked| {
            let sooner = asked.is_none_or(|before| grace < before);
            if sooner {
                *asked = Some(grace);
            }
            sooner
        });
    }

    pub(super) async fn ended(&self) {
        // An error means that the keeper is gone, and then so is the container.
        drop(self.ended.clone().wait_for(|ended| *ended).await);
    }
}

/// The name that a component sees as its own: what it was started as.
pub(super) fn arguments(record: &ContainerRecord) -> Vec<String> {
    if record.command.is_empty() {
        std::iter::once(record.name.clone()).chain(record.args.iter().cloned()).collect()
    } else {
        record.command.iter().chain(&record.args).cloned().collect()
    }
}

impl Host {
    /// Runs a container from its record, at its start and after a restart of the worker.
    pub(super) async fn run(self: &Arc<Self>, record: &ContainerRecord) -> Result<(), HostError> {
        let sandbox = self.table.sandbox(&record.sandbox);
        let sandbox = sandbox.ok_or_else(|| HostError::NotFound(format!("sandbox {}", record.sandbox)))?;
        let prepared = self.prepared.lock().remove(&record.id);
        let program = match prepared {
            Some(program) => program,
            None => {
                let image = self.images.find(&record.image.id);
                let image = image.ok_or_else(|| HostError::NotFound(format!("image {}", record.image.reference)))?;
                self.program(&record.image.file, &image).await?
            }
        };
        let limit = u64::try_from(record.resources.memory_bytes).ok().filter(|bytes| *bytes > 0);
        let memory = MemoryAccount::new(self.memory.clone(), limit);
        let cpu = Cpu::new(record.resources.cpu_quota_us, record.resources.cpu_period_us, Instant::now());
        let parts = Parts { program, memory, cpu: Arc::new(cpu), log: log(&sandbox, record) };
        parts.log.touch()?;
        match record.kind {
            Kind::Http => self.run_http(record, &sandbox, parts).await,
            Kind::Command => self.run_command(record, &sandbox, parts),
        }
    }

    async fn run_http(
        self: &Arc<Self>,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        parts: Parts,
    ) -> Result<(), HostError> {
        let blueprint = self.blueprint(record, sandbox, &parts)?;
        let limits = annotations::limits(&sandbox.annotations).map_err(HostError::Refused)?;
        let address = SocketAddr::new(sandbox.attachment.listen_address(), record.port);
        let listener = self.sockets.listener(&record.id, sandbox.attachment.namespace(), address).await;
        let listener = listener.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => HostError::Failed(format!("port {} of the pod is already in use", record.port)),
            _ => HostError::Failed(format!("cannot listen on {address}: {error}")),
        })?;
        let lanes = match &sandbox.attachment {
            // Its sockets have to be made inside, so everything of it runs there.
            Attachment::Own { namespace, .. } if parts.program.imports_sockets => {
                Lanes::start(self.engine.ticker().clone(), 1, Some(namespace))?
            }
            _ => self.lanes.clone(),
        };
        let service = Service::new(ServiceParts {
            container: record.id.clone(),
            engine: self.engine.clone(),
            lanes,
            program: parts.program.clone(),
            blueprint,
            cpu: parts.cpu.clone(),
            log: parts.log.clone(),
            notices: self.notices.clone(),
            limits,
        });
        let keeper = keep_http(service.clone(), parts.memory.clone(), self.clone(), record.id.clone());
        self.keep(&record.id, parts, Work::Http(service.clone()), keeper);
        service.listen(listener);
        Ok(())
    }

    fn run_command(
        self: &Arc<Self>,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        parts: Parts,
    ) -> Result<(), HostError> {
        let blueprint = self.blueprint(record, sandbox, &parts)?;
        let (input, stdin) = record.stdin.then(|| Input::open(record.stdin_once)).unzip();
        let streams = GuestStreams {
            stdin,
            stdout: Output::log(parts.log.clone(), "stdout"),
            stderr: Output::log(parts.log.clone(), "stderr"),
        };
        let pulse = Arc::new(Pulse::default());
        let launch = Launch {
            program: &parts.program,
            blueprint: &blueprint,
            args: &blueprint.args,
            cpu: &parts.cpu,
            pulse: &pulse,
            place: Place::of(&parts.program, &sandbox.attachment),
        };
        let ending = self.launch(launch, streams)?;
        let memory = parts.memory.clone();
        let keeper = |stop| keep_command(ending, pulse, memory, stop);
        let work = Box::new(CommandWork { blueprint, input, metrics: Metrics::default() });
        self.keep(&record.id, parts, Work::Command(work), keeper);
        Ok(())
    }

    /// Starts a command and gives back what will be its end.
    pub(super) fn launch(
        &self,
        launch: Launch<'_>,
        streams: GuestStreams,
    ) -> Result<oneshot::Receiver<Ending>, HostError> {
        let Launch { program, blueprint, args, cpu, pulse, place } = launch;
        let (sender, receiver) = oneshot::channel();
        let mut store = blueprint.store(&self.engine, args, streams);
        let (program, shared) = (program.clone(), self.engine.instances().clone());
        let guest = async move {
            // Everybody's instances together are bounded, commands among them.
            let Ok(_permit) = shared.acquire_owned().await else { return };
            let Some(command) = &program.command else { return };
            let ending = command.run(&mut store).await;
            // What it wrote last is in the log before anybody hears that it ended.
            drop(store);
            drop(sender.send(ending));
        };
        match place {
            Place::Lane => self.lanes.run_bulk(cpu.clone(), pulse.clone(), guest),
            Place::Inside(namespace) => self
                .lanes
                .run_inside(namespace, cpu.clone(), pulse.clone(), guest)
                .map_err(|error| HostError::Failed(format!("cannot enter the pod's network: {error}")))?,
        }
        Ok(receiver)
    }

    fn blueprint(
        &self,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        parts: &Parts,
    ) -> Result<Blueprint, HostError> {
        let dialer = Dialer::new(sandbox.attachment.clone(), sandbox.dns.clone(), self.sockets.clone());
        let sockets = match (&sandbox.attachment, record.kind) {
            // Requests of many such pods are served on the same threads, which are in no pod's network.
            (Attachment::Shared { .. }, Kind::Http) => SocketRules::Denied,
            (Attachment::Shared { address, .. }, Kind::Command) => SocketRules::Shared(*address),
            (Attachment::Own { .. } | Attachment::Host { .. }, _) => SocketRules::Own,
        };
        let env = record.env.clone();
        let memory = parts.memory.clone();
        let mut blueprint = Blueprint::new(env, arguments(record), sockets, Outgoing::new(dialer), memory);
        blueprint.working_directory = record.working_directory.clone();
        blueprint.preopen(&preopens(record)).map_err(|error| HostError::Failed(error.to_string()))?;
        Ok(blueprint)
    }

    /// Puts a container among the running ones, with a task that sees to its end.
    fn keep<F>(
        self: &Arc<Self>,
        id: &str,
        parts: Parts,
        work: Work,
        keeper: impl FnOnce(watch::Receiver<Option<Duration>>) -> F,
    ) where
        F: Future<Output = Ending> + Send + 'static,
    {
        let (stop, asked) = watch::channel(None);
        let (over, ended) = watch::channel(false);
        let Parts { program, memory, cpu, log } = parts;
        let running = Running { program, cpu, memory, log, work, stop, ended };
        self.running.lock().insert(id.to_owned(), Arc::new(running));
        let (host, id, keeper) = (self.clone(), id.to_owned(), keeper(asked));
        // The container's own end is the task's; nobody else waits for it.
        drop(tokio::spawn(async move {
            let Ending { code, reason, message } = keeper.await;
            host.exited(&id, Exit { code, reason: reason.to_owned(), message });
            over.send_replace(true);
        }));
    }
}

struct Parts {
    program: Arc<Program>,
    memory: Arc<MemoryAccount>,
    cpu: Arc<Cpu>,
    log: Arc<LogFile>,
}

/// One run of a command.
pub(super) struct Launch<'a> {
    pub(super) program: &'a Arc<Program>,
    pub(super) blueprint: &'a Blueprint,
    pub(super) args: &'a [String],
    pub(super) cpu: &'a Arc<Cpu>,
    pub(super) pulse: &'a Arc<Pulse>,
    pub(super) place: Place<'a>,
}

/// Where a command runs.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Lane,
    /// On a thread inside a network namespace, or of the node's own network.
    Inside(Option<&'a Path>),
}

impl Place<'_> {
    pub(super) fn of<'a>(program: &Program, attachment: &'a Attachment) -> Place<'a> {
        if program.imports_sockets { Place::Inside(attachment.namespace()) } else { Place::Lane }
    }
}

fn log(sandbox: &SandboxRecord, record: &ContainerRecord) -> Arc<LogFile> {
    let has_log = !record.log_path.is_empty() && !sandbox.log_directory.as_os_str().is_empty();
    LogFile::new(has_log.then(|| sandbox.log_directory.join(&record.log_path)))
}

fn preopens(record: &ContainerRecord) -> Vec<Preopen> {
    let mut preopens = Vec::new();
    for mount in &record.mounts {
        if mount.host.is_file() {
            // WASI hands out directories only.
            tracing::debug!(container = record.id, path = %mount.host.display(), "a single file cannot be mounted");
            continue;
        }
        preopens.push(Preopen { host: mount.host.clone(), guest: mount.guest.clone(), read_only: mount.read_only });
    }
    preopens
}

async fn asked_to_stop(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let asked = stop.wait_for(Option::is_some).await.map(|grace| grace.unwrap_or_default()).ok();
    match asked {
        Some(grace) => grace,
        // Nobody can ask any more.
        None => std::future::pending().await,
    }
}

fn keep_http(
    service: Arc<Service>,
    memory: Arc<MemoryAccount>,
    host: Arc<Host>,
    id: String,
) -> impl FnOnce(watch::Receiver<Option<Duration>>) -> std::pin::Pin<Box<dyn Future<Output = Ending> + Send>> {
    move |mut stop| {
        Box::pin(async move {
            let ending = tokio::select! {
                () = memory.wait_exceeded() => Ending::out_of_memory("its memory limit was exceeded".to_owned()),
                grace = asked_to_stop(&mut stop) => {
                    let finish = finish_http(&service, &host, &id, grace);
                    // A shorter grace can be asked for while the first one runs.
                    tokio::select! {
                        ending = finish => ending,
                        () = shortened(&mut stop, grace) => Ending::exited(KILLED),
                    }
                }
            };
            service.kill();
            close_listener(&host, &id).await;
            ending
        })
    }
}

async fn shortened(stop: &mut watch::Receiver<Option<Duration>>, grace: Duration) {
    let over = stop.wait_for(|asked| asked.is_some_and(|asked| asked < grace)).await.is_err();
    if over {
        std::future::pending::<()>().await;
    }
}

/// Lets clients find other pods first, then answers what came, then ends.
async fn finish_http(service: &Service, host: &Host, id: &str, grace: Duration) -> Ending {
    if grace.is_zero() {
        return Ending::exited(KILLED);
    }
    let began = Instant::now();
    service.quiet_down(grace / 2).await;
    close_listener(host, id).await;
    let answered = service.drain(grace.saturating_sub(began.elapsed())).await;
    Ending::exited(if answered { 0 } else { KILLED })
}

async fn close_listener(host: &Host, id: &str) {
    if let Err(error) = host.sockets.close(id).await {
        tracing::warn!(%error, container = id, "a listener could not be closed");
    }
}

async fn keep_command(
    mut ending: oneshot::Receiver<Ending>,
    pulse: Arc<Pulse>,
    memory: Arc<MemoryAccount>,
    mut stop: watch::Receiver<Option<Duration>>,
) -> Ending {
    let ended = tokio::select! {
        ended = &mut ending => ended,
        grace = asked_to_stop(&mut stop) => {
            // A component cannot hear a signal, so waiting would only make the end late: like a process without a
            // handler it ends at once, whatever the grace period is.
            pulse.stop();
            return match ending.await {
                Ok(ended) => ended,
                Err(_) => Ending::exited(if grace.is_zero() { KILLED } else { TERMINATED }),
            };
        }
    };
    match ended {
        Ok(ended) if memory.exceeded() && ended.code != 0 && ended.reason != "OOMKilled" => {
            Ending::out_of_memory(ended.message)
        }
        Ok(ended) => ended,
        Err(_) => {
            Ending { message: "the host failed while it ran this guest".to_owned(), ..Ending::exited(TERMINATED) }
        }
    }
}
