//! A host in a folder of its own, with everything around it that a test needs.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tandem_runtime::{
    Container, ContainerId, ContainerSpec, Limits, Mount, Network, PodRef, Port, Runtime, SandboxId, SandboxSpec,
    Security, State,
};
use tandem_wasm::{Config, Registries, Supervised};

use crate::registry::Registry;

pub(crate) struct Bench {
    pub(crate) host: Arc<Supervised>,
    pub(crate) registry: Registry,
    pub(crate) folder: tempfile::TempDir,
}

static SANDBOXES: AtomicU32 = AtomicU32::new(0);

/// The example that cargo builds beside the tests.
pub(crate) fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("examples/wasm_host");
    assert!(program.exists(), "{} is built by `cargo test -p tandem-wasm`", program.display());
    program
}

pub(crate) fn config(folder: &Path) -> Config {
    Config { folder: folder.join("host"), program: Some(program()), registries: Registries::new(), cgroup: None }
}

/// A port that nobody had a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

/// Waits for something that comes about by itself.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Bench {
    pub(crate) async fn start() -> Bench {
        // Many tests run at once; whichever comes first installs it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let folder = tempfile::Builder::new().prefix("tw").tempdir().unwrap();
        let host = tandem_wasm::start(config(folder.path())).await.unwrap();
        Bench { host, registry: Registry::start().await, folder }
    }

    pub(crate) async fn image(&self, name: &str, wasm: &[u8]) -> String {
        let reference = self.registry.push(name, wasm);
        self.host.pull(&reference, None).await.unwrap().id
    }

    pub(crate) fn sandbox_spec(&self, network: Network) -> SandboxSpec {
        let uid = format!("u{}", SANDBOXES.fetch_add(1, Ordering::Relaxed));
        SandboxSpec {
            pod: PodRef { name: format!("pod-{uid}"), namespace: "test".into(), uid: uid.clone(), attempt: 0 },
            network,
            hostname: "pod".into(),
            dns: tandem_runtime::Dns::default(),
            labels: [("app".to_owned(), "test".to_owned())].into(),
            annotations: std::collections::BTreeMap::new(),
            log_directory: self.folder.path().join("logs").join(uid),
            cgroup_parent: String::new(),
            host_ports: Vec::new(),
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: std::collections::BTreeMap::new(),
        }
    }

    pub(crate) async fn sandbox(&self) -> SandboxId {
        let spec = self.sandbox_spec(Network::Host { address: Ipv4Addr::LOCALHOST });
        self.host.create_sandbox(&spec).await.unwrap()
    }

    pub(crate) async fn sandbox_with(&self, annotations: &[(&str, &str)]) -> SandboxId {
        let mut spec = self.sandbox_spec(Network::Host { address: Ipv4Addr::LOCALHOST });
        spec.annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.host.create_sandbox(&spec).await.unwrap()
    }

    pub(crate) async fn run(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> ContainerId {
        let id = self.host.create(sandbox, spec).await.unwrap();
        self.host.start(&id).await.unwrap();
        id
    }

    /// Runs an HTTP component on a port of its own.
    pub(crate) async fn serve(&self, image: &str, limits: Limits) -> (ContainerId, u16) {
        let sandbox = self.sandbox().await;
        let port = free_port();
        let spec = ContainerSpec { ports: vec![http(port)], limits, ..spec(image) };
        (self.run(&sandbox, &spec).await, port)
    }

    pub(crate) async fn container(&self, id: &ContainerId) -> Option<Container> {
        let all = self.host.list().await.unwrap();
        all.into_iter().flat_map(|sandbox| sandbox.containers).find(|container| container.id == *id)
    }

    /// Code, reason and message of a container that has ended.
    pub(crate) async fn exit(&self, id: &ContainerId) -> (i32, String, String) {
        until("the end of the container", async || match self.container(id).await?.state {
            State::Exited { code, reason, message, .. } => Some((code, reason, message)),
            _ => None,
        })
        .await
    }

    /// The texts of a container's log, with their streams.
    pub(crate) async fn log(&self, id: &ContainerId) -> Vec<String> {
        let all = self.host.list().await.unwrap();
        let sandbox =
            all.iter().find(|sandbox| sandbox.containers.iter().any(|container| container.id == *id)).unwrap();
        let path = self.folder.path().join("logs").join(&sandbox.pod.uid).join("main/0.log");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut fields = line.splitn(4, ' ').skip(1);
                format!("{} {}", fields.next().unwrap(), fields.nth(1).unwrap())
            })
            .collect()
    }

    pub(crate) async fn finish(self) {
        self.host.down().await.unwrap();
    }
}

/// A test that failed leaves no host behind.
impl Drop for Bench {
    fn drop(&mut self) {
        let text = std::fs::read_to_string(self.folder.path().join("host/host.lock")).unwrap_or_default();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("host/host.log")).unwrap_or_default();
            println!("--- the host's log ---\n{log}");
        }
        if let Some(pid) = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended as it should.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

pub(crate) fn http(port: u16) -> Port {
    Port { name: "http".into(), port, udp: false }
}

pub(crate) fn spec(image: &str) -> ContainerSpec {
    ContainerSpec {
        name: "main".into(),
        image: image.into(),
        image_reference: image.into(),
        attempt: 0,
        spec_hash: 1,
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_directory: None,
        mounts: Vec::new(),
        limits: Limits::default(),
        security: Security::default(),
        ports: Vec::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        target: None,
        log_path: "main/0.log".into(),
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn command_spec(image: &str, args: &[&str]) -> ContainerSpec {
    ContainerSpec { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..spec(image) }
}

pub(crate) fn mount(host: &Path, read_only: bool) -> Mount {
    Mount { host: host.to_owned(), container: "/data".into(), read_only }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: String,
}

/// One request over a connection of its own.
pub(crate) async fn try_get(address: &str, path: &str) -> Result<Answer, reqwest::Error> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
    let response = client.get(format!("http://{address}{path}")).send().await?;
    Ok(Answer {
        status: response.status().as_u16(),
        retry_after: response.headers().get("retry-after").and_then(|value| Some(value.to_str().ok()?.to_owned())),
        body: response.text().await?,
    })
}

pub(crate) async fn get(port: u16, path: &str) -> Answer {
    try_get(&format!("127.0.0.1:{port}"), path).await.unwrap()
}
