//! What runs containers and components, seen from above: one trait, its types, a fake, and the suite that every
//! implementation passes.
//!
//! The seam is at container level, as in CRI. Restart policy, probes, volumes, logs and statistics stand above it,
//! once for all runtimes; nothing here knows a pod's policy.

pub mod conformance;
mod fake;
mod types;

pub use fake::{Act, Fake, Program};
pub use types::*;

use std::{net::Ipv4Addr, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::net::TcpStream;

/// Runs the containers of sandboxes. Every call is idempotent; `list` is the truth and `changes` only a hint.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The scheme of its container ids in a pod's status: `containerd`, `wasm`.
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// The image if it is on this node and of this runtime's kind.
    async fn image(&self, reference: &str) -> Result<Option<Image>>;

    /// Fetches an image. `reference` is as in the pod; mirrors are the runtime's configuration.
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image>;

    /// Every image that is here, but for those that the runtime itself needs.
    async fn images(&self) -> Result<Vec<StoredImage>>;

    /// Removes an image with all of its names. One that is not there is removed already.
    async fn remove_image(&self, id: &str) -> Result<()>;

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxId>;

    /// Stops what still runs in the sandbox and gives back its network; its record stays until it is removed.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()>;

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()>;

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId>;

    async fn start(&self, id: &ContainerId) -> Result<()>;

    /// Asks the container to end and ends it by force after `grace`.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<()>;

    async fn remove(&self, id: &ContainerId) -> Result<()>;

    /// Gives a container that was made other limits, without touching what it does. What the limits do not name is
    /// unlimited from then on; the adjustment of its OOM score stays.
    async fn update(&self, id: &ContainerId, limits: &Limits) -> Result<()>;

    /// Goes on in a new file at the log's path, after the one that was there has been given another name.
    async fn reopen_log(&self, id: &ContainerId) -> Result<()>;

    /// Every sandbox with its containers: also how the agent finds everything again after a restart.
    async fn list(&self) -> Result<Vec<Sandbox>>;

    /// What each running container uses, measured now.
    async fn stats(&self) -> Result<Vec<Stats>>;

    /// Wake-ups without information: something may have changed.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// How often `list` is asked although nothing was heard, in case a change was missed.
    fn relist_interval(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// What the workload's user should be told as an Event of the pod: a trap in a request, for one.
    fn notices(&self) -> BoxStream<'static, Notice>;

    /// Runs a command to its end, as exec probes and hooks need it.
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Duration) -> Result<ExecOutput>;

    /// Runs a command with live streams, as `kubectl exec` needs it; gives back the exit code.
    async fn exec_stream(&self, id: &ContainerId, request: ExecRequest, io: ExecIo) -> Result<i32>;

    /// The streams of the container's own program, from now on until it ends, as `kubectl attach` needs them.
    async fn attach(&self, id: &ContainerId, request: AttachRequest, io: ExecIo) -> Result<()>;

    /// A connection to a TCP port of the sandbox, as a program inside it would make one to itself.
    async fn connect(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream>;
}

/// The addresses of one node's pods. One allocator serves the agent, the IPAM plugin and the network driver.
#[async_trait]
pub trait Addresses: Send + Sync + 'static {
    /// The address of `owner` (a sandbox or pod uid), the same one each time until it is released.
    async fn allocate(&self, owner: &str, class: AddressClass) -> Result<Ipv4Addr>;
    async fn release(&self, owner: &str) -> Result<()>;
}
