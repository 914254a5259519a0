//! Clusters: the real binary on a machine of the test's own.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{machine::Machine, tandem, until};

/// How long a cluster may take to be ready on a busy machine. Its real goal is measured by the benchmarks.
const READY: Duration = Duration::from_secs(60);
const KUBECTL_MINOR: u32 = 37;

/// A process of the product and its data folder, on one machine.
#[derive(Debug)]
pub struct Daemon {
    pub machine: Machine,
    data: TempDir,
    arguments: Vec<String>,
    /// Variables of the next process.
    pub environment: Vec<(&'static str, String)>,
    process: Option<Child>,
    kubeconfig: PathBuf,
}

impl Daemon {
    /// Starts `tandem up` and waits until it is ready.
    pub fn up(machine: Machine, flags: &[&str]) -> Daemon {
        let data = folder();
        let path = data.path().display().to_string();
        let address = machine.address.to_string();
        let base =
            ["up", "--data-dir", &path, "--listen", "0.0.0.0:6443", "--advertise", &address, "--node-ip", &address];
        let named = ["--node-name", "one"];
        let arguments = base.iter().chain(&named).chain(flags).map(ToString::to_string).collect();
        let kubeconfig = data.path().join("admin.kubeconfig");
        let mut daemon = Daemon { machine, data, arguments, environment: Vec::new(), process: None, kubeconfig };
        daemon.start();
        daemon
    }

    /// Starts `tandem control` as the first member of a cluster.
    pub fn control(machine: Machine, name: &str) -> Daemon {
        Daemon::member_in(folder(), machine, name, &[])
    }

    /// Starts `tandem control` as a further member of the cluster of `server`, and waits until it votes.
    pub fn member(machine: Machine, server: &Daemon, name: &str, flags: &[&str]) -> Daemon {
        let url = format!("https://{}:6443", server.machine.address);
        let token = server.token("control");
        let join = ["--join", &url, "--token", &token];
        Daemon::member_in(folder(), machine, name, &[&join[..], flags].concat())
    }

    /// A member on any folder: the first one of a cluster, unless its flags say whom it joins.
    pub fn member_in(data: TempDir, machine: Machine, name: &str, flags: &[&str]) -> Daemon {
        let path = data.path().display().to_string();
        let address = machine.address.to_string();
        let base = ["control", "--data-dir", &path, "--listen", "0.0.0.0:6443", "--advertise", &address];
        let arguments = base.iter().chain(&["--member-name", name]).chain(flags).map(ToString::to_string).collect();
        let kubeconfig = data.path().join("admin.kubeconfig");
        let mut daemon = Daemon { machine, data, arguments, environment: Vec::new(), process: None, kubeconfig };
        daemon.start();
        daemon
    }

    /// A token to join with, as a node or as a member.
    pub fn token(&self, role: &str) -> String {
        let token = self.tandem(&["token", "create", "--role", role, "--data-dir", &self.data_dir()]);
        assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
        String::from_utf8_lossy(&token.stdout).trim().to_owned()
    }

    /// Starts `tandem node`, which joins the cluster of `server`.
    pub fn join(machine: Machine, server: &Daemon, name: &str, flags: &[&str]) -> Daemon {
        let data = folder();
        let token = server.token("node");
        let url = format!("https://{}:6443", server.machine.address);
        let path = data.path().display().to_string();
        let address = machine.address.to_string();
        let base = [
            "node",
            "--data-dir",
            &path,
            "--server",
            &url,
            "--token",
            &token,
            "--node-name",
            name,
            "--node-ip",
            &address,
        ];
        let arguments = base.iter().chain(flags).map(ToString::to_string).collect();
        let mut daemon = Daemon {
            machine,
            data,
            arguments,
            environment: Vec::new(),
            process: None,
            kubeconfig: server.kubeconfig.clone(),
        };
        daemon.spawn();
        daemon
    }

    /// Waits until the process ends by itself; gives back its exit code.
    pub fn ended(&mut self, limit: Duration) -> Option<i32> {
        until("the process ends", limit, || match self.process.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Ok(status.code()),
            other => Err(format!("{other:?}")),
        })
    }

    pub fn data_dir(&self) -> String {
        self.data.path().display().to_string()
    }

    pub fn log(&self) -> PathBuf {
        self.data.path().with_extension("log")
    }

    /// Starts the process again after [`Daemon::kill`] or [`Daemon::stop`].
    pub fn start(&mut self) {
        self.spawn();
        let log = self.log();
        until("tandem is ready", READY, || {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten()) {
                panic!("tandem ended ({status}):\n{}", tail(&log));
            }
            let ready = self.kubectl(&["get", "--raw", "/readyz"]);
            if ready.status.success() { Ok(()) } else { Err(tail(&log)) }
        });
    }

    /// Starts the process again, and leaves it to the test what becomes of it.
    pub fn restart(&mut self) {
        self.spawn();
    }

    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut command = self.machine.command(tandem());
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info,openraft=warn");
        }
        self.process = Some(command.spawn().expect("tandem starts"));
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        signal(self.process.as_ref().expect("the process was started"), name);
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the process can be killed");
            process.wait().expect("the process ends");
        }
    }

    /// Ends the process as an operator would, and gives back how long that took.
    pub fn stop(&mut self) -> Duration {
        let began = Instant::now();
        if let Some(mut process) = self.process.take()
            && process.try_wait().expect("the process can be asked").is_none()
        {
            signal(&process, "TERM");
            // One that a test has stopped would not hear of it.
            signal(&process, "CONT");
            process.wait().expect("the process ends");
        }
        began.elapsed()
    }

    /// Runs the binary on this machine.
    pub fn tandem(&self, arguments: &[&str]) -> Output {
        self.machine
            .command(tandem())
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .output()
            .expect("tandem runs")
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).output().expect("kubectl runs")
    }

    /// kubectl on this machine, to be run once or many times.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.command(crate::kubectl(KUBECTL_MINOR));
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// What kubectl prints; panics where it fails.
    pub fn read(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {error}\n{}", arguments.join(" "), tail(&self.log()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        let down = self.tandem(&["down", "--data-dir", &self.data_dir()]);
        if !down.status.success() && !std::thread::panicking() {
            panic!("tandem down: {}", String::from_utf8_lossy(&down.stderr));
        }
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.machine.name, tail(&self.log()));
        }
        let _gone = std::fs::remove_file(self.log());
    }
}

fn signal(process: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.id().to_string()]).status();
    assert!(sent.expect("kill runs").success(), "the process {} is not there", process.id());
}

/// A folder for a process's data.
pub fn folder() -> TempDir {
    TempDir::with_prefix("tdt").expect("a temporary folder")
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
