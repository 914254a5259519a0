//! The wasm host: what containerd is to containers, for WebAssembly components, behind the same protocol.
//!
//! ```text
//!  tandem up / node                      tandem wasm-host                 (a session and cgroup of its own)
//!  ┌──────────────┐   CRI v1 and      ┌────────────────────┐
//!  │ supervisor   │   host.proto      │ parent             │ owns every listening socket, enters namespaces,
//!  │  CriRuntime  ├──── unix ────┐    │  link::parent      │ starts workers; knows nothing of guests
//!  └──────────────┘    socket    │    └─────────┬──────────┘
//!                                │      link    │ sockets, passed over
//!                                │    ┌─────────┴──────────┐      ┌───────────────────────┐
//!                                └───>│ worker             ├─────>│ compile IN OUT        │ one child a compile,
//!                                     │  service   gRPC    │      └───────────────────────┘ with limits
//!                                     │  host      table   │
//!                                     │  serve     HTTP    │  express lanes: threads that answer requests
//!                                     │  engine    wasmtime│  bulk and background lanes: threads for whatever computes long
//!                                     └────────────────────┘
//! ```
//!
//! A worker can end at any time, by a bug in the engine for one: its successor reads the table from disk and serves
//! again on the same sockets, where connections have waited meanwhile.
//!
//! Never here: what a pod is, when something is restarted, which addresses there are. Never loaded: compiled code that
//! this host did not compile itself. This first version runs as root, because guests with `wasi:sockets` run on threads
//! of the worker that enter their pod's namespace; everything else that needs a privilege is the parent's.

mod engine;
mod host;
mod images;
mod link;
mod live;
mod metrics;
mod network;
mod notices;
mod outgoing;
mod output;
mod resolver;
mod serve;
mod service;
mod state;
mod supervisor;
mod worker;

use std::{ffi::OsString, io, path::PathBuf, process::ExitCode};

pub use images::{Registries, Registry};
pub use supervisor::{Config, Error, Supervised, down, start};

const USAGE: &str = "usage: wasm-host --dir DIR --socket SOCKET [--cgroup NAME]\n       wasm-host compile IN OUT";

/// The hidden subcommand `wasm-host`, given what follows that word. It becomes the parent, a worker or a compiler.
pub fn host_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some("compile") => engine::compile_main(&arguments[1..]),
        Some("worker") => match HostArguments::parse(&arguments[1..]) {
            Some(parsed) => {
                start_log();
                worker::worker_main(parsed.folder)
            }
            None => usage(),
        },
        _ => match HostArguments::parse(&arguments) {
            Some(HostArguments { folder, socket: Some(socket), cgroup }) => {
                start_log();
                let worker = vec!["wasm-host".into(), "worker".into(), "--dir".into(), folder.clone().into()];
                link::parent_main(link::ParentOptions { folder, socket, cgroup, worker })
            }
            _ => usage(),
        },
    }
}

struct HostArguments {
    folder: PathBuf,
    socket: Option<PathBuf>,
    cgroup: Option<String>,
}

impl HostArguments {
    fn parse(arguments: &[OsString]) -> Option<HostArguments> {
        let (mut folder, mut socket, mut cgroup) = (None, None, None);
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { return None };
            match name.to_str()? {
                "--dir" => folder = Some(PathBuf::from(value)),
                "--socket" => socket = Some(PathBuf::from(value)),
                "--cgroup" => cgroup = Some(value.to_str()?.to_owned()),
                _ => return None,
            }
        }
        Some(HostArguments { folder: folder?, socket, cgroup })
    }
}

fn usage() -> ExitCode {
    use io::Write as _;
    // Whoever started this by hand may have closed it.
    drop(writeln!(io::stderr(), "{USAGE}"));
    ExitCode::from(2)
}

/// To standard error, which the supervisor has made a file.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(io::stderr);
    // Somebody else's is as good.
    drop(log.try_init());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let parse = |words: &[&str]| HostArguments::parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let parsed = parse(&["--dir", "/d", "--socket", "/d/s", "--cgroup", "/tandem"]).unwrap();
        assert_eq!((parsed.folder, parsed.socket), (PathBuf::from("/d"), Some(PathBuf::from("/d/s"))));
        assert!(parse(&["--socket", "/s"]).is_none());
        assert!(parse(&["--dir"]).is_none());
        assert!(parse(&["--dir", "/d", "--other", "x"]).is_none());
    }
}
