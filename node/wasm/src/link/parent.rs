use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::{Answer, Ask, Call, KEYS_EACH, LINK_PROTOCOL, Reply, Wire, sockets};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A worker that ran so long did not fail at its start.
const HEALTHY: Duration = Duration::from_secs(30);
const WORKER_STOP_TIME: Duration = Duration::from_secs(5);

pub(crate) struct ParentOptions {
    pub(crate) folder: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) cgroup: Option<String>,
    /// The worker's arguments.
    pub(crate) worker: Vec<OsString>,
}

/// The process that outlives workers: it owns every listening socket and enters the namespaces of pods.
///
/// It parses nothing that comes from a guest and holds no guest's data, so there is little in it that can fail.
pub(crate) fn parent_main(options: ParentOptions) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| runtime.block_on(Parent::run(options)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the wasm host cannot go on");
            ExitCode::FAILURE
        }
    }
}

struct Parent {
    control: UnixListener,
    kept: BTreeMap<String, OwnedFd>,
    options: ParentOptions,
    /// Held as long as this process lives, so that one folder has one host.
    _lock: File,
}

enum Ended {
    Worker,
    Asked,
}

impl Parent {
    async fn run(options: ParentOptions) -> io::Result<()> {
        let lock = lock(&options.folder)?;
        // A session of its own, so that what ends the node's process group leaves the host alone. It fails for a
        // process that leads one already, which is as good.
        let _ = rustix::process::setsid();
        if let Some(cgroup) = &options.cgroup {
            join_cgroup(cgroup);
        }
        super::raise_file_limit();
        let control = bind_control(&options.socket)?;
        let mut parent = Parent { control, kept: BTreeMap::new(), options, _lock: lock };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut backoff = BACKOFF_MIN;
        loop {
            let began = Instant::now();
            let (end, theirs) = Wire::pair()?;
            let mut worker = parent.spawn(theirs)?;
            tracing::info!(worker = worker.id(), "worker started");
            let wire = Wire::new(end)?;
            let ended = tokio::select! {
                ended = parent.serve(&wire, &mut worker) => ended?,
                _ = terminate.recv() => Ended::Asked,
                _ = interrupt.recv() => Ended::Asked,
            };
            if matches!(ended, Ended::Asked) {
                stop(&mut worker).await;
                drop(std::fs::remove_file(&parent.options.socket));
                return Ok(());
            }
            let status = worker.wait().await?;
            backoff = if began.elapsed() > HEALTHY { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            tracing::error!(%status, again_in = ?backoff, "the worker ended; connections wait for the next one");
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    }

    fn spawn(&self, link: OwnedFd) -> io::Result<Child> {
        // This file, also when another one has taken its path: the two processes have to fit together.
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0("tandem-wasm-worker").args(&self.options.worker).stdin(Stdio::from(link));
        Command::from(command).kill_on_drop(true).spawn()
    }

    async fn serve(&mut self, wire: &Wire, worker: &mut Child) -> io::Result<Ended> {
        loop {
            let received = tokio::select! {
                received = wire.receive::<Call>() => received,
                _ = worker.wait() => return Ok(Ended::Worker),
            };
            let Some((Call { id, ask }, _)) = received? else { return Ok(Ended::Worker) };
            let asked_to_end = ask == Ask::Shutdown;
            let (answer, socket) = match self.answer(ask) {
                Ok(answered) => answered,
                Err(error) => (Answer::Failed { code: error.raw_os_error(), message: error.to_string() }, None),
            };
            // A worker that is gone by now is noticed at the next turn.
            let sent = wire.send(&Reply { id, answer }, socket.as_ref().map(AsFd::as_fd)).await;
            if let Err(error) = sent {
                tracing::warn!(%error, "an answer did not reach the worker");
            }
            if asked_to_end {
                return Ok(Ended::Asked);
            }
        }
    }

    fn answer(&mut self, ask: Ask) -> io::Result<(Answer, Option<OwnedFd>)> {
        match ask {
            // An older or newer worker hears which version this is and decides.
            Ask::Hello { .. } => Ok((Answer::Hello { protocol: LINK_PROTOCOL }, None)),
            Ask::Control => Ok((Answer::Socket, Some(OwnedFd::from(self.control.try_clone()?)))),
            Ask::Listen { key, namespace, address } => {
                let listener = match self.kept.get(&key) {
                    Some(kept) => kept.try_clone()?,
                    None => {
                        let made = sockets::listener(namespace.as_deref(), address)?;
                        let copy = made.try_clone()?;
                        self.kept.insert(key, made);
                        copy
                    }
                };
                Ok((Answer::Socket, Some(listener)))
            }
            Ask::Close { key } => {
                self.kept.remove(&key);
                Ok((Answer::Done, None))
            }
            Ask::Kept { from } => {
                let keys: Vec<String> = self.kept.keys().skip(from).take(KEYS_EACH).cloned().collect();
                let more = from + keys.len() < self.kept.len();
                Ok((Answer::Keys { keys, more }, None))
            }
            Ask::Outgoing { namespace, kind, source } => {
                Ok((Answer::Socket, Some(sockets::outgoing(&namespace, kind, source)?)))
            }
            Ask::Shutdown => Ok((Answer::Done, None)),
        }
    }
}

async fn stop(worker: &mut Child) {
    if let Some(pid) = worker.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
        // If it is gone already, waiting for it says so.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(WORKER_STOP_TIME, worker.wait()).await.is_err()
        && let Err(error) = worker.kill().await
    {
        tracing::error!(%error, "the worker does not end");
    }
}

fn lock(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("host.lock"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // For whoever looks for the process.
            file.set_len(0)?;
            (&file).write_all(std::process::id().to_string().as_bytes())?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another wasm host runs in {}", folder.display())))
        }
        Err(error) => Err(error.into()),
    }
}

/// The lock says that nobody listens there any more.
fn bind_control(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Moves this process, and so its workers, into a cgroup of every hierarchy that has any.
fn join_cgroup(name: &str) {
    let hierarchies = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in hierarchies.lines() {
        let Some(controllers) = line.split(':').nth(1) else { continue };
        if controllers.contains("cpuset") {
            // A new group of that hierarchy has no processors until somebody gives it some.
            continue;
        }
        let mount = match controllers {
            "" if Path::new("/sys/fs/cgroup/unified").exists() => PathBuf::from("/sys/fs/cgroup/unified"),
            "" => PathBuf::from("/sys/fs/cgroup"),
            named => Path::new("/sys/fs/cgroup").join(named.trim_start_matches("name=")),
        };
        let group = mount.join(name.trim_start_matches('/'));
        let joined = std::fs::create_dir_all(&group).and_then(|()| std::fs::write(group.join("cgroup.procs"), "0"));
        if let Err(error) = joined {
            tracing::warn!(%error, cgroup = %group.display(), "the wasm host stays in its starter's cgroup");
        }
    }
}
