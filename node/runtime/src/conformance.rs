//! What every runtime must do, as checks that an author runs with images of their own.
//!
//! Each check makes its own sandbox and removes it again. A check says what is wrong in words, so that the author
//! of a runtime need not read it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::{
    Container, ContainerId, ContainerSpec, Error, Mount, Network, PodRef, Runtime, Sandbox, SandboxId, SandboxSpec,
    State,
};

mod checks;

/// What a workload of the suite does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs until it is stopped, and ends when it is asked to.
    Waits,
    /// Ends at once with code 3.
    ExitsWithThree,
    /// Prints `out 1` and `out 2` to stdout and `err 1` to stderr, then ends with code 0.
    Prints,
    /// Prints `GREETING=` and the value of that variable, then `arg X` for each of its arguments, and ends with code 0.
    Shows,
    /// Copies its stdin to its stdout until that ends, and ends with code 0.
    Copies,
    /// Writes `written` to `/data/out`; ends with code 0 if it could and with another code if not.
    Writes,
}

/// How to run a role: the image and what goes into the container's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
}

/// Commands for exec in a container of [`Role::Waits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecCommands {
    /// Prints `hello` to stdout and ends with 0.
    pub hello: Vec<String>,
    /// Ends with code 3.
    pub exits_with_three: Vec<String>,
    /// Runs for at least ten seconds; `None` where exec always ends by itself.
    pub sleeps: Option<Vec<String>>,
    /// Copies stdin to stdout; `None` where there is nothing of that kind.
    pub copies: Option<Vec<String>>,
}

/// What the suite needs from the author of a runtime.
#[async_trait]
pub trait Fixture: Send + Sync {
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// A second handle to the same runtime, as an agent that restarted would make it.
    async fn reconnect(&self) -> Arc<dyn Runtime>;

    fn workload(&self, role: Role) -> Workload;

    /// A reference that no registry has.
    fn missing_image(&self) -> String;

    /// A folder for logs and mounts that the runtime's workloads can reach.
    fn directory(&self) -> &Path;

    /// The network of a new sandbox.
    async fn network(&self) -> Network;

    /// The parent cgroup of the suite's sandboxes.
    fn cgroup_parent(&self) -> String {
        "/tandem-conformance".to_owned()
    }

    /// `None` where the runtime has no exec.
    fn exec(&self) -> Option<ExecCommands>;

    /// The memory limit that is enforced on a running container, asked of whatever enforces it; `None` for none.
    fn memory_limit(&self, id: &ContainerId) -> Option<u64>;

    /// How long a state may take to show in `list`.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// A check that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub check: &'static str,
    pub reason: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.check, self.reason)
    }
}

type Check = for<'a> fn(&'a Bench<'a>) -> BoxFuture<'a, Result<(), String>>;

/// Runs every check and gives the number of those that passed and the failures.
pub async fn run(fixture: &dyn Fixture) -> (usize, Vec<Failure>) {
    run_only(fixture, |_| true).await
}

/// As [`run`], for the checks whose name `chosen` accepts.
pub async fn run_only(fixture: &dyn Fixture, chosen: impl Fn(&str) -> bool) -> (usize, Vec<Failure>) {
    let mut passed = 0;
    let mut failures = Vec::new();
    for (check, body) in checks::ALL.iter().filter(|(name, _)| chosen(name)) {
        let bench = Bench { fixture, runtime: fixture.runtime(), check, made: parking_lot::Mutex::default() };
        let outcome = body(&bench).await;
        bench.clean_up().await;
        match outcome {
            Ok(()) => {
                tracing::debug!(check, "passed");
                passed += 1;
            }
            Err(reason) => failures.push(Failure { check, reason }),
        }
    }
    (passed, failures)
}

/// One check's place to work: it makes sandboxes and containers and remembers them for removal.
struct Bench<'a> {
    fixture: &'a dyn Fixture,
    runtime: Arc<dyn Runtime>,
    check: &'static str,
    made: parking_lot::Mutex<Vec<SandboxId>>,
}

static SANDBOXES: AtomicU32 = AtomicU32::new(0);

fn text(error: Error) -> String {
    error.to_string()
}

fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason()) }
}

impl Bench<'_> {
    async fn sandbox_spec(&self) -> SandboxSpec {
        let number = SANDBOXES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.check.replace('_', "-"));
        let uid = format!("conformance-{}-{number}", std::process::id());
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        SandboxSpec {
            pod: PodRef { name: name.clone(), namespace: "conformance".to_owned(), uid: uid.clone(), attempt: 0 },
            network: self.fixture.network().await,
            hostname: name.chars().take(63).collect(),
            dns: crate::Dns::default(),
            labels: [label("io.kubernetes.pod.name", &name), label("io.kubernetes.pod.uid", &uid)].into(),
            annotations: [label("tandem.dev/note", "kept as it is")].into(),
            log_directory: self.fixture.directory().join("logs").join(&uid),
            cgroup_parent: self.fixture.cgroup_parent(),
            host_ports: Vec::new(),
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: std::collections::BTreeMap::new(),
        }
    }

    async fn sandbox_of(&self, spec: &SandboxSpec) -> Result<SandboxId, String> {
        std::fs::create_dir_all(&spec.log_directory).map_err(|error| format!("cannot make the log folder: {error}"))?;
        let id = self.runtime.create_sandbox(spec).await.map_err(text)?;
        self.made.lock().push(id.clone());
        Ok(id)
    }

    async fn sandbox(&self) -> Result<SandboxId, String> {
        let spec = self.sandbox_spec().await;
        self.sandbox_of(&spec).await
    }

    async fn container_spec(&self, role: Role, name: &str) -> Result<ContainerSpec, String> {
        let workload = self.fixture.workload(role);
        let image = match self.runtime.image(&workload.image).await.map_err(text)? {
            Some(image) => image,
            None => self.runtime.pull(&workload.image, None).await.map_err(text)?,
        };
        Ok(ContainerSpec {
            name: name.to_owned(),
            image: image.id,
            image_reference: workload.image,
            attempt: 0,
            spec_hash: 0x00c0_ffee_1234_5678,
            command: workload.command,
            args: workload.args,
            env: Vec::new(),
            working_directory: None,
            mounts: Vec::new(),
            limits: crate::Limits::default(),
            security: crate::Security::default(),
            ports: Vec::new(),
            stdin: false,
            stdin_once: false,
            tty: false,
            target: None,
            log_path: PathBuf::from(name).join("0.log"),
            labels: [("io.kubernetes.container.name".to_owned(), name.to_owned())].into(),
            annotations: [("io.kubernetes.container.restartCount".to_owned(), "0".to_owned())].into(),
        })
    }

    /// Creates and starts a container of this role.
    async fn start(&self, sandbox: &SandboxId, role: Role, name: &str) -> Result<ContainerId, String> {
        let spec = self.container_spec(role, name).await?;
        self.start_spec(sandbox, &spec).await
    }

    async fn start_spec(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, String> {
        if let Some(made) = self.seen(sandbox).await? {
            let folder = spec.log_path.parent().unwrap_or(Path::new(""));
            let logs = self.fixture.directory().join("logs").join(&made.pod.uid).join(folder);
            std::fs::create_dir_all(logs).map_err(|error| format!("cannot make the log folder: {error}"))?;
        }
        let id = self.runtime.create(sandbox, spec).await.map_err(text)?;
        self.runtime.start(&id).await.map_err(text)?;
        Ok(id)
    }

    async fn seen(&self, id: &SandboxId) -> Result<Option<Sandbox>, String> {
        let all = self.runtime.list().await.map_err(text)?;
        Ok(all.into_iter().find(|sandbox| sandbox.id == *id))
    }

    async fn container(&self, id: &ContainerId) -> Result<Option<Container>, String> {
        let all = self.runtime.list().await.map_err(text)?;
        Ok(all.into_iter().flat_map(|sandbox| sandbox.containers).find(|container| container.id == *id))
    }

    /// Waits until the container's state satisfies `wanted`.
    async fn until(&self, id: &ContainerId, what: &str, wanted: impl Fn(&State) -> bool) -> Result<Container, String> {
        let deadline = tokio::time::Instant::now() + self.fixture.patience();
        loop {
            let seen = self.container(id).await?;
            match seen {
                Some(container) if wanted(&container.state) => return Ok(container),
                other if tokio::time::Instant::now() > deadline => {
                    let state = other.map(|container| container.state);
                    return Err(format!("container {id} should be {what}, but is {state:?}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn exited(&self, id: &ContainerId) -> Result<Container, String> {
        self.until(id, "exited", |state| matches!(state, State::Exited { .. })).await
    }

    async fn running(&self, id: &ContainerId) -> Result<Container, String> {
        self.until(id, "running", |state| matches!(state, State::Running { .. })).await
    }

    /// The log lines of a container, as `(stream, text)`, once there are at least `count`.
    async fn log_lines(&self, sandbox: &SandboxId, path: &Path, count: usize) -> Result<Vec<(String, String)>, String> {
        let made = self.seen(sandbox).await?.ok_or("the sandbox is not listed")?;
        let file = self.fixture.directory().join("logs").join(&made.pod.uid).join(path);
        let deadline = tokio::time::Instant::now() + self.fixture.patience();
        loop {
            let content = std::fs::read_to_string(&file).unwrap_or_default();
            let lines = content.lines().map(parse_line).collect::<Result<Vec<_>, _>>()?;
            if lines.len() >= count {
                return Ok(lines);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("{} should have {count} lines, but is {content:?}", file.display()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn mount(&self, name: &str, read_only: bool) -> Result<Mount, String> {
        let host = self.fixture.directory().join(format!("{}-{name}", self.check));
        std::fs::create_dir_all(&host).map_err(|error| format!("cannot make {}: {error}", host.display()))?;
        Ok(Mount { host, container: "/data".to_owned(), read_only })
    }

    async fn clean_up(&self) {
        let made: Vec<SandboxId> = self.made.lock().drain(..).collect();
        for id in made {
            for result in [self.runtime.stop_sandbox(&id).await, self.runtime.remove_sandbox(&id).await] {
                if let Err(error) = result {
                    tracing::warn!(check = self.check, %id, %error, "cannot remove a sandbox of the suite");
                }
            }
        }
    }
}

/// One CRI log line: time, stream, tag, text.
fn parse_line(line: &str) -> Result<(String, String), String> {
    let mut parts = line.splitn(4, ' ');
    let (time, stream, tag, text) = (parts.next(), parts.next(), parts.next(), parts.next().unwrap_or_default());
    let sound = time.is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok())
        && matches!(stream, Some("stdout" | "stderr"))
        && matches!(tag, Some("F" | "P"));
    ensure(sound, || format!("{line:?} is no line of a CRI log"))?;
    Ok((stream.unwrap_or_default().to_owned(), text.to_owned()))
}
