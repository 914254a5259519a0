//! One watch: a cursor over the shared history.
//!
//! ```text
//!   apply ──> history (one, shared, bounded) <── cursor of watch 1
//!                │                           <── cursor of watch 2
//!                └── wakes the watches of the resource that changed
//! ```
//!
//! Replayed and live events are read from the same place by the same step, so there is no seam where one could be
//! lost or come twice. A slow watch holds nothing that others need; it is cut off when it is too far behind.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use tandem_api::{Key, Revision};
use tokio::{sync::watch, time::Instant};

use crate::{
    Error, WatchItem,
    history::{Found, Group},
    metrics::Counted,
    replica::Replica,
};

/// How many events of its resource a watch that once was up to date may fall behind before it ends in
/// [`Error::Overrun`]. A replay from an old revision may be longer.
pub const WATCH_LAG_MAX: usize = 10_000;

/// Events that a watch takes out of history at once.
const CHUNK: usize = 256;

/// How long a watch stays silent while other keys change, before it says how far it has come.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Watcher {
    replica: Arc<Replica>,
    prefix: Key,
    group: Group,
    /// Everything up to here has been taken out of history.
    cursor: Revision,
    /// The newest revision that the reader has been told of.
    told: Revision,
    ready: VecDeque<WatchItem>,
    replayed: bool,
    ended: bool,
    progress_due: Option<Instant>,
    news: watch::Receiver<Revision>,
    newest: watch::Receiver<Revision>,
    _counted: Counted,
}

impl Watcher {
    pub(crate) fn new(replica: Arc<Replica>, prefix: Key, after: Revision) -> Watcher {
        let group = Group::of_prefix(&prefix);
        let (news, newest) = (replica.news_of(&group), replica.news_of(&Group::All));
        let counted = Counted::new(&replica.metrics().watchers);
        // Who waits for a revision that is not here yet is not told of progress before it is.
        let replayed = after > replica.revision();
        Watcher {
            replica,
            prefix,
            group,
            cursor: after,
            told: after,
            ready: VecDeque::new(),
            replayed,
            ended: false,
            progress_due: None,
            news,
            newest,
            _counted: counted,
        }
    }

    pub(crate) fn into_stream(self) -> BoxStream<'static, Result<WatchItem, Error>> {
        futures::stream::unfold(self, |mut watcher| async move {
            let item = watcher.next().await?;
            Some((item, watcher))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<WatchItem, Error>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            if self.ended {
                return None;
            }
            self.news.mark_unchanged();
            if let Err(error) = self.look() {
                self.ended = true;
                return Some(Err(error));
            }
            if self.ready.is_empty() && self.replayed {
                self.wait().await;
            } else {
                tokio::task::consume_budget().await;
            }
        }
    }

    /// Takes the next events out of history.
    fn look(&mut self) -> Result<(), Error> {
        self.replica.check_watchable()?;
        let Some(Found { events, through, caught_up, behind }) =
            self.replica.find(&self.group, &self.prefix, self.cursor, CHUNK)
        else {
            return Err(Error::Overrun);
        };
        if self.replayed && behind > WATCH_LAG_MAX {
            return Err(Error::Overrun);
        }
        self.cursor = through;
        if let Some(last) = events.last() {
            self.told = last.revision;
            self.progress_due = None;
            self.ready.extend(events.into_iter().map(WatchItem::Event));
        }
        if caught_up {
            self.report_progress();
        }
        Ok(())
    }

    /// Says how far the watch has come: at the end of the replay, and when it was silent for a while.
    fn report_progress(&mut self) {
        let first = !std::mem::replace(&mut self.replayed, true);
        let due = self.progress_due.is_some_and(|due| due <= Instant::now());
        if first || due {
            self.ready.push_back(WatchItem::Progress(self.cursor));
            self.told = self.cursor;
            self.progress_due = None;
        } else if self.cursor > self.told && self.ready.is_empty() && self.progress_due.is_none() {
            self.progress_due = Some(Instant::now() + PROGRESS_INTERVAL);
        }
    }

    /// Waits for news of the resource, or for the time to report progress. With nothing new anywhere no timer runs.
    async fn wait(&mut self) {
        let cursor = self.cursor;
        match self.progress_due {
            Some(due) => tokio::select! {
                _ = self.news.changed() => (),
                () = tokio::time::sleep_until(due) => (),
            },
            None => tokio::select! {
                _ = self.news.changed() => (),
                _ = self.newest.wait_for(|newest| *newest > cursor) => (),
            },
        }
    }
}
