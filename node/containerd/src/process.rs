//! One containerd process: started by us, now or in an earlier life.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, waitpid};
use tokio::io::unix::AsyncFd;

use crate::{
    Error, cgroup,
    files::Layout,
    programs::{self, Programs},
};

/// How long a containerd gets to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// The log is cut when it is longer, and its end is kept beside it.
const LOG_LIMIT: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    handle: AsyncFd<OwnedFd>,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { action, source }
}

impl Process {
    /// In a session of its own, so that no terminal ends it, and in a cgroup of its own.
    pub(crate) fn spawn(layout: &Layout, programs: &Programs) -> Result<Process, Error> {
        let log = open_log(&layout.log()).map_err(failed("open containerd's log"))?;
        let errors = log.try_clone().map_err(failed("open containerd's log"))?;
        let mut command = Command::new(&programs.containerd);
        command.arg("--config").arg(layout.config());
        command.env("PATH", programs::path()).current_dir("/");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        #[allow(unsafe_code, reason = "there is no other way to a session of its own")]
        // SAFETY: setsid is async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
        }
        let child = command.spawn().map_err(failed("start containerd"))?;
        let pid = Pid::from_child(&child);
        cgroup::enter(layout.dir(), pid);
        let process = Process::open(pid).map_err(failed("watch containerd"))?;
        process.remember(&layout.pid()).map_err(failed("write containerd's pid file"))?;
        Ok(process)
    }

    fn open(pid: Pid) -> io::Result<Process> {
        let handle = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
        // SAFETY: the descriptor is owned, and nothing closes or replaces it while it is registered.
        let handle = unsafe { AsyncFd::register(handle) }?;
        Ok(Process { pid, handle })
    }

    fn remember(&self, path: &Path) -> io::Result<()> {
        let started = started(self.pid).unwrap_or_default();
        let temporary = path.with_extension("new");
        fs::write(&temporary, format!("{} {started}\n", self.pid))?;
        fs::rename(&temporary, path)
    }

    /// The one of this folder that runs already: by its pid file, or else by who listens on its socket.
    pub(crate) fn find(layout: &Layout) -> Option<Process> {
        let pid = remembered(&layout.pid()).or_else(|| listener(&layout.socket()))?;
        let process = Process::open(pid).ok()?;
        // The handle is of whoever has the number; the second look makes sure that it is still the one we mean.
        let still = remembered(&layout.pid()).or_else(|| listener(&layout.socket()));
        if still != Some(pid) {
            return None;
        }
        process.remember(&layout.pid()).ok()?;
        Some(process)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has ended, and says how where that can be known.
    pub(crate) async fn ended(&self) -> io::Result<String> {
        drop(self.handle.readable().await?);
        // Reaped here if it is a child of ours; one from an earlier life is init's.
        match waitpid(Some(self.pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Ok(describe(status)),
            Ok(None) | Err(_) => Ok("ended".to_owned()),
        }
    }

    /// Asks it to end, and ends it by force if it does not.
    pub(crate) async fn end(self) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if tokio::time::timeout(GRACE, self.ended()).await.is_ok() {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        self.ended().await.map(drop)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    cut_log(path)?;
    OpenOptions::new().create(true).append(true).open(path)
}

/// containerd appends, so what it writes meanwhile goes to the start of the emptied file.
pub(crate) fn cut_log(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.len() > LOG_LIMIT => {
            fs::copy(path, path.with_extension("log.1"))?;
            OpenOptions::new().write(true).open(path)?.set_len(0)
        }
        _ => Ok(()),
    }
}

/// The process of the pid file, if it is still the same one.
fn remembered(path: &Path) -> Option<Pid> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, since) = text.trim().split_once(' ')?;
    let pid = Pid::from_raw(pid.parse().ok()?)?;
    (started(pid)? == since.parse::<u64>().ok()?).then_some(pid)
}

fn listener(socket: &Path) -> Option<Pid> {
    let stream = UnixStream::connect(socket).ok()?;
    Some(rustix::net::sockopt::socket_peercred(&stream).ok()?.pid)
}

/// When the process started, in clock ticks since the machine did. A number that is used again differs in it.
fn started(pid: Pid) -> Option<u64> {
    parse_started(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_started(stat: &str) -> Option<u64> {
    // The second field is the program's name, which may hold blanks and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    // A zombie has ended, though its number is still taken.
    let alive = fields.next().is_some_and(|state| state != "Z" && state != "X");
    let started = fields.nth(18)?.parse().ok()?;
    alive.then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_any_name() {
        let stat = |state| format!("42 (a) b (c)) {state} 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 2 3");
        assert_eq!(parse_started(&stat("S")), Some(98765));
        assert_eq!(parse_started(&stat("Z")), None);
        assert_eq!(parse_started("nonsense"), None);
    }

    #[test]
    fn a_number_that_was_used_again_is_not_taken_for_ours() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("containerd.pid");
        let own = rustix::process::getpid();
        let since = started(own).unwrap();
        fs::write(&file, format!("{own} {since}\n")).unwrap();
        assert_eq!(remembered(&file), Some(own));
        fs::write(&file, format!("{own} {}\n", since + 1)).unwrap();
        assert_eq!(remembered(&file), None);
        fs::write(&file, "garbage").unwrap();
        assert_eq!(remembered(&file), None);
    }
}
