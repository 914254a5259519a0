//! What a WebAssembly file is, found from its bytes alone, and the OCI image that it makes.
//!
//! ```text
//!  bytes ──> Component::inspect ──> Inspection { binary, world, imports, exports, size }
//!                 │                      ├── refused()  interfaces that nobody provides
//!                 │ not wasm             ├── grants()   what it can reach beyond itself
//!                 v                      └── Display    the text of `tandem inspect`
//!            Error, naming what the file looks like
//!
//!  bytes ──> image::wrap ──> Image { config, manifest, digests }      (the CNCF wasm artifact)
//!  manifest, config ──> image::kind ──> wasm or container             (the order in which runtimes look)
//! ```
//!
//! This crate never compiles or runs a guest, and never depends on a runtime: the API server, the registry and the
//! command line use it as the node does. What it says comes from the bytes; what an image config says about its
//! component is only a claim of its author.

pub mod image;
mod inspect;
mod looks;
mod provided;
mod text;

pub use inspect::{Binary, Component, Error, Inspection, Interface, Release, World, magic};
pub use looks::Looks;
pub use provided::{Grant, PROVIDED, Provided, refuse};

/// The largest component that is accepted, in bytes.
pub const SIZE_MAX: u64 = 256 * 1024 * 1024;
