//! Bugs that the harness plants, to prove that it would find them. None of them is in the product: they sit in the
//! twins, in the network, and between the clients and the store.

use std::str::FromStr;

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)*
                }
            }
        }
    };
}

bugs! {
    /// The log says that a commit is durable without waiting for the disk.
    AckBeforeSync = "ack-before-sync",
    /// A follower gets two entries with their contents exchanged.
    ApplyOutOfOrder = "apply-out-of-order",
    /// A follower gets an entry without its content.
    SkippedEntry = "skipped-entry",
    /// A member comes back with an empty disk under its old id.
    ReusedId = "reused-id",
    /// A linearizable read is answered from what the member has applied.
    StaleRead = "stale-read",
    /// A watch leaves out an event.
    LostWatchEvent = "lost-watch-event",
    /// A watch delivers an event twice.
    DuplicateEvent = "duplicate-event",
    /// A checkpoint of the state says that it is durable when it is not, and the log before it goes.
    PurgeBeforeDurable = "purge-before-durable",
    /// Leader work goes on without its fence.
    UnfencedLeader = "unfenced-leader",
    /// A snapshot is installed without its newest write.
    SnapshotMissesWrite = "snapshot-misses-write",
    /// A vote is not saved.
    ForgottenVote = "forgotten-vote",
    /// A truncation of the log does not reach the disk.
    LostTruncation = "lost-truncation",
    /// The state's row is written without all the versions that belong to it.
    RowWithoutVersions = "row-without-versions",
    /// A write whose answer was lost is sent once more.
    RepeatedWrite = "repeated-write",
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(name: &str) -> Result<Bug, String> {
        let found = Bug::ALL.iter().find(|bug| bug.name() == name).copied();
        found.ok_or_else(|| {
            let names: Vec<&str> = Bug::ALL.iter().map(|bug| bug.name()).collect();
            format!("{name} is no bug that can be planted; there are {}", names.join(", "))
        })
    }
}
