//! The replicated store: one member of it, with its answers from what it has applied.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{future::BoxFuture, stream::BoxStream};
use parking_lot::Mutex;
use tandem_api::{Key, Revision};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    Answer, COMMAND_VERSION, Call, Change, Command, Consistency, Error, Member, Page, Reply, Space, Standing,
    StateHash, Storage, Stored, WatchItem,
    cluster::{Cluster, mistaken},
    codec,
    disk::{Folder, storage_error},
    handover,
    machine::Core,
    members::{listed, metrics_of},
    replica::Replica,
    state::{OPS_MAX, StateFile},
    timing::Heard,
};

/// Bytes that one command may take in the log.
pub const COMMAND_BYTES_MAX: usize = 16 << 20;

/// How long a shutdown waits for the files to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether this member leads. Work of a leader carries `term` as its fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leader: bool,
    pub term: u64,
}

/// One member of the replicated store. Its futures are boxed, so that raft's generic code is compiled here and not
/// again in everything that uses the store. Dropping it without [`RaftStore::shutdown`] loses nothing that was answered.
pub struct RaftStore {
    pub(crate) node: u64,
    pub(crate) cluster: Cluster,
    pub(crate) replica: Arc<Replica>,
    pub(crate) state: Arc<StateFile>,
    pub(crate) folder: Arc<Folder>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) members: watch::Receiver<Vec<Member>>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) quorum: watch::Receiver<bool>,
    pub(crate) differing: watch::Receiver<Vec<u64>>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) closing: Arc<AtomicBool>,
    /// Ended when the store is dropped.
    pub(crate) drivers: Mutex<JoinSet<()>>,
    /// End by themselves once raft has let go of them.
    pub(crate) writers: Mutex<JoinSet<()>>,
}

impl RaftStore {
    pub(crate) fn raft(&self) -> &Core {
        self.cluster.raft()
    }

    /// This member's own id.
    pub fn id(&self) -> u64 {
        self.node
    }

    /// Whether this member leads, as far as it knows. It does not say so any more when what another leader did can be
    /// seen here, nor after a quorum has stopped to confirm it ([`RaftStore::quorum`]).
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Who belongs to the cluster, as far as this member knows; how far each one is, is known to the leader only and as
    /// of the last change. [`RaftStore::list_members`] asks the leader for the present.
    pub fn members(&self) -> watch::Receiver<Vec<Member>> {
        self.members.clone()
    }

    /// What this member is in its cluster.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Whether a quorum has lately confirmed a leader to this member. Without one, writes and linearizable reads end in
    /// [`Error::Unavailable`] or [`Error::Unknown`] within two seconds.
    pub fn quorum(&self) -> watch::Receiver<bool> {
        self.quorum.clone()
    }

    pub fn has_quorum(&self) -> bool {
        *self.quorum.borrow()
    }

    /// Changes who belongs to the cluster; asks the leader to, where that is another member. Gives back the id of the
    /// member that was joined, promoted or removed. [`Error::Denied`] says why it is not to be.
    pub fn change(&self, change: Change) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            match self.cluster.ask(Call::Change(change)).await? {
                Answer::Change(member) => Ok(member),
                other => Err(mistaken(&other)),
            }
        })
    }

    /// Everybody, and how far everybody is, from the leader; without one, what this member knows.
    pub fn list_members(&self) -> BoxFuture<'_, Vec<Member>> {
        Box::pin(async {
            match self.cluster.ask(Call::Members).await {
                Ok(Answer::Members(members)) => members,
                _ => listed(&metrics_of(self.raft())),
            }
        })
    }

    /// Hands the lead over to the member that is closest behind; does nothing when this one does not lead. Gives back
    /// whether another member can lead now.
    pub fn hand_over(&self) -> BoxFuture<'_, bool> {
        Box::pin(handover::hand_over(self.raft()))
    }

    /// Hashes of what was applied here lately, the present one last.
    pub fn hashes(&self) -> Vec<StateHash> {
        self.replica.hashes()
    }

    /// How much room this member has on its disk.
    pub fn space(&self) -> watch::Receiver<Space> {
        self.cluster.leader.space.clone()
    }

    /// The members that had applied something else when this one, which led, compared them with itself.
    pub fn differing(&self) -> watch::Receiver<Vec<u64>> {
        self.differing.clone()
    }

    /// A voter that is alone has won its election before `open` returns; wait until its watchers are told as well.
    pub(crate) async fn await_own_leadership(&self) {
        if self.cluster.is_alone() {
            // The senders live in drivers of this store.
            drop(self.leadership.clone().wait_for(|leadership| leadership.leader).await);
            drop(self.quorum.clone().wait_for(|quorum| *quorum).await);
        }
    }

    /// Hands over when it leads, stops taking part, writes down what is applied, and closes its files. The folder is
    /// free once this is dropped.
    pub fn shutdown(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.shut_down())
    }

    async fn shut_down(&self) -> Result<(), Error> {
        if self.closing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        if !self.cluster.is_alone() {
            self.hand_over().await;
        }
        self.cluster.leader.drain().await;
        self.replica.close();
        if let Err(error) = self.raft().shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        let closed = self.state.close().await;
        drop(std::mem::take(&mut *self.drivers.lock()));
        let writers = std::mem::take(&mut *self.writers.lock());
        if tokio::time::timeout(CLOSE_TIMEOUT, writers.join_all()).await.is_err() {
            tracing::warn!("the store's files took too long to close; nothing is lost");
        }
        closed.map_err(|error| storage_error("write the state", error))
    }
}

#[async_trait]
impl Storage for RaftStore {
    async fn get(&self, key: &Key, at: Consistency) -> Result<Option<Stored>, Error> {
        if at == Consistency::Linearizable {
            self.cluster.linearize().await?;
        }
        self.replica.get(key, at).await
    }

    async fn list(&self, prefix: &Key, at: Consistency, from: Option<&Key>, limit: usize) -> Result<Page, Error> {
        if at == Consistency::Linearizable {
            self.cluster.linearize().await?;
        }
        self.replica.list(prefix, at, from, limit).await
    }

    fn count(&self, prefix: &Key, after: &Key, at: Revision) -> Result<usize, Error> {
        self.replica.count(prefix, after, at)
    }

    async fn write(&self, command: Command) -> Result<Reply, Error> {
        if command.version != COMMAND_VERSION {
            return Ok(Reply::Unsupported { version: command.version });
        }
        if command.ops.len() > OPS_MAX || codec::size_of(&command) > COMMAND_BYTES_MAX {
            let why = format!("a command has at most {OPS_MAX} operations and {COMMAND_BYTES_MAX} bytes");
            return Err(storage_error("propose a command", std::io::Error::other(why)));
        }
        self.cluster.write(command).await
    }

    fn watch(&self, prefix: &Key, after: Revision) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        self.replica.watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.replica.revision()
    }
}
