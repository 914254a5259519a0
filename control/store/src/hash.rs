//! One number over everything that a member has applied, so that members can be compared.

use serde::{Deserialize, Serialize};

/// Two members that have applied the same entry have the same hash, or one of them is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The last entry that was applied.
    pub index: u64,
    /// Over the key, the revision and the value of everything that is stored.
    pub hash: u64,
}
