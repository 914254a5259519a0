//! Between the two processes of the host: the worker asks the parent for sockets.
//!
//! ```text
//!  worker ──Call{id, ask}──────────────> parent        one packet each way, in any order,
//!         <──Reply{id, answer} + socket──              a socket travels with the packet that announces it
//! ```
//!
//! The parent outlives workers, also those of a newer version: the messages are versioned by the `Hello` that opens
//! every conversation, and `golden/link.jsonl` freezes them.

mod client;
mod parent;
mod sockets;
mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub(crate) use client::Link;
pub(crate) use parent::{ParentOptions, parent_main};
pub(crate) use wire::{Wire, watched};

use crate::network::SocketKind;

/// The version of these messages.
pub(crate) const LINK_PROTOCOL: u32 = 1;
/// Keys in one answer, so that it fits into a packet.
const KEYS_EACH: usize = 500;

/// A listener for each pod, and connections.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) ask: Ask,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Ask {
    Hello {
        protocol: u32,
    },
    /// The listening socket that clients of the host come to.
    Control,
    /// A listener, kept until it is closed. The same key gets the same listener.
    Listen {
        key: String,
        namespace: Option<PathBuf>,
        address: SocketAddr,
    },
    Close {
        key: String,
    },
    /// The keys of the listeners that are kept, from a position on.
    Kept {
        from: usize,
    },
    Outgoing {
        namespace: PathBuf,
        kind: SocketKind,
        source: Option<IpAddr>,
    },
    /// Ends the parent after the worker.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer {
    Hello {
        protocol: u32,
    },
    /// Comes with the socket.
    Socket,
    Done,
    Keys {
        keys: Vec<String>,
        more: bool,
    },
    /// `code` is the number of the system's error, where it was one.
    Failed {
        code: Option<i32>,
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_frozen() {
        let calls = [
            Ask::Hello { protocol: LINK_PROTOCOL },
            Ask::Control,
            Ask::Listen {
                key: "c1".into(),
                namespace: Some("/run/netns/pod".into()),
                address: ([10, 1, 2, 3], 8080).into(),
            },
            Ask::Close { key: "c1".into() },
            Ask::Kept { from: 0 },
            Ask::Outgoing {
                namespace: "/run/netns/pod".into(),
                kind: SocketKind::Stream,
                source: Some([10, 1, 2, 3].into()),
            },
            Ask::Shutdown,
        ];
        let answers = [
            Answer::Hello { protocol: LINK_PROTOCOL },
            Answer::Socket,
            Answer::Done,
            Answer::Keys { keys: vec!["c1".into()], more: false },
            Answer::Failed { code: Some(98), message: "Address already in use".into() },
        ];
        let mut text = String::new();
        for (id, ask) in calls.into_iter().enumerate() {
            text += &serde_json::to_string(&Call { id: id as u64, ask }).unwrap();
            text += "\n";
        }
        for (id, answer) in answers.into_iter().enumerate() {
            text += &serde_json::to_string(&Reply { id: id as u64, answer }).unwrap();
            text += "\n";
        }
        expect_test::expect_file!["../../golden/link.jsonl"].assert_eq(&text);
    }
}
