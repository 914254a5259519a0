//! The host as the node uses it: in processes of its own, through the supervisor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test says by a panic what is wrong"
)]
#![allow(clippy::disallowed_methods, reason = "these tests watch processes, which have a time of their own")]

mod bench;
mod commands;
mod guests;
mod namespaces;
mod registry;
mod restarts;
mod serving;
mod suite;
