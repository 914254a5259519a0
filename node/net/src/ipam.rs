//! The CNI plugin `tandem-ipam`, which gives a container's network namespace its address, and the socket on which it
//! asks the node for it.
//!
//! ```text
//!  containerd ──> ptp ──> tandem-ipam (our binary under that name) ──unix socket──> serve ──> Allocator
//! ```
//!
//! The plugin runs once for each sandbox, between two others, so it does nothing but ask: no runtime, no logging.
//! Node and plugin may be of different versions while a node is being upgraded; each line says which it speaks.

mod plugin;

pub use plugin::plugin_main;

use std::{
    collections::HashSet,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tandem_runtime::{AddressClass, Addresses};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::addresses::Allocator;

/// The version of the line protocol.
const VERSION: u32 = 1;

/// Who is served at the same time; containerd starts as many sandboxes at once as it is asked for.
const CONNECTIONS: usize = 256;

const REQUEST_LIMIT: u64 = 16 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    version: u32,
    command: Command,
    /// The container id of CNI, which is the sandbox.
    #[serde(default)]
    owner: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Command {
    Add,
    Check,
    Delete,
    Status,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Done {},
    /// The address with the prefix of the node's pod network, as plugins that set up an interface want it.
    Given {
        address: Ipv4Net,
        gateway: Ipv4Addr,
    },
    Failed {
        message: String,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("listen on {}: {source}", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// Listens on `socket`, which only root may use, and answers until `shutdown`.
pub fn serve(
    socket: &Path,
    allocator: Allocator,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static + use<>, ListenError> {
    let listener = listen(socket).map_err(|source| ListenError { path: socket.to_owned(), source })?;
    Ok(run(listener, allocator, shutdown))
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(socket)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(socket, owner_only)?;
    Ok(listener)
}

async fn run(listener: UnixListener, allocator: Allocator, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (accepted, place) = accept => match accepted {
                Ok((stream, _)) => {
                    let allocator = allocator.clone();
                    connections.spawn(async move {
                        let _place = place;
                        match tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &allocator)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => tracing::warn!(%error, "address request"),
                            Err(_) => tracing::warn!("address request: timed out"),
                        }
                    });
                }
                Err(error) => tracing::warn!(%error, "accept an address request"),
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn answer(stream: UnixStream, allocator: &Allocator) -> io::Result<()> {
    let (source, mut sink) = stream.into_split();
    let mut line = Vec::new();
    BufReader::new(source.take(REQUEST_LIMIT)).read_until(b'\n', &mut line).await?;
    let outcome = match parse(&line) {
        Ok(request) => handle(request, allocator).await,
        Err(message) => Outcome::Failed { message },
    };
    let mut line = serde_json::to_vec(&Answer { version: VERSION, outcome })?;
    line.push(b'\n');
    sink.write_all(&line).await
}

fn parse(line: &[u8]) -> Result<Request, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if head.version != VERSION {
        return Err(format!("the node speaks version {VERSION} of the address protocol, not {}", head.version));
    }
    serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))
}

async fn handle(request: Request, allocator: &Allocator) -> Outcome {
    let owner = owner(&request.owner);
    let ranges = allocator.ranges();
    let given = |address: Ipv4Addr| match Ipv4Net::new(address, ranges.network().prefix_len()) {
        Ok(address) => Outcome::Given { address, gateway: ranges.gateway() },
        Err(error) => Outcome::Failed { message: error.to_string() },
    };
    let done = match request.command {
        Command::Add => match allocator.allocate(&owner, AddressClass::Own).await {
            Ok(address) => return given(address),
            Err(error) => Err(error),
        },
        Command::Check => match allocator.find(&owner) {
            Some(address) => return given(address),
            None => return Outcome::Failed { message: format!("{} has no address", request.owner) },
        },
        Command::Delete => allocator.release(&owner).await,
        Command::Status => Ok(()),
    };
    match done {
        Ok(()) => Outcome::Done {},
        Err(error) => Outcome::Failed { message: error.to_string() },
    }
}

/// Sandboxes and light pods are in one table.
const SANDBOX_PREFIX: &str = "cni/";

fn owner(container: &str) -> String {
    format!("{SANDBOX_PREFIX}{container}")
}

/// Releases the addresses of sandboxes that went while nobody listened on the socket. `alive` are the ids of those
/// that the runtime still has, stopped ones too.
pub async fn keep_sandboxes(allocator: &Allocator, alive: &HashSet<String>) -> tandem_runtime::Result<()> {
    let keep = |owner: &str| owner.strip_prefix(SANDBOX_PREFIX).is_none_or(|sandbox| alive.contains(sandbox));
    allocator.retain(keep).await
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(line: &str, expected: Expect) {
        expected.assert_eq(&match parse(line.as_bytes()) {
            Ok(request) => format!("{request:?}"),
            Err(message) => message,
        });
    }

    #[tokio::test]
    async fn sandboxes_that_are_gone_give_their_addresses_back() {
        let directory = tempfile::tempdir().unwrap();
        let network = "10.1.2.0/24".parse().unwrap();
        let allocator = Allocator::open(&directory.path().join("addresses.json"), network).unwrap();
        for name in ["cni/gone", "cni/alive"] {
            allocator.allocate(name, AddressClass::Own).await.unwrap();
        }
        allocator.allocate("light-pod", AddressClass::Light).await.unwrap();
        keep_sandboxes(&allocator, &HashSet::from(["alive".to_owned()])).await.unwrap();
        assert_eq!(allocator.owners().into_keys().collect::<Vec<_>>(), ["cni/alive", "light-pod"]);
    }

    #[test]
    fn the_protocol_is_fixed() {
        check(
            r#"{"version":1,"command":"add","owner":"s1"}"#,
            expect![[r#"Request { version: 1, command: Add, owner: "s1" }"#]],
        );
        check(
            r#"{"version":2,"command":"split"}"#,
            expect!["the node speaks version 1 of the address protocol, not 2"],
        );
        check("hello", expect!["not a request: expected value at line 1 column 1"]);
        let show = |outcome| serde_json::to_string(&Answer { version: VERSION, outcome }).unwrap();
        let address = "10.1.2.3/24".parse().unwrap();
        expect![[r#"{"version":1,"given":{"address":"10.1.2.3/24","gateway":"10.1.2.1"}}"#]]
            .assert_eq(&show(Outcome::Given { address, gateway: Ipv4Addr::new(10, 1, 2, 1) }));
        expect![[r#"{"version":1,"done":{}}"#]].assert_eq(&show(Outcome::Done {}));
        expect![[r#"{"version":1,"failed":{"message":"no"}}"#]]
            .assert_eq(&show(Outcome::Failed { message: "no".into() }));
    }
}
