//! The way to other members: a seam that the server fills with its TLS connections, and tests with function calls.

use std::{future::Future, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use openraft::{
    BasicNode, OptionalSend,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
    storage::Snapshot,
};

use crate::{
    snapshot::SnapshotData,
    types::{TypeConfig, Vote},
};

/// What one member asks of another.
#[derive(Debug)]
pub enum Call {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// The bytes of the file are to be given to [`crate::RaftStore::answer`] of the other member.
    Snapshot {
        vote: openraft::alias::VoteOf<TypeConfig>,
        file: PathBuf,
    },
}

#[derive(Debug)]
pub enum Answer {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    PreVote(VoteResponse<TypeConfig>),
    Transfer(TransferLeaderResponse<TypeConfig>),
    Snapshot(SnapshotResponse<TypeConfig>),
}

/// A member could not be asked, or did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("member {member} cannot be reached: {why}")]
pub struct PeerError {
    pub member: u64,
    pub why: String,
}

/// Carries calls to other members. An answer of another kind than the call counts as no answer.
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
        Err(PeerError { member, why: "this member was started without a network to others".to_owned() })
    }
}

#[derive(Clone)]
pub(crate) struct Network(pub(crate) Arc<dyn Peers>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { peers: self.0.clone(), member: target, address: node.addr.clone() }
    }
}

pub(crate) struct Peer {
    peers: Arc<dyn Peers>,
    member: u64,
    address: String,
}

impl Peer {
    async fn call(&self, call: Call, option: &RPCOption) -> Result<Answer, Unreachable<TypeConfig>> {
        let unreachable = |why: &str| {
            let error = PeerError { member: self.member, why: why.to_owned() };
            Unreachable::new(&error)
        };
        match tokio::time::timeout(option.hard_ttl(), self.peers.call(self.member, &self.address, call)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Unreachable::new(&error)),
            Err(_) => Err(unreachable("no answer in time")),
        }
    }

    fn mistaken(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&PeerError { member: self.member, why: "it answered something else".to_owned() })
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Append(rpc), &option).await? {
            Answer::Append(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Vote(rpc), &option).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::PreVote(rpc), &option).await? {
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
        let unreachable = |why: String| Unreachable::new(&PeerError { member: self.member, why });
        let file = match snapshot.snapshot.into_file().await {
            Ok(file) => file,
            // A state that history has passed is not an error of the disk: the next try freezes a newer one.
            Err(error) => return Err(unreachable(format!("its snapshot could not be written: {error}")).into()),
        };
        // No time limit: how long a snapshot takes depends on its size. The transport notices a dead peer.
        let call = Call::Snapshot { vote, file: file.path().to_owned() };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = self.peers.call(self.member, &self.address, call) => match answer {
                Ok(Answer::Snapshot(answer)) => Ok(answer),
                Ok(_) => Err(self.mistaken().into()),
                Err(error) => Err(Unreachable::new(&error).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Transfer(request), &option).await? {
            Answer::Transfer(answer) => Ok(answer),
            _ => Err(self.mistaken().into()),
        }
    }
}
