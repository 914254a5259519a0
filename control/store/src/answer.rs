//! How a member answers the others.

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::{async_runtime::watch::WatchReceiver, storage::Snapshot};
use tokio::io::AsyncRead;

use crate::{
    Answer, Call, RaftStore, Refusal,
    calls::to_the_end,
    members::is_gone,
    snapshot::{SnapshotData, SnapshotFile},
    types::Vote,
    wire::{self, Received},
};

impl RaftStore {
    /// Answers a call as it came over the wire; `body` gives the bytes that follow it, and no more of them are read.
    /// Who calls has been authenticated as a member, or as somebody who may join.
    pub async fn serve(&self, head: &[u8], body: impl AsyncRead + Send + Unpin) -> Bytes {
        let answer = self.served(head, body).await.unwrap_or_else(Answer::Refused);
        let too_long = |error: wire::WireError| Answer::Refused(Refusal::Unknown(format!("the answer {error}")));
        let encoded = wire::encode_answer(&answer).or_else(|error| wire::encode_answer(&too_long(error)));
        // A refusal of one line always fits; an empty answer counts as none.
        encoded.unwrap_or_default()
    }

    async fn served(&self, head: &[u8], body: impl AsyncRead + Send + Unpin) -> Result<Answer, Refusal> {
        let Received { route, call, body_bytes } = wire::decode_call(head)?;
        if route.to != 0 && route.to != self.node {
            return Err(Refusal::WrongMember { here: self.node });
        }
        match call {
            Call::Snapshot { vote, .. } => {
                self.install(vote, SnapshotFile::receive(&self.folder, body, body_bytes).await).await
            }
            call => Ok(self.answer(route.from, call).await),
        }
    }

    /// Answers another member: `from`, or 0 for somebody who is no member yet. A snapshot is copied from its file.
    pub fn answer(&self, from: u64, call: Call) -> BoxFuture<'_, Answer> {
        Box::pin(async move { self.answered(from, call).await.unwrap_or_else(Answer::Refused) })
    }

    async fn answered(&self, from: u64, call: Call) -> Result<Answer, Refusal> {
        match call {
            Call::Append(request) => {
                self.heard.note();
                let appended = to_the_end(self.raft(), |raft| async move { raft.append_entries(request).await });
                appended.await.map(Answer::Append).map_err(stopping)
            }
            Call::Transfer(request) => {
                let taken = to_the_end(self.raft(), |raft| async move { raft.handle_transfer_leader(request).await });
                taken.await.map(Answer::Transfer).map_err(stopping)
            }
            Call::Snapshot { vote, file } => {
                let folder = self.folder.clone();
                self.install(vote, self.folder.blocking(move || SnapshotFile::copy(&folder, &file)).await).await
            }
            call => {
                self.check_member(from)?;
                match call {
                    Call::Vote(request) => {
                        let vote = to_the_end(self.raft(), |raft| async move { raft.vote(request).await });
                        vote.await.map(Answer::Vote).map_err(stopping)
                    }
                    Call::PreVote(request) => {
                        let vote = to_the_end(self.raft(), |raft| async move { raft.pre_vote(request).await });
                        vote.await.map(Answer::PreVote).map_err(stopping)
                    }
                    Call::Write(command) if command.fence.is_some() => {
                        Err(Refusal::Denied("a leader's work is not forwarded".to_owned()))
                    }
                    Call::Hash => Ok(Answer::Hash(self.hashes())),
                    call => Ok(self.cluster.leader.carry_out(call).await),
                }
            }
        }
    }

    /// Somebody who was removed is told so, instead of being left to wonder why nobody listens.
    fn check_member(&self, from: u64) -> Result<(), Refusal> {
        let server = self.raft().server_metrics();
        let gone = from != 0 && is_gone(from, &server.borrow_watched().committed_membership_config);
        if gone { Err(Refusal::Removed { member: from }) } else { Ok(()) }
    }

    fn install(&self, vote: Vote, kept: io::Result<SnapshotFile>) -> BoxFuture<'_, Result<Answer, Refusal>> {
        Box::pin(self.installed(vote, kept))
    }

    async fn installed(&self, vote: Vote, kept: io::Result<SnapshotFile>) -> Result<Answer, Refusal> {
        let failed = |error: io::Error| Refusal::Unavailable(format!("it cannot keep a snapshot: {error}"));
        let file = kept.map_err(failed)?;
        let meta = file.meta().map_err(failed)?;
        let snapshot = Snapshot { meta, snapshot: SnapshotData::File(file) };
        let call = to_the_end(self.raft(), |raft| async move { raft.install_full_snapshot(vote, snapshot).await });
        call.await.map(Answer::Snapshot).map_err(stopping)
    }
}

fn stopping(error: impl std::fmt::Display) -> Refusal {
    Refusal::Unavailable(format!("it is stopping: {error}"))
}
