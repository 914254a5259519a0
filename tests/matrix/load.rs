//! The load of a row: 16 writers, 16 readers and 64 watchers on a machine of their own, and what they saw.
//!
//! ```text
//!   writers, readers ──> whichever member answers          watchers ──> from one member to the next, never anew
//!          └── what each was told, and when ──> History ──> the invariants of the simulation <──┘
//! ```

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http::Method;
use parking_lot::Mutex;
use tandem_simulation::{
    history::{Delivered, Final, History, Line, Outcome, Read},
    invariants::check,
};
use tandem_tests::{
    https::Access,
    machine::{Machine, inside},
    until,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    DEADLINE,
    client::{Client, Common, Tally},
    objects::{self, List, Run},
    watchers::{Watched, Watcher},
    writers::{self, Writer, Written},
};

pub(crate) const WRITERS: usize = 16;
pub(crate) const READERS: usize = 16;
pub(crate) const WATCHERS: usize = 64;
/// Of the watchers, those that watch all namespaces; the others watch one each.
const WATCHERS_OF_ALL: usize = 4;

pub(crate) struct Load {
    run: Run,
    began: Instant,
    servers: watch::Sender<Vec<SocketAddr>>,
    pub(crate) tally: Arc<Tally>,
    stop: CancellationToken,
    thread: JoinHandle<Seen>,
    place: std::path::PathBuf,
    access: Access,
}

/// What the load saw, before it is put in order.
#[derive(Default)]
struct Seen {
    written: Vec<Written>,
    reads: Vec<Read>,
    watched: Watched,
    /// Watches that did not come to their end.
    unfinished: Vec<String>,
}

/// What a row is judged by.
pub(crate) struct Evidence {
    pub(crate) history: History,
    /// When writes were acknowledged, in order.
    pub(crate) acknowledged: Vec<Instant>,
    pub(crate) broken: Vec<String>,
    pub(crate) resumed: u64,
    pub(crate) overrun: u64,
}

/// Makes the namespaces that all loads of a cluster write to.
pub(crate) fn prepare(place: &Machine, kubeconfig: &Path, server: SocketAddr) {
    let access = Access::of(kubeconfig);
    place.inside(async move {
        let mut client = client(&access, &[server]);
        for number in 0..WRITERS {
            let name = objects::namespace(number);
            let body = format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
            client.insist(Method::POST, "/api/v1/namespaces", &body.into()).await;
        }
    });
}

/// A client outside of any load.
fn client(access: &Access, servers: &[SocketAddr]) -> Client {
    let (_, servers) = watch::channel(servers.to_vec());
    Client::new(Common { access: access.clone(), servers, tally: Arc::default() }, 0)
}

impl Load {
    pub(crate) fn start(place: &Machine, kubeconfig: &Path, servers: Vec<SocketAddr>, name: &str) -> Load {
        let (run, began, access) = (Run(name.to_owned()), Instant::now(), Access::of(kubeconfig));
        let (servers, watched_servers) = watch::channel(servers);
        let (tally, stop) = (Arc::new(Tally::default()), CancellationToken::new());
        let common = Common { access: access.clone(), servers: watched_servers, tally: tally.clone() };
        let (stopped, task_run) = (stop.clone(), run.clone());
        let namespace = place.namespace();
        let thread = std::thread::spawn(move || inside(&namespace, drive(common, task_run, began, stopped)));
        Load { run, began, servers, tally, stop, thread, place: place.namespace(), access }
    }

    pub(crate) fn serve_from(&self, servers: Vec<SocketAddr>) {
        self.servers.send_replace(servers);
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.tally.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) fn await_acknowledged(&self, more: u64) {
        let wanted = self.acknowledged() + more;
        until("writes are acknowledged", DEADLINE, || {
            assert!(!self.thread.is_finished(), "the load has ended");
            let now = self.acknowledged();
            if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}: {:?}", self.tally)) }
        });
    }

    /// Ends the load on a cluster that is whole, and puts together what was seen.
    pub(crate) fn end(self, members: &[SocketAddr]) -> Evidence {
        self.stop.cancel();
        let seen = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (access, members, run) = (self.access, members.to_vec(), self.run);
        let finals = inside(&self.place, async move {
            let mut finals = Vec::new();
            for member in members.iter().copied() {
                finals.push(finally(&mut client(&access, &[member]), &run).await);
            }
            clean(&mut client(&access, &members)).await;
            finals
        });
        seen.judge(finals, self.began)
    }
}

async fn drive(common: Common, run: Run, began: Instant, stop: CancellationToken) -> Seen {
    let mut first = Client::new(common.clone(), 0);
    let list = first.insist(Method::GET, "/api/v1/configmaps", &Bytes::new()).await;
    let after = objects::read::<List>(&list.body).metadata.revision();
    let watched = Arc::new(Mutex::new(Watched::default()));
    let (mut writing, mut reading, mut watching) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    let mut names = Vec::new();
    for number in 0..WATCHERS {
        let of = number.checked_sub(WATCHERS_OF_ALL).map(|number| number % WRITERS);
        let client = Client::new(common.clone(), number);
        let watcher = Watcher::new(client, run.clone(), of, WRITERS, after, watched.clone());
        names.push((watching_name(number, &watcher), watching.spawn(watcher.run())));
    }
    for number in 0..WRITERS {
        let writer = Writer::new(Client::new(common.clone(), number), number, run.clone(), began);
        writing.spawn(writer.run(WRITERS, stop.clone()));
    }
    for number in 0..READERS {
        let client = Client::new(common.clone(), number + 1);
        reading.spawn(writers::read(client, number, (run.clone(), WRITERS), began, stop.clone()));
    }
    let mut written = writing.join_all().await;
    let reads = reading.join_all().await.concat();
    let last = Writer::new(Client::new(common, 0), WRITERS, run, began);
    written.push(timeout(DEADLINE, last.last(WRITERS)).await.expect("the last objects are written"));
    let ends = Instant::now() + DEADLINE;
    while let Ok(Some(ended)) = tokio::time::timeout_at(ends, watching.join_next()).await {
        ended.expect("a watcher ends well");
    }
    let unfinished = names.into_iter().filter(|(_, task)| !task.is_finished()).map(|(name, _)| name).collect();
    watching.shutdown().await;
    let watched = std::mem::take(&mut *watched.lock());
    Seen { written, reads, watched, unfinished }
}

fn watching_name(number: usize, watcher: &Watcher) -> String {
    format!("watch {number} of {}", watcher.name())
}

/// Everything of this run as a member holds it in the end.
async fn finally(client: &mut Client, run: &Run) -> Final {
    let answer = client.insist(Method::GET, "/api/v1/configmaps", &Bytes::new()).await;
    let list: List = objects::read(&answer.body);
    let (member, revision, items) = (client.member(), list.metadata.revision(), run.items(&list));
    Final { member, revision, items, hashes: Vec::new() }
}

/// Deletes what loads have left: the next one is to find short lists.
async fn clean(client: &mut Client) {
    for number in 0..WRITERS {
        let path = objects::path(&objects::namespace(number), "");
        client.insist(Method::DELETE, &path, &Bytes::new()).await;
    }
}

impl Seen {
    fn judge(self, finals: Vec<Final>, began: Instant) -> Evidence {
        let Watched { watches, forgotten, resumed, overrun } = self.watched;
        let mut history = History { watches, beside_others: true, reads: self.reads, ..History::default() };
        let mut acknowledged = Vec::new();
        for Written { writes, reads, deleted, acknowledged: at } in self.written {
            acknowledged.extend(at);
            history.reads.extend(reads);
            let first = history.writes.len();
            history.writes.extend(writes);
            for (index, at) in deleted {
                settle(&mut history, first + index, at);
            }
        }
        acknowledged.sort_unstable();
        let newest = Line::of(&history).newest();
        // Others write as well: a member may be further than what this load knows of.
        let at_most = |last: Final| Final { revision: last.revision.min(newest), ..last };
        history.finals = finals.into_iter().map(at_most).collect();
        let mut broken: Vec<String> = check(&history)
            .into_iter()
            .map(|violation| format!("{}: {}", violation.invariant, violation.what))
            .collect();
        broken.extend(forgotten.into_iter().map(|what| format!("history was forgotten: {what}")));
        broken.extend(self.unfinished.into_iter().map(|what| format!("a watch never ended: {what}")));
        assert!(acknowledged.first().is_some_and(|first| *first > began), "nothing was acknowledged");
        Evidence { history, acknowledged, broken, resumed, overrun }
    }
}

/// The revision of an acknowledged deletion of what was of revision `at`: no answer tells it, watches do.
fn settle(history: &mut History, index: usize, at: u64) {
    let (key, _) = &history.writes[index].changes[0];
    let delivered = history.watches.iter().flat_map(|watch| &watch.delivered);
    let found = delivered.filter_map(|delivered| match delivered {
        Delivered::Change(change) if change.value.is_none() && change.key == *key => Some(change),
        _ => None,
    });
    let revision = found.filter(|change| change.previous == Some(at)).map(|change| change.revision).next();
    history.writes[index].outcome = Outcome::Done(revision.unwrap_or(u64::MAX));
}

/// How many writes a second were acknowledged between two moments.
pub(crate) fn rate(acknowledged: &[Instant], from: Instant, to: Instant) -> f64 {
    let within = acknowledged.iter().filter(|at| **at >= from && **at < to).count();
    within as f64 / to.duration_since(from).as_secs_f64()
}

/// The longest time without an acknowledged write that touches the time between two moments.
pub(crate) fn gap(acknowledged: &[Instant], from: Instant, to: Instant) -> Duration {
    let near = acknowledged.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
    near.map(|pair| pair[1].duration_since(pair[0])).max().unwrap_or_default()
}
