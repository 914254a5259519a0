//! Who belongs to the cluster, as one member sees it.

use std::time::Duration;

use openraft::{Instant as _, async_runtime::watch::WatchReceiver, metrics::RaftServerMetrics};
use serde::{Deserialize, Serialize};

use crate::{
    machine::Core,
    types::{Aim, Position, RaftMetrics, StoredMembership},
};

/// Members that a cluster has at most, with those that listen.
pub const MEMBERS_MAX: usize = 9;

/// A member that has answered nothing for so long does not count as one that can vote.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: u64,
    pub name: String,
    /// Where other members reach it.
    pub address: String,
    pub role: Role,
    /// The last entry that it is known to have; only the leader knows.
    pub matched: Option<u64>,
    /// How many entries it is behind the leader; only the leader knows.
    pub lag: Option<u64>,
    /// Whether it has answered the leader lately; only the leader knows.
    pub reachable: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Leader,
    Voter,
    Learner,
}

/// What this member is in its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It has not heard of its cluster yet.
    #[default]
    Waiting,
    Learner,
    Voter,
    /// It was a member, and is none any more: its folder is of no use. It can come back as a new member only.
    Removed,
}

/// A change of who belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new member that listens first. The answer is its id, which no other member ever has or had. Whoever asks twice
    /// gets another id: one that was given out and never used goes when the same name joins again.
    Join { name: String, address: String, aim: Aim },
    /// A member that listens is to vote, as soon as it has caught up.
    Promote { member: u64 },
    /// A member is to go. The leader hands over first when it is the one.
    Remove { member: u64 },
    /// A member is reached at another address from now on, and has this name.
    Move { member: u64, name: String, address: String },
}

/// What raft tells of itself. openraft tells all of it a moment after the part of it that wakes whoever waits for
/// another leader or another list of members, and wakes nobody then: that part is taken from where it is told first.
pub(crate) fn metrics_of(raft: &Core) -> RaftMetrics {
    let mut metrics = raft.metrics().borrow_watched().clone();
    let RaftServerMetrics { vote, state, current_leader, membership_config, committed_membership_config, .. } =
        raft.server_metrics().borrow_watched().clone();
    (metrics.vote, metrics.state, metrics.current_leader) = (vote, state, current_leader);
    (metrics.membership_config, metrics.committed_membership_config) = (membership_config, committed_membership_config);
    metrics
}

/// Everybody, in the order of ids.
pub(crate) fn listed(metrics: &RaftMetrics) -> Vec<Member> {
    let membership = metrics.membership_config.membership();
    let last = metrics.last_log_index;
    let member = |(id, node): (&u64, &crate::types::Node)| {
        let leads = metrics.current_leader == Some(*id);
        let matched = match &metrics.replication {
            Some(_) if *id == metrics.id => last,
            Some(replication) => replication.get(id).copied().flatten().map(|id| Position::from(id).index),
            None => None,
        };
        // While the list changes, who is on one of its two sides only is not settled as a voter.
        let votes = membership.get_joint_config().iter().all(|voters| voters.contains(id));
        Member {
            id: *id,
            name: node.name.clone(),
            address: node.address.clone(),
            role: match (leads, votes) {
                (true, _) => Role::Leader,
                (false, true) => Role::Voter,
                (false, false) => Role::Learner,
            },
            matched,
            lag: metrics.replication.as_ref().map(|_| entries(last).saturating_sub(entries(matched))),
            reachable: metrics.heartbeat.as_ref().map(|_| is_reachable(metrics, *id)),
        }
    };
    membership.nodes().map(member).collect()
}

/// Whether a member has answered this one, which leads, lately.
pub(crate) fn is_reachable(metrics: &RaftMetrics, member: u64) -> bool {
    let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&member).copied().flatten());
    member == metrics.id || heard.is_some_and(|heard| heard.elapsed() < HEARD_WITHIN)
}

/// How many entries there are up to an index.
pub(crate) fn entries(last: Option<u64>) -> u64 {
    last.map_or(0, |last| last + 1)
}

/// What the member `id` is, according to a list of members that it has itself.
pub(crate) fn standing(id: u64, membership: &StoredMembership) -> Standing {
    if membership.log_id().is_none() {
        Standing::Waiting
    } else if membership.voter_ids().any(|voter| voter == id) {
        Standing::Voter
    } else if membership.get_node(&id).is_some() {
        Standing::Learner
    } else if is_gone(id, membership) {
        Standing::Removed
    } else {
        Standing::Waiting
    }
}

/// Whether `id` was a member once and is none any more. Ids are indexes of entries before the one that adds the member,
/// and changes come one after another: a list that is younger than an id has it, or never will have it again.
pub(crate) fn is_gone(id: u64, membership: &StoredMembership) -> bool {
    let younger = membership.log_id().is_some_and(|since| id < since.index);
    younger && membership.get_joint_config().len() == 1 && membership.get_node(&id).is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::types::{Membership, Node};

    #[test]
    fn only_ids_that_are_older_than_the_list_are_gone() {
        let nodes: BTreeMap<u64, Node> = [1, 5, 9].into_iter().map(|id| (id, Node::at("a"))).collect();
        let stored = |voters: Vec<BTreeSet<u64>>| {
            let since = Position { term: 1, index: 12 }.into();
            StoredMembership::new(Some(since), Membership::new(voters, nodes.clone()).unwrap())
        };
        let settled = stored(vec![BTreeSet::from([1, 5])]);
        let found: Vec<Standing> = [1, 5, 9, 7, 13].into_iter().map(|id| standing(id, &settled)).collect();
        let expected = [Standing::Voter, Standing::Voter, Standing::Learner, Standing::Removed, Standing::Waiting];
        assert_eq!(found, expected);
        let changing = stored(vec![BTreeSet::from([1, 5]), BTreeSet::from([1])]);
        assert!(!is_gone(7, &changing));
        assert_eq!(standing(1, &StoredMembership::default()), Standing::Waiting);
    }
}
