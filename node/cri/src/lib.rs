//! The container runtime interface (CRI v1): generated types, and [`tandem_runtime::Runtime`] over any unix socket
//! that speaks it. containerd and the wasm host are both such sockets.
//!
//! ```text
//!  tandem_runtime::Runtime
//!          │
//!     CriRuntime ──── convert: specs -> CRI configs (pure)
//!          ├───────── observe: CRI lists -> sandboxes, with a cache of what cannot change any more
//!          ├───────── hints:   "something changed", from events where there are some, else from polling
//!          ├───────── streams: the two wire protocols of exec
//!          └───────── connect: connections from inside a sandbox
//! ```
//!
//! What CRI has no field for travels in [`annotations`]. Nothing here decides anything about a pod, and nothing here
//! knows which runtime is at the other end: differences are options and capabilities.

pub mod annotations;
mod connect;
mod convert;
mod error;
mod hints;
mod observe;
pub mod requests;
mod runtime;
mod streams;

pub use convert::{container_config, sandbox_config};
pub use error::Error;
pub use runtime::{CriRuntime, Options, Source, channel};

/// The types, client and server generated from `proto/runtime.v1.proto`.
#[allow(clippy::all, clippy::allow_attributes_without_reason, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
