//! What only the leader does, for itself and for others: the same steps for a command of its own and a forwarded one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::{ReadPolicy, errors::RaftError, raft::linearizable_read::LinearizerOption};
use tandem_api::Key;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    Answer, COMMAND_VERSION, Call, Command, Metrics, Op, Refusal, Reply, Space, Written,
    calls::to_the_end,
    changes::{self, Request},
    codec::Proposal,
    machine::Core,
    members::{listed, metrics_of},
    quorum::lost,
    replica::Replica,
};

/// How long a command waits for its reply while there is a quorum; after that it may or may not happen.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the leader waits for a quorum to confirm that it still leads.
pub(crate) const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a member that stops waits for commands that are on their way.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a change of the list of members may take: longer than a write, because it is two of them.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Commands that may be on their way at once.
pub const WRITES_MAX: u32 = 1 << 16;

/// How the leader makes sure that it still leads before it lets a read see what is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// A quorum confirms it, each time.
    #[default]
    Index,
    /// A quorum confirmed it within the lease: faster, and wrong when clocks of members run at different speeds.
    Lease,
}

/// How much longer a value may become on a full disk: a mark that something is to be deleted is a longer value first.
const GROWTH_MAX: usize = 256;

/// Whether a command may be carried out with so much room.
fn fits(space: Space, command: &Command, size_of: impl Fn(&Key) -> Option<usize>) -> bool {
    command.ops.iter().all(|operation| match operation {
        Op::Compact { .. } => true,
        Op::Delete { .. } => space < Space::None,
        Op::Put { key, value, .. } => match space {
            Space::Enough => true,
            Space::Low => size_of(key).is_some_and(|size| value.len() <= size + GROWTH_MAX),
            Space::None => false,
        },
    })
}

/// The leader's part of every member; refuses while another one leads.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) raft: Core,
    pub(crate) reads: Reads,
    pub(crate) metrics: Metrics,
    pub(crate) quorum: watch::Receiver<bool>,
    pub(crate) changes: mpsc::Sender<Request>,
    pub(crate) space: watch::Receiver<Space>,
    pub(crate) replica: Arc<Replica>,
    /// One permit for each command on its way.
    pub(crate) writes: Arc<Semaphore>,
}

impl Leader {
    /// Carries out a call that is for the leader.
    pub(crate) async fn carry_out(&self, call: Call) -> Answer {
        let ended = match call {
            Call::Write(command) => self.write(command).await.map(Answer::Write),
            Call::ReadIndex => self.read_index().await.map(Answer::ReadIndex),
            Call::Change(change) => self.change(change).await.map(Answer::Change),
            Call::Members if self.raft.is_leader() => Ok(Answer::Members(listed(&metrics_of(&self.raft)))),
            Call::Members => Err(Refusal::NotLeader),
            other => Err(Refusal::Denied(format!("{other:?} is not for the leader"))),
        };
        ended.unwrap_or_else(Answer::Refused)
    }

    async fn write(&self, command: Arc<Command>) -> Result<Written, Refusal> {
        if command.version != COMMAND_VERSION {
            return Ok(Written { reply: Reply::Unsupported { version: command.version }, index: 0 });
        }
        if !fits(*self.space.borrow(), &command, |key| self.replica.size_of(key)) {
            return Err(Refusal::Full);
        }
        let Ok(_on_its_way) = self.writes.try_acquire() else { return Err(Refusal::NotLeader) };
        let begun = Instant::now();
        let unknown = || Refusal::Unknown("no quorum confirmed the write in time; it may happen yet".to_owned());
        let proposed = to_the_end(&self.raft, |raft| async move { raft.client_write(Proposal(command)).await });
        let written = tokio::select! {
            written = proposed => written.map_err(changes::refusal)?,
            () = tokio::time::sleep(WRITE_TIMEOUT) => return Err(unknown()),
            () = lost(self.quorum.clone()) => return Err(unknown()),
        };
        self.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
        Ok(Written { reply: written.data, index: written.log_id.index })
    }

    /// Takes no more commands, and waits a little for the end of those that are on their way: whoever waits for one
    /// hears how it ended.
    pub(crate) async fn drain(&self) {
        match tokio::time::timeout(DRAIN_TIMEOUT, self.writes.acquire_many(WRITES_MAX)).await {
            Ok(Ok(all)) => all.forget(),
            Ok(Err(_)) | Err(_) => tracing::warn!("some writes did not end before this member stopped"),
        }
        self.writes.close();
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.writes.is_closed()
    }

    async fn read_index(&self) -> Result<u64, Refusal> {
        let option: LinearizerOption = match self.reads {
            Reads::Index => ReadPolicy::ReadIndex.into(),
            Reads::Lease => ReadPolicy::LeaseRead.into(),
        };
        let option = option.with_wait_timeout(CONFIRMATION_TIMEOUT);
        match to_the_end(&self.raft, |raft| async move { raft.get_read_log_id(option).await }).await {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::APIError(error)) => {
                tracing::trace!(%error, "a read was not confirmed");
                Err(Refusal::NotLeader)
            }
            Err(RaftError::Fatal(_)) => Err(Refusal::NotLeader),
        }
    }

    async fn change(&self, change: crate::Change) -> Result<u64, Refusal> {
        let (done, ended) = oneshot::channel();
        self.changes
            .try_send(Request { change, done })
            .map_err(|_| Refusal::Unavailable("too many changes of members wait already".to_owned()))?;
        match tokio::time::timeout(CHANGE_TIMEOUT, ended).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(Refusal::Unavailable("this member is stopping".to_owned())),
            Err(_) => Err(Refusal::Unknown("the change takes too long; it may happen yet".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tandem_api::Revision;

    use super::*;
    use crate::Expect;

    #[test]
    fn on_a_full_disk_only_what_does_not_grow_is_written() {
        let key = |name: &str| Key::from_raw(format!("/core/things/{name}"));
        let put = |name: &str, size: usize| Command::put(key(name), Bytes::from(vec![0; size]), Expect::Any);
        let size_of = |asked: &Key| (*asked == key("old")).then_some(100);
        let commands = [
            put("new", 1),
            put("old", 100 + GROWTH_MAX),
            put("old", 101 + GROWTH_MAX),
            Command::delete(key("old"), Expect::Any),
            Command::compact(Revision(1)),
        ];
        let fitting = |space| commands.iter().map(|command| fits(space, command, size_of)).collect::<Vec<_>>();
        assert_eq!(fitting(Space::Enough), [true; 5]);
        assert_eq!(fitting(Space::Low), [false, true, false, true, true]);
        assert_eq!(fitting(Space::None), [false, false, false, false, true]);
    }
}
