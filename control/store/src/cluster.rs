//! The cluster as one member sees it: who leads, and how to have the leader do something.
//!
//! ```text
//!   write, read, change ──> here, when this member leads ──────────────> leader.rs
//!                       └─> otherwise a call to the member that leads ──> its leader.rs
//! ```
//!
//! What was refused before anything happened is tried again with the next leader, for a short time. What may have
//! happened is tried again only where that does no harm; otherwise the caller is told that it is unknown.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    Answer, Call, Command, Error, PeerError, Peers, Refusal, Reply,
    leader::{CHANGE_TIMEOUT, Leader, WRITE_TIMEOUT},
    log::Quorum,
    machine::Core,
    quorum::lost,
};

/// How long a member waits for a leader to be there before it says that there is none.
pub const LEADER_WAIT: Duration = Duration::from_millis(1500);

/// How long it waits when no quorum has been seen for a while.
const CUT_OFF_WAIT: Duration = Duration::from_millis(500);

/// How long a read waits to be confirmed, with those before it.
const READ_TIMEOUT: Duration = Duration::from_millis(1800);

/// How long a member waits to have applied what the leader has told it of.
const APPLY_WAIT: Duration = Duration::from_secs(3);

/// How long a member waits before it asks again who leads.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How long the answer of a leader is awaited after another one has taken over.
const SUCCESSION_GRACE: Duration = Duration::from_millis(300);

/// Reads that wait for the same confirmation at most.
const READS_MAX: usize = 4096;

pub(crate) type Confirmed = oneshot::Sender<Result<(), Error>>;

#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) node: u64,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) leader: Leader,
    pub(crate) alone: Arc<Quorum>,
    pub(crate) removed: watch::Sender<bool>,
    pub(crate) reads: mpsc::Sender<Confirmed>,
}

/// What may be done with a call that may have been carried out although no answer came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Harmless,
    Never,
}

fn again(call: &Call) -> Again {
    match call {
        Call::ReadIndex | Call::Members | Call::Hash => Again::Harmless,
        _ => Again::Never,
    }
}

impl Cluster {
    pub(crate) fn raft(&self) -> &Core {
        &self.leader.raft
    }

    /// Whether nobody else can commit anything.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.is_here_alone()
    }

    fn current_leader(&self) -> Option<(u64, String)> {
        let server = self.raft().server_metrics();
        let server = server.borrow_watched();
        let id = server.current_leader?;
        if id == self.node {
            return Some((id, String::new()));
        }
        let node = server.membership_config.get_node(&id)?;
        Some((id, node.address.clone()))
    }

    /// Has the leader carry out a call, whoever that is.
    pub(crate) async fn ask(&self, call: Call) -> Result<Answer, Error> {
        // Who has been without a leader for long does not let everybody wait once more.
        let patience = if *self.leader.quorum.borrow() { LEADER_WAIT } else { CUT_OFF_WAIT };
        let deadline = Instant::now() + patience;
        let mut why = "there is no leader".to_owned();
        loop {
            if self.leader.is_drained() {
                return Err(Error::Unavailable("this member is stopping".to_owned()));
            }
            let answer = match self.current_leader() {
                Some((id, _)) if id == self.node => self.leader.carry_out(call.clone()).await,
                Some((id, address)) => {
                    let limit = match &call {
                        Call::Change(_) => Instant::now() + CHANGE_TIMEOUT,
                        call if again(call) == Again::Harmless => deadline,
                        _ => Instant::now() + WRITE_TIMEOUT,
                    };
                    self.ask_other(id, &address, call.clone(), limit).await
                }
                None => Answer::Refused(Refusal::NotLeader),
            };
            match answer {
                Answer::Refused(Refusal::NotLeader) => (),
                Answer::Refused(Refusal::Unknown(reason)) if again(&call) == Again::Harmless => why = reason,
                Answer::Refused(Refusal::Removed { member }) => {
                    self.removed.send_if_modified(|removed| !std::mem::replace(removed, true));
                    return Err(Error::Removed { member });
                }
                Answer::Refused(refusal) => return Err(refusal.into()),
                answer => return Ok(answer),
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(why));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn ask_other(&self, member: u64, address: &str, call: Call, limit: Instant) -> Answer {
        let unknown = |why: String| Answer::Refused(Refusal::Unknown(why));
        let harmless = again(&call) == Again::Harmless;
        tokio::select! {
            answered = self.peers.call(member, address, call) => match answered {
                Ok(answer) => answer,
                Err(PeerError { sent: false, .. }) => Answer::Refused(Refusal::NotLeader),
                Err(error) => unknown(format!("{error}; what was asked may have happened")),
            },
            () = self.succeeded(member) => {
                unknown(format!("member {member} gave no answer before another one took over"))
            }
            () = lost(self.leader.quorum.clone()), if !harmless => {
                unknown(format!("member {member} gave no answer, and there is no quorum any more"))
            }
            () = tokio::time::sleep_until(limit) => unknown(format!("member {member} gave no answer in time")),
        }
    }

    /// Ends a little after `leader` has lost its place.
    async fn succeeded(&self, leader: u64) {
        let mut server = self.raft().server_metrics();
        while server.borrow_watched().current_leader.is_none_or(|now| now == leader) {
            if server.changed().await.is_err() {
                return;
            }
        }
        tokio::time::sleep(SUCCESSION_GRACE).await;
    }

    /// A command, here or at the leader. When this returns, this member has applied it.
    pub(crate) async fn write(&self, command: Command) -> Result<Reply, Error> {
        let fence = command.fence;
        let call = Call::Write(Arc::new(command));
        if let Some(fence) = fence {
            // It is the leader's own work: nobody else may do it in the leader's name.
            return match self.leader.carry_out(call).await {
                Answer::Write(written) => Ok(written.reply),
                Answer::Refused(Refusal::NotLeader) => self.not_forwarded(fence),
                other => Err(mistaken(&other)),
            };
        }
        match self.ask(call).await? {
            Answer::Write(written) => {
                self.applied(written.index).await.map_err(|why| Error::Unknown(format!("it is done, but {why}")))?;
                Ok(written.reply)
            }
            other => Err(mistaken(&other)),
        }
    }

    /// What becomes of a leader's work on a member that does not lead.
    fn not_forwarded(&self, fence: u64) -> Result<Reply, Error> {
        let term = self.raft().server_metrics().borrow_watched().vote.leader_id.term;
        if fence < term {
            return Ok(Reply::Fenced { term });
        }
        Err(Error::Unavailable("this member does not lead; a leader's work is not forwarded".to_owned()))
    }

    /// Ends early on a member that hears no leader any more, because it was cut off or removed.
    async fn applied(&self, index: u64) -> Result<(), String> {
        let why = "this member is too far behind the leader to show it";
        let waiting = self.raft().wait(Some(APPLY_WAIT));
        tokio::select! {
            biased;
            applied = waiting.applied_index_at_least(Some(index), "applied here") => {
                applied.map(drop).map_err(|_| why.to_owned())
            }
            () = lost(self.leader.quorum.clone()) => Err(why.to_owned()),
            () = self.expelled() => Err("this member was removed and is sent nothing more".to_owned()),
        }
    }

    /// Ends when this member has been told that it was removed.
    async fn expelled(&self) {
        if self.removed.subscribe().wait_for(|removed| *removed).await.is_err() {
            std::future::pending().await
        }
    }

    /// Makes sure that a read now sees everything that was acknowledged before. Reads that come while one is being
    /// confirmed share the next confirmation.
    pub(crate) async fn linearize(&self) -> Result<(), Error> {
        if self.is_alone() {
            return Ok(());
        }
        let stopping = || Error::Unavailable("this member is stopping".to_owned());
        let (done, confirmed) = oneshot::channel();
        self.reads.send(done).await.map_err(|_| stopping())?;
        match tokio::time::timeout(READ_TIMEOUT, confirmed).await {
            Ok(confirmed) => confirmed.map_err(|_| stopping())?,
            Err(_) => Err(Error::Unavailable("a quorum did not confirm the leader in time".to_owned())),
        }
    }

    pub(crate) async fn confirm(&self) -> Result<(), Error> {
        match self.ask(Call::ReadIndex).await? {
            Answer::ReadIndex(index) => self.applied(index).await.map_err(Error::Unavailable),
            other => Err(mistaken(&other)),
        }
    }

    /// Confirms reads, all that wait at once.
    pub(crate) async fn confirm_reads(self, mut waiting: mpsc::Receiver<Confirmed>) {
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, READS_MAX).await > 0 {
            let confirmed = self.confirm().await;
            for one in batch.drain(..) {
                // Who asked may have gone.
                drop(one.send(confirmed.clone()));
            }
        }
    }

    pub(crate) fn reads() -> (mpsc::Sender<Confirmed>, mpsc::Receiver<Confirmed>) {
        mpsc::channel(READS_MAX)
    }
}

pub(crate) fn mistaken(answer: &Answer) -> Error {
    match answer {
        Answer::Refused(refusal) => refusal.clone().into(),
        _ => Error::Unknown("the leader answered something else".to_owned()),
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Unknown(why) => Error::Unknown(why),
            Refusal::Denied(why) => Error::Denied(why),
            Refusal::Removed { member } => Error::Removed { member },
            Refusal::Full => Error::Full,
            refused @ (Refusal::NotLeader
            | Refusal::Unavailable(_)
            | Refusal::Version { .. }
            | Refusal::Kind { .. }
            | Refusal::Damaged(_)
            | Refusal::WrongMember { .. }) => Error::Unavailable(refused.to_string()),
        }
    }
}
