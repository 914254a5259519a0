//! The state machine as openraft sees it: the replica in memory, with the state file behind it.

use std::{io, sync::Arc};

use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Leadership, Reply,
    apply::Change,
    codec::VersionRow,
    disk::{Folder, Guarded, Owner},
    history::HistoryLimits,
    index::Index,
    log::Quorum,
    metrics::shown,
    replica::{Applied, Replica},
    snapshot::{Frozen, SnapshotData},
    state::StateFile,
    types::{LogId, Members, SnapshotMeta, StateRow, StoredMembership, TypeConfig},
};

/// Raft over this state machine.
pub(crate) type Core = openraft::Raft<TypeConfig, Machine>;

type SnapshotOf = Snapshot<
    openraft::alias::CommittedLeaderIdOf<TypeConfig>,
    openraft::alias::NodeIdOf<TypeConfig>,
    openraft::alias::NodeOf<TypeConfig>,
    SnapshotData,
>;

/// Everything the state machine works on; clones are the same state machine.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) replica: Arc<Replica>,
    pub(crate) state: Arc<StateFile>,
    pub(crate) folder: Arc<Folder>,
    pub(crate) owner: Owner,
    pub(crate) guarded: Guarded,
    pub(crate) limits: HistoryLimits,
    pub(crate) quorum: Arc<Quorum>,
    /// What the state file will say once it has caught up.
    pub(crate) row: Arc<Mutex<StateRow>>,
    pub(crate) leadership: Arc<watch::Sender<Leadership>>,
}

impl Machine {
    fn frozen(&self) -> io::Result<SnapshotOf> {
        let row = self.row.lock().clone();
        let meta = row.snapshot_meta().map_err(io::Error::other)?;
        let frozen =
            Frozen { replica: self.replica.clone(), folder: self.folder.clone(), owner: self.owner.clone(), row };
        Ok(Snapshot { meta, snapshot: SnapshotData::Frozen(frozen) })
    }

    /// Frees a slice of what lies behind the horizons; says whether there is more.
    pub(crate) async fn trim(&self) -> bool {
        let (dropped, more) = self.replica.trim();
        if !dropped.is_empty() {
            let row = self.row.lock().clone();
            self.state.push(Vec::new(), dropped, row).await;
        }
        more
    }

    /// Applies one entry and says what its proposer is answered.
    async fn apply_entry(
        &self,
        id: LogId,
        payload: EntryPayload<crate::codec::Proposal, u64, crate::types::Node>,
    ) -> Reply {
        // Whoever sees what another leader did also sees that this member does not lead any more.
        let term = id.leader_id.term;
        self.leadership.send_if_modified(|told| {
            told.term < term && {
                *told = Leadership { leader: false, term };
                true
            }
        });
        let mut row = self.row.lock().clone();
        row.applied = Some(id.into());
        let (reply, rows, dropped) = match payload {
            EntryPayload::Blank => {
                self.replica.pass(id.index);
                (Reply::Done { revision: row.revision }, Vec::new(), Vec::new())
            }
            EntryPayload::Membership(membership) => {
                self.replica.pass(id.index);
                self.quorum.applied(&membership, id.index);
                row.members = Arc::new(Members::from(&membership));
                row.members_since = row.applied;
                (Reply::Done { revision: row.revision }, Vec::new(), Vec::new())
            }
            EntryPayload::Normal(proposal) => {
                let Applied { outcome, dropped, revision, horizons } =
                    self.replica.apply(id.leader_id.term, id.index, &proposal.0);
                (row.revision, row.horizons) = (revision, horizons);
                let rows = outcome.changes.into_iter().map(version_row).collect();
                (outcome.reply, rows, dropped)
            }
        };
        *self.row.lock() = row.clone();
        self.guarded.metrics.applied_index.set(shown(id.index));
        self.state.push(rows, dropped, row).await;
        reply
    }
}

fn version_row(change: Change) -> VersionRow {
    match change {
        Change::Put(stored) => VersionRow {
            key: stored.key,
            revision: stored.revision,
            created: stored.created,
            value: Some(stored.value),
        },
        Change::Delete { key, revision } => {
            VersionRow { key, revision, created: tandem_api::Revision::ZERO, value: None }
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Checkpoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let row = self.row.lock().clone();
        let membership = row.membership().map_err(io::Error::other)?;
        Ok((row.applied.map(Into::into), membership))
    }

    async fn apply<Entries>(&mut self, mut entries: Entries) -> Result<(), io::Error>
    where
        Entries: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let reply = self.apply_entry(entry.log_id(), entry.payload).await;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Checkpoint {
        Checkpoint { snapshot: self.frozen(), state: self.state.clone() }
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let (owner, limits) = (self.owner.clone(), self.limits);
        let read = self.folder.blocking(move || {
            let file = match snapshot {
                SnapshotData::Frozen(frozen) => frozen.write()?,
                SnapshotData::File(file) => file,
            };
            let (row, rows) = file.read(&owner)?;
            let mut index = Index::restored(limits, row.revision, row.horizons);
            for version in &rows {
                index.restore(&version.key, version.created, version.revision, version.value.clone());
            }
            index.reached(row.applied.map_or(0, |applied| applied.index));
            Ok((row, rows, index))
        });
        let (row, rows, index) = read.await?;
        self.state.install(rows, row.clone()).await?;
        if let (Ok(stored), Some(since)) = (row.membership(), row.members_since) {
            self.quorum.applied(stored.membership(), since.index);
        }
        self.replica.replace(index);
        *self.row.lock() = row;
        Ok(())
    }

    /// The state as it is: it is never older than the last checkpoint, so it always covers what the log no longer has.
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        if self.row.lock().applied.is_none() {
            return Ok(None);
        }
        self.frozen().map(Some)
    }
}

/// What openraft calls building a snapshot is here a durable checkpoint of the state file, after which the log before
/// it can go. A file for a peer is written when one asks.
pub(crate) struct Checkpoint {
    snapshot: io::Result<SnapshotOf>,
    state: Arc<StateFile>,
}

impl RaftSnapshotBuilder<TypeConfig> for Checkpoint {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let taken = std::mem::replace(&mut self.snapshot, Err(io::Error::other("this snapshot was taken already")));
        let snapshot = taken?;
        self.state.flush(true).await?;
        Ok(snapshot)
    }
}
