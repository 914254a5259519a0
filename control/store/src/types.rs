//! The types that openraft is used with, and the forms in which they lie on disk.
//!
//! What lies on disk is our own struct, converted at the border, so that another openraft release cannot change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openraft::{BasicNode, alias, impls::leader_id_std};
use serde::{Deserialize, Serialize};
use tandem_api::Revision;

use crate::{Reply, codec::Proposal, index::Horizons};

openraft::declare_raft_types!(
    /// A leader owns its term alone (`leader_id_std`): a fence is nothing but a term.
    ///
    /// `AsyncRuntime` is where a simulation puts its own clock and randomness.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, BasicNode>;

/// Where an entry stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Position {
        Position { term: id.leader_id.term, index: id.index }
    }
}

impl From<Position> for LogId {
    fn from(position: Position) -> LogId {
        LogId { leader_id: leader_id_std_committed(position.term), index: position.index }
    }
}

fn leader_id_std_committed(term: u64) -> alias::CommittedLeaderIdOf<TypeConfig> {
    term.into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedVote {
    term: u64,
    node: u64,
    committed: bool,
}

impl From<Vote> for SavedVote {
    fn from(vote: Vote) -> SavedVote {
        SavedVote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<SavedVote> for Vote {
    fn from(saved: SavedVote) -> Vote {
        let SavedVote { term, node, committed } = saved;
        Vote { leader_id: leader_id_std::LeaderId { term, voted_for: node }, committed }
    }
}

/// Who votes and who listens. More than one set of voters while the membership changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Members {
    voters: Vec<BTreeSet<u64>>,
    addresses: BTreeMap<u64, String>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Members {
        Members {
            voters: membership.get_joint_config().clone(),
            addresses: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

impl Members {
    pub(crate) fn restore(self) -> Result<Membership, &'static str> {
        if self.voters.is_empty() && self.addresses.is_empty() {
            return Ok(Membership::default());
        }
        let nodes: BTreeMap<u64, BasicNode> =
            self.addresses.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect();
        Membership::new(self.voters, nodes).map_err(|_| "the list of members contradicts itself")
    }
}

/// The one row beside the versions in the state file; written in the same transaction as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRow {
    pub(crate) applied: Option<Position>,
    pub(crate) members: Arc<Members>,
    /// The entry that made the members what they are.
    pub(crate) members_since: Option<Position>,
    pub(crate) revision: Revision,
    pub(crate) horizons: Horizons,
}

impl StateRow {
    pub(crate) fn membership(&self) -> Result<StoredMembership, &'static str> {
        Ok(StoredMembership::new(self.members_since.map(Into::into), Members::clone(&self.members).restore()?))
    }

    pub(crate) fn snapshot_meta(&self) -> Result<SnapshotMeta, &'static str> {
        Ok(SnapshotMeta { last_log_id: self.applied.map(Into::into), last_membership: self.membership()? })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    #[test]
    fn the_rows_beside_the_tables_are_frozen() {
        let row = StateRow {
            applied: Some(Position { term: 3, index: 90 }),
            members: Arc::new(Members {
                voters: vec![BTreeSet::from([1]), BTreeSet::from([1, 2])],
                addresses: BTreeMap::from([(1, "10.0.0.1:6443".to_owned()), (2, String::new())]),
            }),
            members_since: Some(Position { term: 2, index: 44 }),
            revision: Revision(61),
            horizons: Horizons { lists: Revision(20), watches: Revision(10) },
        };
        let vote = SavedVote { term: 3, node: 1, committed: true };
        let shown = [serde_json::to_string(&row).unwrap(), serde_json::to_string(&vote).unwrap()].join("\n") + "\n";
        expect_file!["../tests/golden/rows-v1.json"].assert_eq(&shown);
        let mut lines = shown.lines();
        assert_eq!(serde_json::from_str::<StateRow>(lines.next().unwrap()).unwrap(), row);
        assert_eq!(serde_json::from_str::<SavedVote>(lines.next().unwrap()).unwrap(), vote);
        assert_eq!(Members::from(&row.membership().unwrap().membership().clone()), *row.members);
    }

    #[test]
    fn votes_and_positions_survive_the_way_to_disk_and_back() {
        let vote = Vote::new_committed(4, 9);
        assert_eq!(Vote::from(SavedVote::from(vote)), vote);
        let position = Position { term: 4, index: 77 };
        assert_eq!(Position::from(LogId::from(position)), position);
        assert_eq!(Members::default().restore(), Ok(Membership::default()));
    }
}
