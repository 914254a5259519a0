//! The way to other members: a seam that the server fills with its TLS connections, and tests with function calls.

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    OptionalSend,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
    storage::Snapshot,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Change, Command, ELECTION_TIMEOUT_LIMIT, Member, Reply, StateHash,
    snapshot::SnapshotData,
    types::{Node, TypeConfig, Vote},
};

/// How long a heartbeat may take there and back: as long as to a member on the other side of an ocean. The next one to the
/// same member waits for it, so that a lost one must not let the shortest election timeout pass.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(200);

/// How long entries may take to be on the disk of another member before they are sent again.
const APPEND_TIMEOUT: Duration = Duration::from_millis(500);

/// How long any call of raft may take, snapshots aside: a vote is saved before it is given, on the slowest disk that
/// elections wait for.
pub(crate) const CALL_TIMEOUT_MAX: Duration = ELECTION_TIMEOUT_LIMIT;

/// What one member asks of another.
#[derive(Clone, Debug)]
pub enum Call {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// The bytes of the file follow the call.
    Snapshot {
        vote: openraft::alias::VoteOf<TypeConfig>,
        file: PathBuf,
    },
    /// To the leader: carry out a command, which has no fence.
    Write(Arc<Command>),
    /// To the leader: up to which entry must a read be applied, to see everything that was acknowledged before?
    ReadIndex,
    /// To the leader: change who belongs to the cluster.
    Change(Change),
    /// To the leader: who belongs to the cluster, and how far is everyone?
    Members,
    /// The hashes of what this member has applied lately.
    Hash,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    PreVote(VoteResponse<TypeConfig>),
    Transfer(TransferLeaderResponse<TypeConfig>),
    Snapshot(SnapshotResponse<TypeConfig>),
    Write(Written),
    ReadIndex(u64),
    /// The id of the member that was joined, promoted or removed.
    Change(u64),
    Members(Vec<Member>),
    /// The present one last.
    Hash(Vec<StateHash>),
    Refused(Refusal),
}

/// How a forwarded command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub reply: Reply,
    /// The entry that holds the command: who has applied it sees what it did.
    pub index: u64,
}

/// Why a call was not carried out, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    // The first two are how versions talk to each other: their places and fields stay as they are in all of them.
    #[error("it speaks version {known} of the protocol between members")]
    Version { known: u8 },
    #[error("it does not know calls of kind {kind}; run the same release on all members")]
    Kind { kind: u8 },
    #[error("the call was damaged on its way: {0}")]
    Damaged(String),
    #[error("member {here} lives at that address")]
    WrongMember { here: u64 },
    /// Nothing was done.
    #[error("it does not lead")]
    NotLeader,
    /// Nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// It was begun, and may or may not happen.
    #[error("{0}")]
    Unknown(String),
    /// Nothing was done, and asking again would not help.
    #[error("{0}")]
    Denied(String),
    /// Who asks was removed from the cluster.
    #[error("member {member} was removed from the cluster")]
    Removed { member: u64 },
    /// Nothing was done: the leader has no room for it.
    #[error("the leader's disk is full")]
    Full,
}

/// A member could not be asked, or did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("member {member} cannot be reached: {why}")]
pub struct PeerError {
    pub member: u64,
    pub why: String,
    /// Whether the call may have reached the member, so that it may have been carried out.
    pub sent: bool,
}

impl PeerError {
    /// The call was not sent: nothing of it can have happened.
    pub fn unsent(member: u64, why: impl Into<String>) -> PeerError {
        PeerError { member, why: why.into(), sent: false }
    }

    /// The call was sent, at least in part, and no answer came.
    pub fn unanswered(member: u64, why: impl Into<String>) -> PeerError {
        PeerError { member, why: why.into(), sent: true }
    }
}

/// Carries calls to other members. An answer of another kind than the call counts as no answer. Dropping the future
/// takes back what was not sent yet. A snapshot may take as long as it takes, but one of which nothing moves any more
/// must end in an error.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    async fn call(&self, member: u64, address: &str, call: Call) -> Result<Answer, PeerError>;
}

/// The network of a member that is alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn call(&self, member: u64, _: &str, _: Call) -> Result<Answer, PeerError> {
        Err(PeerError::unsent(member, "this member was started without a network to others"))
    }
}

#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) peers: Arc<dyn Peers>,
    /// Told when another member says that this one was removed.
    pub(crate) removed: watch::Sender<bool>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Node) -> Peer {
        let Network { peers, removed } = self.clone();
        Peer { peers, removed, member: target, address: node.address.clone() }
    }
}

pub(crate) struct Peer {
    peers: Arc<dyn Peers>,
    removed: watch::Sender<bool>,
    member: u64,
    address: String,
}

impl Peer {
    async fn call(&self, call: Call, limit: Duration) -> Result<Answer, Unreachable<TypeConfig>> {
        match tokio::time::timeout(limit, self.peers.call(self.member, &self.address, call)).await {
            Ok(answered) => self.heard(answered),
            Err(_) => Err(Unreachable::new(&PeerError::unanswered(self.member, "no answer in time"))),
        }
    }

    fn heard(&self, answered: Result<Answer, PeerError>) -> Result<Answer, Unreachable<TypeConfig>> {
        let refusal = match answered {
            Ok(Answer::Refused(refusal)) => refusal,
            Ok(answer) => return Ok(answer),
            Err(error) => return Err(Unreachable::new(&error)),
        };
        if matches!(refusal, Refusal::Removed { .. }) {
            self.removed.send_if_modified(|removed| !std::mem::replace(removed, true));
        }
        Err(Unreachable::new(&PeerError::unanswered(self.member, refusal.to_string())))
    }

    fn mistaken(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&PeerError::unanswered(self.member, "it answered something else"))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let limit = if rpc.entries.is_empty() { HEARTBEAT_TIMEOUT } else { APPEND_TIMEOUT };
        match self.call(Call::Append(rpc), limit).await? {
            Answer::Append(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Vote(rpc), CALL_TIMEOUT_MAX).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::PreVote(rpc), option.hard_ttl()).await? {
            Answer::PreVote(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<
            openraft::alias::CommittedLeaderIdOf<TypeConfig>,
            openraft::alias::NodeIdOf<TypeConfig>,
            openraft::alias::NodeOf<TypeConfig>,
            SnapshotData,
        >,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |why: String| Unreachable::new(&PeerError::unsent(self.member, why));
        let file = match snapshot.snapshot.into_file().await {
            Ok(file) => file,
            // A state that history has passed is not an error of the disk: the next try freezes a newer one.
            Err(error) => return Err(unreachable(format!("its snapshot could not be written: {error}")).into()),
        };
        // No time limit: how long a snapshot takes depends on its size. That it moves at all is the transport's promise.
        let call = Call::Snapshot { vote, file: file.path().to_owned() };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answered = self.peers.call(self.member, &self.address, call) => match self.heard(answered)? {
                Answer::Snapshot(answer) => Ok(answer),
                _ => Err(self.mistaken().into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Transfer(request), option.hard_ttl()).await? {
            Answer::Transfer(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }
}
