//! The store's calls over the transport.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tandem_store::{
    Answer, Call, PeerError, Peers, RaftStore, Refusal,
    wire::{self, Route},
};
use tokio::io::AsyncRead;

use crate::{Answerer, Network, frame::Lane};

/// What a call must never wait for: heartbeats and votes for nothing, entries not for what clients want.
fn lane(call: &Call) -> Lane {
    match call {
        Call::Append(request) if !request.entries.is_empty() => Lane::Log,
        Call::Append(_) | Call::Vote(_) | Call::PreVote(_) | Call::Transfer(_) | Call::ReadIndex | Call::Members => {
            Lane::Control
        }
        Call::Write(_) | Call::Change(_) | Call::Hash => Lane::Forward,
        Call::Snapshot { .. } => Lane::Transfer,
    }
}

#[async_trait]
impl Peers for Network {
    async fn call(&self, member: u64, address: &str, call: Call) -> Result<Answer, PeerError> {
        let route = Route { from: self.name().id, to: member };
        let unsent = |error: wire::WireError| PeerError::unsent(member, format!("the call {error}"));
        let (head, _) = wire::encode_call(route, &call).map_err(unsent)?;
        let asked = match &call {
            Call::Snapshot { file, .. } => self.transfer(member, address, head, file).await,
            other => self.ask(member, address, lane(other), head).await,
        };
        let answer =
            asked.map_err(|error| PeerError { member, why: error.to_string(), sent: error.is_after_sending() })?;
        wire::decode_answer(&answer).map_err(|error| PeerError::unanswered(member, format!("its answer {error}")))
    }
}

/// Answers other members from the store.
#[derive(Clone)]
pub struct StoreAnswerer(pub Arc<RaftStore>);

impl StoreAnswerer {
    /// A member may speak for itself only.
    fn check(&self, member: u64, route: Route) -> Result<(), Refusal> {
        if route.from != member {
            return Err(Refusal::Denied(format!("member {member} cannot speak for member {}", route.from)));
        }
        if route.to != self.0.id() {
            return Err(Refusal::WrongMember { here: self.0.id() });
        }
        Ok(())
    }
}

fn encoded(answer: &Answer) -> Result<Bytes, String> {
    wire::encode_answer(answer).map_err(|error| format!("its answer {error}"))
}

#[async_trait]
impl Answerer for StoreAnswerer {
    async fn answer(&self, member: u64, call: Bytes) -> Result<Bytes, String> {
        let answer = match wire::decode_call(&call) {
            Ok(received) => match self.check(member, received.route) {
                Ok(()) => self.0.answer(member, received.call).await,
                Err(refusal) => Answer::Refused(refusal),
            },
            Err(error) => Answer::Refused(error.into()),
        };
        encoded(&answer)
    }

    async fn receive(
        &self,
        member: u64,
        header: Bytes,
        file: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Bytes, String> {
        let route = wire::decode_call(&header).map(|received| received.route);
        match route.map_err(Refusal::from).and_then(|route| self.check(member, route)) {
            Ok(()) => Ok(self.0.serve(&header, file).await),
            Err(refusal) => encoded(&Answer::Refused(refusal)),
        }
    }
}
