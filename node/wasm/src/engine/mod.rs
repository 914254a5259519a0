//! Everything that knows wasmtime: one engine, its linkers, compiled programs, and what bounds a guest.

mod compile;
mod guest;
mod lanes;
mod limits;
mod meter;
mod names;
mod priority;
mod program;
mod settings;
mod ticker;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub(crate) use compile::{CompileError, Compiler, Compiling, compile_main};
pub(crate) use guest::{Blueprint, Guest, GuestStreams, Preopen, SocketRules};
pub(crate) use lanes::{Lanes, Pulse, Seat};
pub(crate) use limits::{MemoryAccount, NodeMemory};
pub(crate) use meter::Cpu;
pub(crate) use program::{Ending, Handler, Program, is_out_of_room, trap_text};
pub(crate) use settings::{INSTANCES, INSTANCES_OF_ONE};

use ticker::Ticker;

/// The engine of a worker: every guest of the node runs in it.
pub(crate) struct Engine {
    wasmtime: wasmtime::Engine,
    components: wasmtime::component::Linker<Guest>,
    modules: wasmtime::Linker<Guest>,
    /// Why instances don't come from a pool, where they don't.
    no_pool: Option<String>,
    /// One permit for each instance that may live; fewer than the pool has, so that the pool itself never runs out.
    instances: Arc<Semaphore>,
    ticker: Arc<Ticker>,
}

impl Engine {
    pub(crate) fn new() -> Result<Engine, wasmtime::Error> {
        let (wasmtime, no_pool) = settings::engine()?;
        if let Some(why) = &no_pool {
            tracing::error!(why, "the pooling allocator cannot be had: instances start several times slower");
        }
        let components = guest::component_linker(&wasmtime)?;
        let modules = guest::module_linker(&wasmtime)?;
        let ticker = Ticker::start(wasmtime.clone());
        let instances = Arc::new(Semaphore::new(INSTANCES as usize));
        Ok(Engine { wasmtime, components, modules, no_pool, instances, ticker })
    }

    pub(crate) fn no_pool(&self) -> Option<&str> {
        self.no_pool.as_deref()
    }

    pub(crate) fn instances(&self) -> &Arc<Semaphore> {
        &self.instances
    }

    pub(crate) fn ticker(&self) -> &Arc<Ticker> {
        &self.ticker
    }
}
