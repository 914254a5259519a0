//! Wasm images of this node: pulled from registries, verified, and kept by digest.
//!
//! ```text
//!  images/blobs/sha256-HEX        wasm files
//!  images/index.json              which image is which file, and what it is called
//! ```

mod client;
mod layer;
mod reference;
mod store;

pub(crate) use client::{Credentials, PullError};
pub use client::{Registries, Registry};
pub(crate) use reference::Reference;
pub(crate) use store::{Images, Stored};
