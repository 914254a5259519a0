//! What the kinds are, built-in and defined at run time, and what they mean: data and pure functions.
//!
//! ```text
//!  data/resources.tsv ─> Registry ─> ResourceDef ─ hooks: default, prepare, validate, fields, cells   (kinds/)
//!                                        │ type_name
//!  data/types.tsv ─────> Schema ─> Type ─ Field
//!                          ├─ protobuf   bytes <-> Object
//!                          ├─ fields     strict JSON, unknown fields, wrong types, pruning
//!                          └─ openapi    documents for kubectl            selectors, quantity: small languages
//! ```
//!
//! This crate does no IO, is not async, reads no clock, and never writes to a store. No file of the API server names a
//! kind; whatever is particular to one kind stands in `kinds/`, one file a family. Kinds that are defined at run time are
//! rows too, made by `custom`.

pub mod columns;
pub mod custom;
mod def;
pub mod expressions;
pub mod fields;
#[cfg(test)]
mod fuzz;
mod json;
mod kinds;
pub mod openapi;
pub mod protobuf;
mod registry;
pub mod schema;
pub mod selectors;
mod strategy;
pub mod validate;

pub use def::{Column, Conversion, Heartbeat, Hooks, KindName, NameRule, ResourceDef, Scope, StorageName, Subresource};
pub use registry::{Group, Registry, is_replaceable, priorities};
pub use schema::Schema;
pub use tandem_api::quantity;
