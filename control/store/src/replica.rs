//! What one member has applied, and everything that is answered from it: reads, listings, watches.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::stream::BoxStream;
use parking_lot::RwLock;
use tandem_api::{Key, Revision};
use tokio::sync::watch;

use crate::{
    Command, Consistency, Error, Event, FRESHNESS_WAIT, Page, StateHash, Stored, WatchItem,
    apply::{Change, Outcome, apply},
    history::{Found, Group, HistoryLimits},
    index::{Horizons, Index, Slice},
    metrics::{Metrics, shown},
    watch::Watcher,
};

/// How many keys a listing copies before it lets a writer in between.
const SLICE_MAX: usize = 5_000;

/// How much is forgotten with each command: more than one command adds, so that the rest shrinks.
const TRIM_PER_COMMAND: usize = 256;

/// How much is forgotten at once between two commands.
const TRIM_SLICE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Replica {
    state: RwLock<Index>,
    news: News,
    closed: AtomicBool,
    cut_off: AtomicBool,
    metrics: Metrics,
}

/// Who is woken by which change.
#[derive(Debug)]
struct News {
    newest: watch::Sender<Revision>,
    resources: RwLock<HashMap<Arc<str>, watch::Sender<Revision>>>,
}

impl News {
    fn of(&self, group: &Group) -> watch::Receiver<Revision> {
        match group {
            Group::All => self.newest.subscribe(),
            Group::Resource(resource) => {
                let mut resources = self.resources.write();
                let newest = *self.newest.borrow();
                resources.entry(resource.clone()).or_insert_with(|| watch::Sender::new(newest)).subscribe()
            }
        }
    }

    fn publish(&self, revision: Revision, changes: &[Change]) {
        let touched: BTreeSet<&str> = changes
            .iter()
            .map(|change| match change {
                Change::Put(Stored { key, .. }) | Change::Delete { key, .. } => key.resource_prefix(),
            })
            .collect();
        let resources = self.resources.read();
        for sender in touched.into_iter().filter_map(|resource| resources.get(resource)) {
            sender.send_replace(revision);
        }
        drop(resources);
        self.newest.send_replace(revision);
    }

    fn wake_all(&self) {
        for sender in self.resources.read().values() {
            sender.send_modify(|_| ());
        }
        self.newest.send_modify(|_| ());
    }
}

/// What a command did, and what nobody can ask for any more.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) outcome: Outcome,
    pub(crate) dropped: Vec<(Key, Revision)>,
    pub(crate) revision: Revision,
    pub(crate) horizons: Horizons,
}

impl Replica {
    pub(crate) fn new(index: Index, metrics: Metrics) -> Replica {
        metrics.revision.set(shown(index.revision().0));
        let news = News { newest: watch::Sender::new(index.revision()), resources: RwLock::default() };
        let (closed, cut_off) = (AtomicBool::new(false), AtomicBool::new(false));
        Replica { state: RwLock::new(index), news, closed, cut_off, metrics }
    }

    pub(crate) fn with_limits(limits: HistoryLimits, metrics: Metrics) -> Replica {
        Replica::new(Index::new(limits), metrics)
    }

    /// Applies the next command of the log, which stands there at `index`. Only one caller may do so.
    pub(crate) fn apply(&self, term: u64, index: u64, command: &Command) -> Applied {
        let mut state = self.state.write();
        let outcome = apply(&state, term, command);
        state.commit(&outcome);
        state.reached(index);
        let (dropped, _) = trimmed(&mut state, TRIM_PER_COMMAND);
        let applied = Applied { outcome, dropped, revision: state.revision(), horizons: state.horizons() };
        drop(state);
        if !applied.outcome.changes.is_empty() {
            self.metrics.revision.set(shown(applied.revision.0));
            self.news.publish(applied.revision, &applied.outcome.changes);
        }
        applied
    }

    /// Frees a slice of what lies behind the horizons.
    pub(crate) fn trim(&self) -> (Vec<(Key, Revision)>, bool) {
        trimmed(&mut self.state.write(), TRIM_SLICE)
    }

    /// Replaces everything, as a snapshot does. Watches go on only if they are not older than it.
    pub(crate) fn replace(&self, index: Index) {
        let mut state = self.state.write();
        *state = index;
        let revision = state.revision();
        drop(state);
        self.metrics.revision.set(shown(revision.0));
        self.news.newest.send_replace(revision);
        self.news.wake_all();
    }

    /// Ends all watches: nothing will ever be applied again.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.news.wake_all();
    }

    /// Ends all watches, and begins none, as long as nothing can be expected to be applied.
    pub(crate) fn cut_off(&self, cut_off: bool) {
        if self.cut_off.swap(cut_off, Ordering::SeqCst) != cut_off && cut_off {
            self.news.wake_all();
        }
    }

    /// Whether a watch may go on here.
    pub(crate) fn check_watchable(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("this member is shutting down".to_owned()));
        }
        if self.cut_off.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("this member has had no quorum for a while; watch another one".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn revision(&self) -> Revision {
        self.state.read().revision()
    }

    /// Waits until `requested` has been applied here.
    async fn wait_for(&self, requested: Revision) -> Result<(), Error> {
        let mut newest = self.news.newest.subscribe();
        let reached = newest.wait_for(|newest| *newest >= requested);
        match tokio::time::timeout(FRESHNESS_WAIT, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::TooNew { requested, current: self.revision() }),
        }
    }

    /// Waits until `at` can be answered; gives the revision when it must be one in particular.
    async fn settle(&self, at: Consistency) -> Result<Option<Revision>, Error> {
        match at {
            Consistency::Linearizable | Consistency::Any => Ok(None),
            Consistency::AtLeast(requested) => self.wait_for(requested).await.map(|()| None),
            Consistency::Exactly(requested) => self.wait_for(requested).await.map(|()| Some(requested)),
        }
    }

    /// Reads from what is applied here. The caller has made sure that it is fresh enough for a linearizable read.
    pub(crate) async fn get(&self, key: &Key, at: Consistency) -> Result<Option<Stored>, Error> {
        let exact = self.settle(at).await?;
        let state = self.state.read();
        if let Some(revision) = exact {
            state.check_readable(revision)?;
        }
        Ok(state.get(key, exact.unwrap_or(state.revision())))
    }

    pub(crate) async fn list(
        &self,
        prefix: &Key,
        at: Consistency,
        from: Option<&Key>,
        limit: usize,
    ) -> Result<Page, Error> {
        let exact = self.settle(at).await?;
        let revision = exact.unwrap_or_else(|| self.revision());
        match self.page(prefix, revision, from, limit) {
            // History passed the listing between two slices: only a listing of the present may move on.
            Err(Error::Compacted { .. }) if exact.is_none() => self.page(prefix, self.revision(), from, limit),
            page => page,
        }
    }

    fn page(&self, prefix: &Key, revision: Revision, from: Option<&Key>, limit: usize) -> Result<Page, Error> {
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let mut items: Vec<Stored> = Vec::new();
        loop {
            let after = items.last().map(|stored| &stored.key).or(from);
            let Slice { items: slice, more } =
                self.slice(prefix, after, revision, SLICE_MAX.min(wanted - items.len()))?;
            items.extend(slice);
            if more && items.len() < wanted {
                continue;
            }
            return Ok(Page { items, revision, more });
        }
    }

    pub(crate) fn count(&self, prefix: &Key, after: &Key, revision: Revision) -> Result<usize, Error> {
        let state = self.state.read();
        state.check_readable(revision)?;
        Ok(state.count(prefix, after, revision))
    }

    /// One uninterrupted look at the keys below `prefix` as they were at `revision`.
    pub(crate) fn slice(
        &self,
        prefix: &Key,
        after: Option<&Key>,
        revision: Revision,
        limit: usize,
    ) -> Result<Slice, Error> {
        let state = self.state.read();
        state.check_readable(revision)?;
        Ok(state.slice(prefix, after, revision, limit))
    }

    pub(crate) fn watch(
        self: &Arc<Replica>,
        prefix: &Key,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        self.check_watchable()?;
        let compacted = self.state.read().horizons().watches;
        if after < compacted {
            return Err(Error::Compacted { requested: after, compacted });
        }
        Ok(Watcher::new(self.clone(), prefix.clone(), after).into_stream())
    }

    /// See [`crate::history::History::find`].
    pub(crate) fn find(&self, group: &Group, prefix: &Key, after: Revision, limit: usize) -> Option<Found> {
        let state = self.state.read();
        state.history().find(group, prefix, after, limit, state.revision())
    }

    pub(crate) fn news_of(&self, group: &Group) -> watch::Receiver<Revision> {
        self.news.of(group)
    }

    /// Passes an entry of the log that changes nothing here.
    pub(crate) fn pass(&self, index: u64) {
        self.state.write().reached(index);
    }

    /// The hashes of the state that are remembered, the present one last.
    pub(crate) fn hashes(&self) -> Vec<StateHash> {
        self.state.read().hashes()
    }

    /// How long the present value of a key is.
    pub(crate) fn size_of(&self, key: &Key) -> Option<usize> {
        self.state.read().present(key).map(|present| present.value.len())
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// Forgets some of what lies behind the horizons: which versions went, and whether more can go.
fn trimmed(state: &mut Index, budget: usize) -> (Vec<(Key, Revision)>, bool) {
    let mut dropped = Vec::new();
    let more = state.trim(budget, |event: &Event| {
        if let Some(previous) = &event.previous {
            dropped.push((event.key.clone(), previous.revision));
        }
        if event.value.is_none() {
            dropped.push((event.key.clone(), event.revision));
        }
    });
    (dropped, more)
}
