use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub type Result<T> = std::result::Result<T, Error>;

/// A runtime call that failed: which operation, on what, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{operation} {subject}: not found")]
    NotFound { operation: &'static str, subject: String },
    /// The image cannot be had; the message is what the registry said.
    #[error("{0}")]
    Pull(String),
    /// What was asked for can never work here (a component that imports what is not granted, a bad argument).
    #[error("{0}")]
    Refused(String),
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    #[error("{operation}: timed out")]
    Timeout { operation: &'static str },
    #[error("{operation}: {message}")]
    Failed { operation: &'static str, message: String },
}

/// Facts about a runtime; callers ask these, never its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Can make a network namespace of its own for a sandbox ([`Network::Own`]).
    pub own_network: bool,
    /// Can serve on an address in the node's shared namespace of light pods ([`Network::Light`]).
    pub light_network: bool,
    pub user_ids: bool,
    pub terminals: bool,
    /// Its images are there for this node alone: what nothing uses may be removed.
    pub own_images: bool,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A sandbox as its runtime names it.
    SandboxId
);
id!(
    /// A container as its runtime names it.
    ContainerId
);

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What [`ContainerSpec::image`] takes.
    pub id: String,
    /// `REPOSITORY@sha256:…`, for `imageID` in the pod's status.
    pub digest: String,
    pub size_bytes: u64,
    /// The user that the image asks for, where it names a number.
    pub user_id: Option<i64>,
}

/// An image as it is kept, by all of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    pub id: String,
    /// `REPOSITORY:TAG` and `REPOSITORY@sha256:…`.
    pub names: Vec<String>,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryAuth {
    Basic { username: String, password: String },
    Token(String),
}

/// Which pod a sandbox is of. `attempt` counts the sandboxes of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

/// How a sandbox is on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A network namespace of its own, made by the runtime through CNI.
    Own,
    /// The node's own network.
    Host { address: Ipv4Addr },
    /// The namespace of another runtime's sandbox of the same pod.
    Join { namespace: PathBuf, address: Ipv4Addr },
    /// An address in the node's shared namespace of light component pods.
    Light { namespace: PathBuf, address: Ipv4Addr },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub pod: PodRef,
    pub network: Network,
    pub hostname: String,
    pub dns: Dns,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The folder that holds the pod's log files.
    pub log_directory: PathBuf,
    /// The pod's cgroup below every hierarchy's root, such as `/tandem/pods/UID`.
    pub cgroup_parent: String,
    pub host_ports: Vec<HostPort>,
    /// Joins the node's process and IPC namespaces.
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_processes: bool,
    /// Kernel parameters of the sandbox' own namespaces.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    pub container_port: u16,
    pub host_port: u16,
    pub udp: bool,
    pub host_ip: Option<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// [`Image::id`].
    pub image: String,
    /// The image as the pod names it.
    pub image_reference: String,
    /// How many containers of this name the pod had before.
    pub attempt: u32,
    /// Changes whenever the container must be made anew.
    pub spec_hash: u64,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_directory: Option<String>,
    pub mounts: Vec<Mount>,
    pub limits: Limits,
    pub security: Security,
    /// The ports that the pod declares for this container, in order.
    pub ports: Vec<Port>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// The container of the same sandbox whose process namespace it joins.
    #[serde(default)]
    pub target: Option<ContainerId>,
    /// Where its CRI-format log lines go, below the sandbox's log folder.
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub port: u16,
    pub udp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host: PathBuf,
    pub container: String,
    pub read_only: bool,
}

/// Zero or `None` means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// CPU time per period, both in microseconds.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<i64>,
    pub cpu_shares: Option<i64>,
    pub oom_score_adj: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    pub privileged: bool,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    pub user_id: Option<i64>,
    pub group_id: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// `Some(path)`: a profile on the node; `None` with `seccomp_default`: the runtime's own profile.
    pub seccomp_profile: Option<PathBuf>,
    pub seccomp_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub id: SandboxId,
    pub pod: PodRef,
    /// False once it was stopped, or when what held it together died.
    pub ready: bool,
    pub address: Option<Ipv4Addr>,
    /// The path of its network namespace, where it has one of its own.
    pub network_namespace: Option<PathBuf>,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: ContainerId,
    pub name: String,
    pub attempt: u32,
    pub spec_hash: u64,
    pub image: String,
    pub image_digest: String,
    pub state: State,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// As it was asked for: below the sandbox's log folder.
    pub log_path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running {
        started: Timestamp,
    },
    /// `reason` is `Completed`, `Error` or `OOMKilled`, as in a pod's status; `message` may carry a trap.
    Exited {
        started: Option<Timestamp>,
        finished: Timestamp,
        code: i32,
        reason: String,
        message: String,
    },
    /// The runtime lost track of it.
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub sandbox: Option<SandboxId>,
    pub container: Option<ContainerId>,
    pub name: String,
    pub at: Option<Timestamp>,
    /// CPU time used since the start.
    pub cpu_ns: u64,
    /// Of a container, what its cgroup could not give back at once; of a component, the linear memories and tables of
    /// its instances.
    pub memory_working_set_bytes: u64,
    pub memory_usage_bytes: u64,
    pub memory_rss_bytes: u64,
    /// Of what the runtime itself takes requests for.
    pub requests: Option<Requests>,
}

/// Counts of the requests that a container was asked since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub answered: u64,
    /// From each request to the head of its answer, all together.
    pub duration_us: u64,
    /// Those that run or wait at the moment.
    pub in_flight: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl ExecRequest {
    pub fn streams(&self) -> AttachRequest {
        AttachRequest { stdin: self.stdin, stdout: self.stdout, stderr: self.stderr, tty: self.tty }
    }
}

/// Which streams of a container a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// The streams of a running command. A closed `stdin` is its end of file.
#[derive(Debug)]
pub struct ExecIo {
    pub stdin: mpsc::Receiver<Bytes>,
    pub stdout: mpsc::Sender<Bytes>,
    pub stderr: mpsc::Sender<Bytes>,
    pub resize: mpsc::Receiver<(u16, u16)>,
}

/// Which part of a node's range an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressClass {
    /// Sandboxes with a namespace of their own.
    Own,
    /// Light component pods: local addresses of the shared namespace.
    Light,
}

/// Something a runtime wants to be an Event of the container's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub container: ContainerId,
    /// CamelCase, as in Events: `Trapped`.
    pub reason: String,
    pub message: String,
    pub warning: bool,
}
