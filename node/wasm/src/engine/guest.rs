//! What lives in a guest's store, and the host functions that it can import.
//!
//! The linkers make an instance of every host function for this store type: that is the slowest part of the
//! repository to compile, so nothing else is here.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use wasmtime::Store;
use wasmtime_wasi::{
    FsPerms, WasiCtx, WasiCtxView, WasiView,
    cli::AsyncStdinStream,
    filesystem::{WasiFilesystemCtx, WasiFilesystemView},
    p1::WasiP1Ctx,
    sockets::SocketAddrUse,
};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::{
    Engine,
    limits::{MemoryAccount, MemoryShare, NodeMemoryExhausted},
    names,
};
use crate::{network::Dialer, outgoing::Outgoing, output::Output};

/// Handles that one instance can hold.
const RESOURCES: usize = 10_000;
/// Bytes that one instance can make the host copy in one call.
const HOSTCALL_FUEL: usize = 32 * 1024 * 1024;
const RANDOM_BYTES: u64 = 16 * 1024 * 1024;
/// All header fields of one request or response.
const FIELDS_BYTES: usize = 128 * 1024;
/// Ticks until a guest makes room; one would make it yield right away half of the time.
const SLICE_TICKS: u64 = 2;

/// The data of a guest's store.
pub(crate) struct Guest {
    /// The context and resource table of every WASI version.
    wasi: WasiP1Ctx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    looks_up_names: bool,
    memory: MemoryShare,
}

impl Guest {
    /// Who looks names up for this guest, if it may have that done.
    pub(super) fn name_lookups(&self) -> Option<Arc<Dialer>> {
        self.looks_up_names.then(|| self.outgoing.dialer().clone())
    }

    /// What this guest failed with, under its cause where that is the node.
    pub(crate) fn explain(&self, error: wasmtime::Error) -> wasmtime::Error {
        if self.memory.is_starved() { error.context(NodeMemoryExhausted) } else { error }
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let WasiCtxView { table, .. } = self.wasi.ctx();
        WasiHttpCtxView { hooks: &mut self.outgoing, table, ctx: &mut self.http }
    }
}

/// Whether and how a guest may use `wasi:sockets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketRules {
    Denied,
    /// Everything in a namespace that belongs to the pod alone.
    Own,
    /// Only with the pod's address, in a namespace that it shares.
    Shared(IpAddr),
}

/// A directory of the host that the guest finds at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preopen {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
    pub(crate) read_only: bool,
}

/// Where the input of one instance comes from, and where its output goes.
pub(crate) struct GuestStreams {
    /// `None`: at its end from the start.
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// What each instance of a container is made with.
pub(crate) struct Blueprint {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) args: Vec<String>,
    pub(crate) working_directory: Option<String>,
    pub(crate) sockets: SocketRules,
    pub(crate) outgoing: Outgoing,
    pub(crate) memory: Arc<MemoryAccount>,
    filesystem: WasiFilesystemCtx,
}

impl Blueprint {
    /// Opens the directories once, for all instances.
    pub(crate) fn new(
        env: Vec<(String, String)>,
        args: Vec<String>,
        sockets: SocketRules,
        outgoing: Outgoing,
        memory: Arc<MemoryAccount>,
    ) -> Blueprint {
        Blueprint {
            env,
            args,
            working_directory: None,
            sockets,
            outgoing,
            memory,
            filesystem: WasiFilesystemCtx::default(),
        }
    }

    pub(crate) fn preopen(&mut self, preopens: &[Preopen]) -> Result<(), PreopenError> {
        let mut builder = WasiCtx::builder();
        for preopen in preopens {
            let permissions = if preopen.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder
                .preopened_dir(&preopen.host, &preopen.guest, permissions)
                .map_err(|error| PreopenError { path: preopen.host.clone(), message: format!("{error:#}") })?;
        }
        self.filesystem = builder.build_p1().filesystem().ctx.clone();
        Ok(())
    }

    pub(crate) fn store(&self, engine: &Engine, args: &[String], streams: GuestStreams) -> Store<Guest> {
        let mut builder = WasiCtx::builder();
        builder.envs(&self.env).args(args).stdout(streams.stdout).stderr(streams.stderr).max_random_size(RANDOM_BYTES);
        if let Some(stdin) = streams.stdin {
            let chunks = ReceiverStream::new(stdin).map(Ok::<_, std::io::Error>);
            builder.stdin(AsyncStdinStream::new(StreamReader::new(chunks)));
        }
        if let Some(directory) = &self.working_directory {
            builder.initial_cwd(directory);
        }
        allow_sockets(&mut builder, &self.sockets);
        let mut wasi = builder.build_p1();
        *wasi.filesystem().ctx = self.filesystem.clone();
        wasi.ctx().table.set_max_capacity(RESOURCES);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES);
        let memory = MemoryShare::new(self.memory.clone());
        let looks_up_names = self.sockets != SocketRules::Denied;
        let guest = Guest { wasi, http, outgoing: self.outgoing.clone(), looks_up_names, memory };
        let mut store = Store::new(&engine.wasmtime, guest);
        store.limiter(|guest| &mut guest.memory);
        store.set_hostcall_fuel(HOSTCALL_FUEL);
        store.set_epoch_deadline(SLICE_TICKS);
        store.epoch_deadline_async_yield_and_update(SLICE_TICKS);
        store
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open the volume at {path}: {message}")]
pub(crate) struct PreopenError {
    path: PathBuf,
    message: String,
}

fn allow_sockets(builder: &mut wasmtime_wasi::WasiCtxBuilder, rules: &SocketRules) {
    let shared = match rules {
        SocketRules::Denied => return,
        SocketRules::Own => None,
        SocketRules::Shared(address) => Some(*address),
    };
    builder.allow_tcp(true).allow_udp(true);
    builder.socket_addr_check(move |address, usage| {
        let allowed = match (shared, usage) {
            (Some(own), SocketAddrUse::TcpBind | SocketAddrUse::UdpBind | SocketAddrUse::TcpListen) => {
                address.ip() == own
            }
            _ => true,
        };
        Box::pin(std::future::ready(allowed))
    });
}

pub(super) fn component_linker(
    engine: &wasmtime::Engine,
) -> Result<wasmtime::component::Linker<Guest>, wasmtime::Error> {
    let mut linker = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    names::add_to_linker(&mut linker)?;
    Ok(linker)
}

pub(super) fn module_linker(engine: &wasmtime::Engine) -> Result<wasmtime::Linker<Guest>, wasmtime::Error> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |guest: &mut Guest| &mut guest.wasi)?;
    Ok(linker)
}
