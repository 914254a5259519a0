//! The types that openraft is used with, and the forms in which they lie on disk.
//!
//! What lies on disk is our own struct, converted at the border, so that another openraft release cannot change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openraft::{alias, impls::leader_id_std};
use serde::{Deserialize, Serialize};
use tandem_api::Revision;

use crate::{Reply, Runtime, codec::Proposal, index::Horizons};

openraft::declare_raft_types!(
    /// A leader owns its term alone (`leader_id_std`): a fence is nothing but a term.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = Node,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = Runtime,
);

pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type RaftMetrics = openraft::RaftMetrics<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Node>;

/// What is known of a member beside its id. It lies in the log with the list of members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// Where other members reach it.
    pub address: String,
    pub aim: Aim,
}

/// What a member that does not vote yet is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aim {
    /// It listens and never votes, unless it is promoted.
    #[default]
    Listen,
    /// It votes as soon as it has caught up.
    Vote,
    /// It takes the place of another member as soon as it has caught up.
    Replace(u64),
}

impl Node {
    /// A member without a name, as the first one is begun.
    pub(crate) fn at(address: impl Into<String>) -> Node {
        Node { address: address.into(), ..Node::default() }
    }
}

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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    names: BTreeMap<u64, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    aims: BTreeMap<u64, Aim>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Members {
        let named = membership.nodes().filter(|(_, node)| !node.name.is_empty());
        let aiming = membership.nodes().filter(|(_, node)| node.aim != Aim::default());
        Members {
            voters: membership.get_joint_config().clone(),
            addresses: membership.nodes().map(|(id, node)| (*id, node.address.clone())).collect(),
            names: named.map(|(id, node)| (*id, node.name.clone())).collect(),
            aims: aiming.map(|(id, node)| (*id, node.aim)).collect(),
        }
    }
}

impl Members {
    pub(crate) fn restore(self) -> Result<Membership, &'static str> {
        if self.voters.is_empty() && self.addresses.is_empty() {
            return Ok(Membership::default());
        }
        let Members { voters, addresses, mut names, aims } = self;
        let node = |(id, address)| {
            let name = names.remove(&id).unwrap_or_default();
            (id, Node { name, address, aim: aims.get(&id).copied().unwrap_or_default() })
        };
        let nodes: BTreeMap<u64, Node> = addresses.into_iter().map(node).collect();
        Membership::new(voters, nodes).map_err(|_| "the list of members contradicts itself")
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
                ..Members::default()
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

    /// Names and aims came later: a list without them is written as it was before.
    #[test]
    fn the_list_of_members_with_names_is_frozen() {
        let members = Members {
            voters: vec![BTreeSet::from([1])],
            addresses: BTreeMap::from([(1, "10.0.0.1:6443".to_owned()), (9, "10.0.0.2:6443".to_owned())]),
            names: BTreeMap::from([(9, "b".to_owned())]),
            aims: BTreeMap::from([(9, Aim::Replace(1))]),
        };
        let shown = serde_json::to_string(&members).unwrap() + "\n";
        expect_file!["../tests/golden/members-v1.json"].assert_eq(&shown);
        assert_eq!(serde_json::from_str::<Members>(&shown).unwrap(), members);
        assert_eq!(Members::from(&members.clone().restore().unwrap()), members);
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
