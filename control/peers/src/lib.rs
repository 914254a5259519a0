//! How the members of the control plane reach each other: mutual TLS on the API server's port, chosen by ALPN.
//!
//! ```text
//!  raft, forwarded writes ─> Network ─┬─ lane "control"  heartbeats, votes ───┐
//!                                     ├─ lane "log"      entries              ├─ TLS, ALPN tandem-raft ─> Server ─> Answerer
//!                                     ├─ lane "forward"  writes, reads        │        (certificate of a member,
//!                                     └─ a connection for each snapshot ──────┘         both sides, by name)
//! ```
//!
//! A lane is one connection that carries many calls; lanes never wait for each other. All of it runs on a [`Thread`] of
//! its own, so that no list of the API server delays a heartbeat. This crate decides nothing about membership and never
//! looks into what it carries.

mod dialer;
mod frame;
mod identity;
mod lane;
mod network;
mod server;
mod store;
mod thread;
mod transfer;

pub use frame::{FRAME_BYTES_MAX, VERSION};
pub use identity::{ALPN, Identity};
pub use network::Network;
pub use server::{Answerer, Server};
pub use store::StoreAnswerer;
pub use thread::Thread;

/// Why a member could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("it did not prove to be that member: {0}")]
    Identity(String),
    #[error("it refused the connection: {0}")]
    Refused(String),
    #[error("the connection ended: {0}")]
    Lost(String),
    #[error("more than {0} calls wait for an answer")]
    Full(usize),
    #[error("it could not answer: {0}")]
    Failed(String),
}

impl Error {
    /// Whether the other side may have got what was sent.
    fn is_after_sending(&self) -> bool {
        matches!(self, Error::Lost(_) | Error::Failed(_))
    }
}

#[cfg(test)]
mod tests;
