use std::path::Path;

use tandem_component::{Binary, Inspection, Release, World};
use wasmtime::{Store, component::Component, error::Context as _};
use wasmtime_wasi::{I32Exit, p2::bindings::CommandPre as Command2Pre, p3::bindings::CommandPre as Command3Pre};
use wasmtime_wasi_http::{p2::bindings::ProxyPre, p3::bindings::ServicePre};

use super::{
    Engine, Guest,
    limits::{MemoryExceeded, NodeMemoryExhausted},
};

const PAGE_BYTES: u64 = 64 * 1024;
/// What a shell reports for a program that aborted; so does wasmtime's own command line for a trap.
const TRAPPED: i32 = 134;
const KILLED: i32 = 137;
/// Room for the message in a pod's status.
const MESSAGE_BYTES: usize = 4096;

/// A compiled component or module with its imports resolved: instances of it start in microseconds.
pub(crate) struct Program {
    pub(crate) http: Option<Handler>,
    pub(crate) command: Option<Command>,
    /// What the memories of one instance begin with.
    pub(crate) initial_memory_bytes: u64,
    pub(crate) imports_sockets: bool,
}

/// What answers HTTP requests.
pub(crate) enum Handler {
    Release2(ProxyPre<Guest>),
    Release3(ServicePre<Guest>),
}

/// What runs from start to end.
pub(crate) enum Command {
    Module(wasmtime::InstancePre<Guest>),
    Release2(Command2Pre<Guest>),
    Release3(Command3Pre<Guest>),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) code: i32,
    /// As in a pod's status: `Completed`, `Error`, `OOMKilled`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Ending {
    pub(crate) fn exited(code: i32) -> Ending {
        Ending { code, reason: if code == 0 { "Completed" } else { "Error" }, message: String::new() }
    }

    pub(crate) fn out_of_memory(message: String) -> Ending {
        Ending { code: KILLED, reason: "OOMKilled", message }
    }

    /// From the error that a guest's call ended with.
    fn failed(error: &wasmtime::Error) -> Ending {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Ending::exited(exit.0);
        }
        if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
            return Ending::out_of_memory(exceeded.to_string());
        }
        Ending { code: TRAPPED, reason: "Error", message: trap_text(error) }
    }
}

/// The trap and its backtrace, as they go into a pod's status.
pub(crate) fn trap_text(error: &wasmtime::Error) -> String {
    let mut text = format!("{error:?}");
    if text.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Whether an instance could not be made because the node has no slot in its pool, or no memory, left.
pub(crate) fn is_out_of_room(error: &wasmtime::Error) -> bool {
    error.is::<wasmtime::PoolConcurrencyLimitError>() || error.is::<NodeMemoryExhausted>()
}

impl Engine {
    /// Loads code that the compile cache made.
    #[allow(
        unsafe_code,
        reason = "code that was compiled ahead of time is trusted, and the cache is where trust is checked"
    )]
    pub(crate) fn load(
        &self,
        compiled: &super::compile::Trusted,
        inspection: &Inspection,
    ) -> Result<Program, wasmtime::Error> {
        let path: &Path = compiled.path();
        match inspection.binary {
            Binary::Component => {
                // SAFETY: `Trusted` is only made for a file that this process or its compiling child wrote into a
                // folder that nobody else can write to.
                let component = unsafe { Component::deserialize_file(&self.wasmtime, path) }?;
                self.component(&component, inspection)
            }
            Binary::Module => {
                // SAFETY: as above.
                let module = unsafe { wasmtime::Module::deserialize_file(&self.wasmtime, path) }?;
                self.module(&module)
            }
        }
    }

    fn component(&self, component: &Component, inspection: &Inspection) -> Result<Program, wasmtime::Error> {
        let pre = self.components.instantiate_pre(component)?;
        let exports = |name: &str, track: &str| {
            let wanted = format!("{name}@{track}");
            inspection.exports.iter().any(|export| export.as_str().starts_with(&wanted))
        };
        let http = match inspection.world {
            World::HttpHandler(Release::Preview3) => Some(Handler::Release3(ServicePre::new(pre.clone())?)),
            World::HttpHandler(_) => Some(Handler::Release2(ProxyPre::new(pre.clone())?)),
            World::Command(_) | World::Library => None,
        };
        let command = if exports("wasi:cli/run", "0.3.") {
            Some(Command::Release3(Command3Pre::new(pre)?))
        } else if exports("wasi:cli/run", "0.2.") {
            Some(Command::Release2(Command2Pre::new(pre)?))
        } else {
            None
        };
        let required = component.resources_required();
        let initial_memory_bytes = required.map_or(0, |required| {
            u64::from(required.num_memories) * required.max_initial_memory_size.unwrap_or(0) * PAGE_BYTES
        });
        let imports_sockets = inspection.imports.iter().any(|import| import.as_str().starts_with("wasi:sockets/"));
        Ok(Program { http, command, initial_memory_bytes, imports_sockets })
    }

    fn module(&self, module: &wasmtime::Module) -> Result<Program, wasmtime::Error> {
        let required = module.resources_required();
        let initial_memory_bytes =
            u64::from(required.num_memories) * required.max_initial_memory_size.unwrap_or(0) * PAGE_BYTES;
        let pre = self.modules.instantiate_pre(module)?;
        Ok(Program { http: None, command: Some(Command::Module(pre)), initial_memory_bytes, imports_sockets: false })
    }
}

impl Command {
    /// Runs an instance to its end.
    pub(crate) async fn run(&self, store: &mut Store<Guest>) -> Ending {
        match self.call(store).await {
            Ok(code) => Ending::exited(code),
            Err(error) => Ending::failed(&store.data().explain(error)),
        }
    }

    async fn call(&self, store: &mut Store<Guest>) -> Result<i32, wasmtime::Error> {
        let succeeded = match self {
            Command::Module(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                let start = instance.get_typed_func::<(), ()>(&mut *store, "_start").context("finding `_start`")?;
                start.call_async(&mut *store, ()).await?;
                true
            }
            Command::Release2(pre) => {
                let command = pre.instantiate_async(&mut *store).await?;
                command.wasi_cli_run().call_run(&mut *store).await?.is_ok()
            }
            Command::Release3(pre) => {
                let command = pre.instantiate_async(&mut *store).await?;
                let run = async |accessor: &wasmtime::component::Accessor<Guest>| {
                    command.wasi_cli_run().call_run(accessor).await
                };
                store.run_concurrent(run).await??.is_ok()
            }
        };
        Ok(if succeeded { 0 } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_node_is_named_and_kills_nobody() {
        let error = wasmtime::Error::msg("memory minimum size exceeds memory limits").context(NodeMemoryExhausted);
        assert!(is_out_of_room(&error));
        let ending = Ending::failed(&error);
        assert_eq!((ending.code, ending.reason), (TRAPPED, "Error"));
        assert!(
            ending.message.starts_with("the memory that this node has for guests is used up"),
            "{}",
            ending.message
        );
        let own = wasmtime::Error::msg("unreachable");
        assert!(!is_out_of_room(&own));
    }
}
