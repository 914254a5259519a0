//! Clients: they write, read and watch through one member each, and go to another one when theirs fails.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use tandem_api::{Key, Revision};
use tandem_store::{
    COMMAND_VERSION, Command, Consistency, Error, Event, Expect, Op, RaftStore, Reply, Storage, Stored, WatchItem,
};

use crate::{
    bugs::Bug,
    cluster::Cluster,
    history::{Change, Delivered, Freshness, Item, Outcome, Read, Seen, Text, Watch, Write},
    world::{self, Dice, pass_ms},
};

const RESOURCES: [&str; 2] = ["pods", "configmaps"];

/// Few keys, so that clients meet on them.
const KEYS: u64 = 12;

pub(crate) struct Client {
    cluster: Arc<Cluster>,
    number: u64,
    dice: Dice,
    member: u64,
    written: u64,
    /// The newest revision that this client was told of.
    told: u64,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoAnswer {
    /// The member said that nothing was done.
    Nothing,
    /// The member went away, or could not say.
    Unknown,
}

impl From<Error> for NoAnswer {
    fn from(error: Error) -> NoAnswer {
        match error {
            Error::Unavailable(_) | Error::Denied(_) => NoAnswer::Nothing,
            _ => NoAnswer::Unknown,
        }
    }
}

fn text(bytes: &Bytes) -> Text {
    String::from_utf8_lossy(bytes).into()
}

fn item(stored: &Stored) -> Item {
    Item { key: stored.key.as_str().into(), revision: stored.revision.0, value: text(&stored.value) }
}

impl Client {
    pub(crate) fn new(cluster: &Arc<Cluster>, number: u64) -> Client {
        let mut dice = cluster.dice(&format!("client {number}"));
        let member = *dice.pick(&cluster.ids());
        Client { cluster: cluster.clone(), number, dice, member, written: 0, told: 0 }
    }

    pub(crate) async fn run(mut self, mut busy: tokio::sync::watch::Receiver<bool>) {
        while *busy.borrow_and_update() {
            self.think().await;
            match self.dice.below(100) {
                0..60 => self.write().await,
                60..80 => self.get().await,
                _ => self.list().await,
            }
        }
    }

    /// Until the next beat after a while.
    async fn think(&mut self) {
        let while_ms = self.dice.between(20, 330);
        let ready_ms = u64::try_from(world::now().as_millis()).unwrap_or(0) + while_ms;
        let beat_ms = self.cluster.setup.beat_ms;
        pass_ms(while_ms + beat_ms - ready_ms % beat_ms).await;
    }

    fn key(&mut self) -> Key {
        let resource = *self.dice.pick(&RESOURCES);
        Key::object("", resource, Some("default"), &format!("k{}", self.dice.below(KEYS)))
    }

    fn go_elsewhere(&mut self) {
        let ids = self.cluster.ids();
        // Who leads is the best guess; a wrong one is tried as well.
        self.member = match self.cluster.leader().filter(|_| self.dice.percent(70)) {
            Some(leader) => leader,
            None => *self.dice.pick(&ids),
        };
    }

    /// What the member answers, unless it ends first.
    async fn ask<T, F>(&self, ask: impl FnOnce(Arc<RaftStore>) -> F) -> Result<T, NoAnswer>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let Some((store, gone)) = self.cluster.store(self.member) else { return Err(NoAnswer::Nothing) };
        tokio::select! {
            biased;
            () = gone.cancelled() => Err(NoAnswer::Unknown),
            answer = ask(store) => answer.map_err(NoAnswer::from),
        }
    }

    fn value(&mut self) -> Text {
        self.written += 1;
        format!("c{}-{}", self.number, self.written).into()
    }

    fn operation(&mut self) -> (Op, (Text, Option<Text>)) {
        let key = self.key();
        let expect = match self.dice.below(10) {
            0 => Expect::Absent,
            1 | 2 => Expect::At(Revision(self.told.saturating_sub(self.dice.below(30)))),
            _ => Expect::Any,
        };
        let name: Text = key.as_str().into();
        if self.dice.percent(15) {
            return (Op::Delete { key, expect }, (name, None));
        }
        let value = self.value();
        (Op::Put { key, value: Bytes::copy_from_slice(value.as_bytes()), expect }, (name, Some(value)))
    }

    fn command(&mut self) -> (Command, Vec<(Text, Option<Text>)>) {
        let count = if self.dice.percent(15) { self.dice.between(2, 3) } else { 1 };
        let (mut ops, mut changes) = (Vec::new(), Vec::<(Text, Option<Text>)>::new());
        for _ in 0..count {
            let (op, change) = self.operation();
            if !changes.iter().any(|(key, _)| *key == change.0) {
                ops.push(op);
                changes.push(change);
            }
        }
        (Command { version: COMMAND_VERSION, fence: None, ops }, changes)
    }

    async fn write(&mut self) {
        let (command, changes) = self.command();
        let begun = self.cluster.moment();
        let mut answer = self.ask(async |store| store.write(command.clone()).await).await;
        if let Err(why) = answer {
            self.go_elsewhere();
            if self.cluster.bug == Some(Bug::RepeatedWrite) && why == NoAnswer::Unknown {
                pass_ms(self.dice.between(50, 800)).await;
                answer = self.ask(async |store| store.write(command.clone()).await).await;
            }
        }
        self.record_write(begun, changes, answer);
    }

    fn record_write(&mut self, begun: u64, changes: Vec<(Text, Option<Text>)>, answer: Result<Reply, NoAnswer>) {
        let ended = if answer.is_ok() { self.cluster.moment() } else { u64::MAX };
        let outcome = match answer {
            Err(NoAnswer::Unknown) => Outcome::Unknown,
            Err(NoAnswer::Nothing) => Outcome::Refused,
            Ok(Reply::Done { revision }) => {
                self.told = self.told.max(revision.0);
                Outcome::Done(revision.0)
            }
            Ok(Reply::Mismatch { current, .. }) => {
                self.told = self.told.max(current.map_or(0, |current| current.revision.0));
                Outcome::Refused
            }
            Ok(Reply::Fenced { .. } | Reply::Unsupported { .. }) => Outcome::Refused,
        };
        let code = match outcome {
            Outcome::Done(revision) => revision,
            Outcome::Refused | Outcome::Unknown => 0,
        };
        self.cluster.journal.step("write", &[self.number, self.member, code]);
        self.cluster.history.lock().writes.push(Write { begun, ended, changes, outcome, work: None });
    }

    fn freshness(&mut self) -> Freshness {
        match self.dice.below(10) {
            0 | 1 if self.told > 0 => Freshness::AtLeast(self.told),
            2 if self.told > 0 => Freshness::Exactly(self.told),
            _ => Freshness::Linearizable,
        }
    }

    fn consistency(&self, asked: Freshness) -> Consistency {
        match asked {
            Freshness::Linearizable if self.cluster.bug == Some(Bug::StaleRead) => Consistency::Any,
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::AtLeast(revision) => Consistency::AtLeast(Revision(revision)),
            Freshness::Exactly(revision) => Consistency::Exactly(Revision(revision)),
        }
    }

    async fn get(&mut self) {
        let (key, asked) = (self.key(), self.freshness());
        let (begun, at) = (self.cluster.moment(), self.consistency(asked));
        match self.ask(async |store| store.get(&key, at).await).await {
            Ok(found) => {
                let found = found.as_ref().map(item);
                self.told = self.told.max(found.as_ref().map_or(0, |found| found.revision));
                self.record_read(begun, asked, Seen::Key { key: key.as_str().into(), found });
            }
            Err(_) => self.go_elsewhere(),
        }
    }

    async fn list(&mut self) {
        let resource = *self.dice.pick(&RESOURCES);
        let prefix = Key::prefix("", resource, None);
        let asked = self.freshness();
        let (begun, at) = (self.cluster.moment(), self.consistency(asked));
        match self.ask(async |store| store.list(&prefix, at, None, 0).await).await {
            Ok(page) => {
                self.told = self.told.max(page.revision.0);
                let items = page.items.iter().map(item).collect();
                let seen = Seen::List { prefix: prefix.as_str().into(), revision: page.revision.0, items };
                self.record_read(begun, asked, seen);
            }
            Err(_) => self.go_elsewhere(),
        }
    }

    fn record_read(&mut self, begun: u64, asked: Freshness, seen: Seen) {
        let ended = self.cluster.moment();
        self.cluster.journal.step("read", &[self.number, self.member, self.told]);
        self.cluster.history.lock().reads.push(Read { member: self.member, begun, ended, asked, seen });
    }

    /// A write that must succeed in the end, by any member: whether it did.
    pub(crate) async fn insist(&mut self) -> bool {
        let (key, value) = (self.key(), self.value());
        let command = Command::put(key.clone(), Bytes::copy_from_slice(value.as_bytes()), Expect::Any);
        let begun = self.cluster.moment();
        let answer = self.ask(async |store| store.write(command).await).await;
        let done = answer.is_ok();
        if !done {
            self.go_elsewhere();
        }
        self.record_write(begun, vec![(key.as_str().into(), Some(value))], answer);
        done
    }
}

/// A controller on one member: while the member leads, it works, and its work carries the term as fence. Some of it is
/// slow, and arrives when another one leads.
pub(crate) async fn work(cluster: Arc<Cluster>, member: u64, busy: tokio::sync::watch::Receiver<bool>) {
    let mut dice = cluster.dice(&format!("worker {member}"));
    let mut done = 0;
    while *busy.borrow() && cluster.ids().contains(&member) {
        let Some((store, gone)) = cluster.store(member) else {
            pass_ms(100).await;
            continue;
        };
        let leadership = *store.leadership().borrow();
        drop(store);
        if !leadership.leader || gone.is_cancelled() {
            pass_ms(20).await;
            continue;
        }
        let plan_ms = if dice.percent(25) { dice.between(100, 3_000) } else { dice.between(1, 100) };
        pass_ms(plan_ms).await;
        done += 1;
        // What was sent before the process ended arrives, perhaps at another member.
        let through = if dice.percent(50) { member } else { cluster.leader().unwrap_or(member) };
        let value: Text = format!("w{member}-t{}-{done}", leadership.term).into();
        let key = Key::object("", "leases", Some("default"), "work");
        let command = Command::put(key.clone(), Bytes::copy_from_slice(value.as_bytes()), Expect::Any);
        let fence = (cluster.bug != Some(Bug::UnfencedLeader)).then_some(leadership.term);
        let begun = cluster.moment();
        let Some((store, gone)) = cluster.store(through) else { continue };
        let answer = tokio::select! {
            biased;
            () = gone.cancelled() => Err(NoAnswer::Unknown),
            answer = store.write(Command { fence, ..command }) => answer.map_err(NoAnswer::from),
        };
        let ended = if answer.is_ok() { cluster.moment() } else { u64::MAX };
        let outcome = match answer {
            Ok(Reply::Done { revision }) => Outcome::Done(revision.0),
            Ok(Reply::Fenced { .. }) => {
                cluster.journal.hit("fenced work");
                Outcome::Refused
            }
            Ok(_) | Err(NoAnswer::Nothing) => Outcome::Refused,
            Err(NoAnswer::Unknown) => Outcome::Unknown,
        };
        let changes = vec![(key.as_str().into(), Some(value))];
        let work = Some((member, leadership.term));
        cluster.history.lock().writes.push(Write { begun, ended, changes, outcome, work });
    }
}

/// Follows everything below `prefix`, at first on `member`. One that is `sticky` stays with its member.
pub(crate) async fn follow(cluster: Arc<Cluster>, name: String, member: u64, prefix: Key, sticky: bool) {
    let mut dice = cluster.dice(&name);
    let (mut member, mut after) = (member, 0);
    loop {
        if let Some((store, gone)) = cluster.store(member) {
            let slot = {
                let mut history = cluster.history.lock();
                let delivered = Vec::new();
                history.watches.push(Watch { member, prefix: prefix.as_str().into(), after, delivered });
                history.watches.len() - 1
            };
            let mut watched = Watched { cluster: &cluster, slot, after, dice: &mut dice };
            let ended = tokio::select! {
                biased;
                () = gone.cancelled() => None,
                error = watched.run(&store, &prefix) => Some(error),
            };
            after = watched.after;
            if let Some(Error::Compacted { compacted, .. }) = ended {
                cluster.journal.hit("watch began anew");
                after = after.max(compacted.0);
            }
        }
        if !sticky {
            member = *dice.pick(&cluster.ids());
        }
        pass_ms(dice.between(10, 100)).await;
    }
}

struct Watched<'a> {
    cluster: &'a Cluster,
    slot: usize,
    after: u64,
    dice: &'a mut Dice,
}

impl Watched<'_> {
    /// Takes down what the watch delivers until it ends, or until its client has had enough of it.
    async fn run(&mut self, store: &Arc<RaftStore>, prefix: &Key) -> Error {
        let mut stream = match store.watch(prefix, Revision(self.after)) {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let mut patience = self.dice.between(20, 800);
        let mut partial = None;
        while let Some(item) = stream.next().await {
            match item {
                Ok(WatchItem::Progress(revision)) => {
                    self.after = self.after.max(revision.0);
                    self.note(Delivered::Progress(revision.0));
                }
                Ok(WatchItem::Event(event)) => {
                    // A revision is over when another one begins: only then may a watch be resumed after it.
                    if let Some(before) = partial.replace(event.revision.0).filter(|before| *before != event.revision.0)
                    {
                        self.after = self.after.max(before);
                        patience = patience.saturating_sub(1);
                        if patience == 0 {
                            self.cluster.journal.hit("watch resumed");
                            return Error::Overrun;
                        }
                    }
                    self.event(&event);
                }
                Err(error) => return error,
            }
        }
        Error::Unavailable("the watch ended".to_owned())
    }

    fn event(&mut self, event: &Event) {
        let delivered = Delivered::Change(Change {
            revision: event.revision.0,
            key: event.key.as_str().into(),
            value: event.value.as_ref().map(text),
            previous: event.previous.as_ref().map(|previous| previous.revision.0),
        });
        match self.cluster.bug {
            Some(Bug::LostWatchEvent) if self.dice.below(500) == 0 => return,
            Some(Bug::DuplicateEvent) if self.dice.below(500) == 0 => self.note(delivered.clone()),
            _ => {}
        }
        self.note(delivered);
    }

    fn note(&mut self, delivered: Delivered) {
        self.cluster.history.lock().watches[self.slot].delivered.push(delivered);
    }
}
