//! The table of sandboxes and containers, in memory and on disk.
//!
//! ```text
//!  state/sandboxes/ID.json    one file each, written whole and renamed into place
//!  state/containers/ID.json
//! ```
//!
//! The files outlive the worker, not the machine: after a power cut nothing that they speak of runs any more, so they
//! are not flushed to the disk. `golden/state.json` freezes their format.

mod record;
mod table;

#[cfg(test)]
pub(crate) use record::examples;
pub(crate) use record::{
    ContainerRecord, ContainerState, Exit, ImageRecord, Kind, MountRecord, PodRecord, RECORD_VERSION, ResourceRecord,
    SandboxRecord,
};
pub(crate) use table::{Change, Changed, Table};
