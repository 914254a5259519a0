//! The cluster's own OCI registry, served under `/v2/`, and the client that uploads components to it.
//!
//! ```text
//!  docker, skopeo, containerd, tandem push
//!        │ /v2/…                        admission
//!        v                                 │ Registry::known(image)
//!   http ── access: who may do what        v
//!    │                              ┌─> Index: (repository, tag or digest) -> Entry   objects, or a file
//!    ├── manifest: is it sound?  ───┤
//!    └── blobs, uploads          ───┴─> D/images/{blobs,links,uploads}                content-addressed files
//! ```
//!
//! A blob is a file that is named by its digest. It appears whole, by a rename, after its bytes were hashed and
//! flushed; a repository sees it through a link of its own, so that nobody reads another's content by guessing a
//! digest. Manifests are blobs too; what they are called is in the [`Index`].
//!
//! This crate never authenticates by itself: the identity of a request comes from the layers in front of it, or from
//! the verifier that it was given. It never runs or compiles what is uploaded.

mod access;
mod blobs;
mod durable;
mod elsewhere;
mod endpoint;
mod error;
mod file_index;
mod http;
mod index;
mod manifest;
mod name;
mod object_index;
mod push;
mod registry;
mod uploads;

pub use access::{Action, Verifier, allowed};
pub use elsewhere::{Elsewhere, HERE_ONLY};
pub use endpoint::{Credentials, Endpoint, EndpointError};
pub use error::Error;
pub use file_index::FileIndex;
pub use index::{Entry, Index, IndexError, Kind};
pub use name::{Digest, ImageName, Reference, Repository, Tag};
pub use object_index::ObjectIndex;
pub use push::{PushError, Pushed, inspect, push};
pub use registry::{Config, Known, Limits, Registry};
