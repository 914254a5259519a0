use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::Write,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use parking_lot::Mutex;
use tandem_api::Clock;
use tokio::{
    net::TcpStream,
    sync::{broadcast, mpsc, watch},
};
use tokio_stream::wrappers::{BroadcastStream, WatchStream};

use crate::{
    AttachRequest, Capabilities, Container, ContainerId, ContainerSpec, Error, ExecIo, ExecOutput, ExecRequest, Image,
    Limits, Network, Notice, RegistryAuth, Result, Runtime, Sandbox, SandboxId, SandboxSpec, State, Stats, StoredImage,
};

const NOTICES_MAX: usize = 64;
/// What a process that ends on SIGTERM without a handler of its own leaves behind.
const EXIT_TERMINATED: i32 = 143;
const EXIT_KILLED: i32 = 137;

/// One thing that a fake program does, in order, when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Print(String),
    PrintError(String),
    /// `NAME=VALUE` of its environment, one a line.
    PrintEnvironment,
    /// `arg X` for each argument.
    PrintArguments,
    /// Writes to a path inside the container; ends with code 1 where no writable mount covers it.
    Write {
        path: String,
        text: String,
    },
    /// Stays until it is stopped or made to exit.
    Wait,
    /// Copies to its output what those who are attached send, until its input ends.
    Copy,
    /// As `Wait`, but only force ends it.
    WaitStubbornly,
    Exit(i32),
}

/// A scripted program: an image of the fake registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(pub Vec<Act>);

impl Program {
    /// Runs until it is stopped.
    pub fn waits() -> Program {
        Program(vec![Act::Wait])
    }

    pub fn exits(code: i32) -> Program {
        Program(vec![Act::Exit(code)])
    }
}

/// A runtime in memory: programs are scripts, and tests decide when they end.
///
/// It keeps what a real runtime would keep when the agent restarts, so a test drops the agent and keeps the fake.
pub struct Fake {
    name: &'static str,
    capabilities: Capabilities,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    notices: broadcast::Sender<Notice>,
    /// What containers say, for those who are attached.
    said: broadcast::Sender<(ContainerId, Bytes)>,
}

#[derive(Default)]
struct Inner {
    counter: u64,
    registry: HashMap<String, Result<Program>>,
    images: BTreeMap<String, Image>,
    sandboxes: BTreeMap<SandboxId, Record>,
    failures: HashMap<&'static str, VecDeque<Error>>,
    outputs: HashMap<Vec<String>, ExecOutput>,
    calls: Vec<String>,
}

struct Record {
    spec: SandboxSpec,
    seen: Sandbox,
    containers: BTreeMap<ContainerId, (ContainerSpec, bool)>,
}

impl Fake {
    /// `name` is the scheme of its container ids, as [`Runtime::name`] gives it.
    pub fn new(name: &'static str, clock: Arc<dyn Clock>) -> Fake {
        let capabilities =
            Capabilities { own_network: true, light_network: true, user_ids: true, terminals: true, own_images: true };
        Fake {
            name,
            capabilities,
            clock,
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
            notices: broadcast::Sender::new(NOTICES_MAX),
            said: broadcast::Sender::new(NOTICES_MAX),
        }
    }

    /// Puts a program into the registry that `pull` asks.
    pub fn offer(&self, reference: &str, program: Program) {
        self.inner.lock().registry.insert(reference.to_owned(), Ok(program));
    }

    /// Makes `pull` of this reference fail.
    pub fn refuse(&self, reference: &str, error: Error) {
        self.inner.lock().registry.insert(reference.to_owned(), Err(error));
    }

    /// Makes the next call of this operation (`create_sandbox`, `start`…) fail; several queue up.
    pub fn fail_next(&self, operation: &'static str, error: Error) {
        self.inner.lock().failures.entry(operation).or_default().push_back(error);
    }

    /// What a command gives when it is executed in any container.
    pub fn answer_exec(&self, command: &[&str], output: ExecOutput) {
        self.inner.lock().outputs.insert(command.iter().map(ToString::to_string).collect(), output);
    }

    /// Ends a running container as if its process had exited.
    pub fn exit(&self, id: &ContainerId, code: i32) {
        self.exit_with(id, code, if code == 0 { "Completed" } else { "Error" }, "");
    }

    /// As [`Fake::exit`], with the reason and message that the runtime reports.
    pub fn exit_with(&self, id: &ContainerId, code: i32, reason: &str, message: &str) {
        let now = self.clock.now();
        if let Some(container) = find(&mut self.inner.lock().sandboxes, id) {
            end(container, now, code, reason, message);
        }
        self.wake();
    }

    /// The sandbox's own process died: nothing in it runs any more.
    pub fn lose_sandbox(&self, id: &SandboxId) {
        let now = self.clock.now();
        if let Some(record) = self.inner.lock().sandboxes.get_mut(id) {
            record.seen.ready = false;
            for container in &mut record.seen.containers {
                end(container, now, EXIT_KILLED, "Error", "");
            }
        }
        self.wake();
    }

    /// Sends a notice to whoever listens.
    pub fn notify(&self, notice: Notice) {
        // Nobody listening is no error: notices are hints.
        drop(self.notices.send(notice));
    }

    /// The calls so far, such as `start web`: what a test of steps compares.
    pub fn calls(&self) -> Vec<String> {
        self.inner.lock().calls.clone()
    }

    /// The limits that a container has now.
    pub fn limits(&self, id: &ContainerId) -> Option<Limits> {
        let inner = self.inner.lock();
        inner.sandboxes.values().find_map(|record| Some(record.containers.get(id)?.0.limits.clone()))
    }

    /// What [`Runtime::list`] gives, without being async.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.inner.lock().sandboxes.values().map(|record| record.seen.clone()).collect()
    }

    fn is_running(&self, id: &ContainerId) -> bool {
        let found = find(&mut self.inner.lock().sandboxes, id).map(|container| container.state.clone());
        matches!(found, Some(State::Running { .. }))
    }

    /// Takes what a client sends; its end is the container's where that has its stdin once.
    async fn take(&self, id: &ContainerId, mut stdin: mpsc::Receiver<Bytes>) -> std::convert::Infallible {
        while let Some(bytes) = stdin.recv().await {
            // Nobody listening is no error.
            drop(self.said.send((id.clone(), bytes)));
        }
        let once = {
            let inner = self.inner.lock();
            let spec = inner.sandboxes.values().find_map(|record| record.containers.get(id));
            spec.is_some_and(|(spec, _)| spec.stdin_once)
        };
        if once {
            self.exit(id, 0);
        }
        std::future::pending().await
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn begin(&self, operation: &'static str, subject: &str) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.calls.push(format!("{operation} {subject}").trim_end().to_owned());
        match inner.failures.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn find<'a>(sandboxes: &'a mut BTreeMap<SandboxId, Record>, id: &ContainerId) -> Option<&'a mut Container> {
    sandboxes.values_mut().find_map(|record| record.seen.containers.iter_mut().find(|container| container.id == *id))
}

fn end(container: &mut Container, now: Timestamp, code: i32, reason: &str, message: &str) {
    if let State::Running { started } = container.state {
        container.state = State::Exited {
            started: Some(started),
            finished: now,
            code,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
    }
}

fn not_found(operation: &'static str, subject: &impl ToString) -> Error {
    Error::NotFound { operation, subject: subject.to_string() }
}

fn failed(operation: &'static str, error: &impl ToString) -> Error {
    Error::Failed { operation, message: error.to_string() }
}

impl Inner {
    fn id(&mut self, prefix: &str) -> String {
        self.counter += 1;
        format!("{prefix}{}", self.counter)
    }

    fn address(&mut self, network: &Network) -> Option<Ipv4Addr> {
        match network {
            Network::Own => {
                self.counter += 1;
                let [.., high, low] = self.counter.to_be_bytes();
                Some(Ipv4Addr::new(10, 200, high, low))
            }
            Network::Host { address } | Network::Join { address, .. } | Network::Light { address, .. } => {
                Some(*address)
            }
        }
    }
}

/// Where a path of the container lies on the host, if a mount covers it; `Err` where that mount refuses writes.
fn host_path(spec: &ContainerSpec, path: &str) -> std::result::Result<Option<std::path::PathBuf>, ()> {
    let inside = Path::new(path);
    let mut covering: Vec<_> = spec.mounts.iter().filter(|mount| inside.starts_with(&mount.container)).collect();
    covering.sort_by_key(|mount| mount.container.len());
    match covering.last() {
        None => Ok(None),
        Some(mount) if mount.read_only => Err(()),
        Some(mount) => match inside.strip_prefix(&mount.container) {
            Ok(rest) if rest.as_os_str().is_empty() => Ok(Some(mount.host.clone())),
            Ok(rest) => Ok(Some(mount.host.join(rest))),
            Err(_) => Ok(None),
        },
    }
}

/// Runs the script as far as it goes by itself: the exit code, or `None` while it waits.
fn run(program: &Program, spec: &ContainerSpec, log: &mut impl FnMut(&str, &str)) -> Option<i32> {
    for act in &program.0 {
        match act {
            Act::Print(line) => log("stdout", line),
            Act::PrintError(line) => log("stderr", line),
            Act::PrintEnvironment => {
                spec.env.iter().for_each(|(name, value)| log("stdout", &format!("{name}={value}")));
            }
            Act::PrintArguments => spec.args.iter().for_each(|arg| log("stdout", &format!("arg {arg}"))),
            Act::Write { path, text } => match host_path(spec, path) {
                Ok(Some(host)) if std::fs::write(&host, text).is_ok() => {}
                _ => return Some(1),
            },
            Act::Copy if !spec.stdin => return Some(0),
            Act::Copy | Act::Wait | Act::WaitStubbornly => return None,
            Act::Exit(code) => return Some(*code),
        }
    }
    Some(0)
}

#[async_trait]
impl Runtime for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.inner.lock().images.get(reference).cloned())
    }

    async fn images(&self) -> Result<Vec<StoredImage>> {
        let stored = |(reference, image): (&String, &Image)| StoredImage {
            id: image.id.clone(),
            names: vec![reference.clone(), image.digest.clone()],
            size_bytes: image.size_bytes,
        };
        Ok(self.inner.lock().images.iter().map(stored).collect())
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        self.begin("remove_image", id)?;
        self.inner.lock().images.retain(|_, image| image.id != id);
        Ok(())
    }

    async fn pull(&self, reference: &str, _auth: Option<&RegistryAuth>) -> Result<Image> {
        self.begin("pull", reference)?;
        let mut inner = self.inner.lock();
        match inner.registry.get(reference) {
            None => Err(Error::Pull(format!("{reference}: not found"))),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(_)) => {
                let image = Image {
                    id: reference.to_owned(),
                    digest: format!("{reference}@sha256:{:064x}", reference.len()),
                    size_bytes: 1024,
                    user_id: None,
                };
                inner.images.insert(reference.to_owned(), image.clone());
                Ok(image)
            }
        }
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxId> {
        self.begin("create_sandbox", &spec.pod.name)?;
        let mut inner = self.inner.lock();
        let same = |record: &&Record| record.spec.pod == spec.pod;
        if let Some(record) = inner.sandboxes.values().find(same) {
            return Ok(record.seen.id.clone());
        }
        let id = SandboxId(inner.id("sandbox-"));
        let address = inner.address(&spec.network);
        let namespace = match &spec.network {
            Network::Own => Some(format!("/run/netns/{id}").into()),
            Network::Join { namespace, .. } => Some(namespace.clone()),
            Network::Host { .. } | Network::Light { .. } => None,
        };
        let seen = Sandbox {
            id: id.clone(),
            pod: spec.pod.clone(),
            ready: true,
            address,
            network_namespace: namespace,
            created: self.clock.now(),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
            containers: Vec::new(),
        };
        inner.sandboxes.insert(id.clone(), Record { spec: spec.clone(), seen, containers: BTreeMap::new() });
        drop(inner);
        self.wake();
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.begin("stop_sandbox", &id.0)?;
        self.lose_sandbox(id);
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.begin("remove_sandbox", &id.0)?;
        self.inner.lock().sandboxes.remove(id);
        self.wake();
        Ok(())
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId> {
        self.begin("create", &spec.name)?;
        let mut inner = self.inner.lock();
        let image = inner.images.get(&spec.image).cloned().ok_or_else(|| not_found("create", &spec.image))?;
        let id = ContainerId(inner.id("container-"));
        let record = inner.sandboxes.get_mut(sandbox).ok_or_else(|| not_found("create", sandbox))?;
        let existing = record.seen.containers.iter().find(|c| c.name == spec.name && c.attempt == spec.attempt);
        if let Some(existing) = existing {
            return Ok(existing.id.clone());
        }
        record.seen.containers.push(Container {
            id: id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            spec_hash: spec.spec_hash,
            image: spec.image_reference.clone(),
            image_digest: image.digest,
            state: State::Created,
            created: self.clock.now(),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
            log_path: spec.log_path.clone(),
        });
        record.containers.insert(id.clone(), (spec.clone(), false));
        drop(inner);
        self.wake();
        Ok(id)
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        let now = self.clock.now();
        let name = {
            let inner = self.inner.lock();
            let spec = inner.sandboxes.values().find_map(|record| record.containers.get(id));
            spec.map(|(spec, _)| spec.name.clone()).ok_or_else(|| not_found("start", id))?
        };
        self.begin("start", &name)?;
        {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            let record = inner
                .sandboxes
                .values_mut()
                .find(|record| record.containers.contains_key(id))
                .ok_or_else(|| not_found("start", id))?;
            let Some((spec, stubborn)) = record.containers.get_mut(id) else { return Err(not_found("start", id)) };
            let Some(container) = record.seen.containers.iter_mut().find(|c| c.id == *id) else {
                return Err(not_found("start", id));
            };
            if container.state != State::Created {
                return Ok(());
            }
            let program = match inner.registry.get(&spec.image) {
                Some(Ok(program)) => program.clone(),
                _ => Program::waits(),
            };
            *stubborn = program.0.contains(&Act::WaitStubbornly);
            let path = record.spec.log_directory.join(&spec.log_path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|error| failed("start", &error))?;
            }
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(|error| failed("start", &error))?;
            let mut written = Ok(());
            let code = run(&program, spec, &mut |stream, line| {
                written = written.and_then(|()| writeln!(file, "{now:.9} {stream} F {line}").map_err(|_| ()));
            });
            written.map_err(|()| failed("start", &"the log file cannot be written"))?;
            container.state = State::Running { started: now };
            if let Some(code) = code {
                end(container, now, code, if code == 0 { "Completed" } else { "Error" }, "");
            }
        }
        self.wake();
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        self.begin("stop", &id.0)?;
        let stubborn = {
            let inner = self.inner.lock();
            inner.sandboxes.values().find_map(|record| record.containers.get(id)).is_some_and(|(_, stubborn)| *stubborn)
        };
        if stubborn {
            tokio::time::sleep(grace).await;
        }
        let code = if stubborn { EXIT_KILLED } else { EXIT_TERMINATED };
        self.exit_with(id, code, "Error", "");
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.begin("remove", &id.0)?;
        for record in self.inner.lock().sandboxes.values_mut() {
            record.containers.remove(id);
            record.seen.containers.retain(|container| container.id != *id);
        }
        self.wake();
        Ok(())
    }

    async fn update(&self, id: &ContainerId, limits: &Limits) -> Result<()> {
        self.begin("update", &id.0)?;
        let mut inner = self.inner.lock();
        let found = inner.sandboxes.values_mut().find_map(|record| record.containers.get_mut(id));
        let (spec, _) = found.ok_or_else(|| not_found("update", id))?;
        spec.limits = limits.clone();
        Ok(())
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<()> {
        self.begin("reopen_log", &id.0)?;
        let inner = self.inner.lock();
        let log = inner.sandboxes.values().find_map(|record| {
            let (spec, _) = record.containers.get(id)?;
            Some(record.spec.log_directory.join(&spec.log_path))
        });
        let log = log.ok_or_else(|| not_found("reopen_log", id))?;
        let opened = std::fs::File::options().create(true).append(true).open(log);
        opened.map(drop).map_err(|error| failed("reopen_log", &error))
    }

    async fn list(&self) -> Result<Vec<Sandbox>> {
        if let Some(error) = self.inner.lock().failures.get_mut("list").and_then(VecDeque::pop_front) {
            return Err(error);
        }
        Ok(self.sandboxes())
    }

    async fn stats(&self) -> Result<Vec<Stats>> {
        let now = self.clock.now();
        let running = |sandbox: &Sandbox| {
            let containers = sandbox.containers.iter().filter_map(|container| match container.state {
                State::Running { started } => Some((container, started)),
                _ => None,
            });
            containers
                .map(|(container, started)| Stats {
                    sandbox: Some(sandbox.id.clone()),
                    container: Some(container.id.clone()),
                    name: container.name.clone(),
                    at: Some(now),
                    // A tenth of a core.
                    cpu_ns: u64::try_from(now.duration_since(started).as_nanos() / 10).unwrap_or(0),
                    memory_working_set_bytes: 1 << 20,
                    memory_usage_bytes: 1 << 20,
                    memory_rss_bytes: 1 << 20,
                    requests: None,
                })
                .collect::<Vec<_>>()
        };
        Ok(self.sandboxes().iter().flat_map(running).collect())
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        WatchStream::from_changes(self.changed.subscribe()).map(|_| ()).boxed()
    }

    fn notices(&self) -> BoxStream<'static, Notice> {
        // A listener that lags loses notices: they are hints, and the queue is bounded.
        BroadcastStream::new(self.notices.subscribe()).filter_map(|notice| async { notice.ok() }).boxed()
    }

    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.begin("exec", &command.join(" "))?;
        let inner = self.inner.lock();
        let record = inner.sandboxes.values().find(|record| record.containers.contains_key(id));
        let record = record.ok_or_else(|| not_found("exec", id))?;
        let container = record.seen.containers.iter().find(|container| container.id == *id);
        if !container.is_some_and(|container| matches!(container.state, State::Running { .. })) {
            return Err(Error::Failed { operation: "exec", message: "the container does not run".to_owned() });
        }
        if let Some(output) = inner.outputs.get(command) {
            return Ok(output.clone());
        }
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let said = |code: i32, text: String| ExecOutput { code, stdout: text.into_bytes(), stderr: Vec::new() };
        match words.as_slice() {
            ["echo", rest @ ..] => Ok(said(0, format!("{}\n", rest.join(" ")))),
            ["exit", code] => Ok(said(code.parse().unwrap_or(1), String::new())),
            ["sleep", seconds] if seconds.parse::<u64>().is_ok_and(|s| Duration::from_secs(s) > timeout) => {
                Err(Error::Timeout { operation: "exec" })
            }
            ["sleep", _] => Ok(said(0, String::new())),
            _ => Ok(ExecOutput { code: 127, stdout: Vec::new(), stderr: b"not found\n".to_vec() }),
        }
    }

    async fn exec_stream(&self, id: &ContainerId, request: ExecRequest, mut io: ExecIo) -> Result<i32> {
        let closed = |_| Error::Failed { operation: "exec", message: "the client went away".to_owned() };
        if request.command.first().map(String::as_str) == Some("cat") {
            while let Some(bytes) = io.stdin.recv().await {
                io.stdout.send(bytes).await.map_err(closed)?;
            }
            return Ok(0);
        }
        let output = self.exec(id, &request.command, Duration::MAX).await?;
        if !output.stdout.is_empty() {
            io.stdout.send(Bytes::from(output.stdout)).await.map_err(closed)?;
        }
        if !output.stderr.is_empty() {
            io.stderr.send(Bytes::from(output.stderr)).await.map_err(closed)?;
        }
        Ok(output.code)
    }

    async fn attach(&self, id: &ContainerId, request: AttachRequest, io: ExecIo) -> Result<()> {
        let (mut said, mut changed) = (self.said.subscribe(), self.changed.subscribe());
        if !self.is_running(id) {
            return Err(Error::Failed { operation: "attach", message: "the container does not run".to_owned() });
        }
        let ended = async {
            while self.is_running(id) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let hear = async {
            while let Ok((of, bytes)) = said.recv().await {
                if of == *id && io.stdout.send(bytes).await.is_err() {
                    return;
                }
            }
        };
        let take = async { if request.stdin { self.take(id, io.stdin).await } else { std::future::pending().await } };
        tokio::select! {
            biased;
            () = hear => {}
            never = take => match never {},
            () = ended => {}
        }
        Ok(())
    }

    /// Its sandboxes have the network of the test.
    async fn connect(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream> {
        self.begin("connect", &sandbox.0)?;
        let ready = self.inner.lock().sandboxes.get(sandbox).is_some_and(|record| record.seen.ready);
        if !ready {
            return Err(not_found("connect", sandbox));
        }
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        stream.map_err(|error| failed("connect", &format!("127.0.0.1:{port}: {error}")))
    }
}

#[cfg(test)]
mod tests;
