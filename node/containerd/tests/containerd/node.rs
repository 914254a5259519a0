//! A node as small as it can be: links, addresses, containerd, and a registry with the images of the tests.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tandem_containerd::{Config, Containerd, Mirror, Registry, archive};
use tandem_net::{
    Allocator,
    addresses::Ranges,
    ipam,
    links::{Links, MTU, NodeNetwork},
};
use tandem_runtime::{
    Container, ContainerId, ContainerSpec, Dns, Limits, Network, PodRef, Runtime, Sandbox, SandboxId, SandboxSpec,
    Security, State,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::registry::TestRegistry;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    directory: tempfile::TempDir,
    pub(crate) containerd: Option<Containerd>,
    pub(crate) links: Links,
    pub(crate) allocator: Allocator,
    pub(crate) network: NodeNetwork,
    cgroup: String,
    addresses: Option<AbortOnDropHandle<()>>,
    _registry: AbortOnDropHandle<()>,
}

/// The program of the test images.
fn busybox() -> Vec<u8> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    found.expect("busybox not found; install the package busybox-static")
}

pub(crate) fn image() -> archive::Image {
    use archive::{Content, File, Settings};
    let directory = |path: &str, mode| File { path: path.to_owned(), mode, content: Content::Directory };
    let mut files = vec![
        directory("bin", 0o755),
        directory("etc", 0o755),
        directory("tmp", 0o1777),
        File { path: "bin/busybox".to_owned(), mode: 0o755, content: Content::Data(busybox()) },
        File {
            path: "etc/passwd".to_owned(),
            mode: 0o644,
            content: Content::Data(b"root:x:0:0::/:/bin/sh\n".to_vec()),
        },
    ];
    for name in ["sh", "sleep", "cat", "echo", "id", "grep", "wget", "httpd", "hostname", "tail", "stty", "kill"] {
        let content = Content::Link { target: "busybox".to_owned() };
        files.push(File { path: format!("bin/{name}"), mode: 0o777, content });
    }
    let settings =
        Settings { env: vec!["PATH=/bin".to_owned()], cmd: vec!["/bin/sh".to_owned()], ..Settings::default() };
    archive::image(&files, &settings)
}

/// The image as pods name it. Only the cluster's registry has it.
pub(crate) const BUSYBOX: &str = "tools/busybox:1";

impl Node {
    pub(crate) async fn start() -> Node {
        let directory = tempfile::Builder::new().prefix("tc").tempdir_in("/tmp").unwrap();
        let folder = directory.path().join("node");
        std::fs::create_dir_all(&folder).unwrap();
        let pods = Ranges::new("10.128.0.0/18".parse().unwrap()).unwrap();
        let network = NodeNetwork {
            pods,
            services: "10.96.0.0/16".parse().unwrap(),
            dns: Ipv4Addr::new(10, 96, 0, 10),
            mtu: MTU,
        };
        let links = Links::new(&folder).unwrap();
        links.apply(&network).await.unwrap();
        let allocator = Allocator::open(&folder.join("addresses.json"), pods.network()).unwrap();
        let registry = Arc::new(TestRegistry::new(directory.path(), image()));
        let registry = AbortOnDropHandle::new(tokio::spawn(registry.serve("127.0.0.1:6444".parse().unwrap())));
        let cgroup = format!("/tandem-test-{}", directory.path().file_name().unwrap().to_str().unwrap());
        let mut node = Node {
            directory,
            containerd: None,
            links,
            allocator,
            network,
            cgroup,
            addresses: None,
            _registry: registry,
        };
        node.give_addresses(true);
        node.start_containerd(node.config()).await;
        node
    }

    /// Whether somebody answers the address plugin.
    pub(crate) fn give_addresses(&mut self, give: bool) {
        self.addresses = give.then(|| {
            let socket = self.folder().join("ipam.sock");
            let serve = ipam::serve(&socket, self.allocator.clone(), CancellationToken::new()).unwrap();
            AbortOnDropHandle::new(tokio::spawn(serve))
        });
    }

    pub(crate) async fn start_containerd(&mut self, config: Config) {
        let begun = std::time::Instant::now();
        self.containerd = Some(tandem_containerd::start(config).await.unwrap_or_else(|error| panic!("{error}")));
        tracing::info!(after = ?begun.elapsed(), "containerd answers");
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            dir: self.containerd_folder(),
            program: std::env::current_exe().unwrap(),
            address_socket: self.folder().join("ipam.sock"),
            mtu: MTU,
            registry: Some(Registry {
                host: "registry.tandem".to_owned(),
                endpoint: "https://127.0.0.1:6444".to_owned(),
                authority: Some(self.directory.path().join("ca.crt")),
                client: Some((self.directory.path().join("client.crt"), self.directory.path().join("client.key"))),
                mirrors: vec![Mirror { host: "docker.io".to_owned(), upstream: None }],
            }),
            strict: false,
        }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    pub(crate) fn containerd_folder(&self) -> PathBuf {
        self.folder().join("containerd")
    }

    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.containerd.as_ref().expect("containerd is started").runtime)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    pub(crate) fn sandbox_spec(&self, name: &str) -> SandboxSpec {
        SandboxSpec {
            pod: PodRef { name: name.to_owned(), namespace: "test".to_owned(), uid: format!("uid-{name}"), attempt: 0 },
            network: Network::Own,
            hostname: name.to_owned(),
            dns: Dns { servers: vec!["10.96.0.10".to_owned()], searches: vec!["test.svc".to_owned()], options: vec![] },
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            log_directory: self.folder().join("logs").join(name),
            cgroup_parent: format!("{}/{name}", self.cgroup),
            host_ports: Vec::new(),
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: BTreeMap::new(),
        }
    }

    pub(crate) async fn container_spec(&self, script: &str) -> ContainerSpec {
        let image = self.runtime().pull(BUSYBOX, None).await.unwrap();
        ContainerSpec {
            name: "main".to_owned(),
            image: image.id,
            image_reference: BUSYBOX.to_owned(),
            attempt: 0,
            spec_hash: 1,
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
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
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// A pod of one container that runs the script.
    pub(crate) async fn pod(&self, name: &str, script: &str) -> (SandboxId, ContainerId) {
        let sandbox = self.sandbox_spec(name);
        let container = self.container_spec(script).await;
        self.pod_of(&sandbox, &container).await
    }

    pub(crate) async fn pod_of(&self, sandbox: &SandboxSpec, container: &ContainerSpec) -> (SandboxId, ContainerId) {
        let runtime = self.runtime();
        let sandbox = runtime.create_sandbox(sandbox).await.unwrap();
        let container = runtime.create(&sandbox, container).await.unwrap();
        runtime.start(&container).await.unwrap();
        (sandbox, container)
    }

    pub(crate) async fn sandbox(&self, id: &SandboxId) -> Sandbox {
        let all = self.runtime().list().await.unwrap();
        all.into_iter().find(|sandbox| sandbox.id == *id).expect("the sandbox is listed")
    }

    pub(crate) async fn container(&self, id: &ContainerId) -> Container {
        let all = self.runtime().list().await.unwrap();
        let mut containers = all.into_iter().flat_map(|sandbox| sandbox.containers);
        containers.find(|container| container.id == *id).expect("the container is listed")
    }

    pub(crate) async fn exited(&self, id: &ContainerId) -> (i32, String) {
        until("a container has ended", || async {
            match self.container(id).await.state {
                State::Exited { code, reason, .. } => Some((code, reason)),
                State::Created | State::Running { .. } | State::Unknown => None,
            }
        })
        .await
    }

    /// The output of a pod's container, without times and streams.
    pub(crate) fn output(&self, pod: &str) -> Vec<String> {
        let file = self.folder().join("logs").join(pod).join("main/0.log");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned).collect()
    }

    /// Runs a command in the container and gives its output.
    pub(crate) async fn exec(&self, id: &ContainerId, script: &str) -> Result<String, String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let output = self.runtime().exec(id, &command, PATIENCE).await.map_err(|error| error.to_string())?;
        match output.code {
            0 => Ok(String::from_utf8(output.stdout).unwrap()),
            code => Err(format!("code {code}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.network.pods.gateway()
    }
}

impl Drop for Node {
    /// What a test that failed left behind goes too. Everything is told by this test's own folder.
    fn drop(&mut self) {
        self.containerd = None;
        let folder = self.containerd_folder();
        let (links, network) = (&self.links, &self.network);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let ended = tandem_containerd::down(&folder).await;
                let removed = links.remove(network).await;
                if !std::thread::panicking() {
                    ended.unwrap();
                    removed.unwrap();
                }
            });
        });
        let mut groups: Vec<PathBuf> = Vec::new();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            collect(&hierarchy.path().join(self.cgroup.trim_start_matches('/')), &mut groups);
        }
        collect(&Path::new("/sys/fs/cgroup").join(self.cgroup.trim_start_matches('/')), &mut groups);
        for group in groups {
            drop(std::fs::remove_dir(group));
        }
    }
}

/// Folders below and including this one, the innermost first.
fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&entry.path(), into);
    }
    into.push(folder.to_owned());
}

/// Waits for a condition with a deadline.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut often = tokio::time::interval(Duration::from_millis(30));
    loop {
        often.tick().await;
        if let Some(found) = condition().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
    }
}

/// What a server answers to a plain GET, from the namespace of this test.
pub(crate) async fn get(to: SocketAddr) -> Result<String, String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let talk = async {
        let mut stream = tokio::net::TcpStream::connect(to).await?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: test\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(3), talk).await.map_err(|_| "timed out".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A server that answers every request with from where it came.
pub(crate) fn serve(listener: std::net::TcpListener) -> AbortOnDropHandle<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            let mut request = [0; 1024];
            drop(stream.read(&mut request).await);
            let body = from.ip().to_string();
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            drop(stream.write_all(answer.as_bytes()).await);
        }
    }))
}

/// Listens inside a network namespace, from a thread of its own.
pub(crate) fn listen_in(namespace: &Path, address: SocketAddr) -> std::net::TcpListener {
    let namespace = namespace.to_owned();
    let thread = std::thread::spawn(move || {
        tandem_net::links::enter(&namespace).unwrap();
        std::net::TcpListener::bind(address).unwrap()
    });
    thread.join().unwrap()
}

/// Runs a program of this machine and gives its output.
pub(crate) fn command(line: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}
