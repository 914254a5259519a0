//! The twins of the two files of a member, in memory. They keep the promises of the real ones and not one more: what
//! was not synced may be gone after a power cut, all of it or its end.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tandem_api::{Key, Revision};
use tandem_store::{
    Durable, Error, Files, Guarded, LogChange, LogFile, LogRow, LogRows, Owner, StateChange, StateRows, VersionRow,
};

use crate::{
    bugs::Bug,
    world::{Dice, Journal, pass},
};

/// How a member ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process ends; the machine keeps what it wrote.
    Process,
    /// The machine ends; it keeps what was synced, and perhaps a part of the rest.
    Power,
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Written,
    Synced,
}

/// A place at which a process can be made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    step: &'static str,
    edge: Edge,
    /// What is told when it was hit.
    pub name: &'static str,
}

const fn trap(step: &'static str, edge: Edge, name: &'static str) -> Trap {
    Trap { step, edge, name }
}

/// Every step that changes what a restart finds, before and after it is synced.
pub const TRAPS: &[Trap] = &[
    trap("append", Edge::Written, "crash before an append is synced"),
    trap("append", Edge::Synced, "crash after an append is synced"),
    trap("vote", Edge::Written, "crash before a vote is synced"),
    trap("vote", Edge::Synced, "crash after a vote is synced"),
    trap("truncation", Edge::Written, "crash before a truncation is synced"),
    trap("truncation", Edge::Synced, "crash after a truncation is synced"),
    trap("purge", Edge::Written, "crash before a purge is synced"),
    trap("purge", Edge::Synced, "crash after a purge is synced"),
    trap("state flush", Edge::Written, "crash after a flush of the state"),
    trap("install", Edge::Written, "crash after a snapshot is installed"),
    trap("state checkpoint", Edge::Written, "crash before a checkpoint is synced"),
    trap("state checkpoint", Edge::Synced, "crash after a checkpoint is synced"),
];

/// Ends the process that it was given to.
pub(crate) type Fall = Arc<dyn Fn(Crash) + Send + Sync>;

#[derive(Clone, Debug, Default)]
struct LogImage {
    rows: BTreeMap<i64, LogRow>,
    meta: BTreeMap<&'static str, String>,
}

impl LogImage {
    fn apply(&mut self, change: LogChange, bug: Option<Bug>) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        match change {
            LogChange::Append(rows) => self.rows.extend(rows.into_iter().map(|row| (row.position, row))),
            LogChange::Truncate { .. } if bug == Some(Bug::LostTruncation) => {}
            LogChange::Truncate { from } => drop(self.rows.split_off(&signed(from))),
            LogChange::Purge { through } => self.rows = self.rows.split_off(&(signed(through) + 1)),
            LogChange::Meta { name: "vote", .. } if bug == Some(Bug::ForgottenVote) => {}
            LogChange::Meta { name, value } => drop(self.meta.insert(name, value)),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct StateImage {
    versions: BTreeMap<(Revision, Key), VersionRow>,
    row: Option<String>,
}

impl StateImage {
    fn apply(&mut self, change: StateChange) {
        if change.replaces_all {
            self.versions.clear();
        }
        self.versions.extend(change.rows.into_iter().map(|row| ((row.revision, row.key.clone()), row)));
        for (key, revision) in change.dropped {
            self.versions.remove(&(revision, key));
        }
        self.row = Some(change.row);
    }
}

/// One file: what is synced, what was written since, and both together.
#[derive(Debug)]
struct File<I, C> {
    synced: I,
    tail: VecDeque<C>,
    /// What a reader sees.
    written: I,
}

impl<I: Default, C> Default for File<I, C> {
    fn default() -> File<I, C> {
        File { synced: I::default(), tail: VecDeque::new(), written: I::default() }
    }
}

/// The disk of one member. It outlives the member's processes; `epoch` says which of them may use it.
#[derive(Debug)]
pub(crate) struct TwinDisk {
    state: Mutex<DiskState>,
    journal: Arc<Journal>,
    bug: Option<Bug>,
}

#[derive(Debug)]
struct DiskState {
    epoch: u64,
    log: File<LogImage, Vec<LogChange>>,
    state: File<StateImage, StateChange>,
    dice: Dice,
    /// Added to every sync.
    slowness: Duration,
    full: bool,
    failing: bool,
    traps: Vec<Trap>,
}

fn off() -> io::Error {
    io::Error::other("the process has ended")
}

impl TwinDisk {
    pub(crate) fn new(dice: Dice, journal: Arc<Journal>, bug: Option<Bug>) -> Arc<TwinDisk> {
        let state = DiskState {
            epoch: 0,
            log: File::default(),
            state: File::default(),
            dice,
            slowness: Duration::ZERO,
            full: false,
            failing: false,
            traps: Vec::new(),
        };
        Arc::new(TwinDisk { state: Mutex::new(state), journal, bug })
    }

    /// The files for the next process of the member.
    pub(crate) fn attach(self: &Arc<TwinDisk>, fall: Fall) -> TwinFiles {
        let mut state = self.state.lock();
        state.epoch += 1;
        TwinFiles { disk: self.clone(), epoch: state.epoch, fall }
    }

    /// The next process that comes to the place ends there.
    pub(crate) fn set_trap(&self, trap: Trap) {
        self.state.lock().traps.push(trap);
    }

    pub(crate) fn clear_traps(&self) {
        self.state.lock().traps.clear();
    }

    /// From now on the present process reaches nothing any more.
    pub(crate) fn crash(&self, how: Crash) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.epoch += 1;
        let bug = self.bug;
        match how {
            Crash::Process => {
                state.log.tail.clear();
                state.log.synced = state.log.written.clone();
                state.state.tail.clear();
                state.state.synced = state.state.written.clone();
            }
            Crash::Power => {
                // A file's write-ahead log is valid up to its first damaged frame: what survives is a beginning.
                let (kept, torn) = survivors(&mut state.dice, state.log.tail.len());
                for transaction in state.log.tail.drain(..).take(kept) {
                    transaction.into_iter().for_each(|change| state.log.synced.apply(change, bug));
                }
                state.log.written = state.log.synced.clone();
                let (kept, torn_state) = survivors(&mut state.dice, state.state.tail.len());
                for change in state.state.tail.drain(..).take(kept) {
                    state.state.synced.apply(change);
                }
                state.state.written = state.state.synced.clone();
                if torn || torn_state {
                    self.journal.hit("torn write");
                }
            }
        }
    }

    /// Everything is gone, as with a new disk.
    pub(crate) fn wipe(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        (state.log, state.state) = (File::default(), File::default());
    }

    pub(crate) fn set_slowness(&self, slowness: Duration) {
        self.state.lock().slowness = slowness;
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// The next sync fails, and what it was to sync is lost.
    pub(crate) fn fail_next_sync(&self) {
        self.state.lock().failing = true;
    }

    /// A position is taken once: the table's primary key.
    fn check_positions(&self, epoch: u64, changes: &[LogChange]) -> io::Result<()> {
        let state = self.state.lock();
        let mut end = state.log.written.rows.last_key_value().map_or(i64::MIN, |(position, _)| *position);
        for change in changes {
            match change {
                LogChange::Truncate { from } if self.bug != Some(Bug::LostTruncation) => {
                    end = end.min(i64::try_from(*from).unwrap_or(i64::MAX) - 1);
                }
                LogChange::Append(rows) if state.epoch == epoch => {
                    if let Some(row) = rows.iter().find(|row| row.position <= end) {
                        let why = format!("UNIQUE constraint failed: entries.position {}", row.position);
                        return Err(io::Error::other(why));
                    }
                    end = rows.last().map_or(end, |row| row.position);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The way of every write: there must be room.
    fn write(&self, epoch: u64, point: &'static str, change: impl FnOnce(&mut DiskState)) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return Err(off());
        }
        if state.full {
            self.journal.hit("write refused by a full disk");
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
        }
        self.journal.hit(point);
        change(&mut state);
        Ok(())
    }

    /// The way of every sync. Until it is over a power cut may take what was written.
    async fn sync(&self, epoch: u64, done: impl FnOnce(&mut DiskState, Option<Bug>)) -> io::Result<()> {
        let time = {
            let mut state = self.state.lock();
            // Some are slow, as on every disk.
            let tail_us = if state.dice.percent(2) { state.dice.between(5_000, 40_000) } else { 0 };
            let slowness =
                if state.slowness.is_zero() || state.dice.percent(30) { Duration::ZERO } else { state.slowness };
            Duration::from_micros(state.dice.between(300, 4_000) + tail_us) + slowness
        };
        pass(time).await;
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return Err(off());
        }
        if std::mem::take(&mut state.failing) {
            self.journal.hit("failed sync");
            // The pages are marked clean although they never reached the disk.
            state.log.tail.clear();
            state.log.written = state.log.synced.clone();
            state.state.tail.clear();
            state.state.written = state.state.synced.clone();
            return Err(io::Error::other("input/output error"));
        }
        done(&mut state, self.bug);
        Ok(())
    }
}

/// How many of the un-synced transactions survive, and whether the next one was cut in its middle.
fn survivors(dice: &mut Dice, unsynced: usize) -> (usize, bool) {
    let kept = usize::try_from(dice.below(unsynced as u64 + 1)).unwrap_or(0);
    (kept, kept < unsynced && dice.percent(50))
}

/// The disk as one process of a member sees it.
#[derive(Clone)]
pub(crate) struct TwinFiles {
    disk: Arc<TwinDisk>,
    epoch: u64,
    fall: Fall,
}

impl TwinFiles {
    /// Where a trap may be. Whoever falls into it does not come back.
    fn reach(&self, step: &'static str, edge: Edge) -> io::Result<()> {
        let (trap, how) = {
            let mut state = self.disk.state.lock();
            let here = |trap: &Trap| trap.step == step && trap.edge == edge;
            let Some(place) = state.traps.iter().position(here).filter(|_| state.epoch == self.epoch) else {
                return Ok(());
            };
            let how = if state.dice.percent(50) { Crash::Power } else { Crash::Process };
            (state.traps.swap_remove(place), how)
        };
        self.disk.journal.hit(trap.name);
        (self.fall)(how);
        Err(off())
    }
}

fn step(change: &LogChange) -> &'static str {
    match change {
        LogChange::Append(_) => "append",
        LogChange::Truncate { .. } => "truncation",
        LogChange::Purge { .. } => "purge",
        LogChange::Meta { name: "vote", .. } => "vote",
        LogChange::Meta { .. } => "meta",
    }
}

#[async_trait]
impl Files for TwinFiles {
    async fn log(&self, _: &Path, _: &Owner) -> Result<Box<dyn LogFile>, Error> {
        Ok(Box::new(self.clone()))
    }

    async fn log_rows(&self, _: &Path) -> Result<Box<dyn LogRows>, Error> {
        Ok(Box::new(self.clone()))
    }

    async fn state(&self, _: &Path, _: &Owner) -> Result<Box<dyn StateRows>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>> {
        // One thread is all there is: what blocks is short, and happens at one moment.
        async move {
            work();
            Ok(())
        }
        .boxed()
    }
}

#[async_trait]
impl LogFile for TwinFiles {
    async fn meta(&mut self, name: &'static str) -> io::Result<Option<String>> {
        Ok(self.disk.state.lock().log.written.meta.get(name).cloned())
    }

    async fn scan(&mut self, from: u64, each: &mut (dyn FnMut(LogRow) -> io::Result<()> + Send)) -> io::Result<()> {
        let rows = LogRows::read(self, from, u64::MAX).await?;
        rows.into_iter().try_for_each(each)
    }

    async fn commit(&mut self, changes: Vec<LogChange>, guarded: &Guarded) -> io::Result<()> {
        let (disk, epoch) = (self.disk.clone(), self.epoch);
        let steps: Vec<&'static str> = changes.iter().map(step).collect();
        steps.iter().for_each(|step| disk.journal.hit(step));
        disk.check_positions(epoch, &changes)?;
        disk.write(epoch, "log commit", |state| {
            for change in changes.iter().cloned() {
                state.log.written.apply(change, disk.bug);
            }
            state.log.tail.push_back(changes);
        })?;
        steps.iter().try_for_each(|step| self.reach(step, Edge::Written))?;
        if disk.bug == Some(Bug::AckBeforeSync) && !disk.state.lock().dice.percent(3) {
            return Ok(());
        }
        let synced = disk.sync(epoch, |state, bug| {
            for change in state.log.tail.drain(..).flatten() {
                state.log.synced.apply(change, bug);
            }
        });
        guarded.commit(Durable::LogCommit, synced.boxed()).await?;
        steps.iter().try_for_each(|step| self.reach(step, Edge::Synced))
    }

    async fn checkpoint(&mut self, guarded: &Guarded) -> io::Result<()> {
        self.disk.journal.hit("log checkpoint");
        guarded.commit(Durable::LogCheckpoint, self.disk.sync(self.epoch, |_, _| ()).boxed()).await
    }

    async fn close(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl LogRows for TwinFiles {
    async fn read(&mut self, from: u64, to: u64) -> io::Result<Vec<LogRow>> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let state = self.disk.state.lock();
        if state.epoch != self.epoch {
            return Err(off());
        }
        Ok(state.log.written.rows.range(signed(from)..signed(to)).map(|(_, row)| row.clone()).collect())
    }
}

#[async_trait]
impl StateRows for TwinFiles {
    async fn row(&mut self) -> io::Result<Option<String>> {
        Ok(self.disk.state.lock().state.written.row.clone())
    }

    async fn scan(&mut self, each: &mut (dyn FnMut(VersionRow) -> io::Result<()> + Send)) -> io::Result<()> {
        let versions: Vec<VersionRow> = self.disk.state.lock().state.written.versions.values().cloned().collect();
        versions.into_iter().try_for_each(each)
    }

    async fn write(&mut self, mut change: StateChange) -> io::Result<()> {
        let disk = self.disk.clone();
        if disk.bug == Some(Bug::SnapshotMissesWrite) && change.replaces_all {
            change.rows.pop();
        }
        let point = if change.replaces_all { "install" } else { "state flush" };
        disk.write(self.epoch, point, |state| {
            if disk.bug == Some(Bug::RowWithoutVersions) && state.dice.percent(20) {
                change.rows.pop();
            }
            state.state.written.apply(change.clone());
            state.state.tail.push_back(change);
        })?;
        self.reach(point, Edge::Written)
    }

    async fn checkpoint(&mut self, guarded: &Guarded) -> io::Result<()> {
        let disk = self.disk.clone();
        disk.journal.hit("state checkpoint");
        if disk.bug == Some(Bug::PurgeBeforeDurable) {
            return Ok(());
        }
        self.reach("state checkpoint", Edge::Written)?;
        let synced = disk.sync(self.epoch, |state, _| {
            for change in state.state.tail.drain(..) {
                state.state.synced.apply(change);
            }
        });
        guarded.commit(Durable::StateCheckpoint, synced.boxed()).await?;
        self.reach("state checkpoint", Edge::Synced)
    }

    async fn close(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}
