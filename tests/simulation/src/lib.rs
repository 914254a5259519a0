//! Members of the store and their clients in one process, under a seed.
//!
//! ```text
//!   seed ──> world: clock, randomness, journal (what happened, as a hash)
//!              │
//!   clients ──> cluster: members = the real RaftStore over ──> twins of its two files (lose what was not synced)
//!      │           ▲                                     └──> network: function calls that get lost, late, doubled
//!      │        nemesis: faults for a minute, then none
//!      ▼
//!   history ──> invariants, one file each ──> report
//! ```
//!
//! The store is the product's own code, from the API to the rows of its files. Replaced are the files, the network,
//! the clock and the randomness, and nothing else. The history and the invariants know nothing of the simulation:
//! tests with real processes hand in what their clients saw.
//!
//! It must never start a thread, read the machine's clock or entropy, or touch a database: then a seed would not
//! repeat. It must never be linked into the product: the binary of this crate replaces functions of the C library.

pub mod bugs;
mod clients;
mod cluster;
pub mod history;
pub mod invariants;
pub mod nemesis;
mod network;
pub mod run;
pub mod seeds;
pub mod twins;
pub mod world;
