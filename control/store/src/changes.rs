//! The one queue of changes to the list of members. It is served one by one, on the leader; afterwards nothing is left
//! half changed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use openraft::{
    ChangeMembers,
    async_runtime::watch::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    Change, Refusal, handover,
    machine::Core,
    members::{self, MEMBERS_MAX, is_reachable, metrics_of},
    types::{Aim, Node, RaftMetrics, StoredMembership, TypeConfig},
};

/// Changes that may wait for their turn.
pub(crate) const CHANGES_MAX: usize = 16;

/// How many entries a member that listens may be behind when it is made a voter.
pub const PROMOTION_LAG_MAX: u64 = 200;

/// How often the leader looks whether a member that is to vote has caught up.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long the leader waits for answers of other voters before it says that they cannot be reached.
const ANSWERS_WAIT: Duration = Duration::from_secs(2);

/// A change, and who waits for its end.
pub(crate) struct Request {
    pub(crate) change: Change,
    pub(crate) done: oneshot::Sender<Result<u64, Refusal>>,
}

pub(crate) struct Changes {
    pub(crate) raft: Core,
    pub(crate) queue: mpsc::Receiver<Request>,
}

type Changed<T> = Result<T, Refusal>;

type ChangeMembershipErrorOf =
    ChangeMembershipError<openraft::alias::CommittedLeaderIdOf<TypeConfig>, openraft::alias::NodeIdOf<TypeConfig>>;

impl Changes {
    pub(crate) async fn run(mut self) {
        let mut server = self.raft.server_metrics();
        loop {
            let pending = self.is_pending();
            let look =
                async { if pending { tokio::time::sleep(LOOK_INTERVAL).await } else { std::future::pending().await } };
            tokio::select! {
                request = self.queue.recv() => {
                    let Some(Request { change, done }) = request else { return };
                    let ended = self.carry_out(change).await;
                    // Who asked may have stopped waiting.
                    drop(done.send(ended));
                }
                changed = server.changed() => if changed.is_err() { return },
                () = look => if let Err(error) = self.tidy().await {
                    tracing::debug!(%error, "the list of members could not be tidied up this time");
                },
            }
        }
    }

    /// Whether this member leads and something is left to do that nobody will ask for.
    fn is_pending(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let aims =
            membership.learner_ids().filter_map(|id| membership.get_node(&id)).any(|node| node.aim != Aim::Listen);
        metrics.state.is_leader() && (membership.get_joint_config().len() > 1 || aims)
    }

    /// Finishes what an earlier leader began, and makes voters of those who have caught up.
    async fn tidy(&self) -> Changed<()> {
        let metrics = metrics_of(&self.raft);
        if metrics.membership_config.get_joint_config().len() > 1 {
            return self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await;
        }
        let membership = metrics.membership_config.membership();
        for id in membership.learner_ids() {
            let aims = membership.get_node(&id).is_some_and(|node| node.aim != Aim::Listen);
            if aims && lag(&metrics, id).is_some_and(|lag| lag <= PROMOTION_LAG_MAX) {
                self.promote(id).await?;
            }
        }
        Ok(())
    }

    async fn carry_out(&self, change: Change) -> Changed<u64> {
        if !self.raft.is_leader() {
            return Err(Refusal::NotLeader);
        }
        let changed = match change {
            Change::Join { name, address, aim } => self.join(Node { name, address, aim }).await,
            Change::Promote { member } => self.promote(member).await.map(|()| member),
            Change::Remove { member } => self.remove(member).await.map(|()| member),
            Change::Move { member, name, address } => self.relocate(member, name, address).await.map(|()| member),
        }?;
        self.check_settled()?;
        Ok(changed)
    }

    async fn join(&self, node: Node) -> Changed<u64> {
        let metrics = metrics_of(&self.raft);
        let membership = metrics.membership_config.membership();
        if node.name.is_empty() || node.address.is_empty() {
            return Err(Refusal::Denied("a member needs a name and an address".to_owned()));
        }
        if let Aim::Replace(old) = node.aim
            && membership.get_node(&old).is_none()
        {
            return Err(Refusal::Denied(format!("there is no member {old} to replace")));
        }
        let namesake = membership.nodes().find(|(_, other)| other.name == node.name).map(|(id, _)| *id);
        if let Some(id) = namesake.filter(|id| node.aim != Aim::Replace(*id)) {
            let unused = membership.learner_ids().any(|learner| learner == id)
                && metrics.replication.as_ref().is_some_and(|known| matches!(known.get(&id), Some(None)));
            if !unused {
                let why = format!("member {id} has the name {}; remove it first, or replace it", node.name);
                return Err(Refusal::Denied(why));
            }
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await?;
        }
        if membership.nodes().count() >= MEMBERS_MAX {
            return Err(Refusal::Denied(format!("a cluster has {MEMBERS_MAX} members at most")));
        }
        // An entry that is committed has an index that no other entry ever has: a name for good.
        let blank = self.raft.write_blank().await.map_err(refusal)?;
        let id = blank.log_id.index;
        self.change(ChangeMembers::AddNodes([(id, node)].into())).await?;
        Ok(id)
    }

    async fn promote(&self, member: u64) -> Changed<()> {
        let metrics = metrics_of(&self.raft);
        let membership = metrics.membership_config.membership();
        let Some(node) = membership.get_node(&member) else { return Err(unknown_member(member)) };
        if membership.voter_ids().any(|voter| voter == member) {
            return Ok(());
        }
        match lag(&metrics, member) {
            Some(lag) if lag <= PROMOTION_LAG_MAX => (),
            Some(lag) => {
                return Err(Refusal::Denied(format!("member {member} is {lag} entries behind; try again later")));
            }
            None => return Err(Refusal::Denied(format!("member {member} has not been heard of; is it running?"))),
        }
        let added = ChangeMembers::AddVoterIds(BTreeSet::from([member]));
        let Aim::Replace(old) = node.aim else { return self.change(added).await };
        let gone = BTreeSet::from([old]);
        if membership.voter_ids().any(|voter| voter == old) {
            self.hand_over_if(&metrics, old).await?;
            self.change(ChangeMembers::Batch(vec![added, ChangeMembers::RemoveVoters(gone)])).await
        } else if membership.get_node(&old).is_some() {
            self.change(ChangeMembers::Batch(vec![added, ChangeMembers::RemoveNodes(gone)])).await
        } else {
            self.change(added).await
        }
    }

    async fn remove(&self, member: u64) -> Changed<()> {
        let metrics = metrics_of(&self.raft);
        let membership = metrics.membership_config.membership();
        if membership.get_node(&member).is_none() {
            return Err(unknown_member(member));
        }
        let gone = BTreeSet::from([member]);
        if !membership.voter_ids().any(|voter| voter == member) {
            return self.change(ChangeMembers::RemoveNodes(gone)).await;
        }
        let rest: Vec<u64> = membership.voter_ids().filter(|voter| *voter != member).collect();
        let alive = self.reached(&rest).await;
        if alive <= rest.len() / 2 {
            let why = format!("without member {member} only {alive} of {} voters could be reached", rest.len());
            return Err(Refusal::Denied(format!("{why}, which is no quorum; add or repair one first")));
        }
        self.hand_over_if(&metrics, member).await?;
        self.change(ChangeMembers::RemoveVoters(gone)).await
    }

    /// How many of these voters can be reached. A leader that has just begun is given the time to hear of a majority.
    async fn reached(&self, voters: &[u64]) -> usize {
        let deadline = Instant::now() + ANSWERS_WAIT;
        loop {
            let metrics = metrics_of(&self.raft);
            let reached = voters.iter().filter(|voter| is_reachable(&metrics, **voter)).count();
            if reached > voters.len() / 2 || Instant::now() >= deadline {
                return reached;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Nothing but what is known of the member changes: who votes stays as it is.
    async fn relocate(&self, member: u64, name: String, address: String) -> Changed<()> {
        let metrics = metrics_of(&self.raft);
        let Some(node) = metrics.membership_config.membership().get_node(&member) else {
            return Err(unknown_member(member));
        };
        if name.is_empty() || address.is_empty() {
            return Err(Refusal::Denied("a member needs a name and an address".to_owned()));
        }
        let node = Node { name, address, aim: node.aim };
        self.change(ChangeMembers::SetNodes([(member, node)].into())).await
    }

    /// A leader that is to go hands over first; whoever asked turns to the new one.
    async fn hand_over_if(&self, metrics: &RaftMetrics, member: u64) -> Changed<()> {
        if member != metrics.id {
            return Ok(());
        }
        handover::hand_over(&self.raft).await;
        Err(Refusal::NotLeader)
    }

    /// Commits a change, and the one after it that ends a joint list. Runs to its end, whoever waits for it.
    async fn change(&self, change: ChangeMembers<u64, Node>) -> Changed<()> {
        self.raft.change_membership(change, false).await.map(drop).map_err(refusal)
    }

    /// openraft says that a change succeeded also when another one left the list half changed.
    fn check_settled(&self) -> Changed<()> {
        let metrics = self.raft.server_metrics();
        let effective: Arc<StoredMembership> = metrics.borrow_watched().membership_config.clone();
        if effective.get_joint_config().len() == 1 {
            return Ok(());
        }
        Err(Refusal::Unknown("the list of members is half changed; it will be finished by itself".to_owned()))
    }
}

fn unknown_member(member: u64) -> Refusal {
    Refusal::Denied(format!("there is no member {member}"))
}

/// How far a member is behind, when it has ever been heard of.
fn lag(metrics: &RaftMetrics, member: u64) -> Option<u64> {
    members::listed(metrics).into_iter().find(|other| other.id == member && other.matched.is_some())?.lag
}

/// What another change, or the leader's first entry, stands in the way of can be asked for again.
fn change_refusal(error: &ChangeMembershipErrorOf) -> Refusal {
    let why = error.to_string();
    match error {
        ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
            Refusal::Unavailable(format!("the list of members cannot be changed yet: {why}"))
        }
        ChangeMembershipError::EmptyMembership(_)
        | ChangeMembershipError::LearnerNotFound(_)
        | ChangeMembershipError::UnsupportedMembershipTransition(_)
        | ChangeMembershipError::NodeMetadataChanged(_) => Refusal::Denied(why),
    }
}

pub(crate) fn refusal(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Refusal {
    match error {
        // Refused before anything was written.
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Refusal::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            Refusal::Unknown("another leader took over; it may happen yet".to_owned())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => change_refusal(&error),
        RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => Refusal::Denied(error.to_string()),
        RaftError::Fatal(error) => Refusal::Unknown(format!("this member is stopping: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use openraft::errors::{EmptyMembership, InProgress};

    use super::*;
    use crate::{Error, types::Position};

    #[test]
    fn a_change_that_comes_too_early_can_be_asked_for_again() {
        let refused = |error: ChangeMembershipErrorOf| {
            Error::from(refusal(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))))
        };
        let before = Some(Position { term: 1, index: 4 }.into());
        let other = Some(Position { term: 1, index: 7 }.into());
        let busy = refused(InProgress { committed: before, membership_log_id: other }.into());
        assert!(matches!(&busy, Error::Unavailable(why) if why.contains("cannot be changed yet")), "{busy}");
        let empty = refused(EmptyMembership {}.into());
        assert!(matches!(&empty, Error::Denied(_)), "{empty}");
    }
}
