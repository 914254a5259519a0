//! The process that runs guests. It can end at any time: the parent starts another, and that one goes on from the
//! table on disk.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use tandem_api::{SystemClock, SystemEntropy};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Compiler, Compiling, Engine, Lanes},
    host::{Host, HostParts},
    link::{self, Link},
    service,
};

pub(crate) fn worker_main(folder: PathBuf) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(folder))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the worker cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn run(folder: PathBuf) -> io::Result<()> {
    // A worker without its parent would hold addresses that the next host wants.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // Outgoing requests and pulls use TLS; whoever installed another provider first is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    link::raise_file_limit();
    let (link, parent) = Link::open(link_to_parent()?).await?;
    let engine = Arc::new(Engine::new().map_err(io::Error::other)?);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = Lanes::start(engine.ticker().clone(), cores, None)?;
    let compiling =
        Compiling { program: PathBuf::from("/proc/self/exe"), arguments: vec!["wasm-host".into(), "compile".into()] };
    let compiler = Compiler::new(&engine, folder.join("cache"), compiling)?;
    let host = Host::open(HostParts {
        folder,
        engine,
        lanes,
        compiler,
        sockets: Arc::new(link.clone()),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
    })?;
    host.restore().await;
    host.close_orphans(link.kept().await?).await;
    let control = link.control().await?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let serving = service::serve(host, control, Some(link), stop.clone());
    tokio::select! {
        served = serving => served,
        _ = parent => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the parent is gone")),
        _ = terminate.recv() => {
            stop.cancel();
            Ok(())
        }
    }
}

/// The parent passes it as standard input.
fn link_to_parent() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}
