//! What every [`Storage`] must do. [`run`] takes a factory of empty stores and panics at the first broken promise.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tandem_api::{Key, Revision};

use crate::{COMMAND_VERSION, Command, Consistency, Error, Event, Expect, Op, Reply, Storage, Stored, WatchItem};

/// How long anything in the suite may take before it counts as never happening.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long the suite listens for what must not come.
const SILENCE: Duration = Duration::from_millis(50);

type Outcome = Result<(), Error>;
type Case = fn(Arc<dyn Storage>) -> BoxFuture<'static, Outcome>;

/// Which member of its cluster a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Leader,
    Follower,
}

/// Runs every case on a store of its own.
///
/// # Panics
/// When the store breaks a promise.
pub async fn run<F, Made>(place: Place, factory: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Storage>>,
{
    let cases: [(&str, Case); 18] = [
        ("revisions count changes", |store| revisions_count_changes(store).boxed()),
        ("no-op writes make no revision", |store| no_op_writes(store).boxed()),
        ("compare and swap", |store| compare_and_swap(store).boxed()),
        ("one of many swaps wins", |store| one_swap_wins(store).boxed()),
        ("batches happen whole or not at all", |store| batches(store).boxed()),
        (
            "an old fence is refused",
            match place {
                Place::Leader => |store| fences(store).boxed(),
                Place::Follower => |store| fences_elsewhere(store).boxed(),
            },
        ),
        ("an unknown version is refused", |store| versions(store).boxed()),
        ("listings are ordered and paged", |store| paging(store).boxed()),
        ("pages hold together while writes go on", |store| stable_pages(store).boxed()),
        ("reads as of a revision", |store| exact_reads(store).boxed()),
        ("reads wait for a revision", |store| fresh_reads(store).boxed()),
        ("a watch replays and goes on", |store| watch_replays(store).boxed()),
        ("a watch sees its prefix only", |store| watch_prefix(store).boxed()),
        ("watches see all concurrent writes alike", |store| watch_concurrent(store).boxed()),
        ("a quiet watch is told of progress", |store| watch_progress(store).boxed()),
        ("a slow watch is cut off", |store| watch_overrun(store).boxed()),
        ("compaction ends old reads and watches", |store| compaction(store).boxed()),
        ("a watch outlives compaction", |store| watch_outlives_compaction(store).boxed()),
    ];
    for (name, case) in cases {
        let store = factory().await;
        match tokio::time::timeout(4 * DEADLINE, case(store)).await {
            Ok(Ok(())) => tracing::debug!(case = name, "holds"),
            Ok(Err(error)) => panic!("{name}: {error}"),
            Err(_) => panic!("{name}: did not end"),
        }
    }
}

fn key(name: &str) -> Key {
    Key::object("", "pods", Some("default"), name)
}

fn pods() -> Key {
    Key::prefix("", "pods", None)
}

fn bytes(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

fn put(name: &str, value: &str, expect: Expect) -> Command {
    Command::put(key(name), bytes(value), expect)
}

fn batch(ops: Vec<Op>) -> Command {
    Command { version: COMMAND_VERSION, fence: None, ops }
}

fn done(reply: &Reply) -> Revision {
    match reply {
        Reply::Done { revision } => *revision,
        other => panic!("expected Done, got {other:?}"),
    }
}

async fn write(store: &Arc<dyn Storage>, command: Command) -> Result<Revision, Error> {
    Ok(done(&store.write(command).await?))
}

async fn names(store: &Arc<dyn Storage>, at: Consistency) -> Result<Vec<String>, Error> {
    let page = store.list(&pods(), at, None, 0).await?;
    Ok(page.items.iter().map(shown).collect())
}

fn shown(stored: &Stored) -> String {
    let name = stored.key.as_str().rsplit('/').next().unwrap_or_default();
    format!("{name}={}", String::from_utf8_lossy(&stored.value))
}

/// A watch that is read with a deadline.
struct Watch(BoxStream<'static, Result<WatchItem, Error>>);

impl Watch {
    fn of(store: &Arc<dyn Storage>, prefix: &Key, after: Revision) -> Result<Watch, Error> {
        Ok(Watch(store.watch(prefix, after)?))
    }

    async fn item(&mut self) -> Result<WatchItem, Error> {
        match tokio::time::timeout(DEADLINE, self.0.next()).await {
            Ok(Some(item)) => item,
            Ok(None) => panic!("the watch ended"),
            Err(_) => panic!("the watch stayed silent"),
        }
    }

    async fn event(&mut self) -> Result<Arc<Event>, Error> {
        loop {
            if let WatchItem::Event(event) = self.item().await? {
                return Ok(event);
            }
        }
    }

    async fn progress(&mut self) -> Result<Revision, Error> {
        loop {
            if let WatchItem::Progress(revision) = self.item().await? {
                return Ok(revision);
            }
        }
    }

    async fn events(&mut self, count: usize) -> Result<Vec<Arc<Event>>, Error> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await?);
        }
        Ok(events)
    }

    async fn assert_no_event(&mut self) {
        let event = tokio::time::timeout(SILENCE, self.event()).await;
        assert!(event.is_err(), "unexpected {event:?}");
    }
}

async fn revisions_count_changes(store: Arc<dyn Storage>) -> Outcome {
    assert_eq!(store.revision(), Revision::ZERO);
    assert_eq!(write(&store, put("a", "1", Expect::Absent)).await?, Revision(1));
    assert_eq!(write(&store, put("a", "2", Expect::Any)).await?, Revision(2));
    assert_eq!(write(&store, put("b", "1", Expect::Any)).await?, Revision(3));
    assert_eq!(write(&store, Command::delete(key("b"), Expect::Any)).await?, Revision(4));
    assert_eq!(write(&store, put("b", "2", Expect::Absent)).await?, Revision(5));
    assert_eq!(store.revision(), Revision(5));
    for at in [Consistency::Linearizable, Consistency::Any, Consistency::AtLeast(Revision(5))] {
        let a = Stored { key: key("a"), value: bytes("2"), created: Revision(1), revision: Revision(2) };
        let b = Stored { key: key("b"), value: bytes("2"), created: Revision(5), revision: Revision(5) };
        assert_eq!(store.get(&key("a"), at).await?, Some(a));
        assert_eq!(store.get(&key("b"), at).await?, Some(b));
        assert_eq!(store.get(&key("c"), at).await?, None);
    }
    Ok(())
}

async fn no_op_writes(store: Arc<dyn Storage>) -> Outcome {
    write(&store, put("a", "1", Expect::Any)).await?;
    write(&store, put("b", "1", Expect::Any)).await?;
    let mut watch = Watch::of(&store, &pods(), Revision(2))?;
    assert_eq!(write(&store, put("a", "1", Expect::At(Revision(1)))).await?, Revision(1), "the key's own revision");
    assert_eq!(write(&store, Command::delete(key("c"), Expect::Any)).await?, Revision(2));
    assert_eq!(write(&store, batch(Vec::new())).await?, Revision(2));
    assert_eq!(store.revision(), Revision(2));
    watch.assert_no_event().await;
    Ok(())
}

async fn compare_and_swap(store: Arc<dyn Storage>) -> Outcome {
    let first = write(&store, put("a", "1", Expect::Absent)).await?;
    let current = store.get(&key("a"), Consistency::Linearizable).await?;
    let refused = [
        put("a", "2", Expect::Absent),
        put("a", "2", Expect::At(Revision(7))),
        Command::delete(key("a"), Expect::At(Revision(7))),
        Command::delete(key("a"), Expect::Absent),
    ];
    for command in refused {
        assert_eq!(store.write(command).await?, Reply::Mismatch { op: 0, current: current.clone() });
    }
    for command in [put("b", "1", Expect::At(first)), Command::delete(key("b"), Expect::At(first))] {
        assert_eq!(store.write(command).await?, Reply::Mismatch { op: 0, current: None });
    }
    let second = write(&store, put("a", "2", Expect::At(first))).await?;
    write(&store, Command::delete(key("a"), Expect::At(second))).await?;
    assert_eq!(names(&store, Consistency::Linearizable).await?, Vec::<String>::new());
    Ok(())
}

async fn one_swap_wins(store: Arc<dyn Storage>) -> Outcome {
    const ROUNDS: u64 = 5;
    let mut at = write(&store, put("a", "start", Expect::Absent)).await?;
    for round in 0..ROUNDS {
        let swaps = (0..16).map(|who| {
            let store = store.clone();
            async move { store.write(put("a", &format!("{round}-{who}"), Expect::At(at))).await }
        });
        let replies: Vec<Reply> = futures::future::try_join_all(swaps).await?;
        let won: Vec<&Reply> = replies.iter().filter(|reply| matches!(reply, Reply::Done { .. })).collect();
        assert_eq!(won.len(), 1, "{replies:?}");
        at = done(won[0]);
    }
    assert_eq!(store.revision(), Revision(1 + ROUNDS));
    Ok(())
}

async fn batches(store: Arc<dyn Storage>) -> Outcome {
    write(&store, put("a", "1", Expect::Any)).await?;
    let ops = |expect| {
        vec![
            Op::Put { key: key("b"), value: bytes("1"), expect: Expect::Absent },
            Op::Delete { key: key("a"), expect },
            Op::Put { key: key("c"), value: bytes("1"), expect: Expect::Any },
        ]
    };
    let mut watch = Watch::of(&store, &pods(), Revision(1))?;
    let refused = store.write(batch(ops(Expect::At(Revision(9))))).await?;
    assert!(matches!(refused, Reply::Mismatch { op: 1, current: Some(_) }), "{refused:?}");
    assert_eq!(names(&store, Consistency::Any).await?, ["a=1"]);
    assert_eq!(write(&store, batch(ops(Expect::At(Revision(1))))).await?, Revision(2));
    assert_eq!(names(&store, Consistency::Any).await?, ["b=1", "c=1"]);
    let events = watch.events(3).await?;
    assert!(events.iter().all(|event| event.revision == Revision(2)), "{events:?}");
    assert_eq!(events.iter().map(|event| event.key.clone()).collect::<Vec<_>>(), [key("b"), key("a"), key("c")]);
    Ok(())
}

/// The term in which `store` lives, found out by a fence that has passed.
async fn term(store: &Arc<dyn Storage>) -> Result<u64, Error> {
    let fenced = store.write(put("a", "1", Expect::Any).fenced(0)).await?;
    let Reply::Fenced { term } = fenced else { panic!("expected Fenced, got {fenced:?}") };
    assert!(term > 0);
    assert_eq!(store.revision(), Revision::ZERO);
    Ok(term)
}

async fn fences(store: Arc<dyn Storage>) -> Outcome {
    let term = term(&store).await?;
    assert_eq!(write(&store, put("a", "1", Expect::Any).fenced(term)).await?, Revision(1));
    Ok(())
}

/// A leader's work is the leader's own: another member neither does it nor forwards it.
async fn fences_elsewhere(store: Arc<dyn Storage>) -> Outcome {
    let term = term(&store).await?;
    let refused = store.write(put("a", "1", Expect::Any).fenced(term)).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert_eq!(store.get(&key("a"), Consistency::Linearizable).await?, None);
    Ok(())
}

async fn versions(store: Arc<dyn Storage>) -> Outcome {
    let version = COMMAND_VERSION + 1;
    let command = Command { version, ..put("a", "1", Expect::Any) };
    assert_eq!(store.write(command).await?, Reply::Unsupported { version });
    assert_eq!(store.revision(), Revision::ZERO);
    Ok(())
}

async fn paging(store: Arc<dyn Storage>) -> Outcome {
    for name in ["e", "b", "d", "a", "c"] {
        write(&store, put(name, name, Expect::Absent)).await?;
    }
    let elsewhere = Key::object("apps", "deployments", Some("default"), "z");
    write(&store, Command::put(elsewhere, bytes("z"), Expect::Absent)).await?;
    let mut from: Option<Key> = None;
    let mut seen = Vec::new();
    for remaining in [3, 1, 0] {
        let page = store.list(&pods(), Consistency::Linearizable, from.as_ref(), 2).await?;
        assert_eq!((page.more, page.revision), (remaining > 0, Revision(6)));
        from = page.items.last().map(|stored| stored.key.clone());
        let left = from.as_ref().map(|last| store.count(&pods(), last, page.revision)).transpose()?;
        assert_eq!(left, Some(remaining));
        seen.extend(page.items.iter().map(shown));
    }
    assert_eq!(seen, ["a=a", "b=b", "c=c", "d=d", "e=e"]);
    let whole = store.list(&pods(), Consistency::Any, None, 0).await?;
    assert_eq!((whole.items.len(), whole.more), (5, false));
    let exact = store.list(&pods(), Consistency::Any, None, 5).await?;
    assert_eq!((exact.items.len(), exact.more), (5, false));
    let past = store.list(&pods(), Consistency::Any, Some(&key("e")), 2).await?;
    assert_eq!((past.items.len(), past.more), (0, false));
    let none = store.list(&Key::prefix("", "secrets", None), Consistency::Any, None, 0).await?;
    assert_eq!((none.items.len(), none.more), (0, false));
    Ok(())
}

async fn stable_pages(store: Arc<dyn Storage>) -> Outcome {
    for name in ["a", "b", "c", "d"] {
        write(&store, put(name, "1", Expect::Absent)).await?;
    }
    let first = store.list(&pods(), Consistency::Linearizable, None, 2).await?;
    let at = Consistency::Exactly(first.revision);
    write(&store, put("c", "2", Expect::Any)).await?;
    write(&store, Command::delete(key("d"), Expect::Any)).await?;
    write(&store, put("e", "1", Expect::Any)).await?;
    let rest = store.list(&pods(), at, first.items.last().map(|stored| &stored.key), 2).await?;
    assert_eq!(rest.revision, first.revision);
    assert_eq!(rest.items.iter().map(shown).collect::<Vec<_>>(), ["c=1", "d=1"]);
    assert!(!rest.more);
    Ok(())
}

async fn exact_reads(store: Arc<dyn Storage>) -> Outcome {
    write(&store, put("a", "1", Expect::Any)).await?;
    write(&store, put("b", "1", Expect::Any)).await?;
    write(&store, put("a", "2", Expect::Any)).await?;
    write(&store, Command::delete(key("b"), Expect::Any)).await?;
    write(&store, put("b", "3", Expect::Any)).await?;
    let history: [&[&str]; 6] = [&[], &["a=1"], &["a=1", "b=1"], &["a=2", "b=1"], &["a=2"], &["a=2", "b=3"]];
    for (revision, expected) in (0..).zip(history) {
        assert_eq!(names(&store, Consistency::Exactly(Revision(revision))).await?, expected, "at {revision}");
    }
    let old = store.get(&key("b"), Consistency::Exactly(Revision(3))).await?;
    let expected = Stored { key: key("b"), value: bytes("1"), created: Revision(2), revision: Revision(2) };
    assert_eq!(old, Some(expected));
    assert_eq!(store.get(&key("b"), Consistency::Exactly(Revision(4))).await?, None);
    Ok(())
}

async fn fresh_reads(store: Arc<dyn Storage>) -> Outcome {
    write(&store, put("a", "1", Expect::Any)).await?;
    let reader = store.clone();
    let waiting = tokio::spawn(async move { reader.get(&key("a"), Consistency::AtLeast(Revision(2))).await });
    write(&store, put("a", "2", Expect::Any)).await?;
    let read = waiting.await.unwrap_or_else(|error| panic!("{error}"))?;
    assert_eq!(read.map(|stored| stored.revision), Some(Revision(2)));
    let future = store.get(&key("a"), Consistency::AtLeast(Revision(9))).await;
    assert!(matches!(future, Err(Error::TooNew { requested: Revision(9), current: Revision(2) })), "{future:?}");
    Ok(())
}

async fn watch_replays(store: Arc<dyn Storage>) -> Outcome {
    write(&store, put("a", "1", Expect::Any)).await?;
    write(&store, put("a", "2", Expect::Any)).await?;
    let mut watch = Watch::of(&store, &pods(), Revision(1))?;
    let mut whole = Watch::of(&store, &pods(), Revision::ZERO)?;
    write(&store, Command::delete(key("a"), Expect::Any)).await?;
    let one = Stored { key: key("a"), value: bytes("1"), created: Revision(1), revision: Revision(1) };
    let two = Stored { value: bytes("2"), revision: Revision(2), ..one.clone() };
    let event = |revision, value: Option<&str>, previous| Event {
        key: key("a"),
        revision: Revision(revision),
        value: value.map(bytes),
        previous,
    };
    let expected = [event(1, Some("1"), None), event(2, Some("2"), Some(one)), event(3, None, Some(two))];
    for want in &expected[1..] {
        assert_eq!(*watch.event().await?, *want);
    }
    for want in &expected {
        assert_eq!(*whole.event().await?, *want);
    }
    write(&store, put("a", "4", Expect::Absent)).await?;
    let live = event(4, Some("4"), None);
    assert_eq!((&*watch.event().await?, &*whole.event().await?), (&live, &live));
    Ok(())
}

async fn watch_prefix(store: Arc<dyn Storage>) -> Outcome {
    let other = Key::object("", "pods", Some("other"), "x");
    let secret = Key::object("", "secrets", Some("default"), "s");
    let mut one = Watch::of(&store, &Key::prefix("", "pods", Some("default")), Revision::ZERO)?;
    let mut all = Watch::of(&store, &Key::from_raw("/"), Revision::ZERO)?;
    write(&store, Command::put(other.clone(), bytes("1"), Expect::Any)).await?;
    write(&store, Command::put(secret.clone(), bytes("1"), Expect::Any)).await?;
    write(&store, put("a", "1", Expect::Any)).await?;
    assert_eq!(one.event().await?.key, key("a"));
    let keys: Vec<Key> = all.events(3).await?.iter().map(|event| event.key.clone()).collect();
    assert_eq!(keys, [other, secret, key("a")]);
    one.assert_no_event().await;
    Ok(())
}

/// Many writers, and watches that join at any moment: each sees every revision once, in order, and the same values.
async fn watch_concurrent(store: Arc<dyn Storage>) -> Outcome {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 50;
    const TOTAL: u64 = WRITERS * WRITES;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        async move {
            for count in 0..WRITES {
                let command = put(&format!("{writer}-{}", count % 7), &format!("{writer}-{count}"), Expect::Any);
                write(&store, command).await?;
            }
            Ok::<(), Error>(())
        }
    });
    let watchers = (0..6u64).map(|watcher| {
        let store = store.clone();
        async move {
            let mut join = Watch::of(&store, &pods(), Revision::ZERO)?;
            let after = Revision(watcher * TOTAL / 8);
            while after > Revision::ZERO && join.event().await?.revision < after {}
            let mut watch = Watch::of(&store, &pods(), after)?;
            let mut state: BTreeMap<Key, Bytes> = BTreeMap::new();
            for stored in store.list(&pods(), Consistency::Exactly(after), None, 0).await?.items {
                state.insert(stored.key, stored.value);
            }
            for revision in after.0 + 1..=TOTAL {
                let event = watch.event().await?;
                assert_eq!(event.revision, Revision(revision), "no gap and no duplicate");
                let previous = event.previous.as_ref().map(|stored| stored.value.clone());
                let value = event.value.clone().unwrap_or_default();
                assert_eq!(state.insert(event.key.clone(), value), previous, "the value before is the one before");
            }
            watch.assert_no_event().await;
            Ok::<_, Error>(state)
        }
    });
    let (_, states) =
        futures::try_join!(futures::future::try_join_all(writers), futures::future::try_join_all(watchers))?;
    let now = store.list(&pods(), Consistency::Linearizable, None, 0).await?;
    let now: BTreeMap<Key, Bytes> = now.items.into_iter().map(|stored| (stored.key, stored.value)).collect();
    assert!(states.iter().all(|state| *state == now));
    Ok(())
}

async fn watch_progress(store: Arc<dyn Storage>) -> Outcome {
    write(&store, put("a", "1", Expect::Any)).await?;
    let mut watch = Watch::of(&store, &Key::prefix("", "secrets", None), Revision::ZERO)?;
    assert_eq!(watch.progress().await?, Revision(1), "once at the end of the replay");
    write(&store, put("a", "2", Expect::Any)).await?;
    write(&store, put("a", "3", Expect::Any)).await?;
    while watch.progress().await? < Revision(3) {}
    let mut replay = Watch::of(&store, &pods(), Revision::ZERO)?;
    for revision in 1..=3 {
        let item = replay.item().await?;
        assert!(matches!(&item, WatchItem::Event(event) if event.revision == Revision(revision)), "{item:?}");
    }
    assert_eq!(replay.item().await?, WatchItem::Progress(Revision(3)));
    Ok(())
}

async fn watch_overrun(store: Arc<dyn Storage>) -> Outcome {
    let mut slow = Watch::of(&store, &pods(), Revision::ZERO)?;
    let mut quiet = Watch::of(&store, &Key::prefix("", "secrets", None), Revision::ZERO)?;
    assert_eq!((slow.progress().await?, quiet.progress().await?), (Revision::ZERO, Revision::ZERO));
    const PER_BATCH: usize = 500;
    for round in 0..=crate::WATCH_LAG_MAX / PER_BATCH {
        let value = bytes(round.to_string());
        let ops = (0..PER_BATCH)
            .map(|name| Op::Put { key: key(&name.to_string()), value: value.clone(), expect: Expect::Any })
            .collect();
        write(&store, batch(ops)).await?;
    }
    let item = slow.item().await;
    assert!(matches!(item, Err(Error::Overrun)), "{item:?}");
    assert!(slow.0.next().await.is_none(), "nothing follows the error");
    while quiet.progress().await? < store.revision() {}
    let mut again = Watch::of(&store, &pods(), Revision::ZERO)?;
    assert_eq!(again.events(PER_BATCH).await?.len(), PER_BATCH, "a replay may be longer than that");
    Ok(())
}

async fn compaction(store: Arc<dyn Storage>) -> Outcome {
    for value in ["1", "2", "3", "4"] {
        write(&store, put("a", value, Expect::Any)).await?;
        write(&store, put(value, value, Expect::Any)).await?;
    }
    let newest = store.revision();
    assert_eq!(write(&store, Command::horizons(Revision(5), Revision(3))).await?, newest, "no revision of its own");
    for old in [Revision::ZERO, Revision(4)] {
        let list = store.list(&pods(), Consistency::Exactly(old), None, 0).await;
        let expected = |compacted| format!("{:?}", Error::Compacted { requested: old, compacted });
        assert_eq!(list.err().map(|error| format!("{error:?}")), Some(expected(Revision(5))));
        let get = store.get(&key("a"), Consistency::Exactly(old)).await;
        assert_eq!(get.err().map(|error| format!("{error:?}")), Some(expected(Revision(5))));
    }
    let watch = store.watch(&pods(), Revision(2)).err();
    let expected = Error::Compacted { requested: Revision(2), compacted: Revision(3) };
    assert_eq!(watch.map(|error| format!("{error:?}")), Some(format!("{expected:?}")));
    assert_eq!(names(&store, Consistency::Exactly(Revision(5))).await?, ["1=1", "2=2", "a=3"]);
    assert_eq!(Watch::of(&store, &pods(), Revision(3))?.event().await?.revision, Revision(4));
    assert_eq!(write(&store, Command::compact(newest)).await?, newest);
    assert_eq!(names(&store, Consistency::Exactly(newest)).await?, ["1=1", "2=2", "3=3", "4=4", "a=4"]);
    let mut live = Watch::of(&store, &pods(), newest)?;
    let next = write(&store, put("a", "5", Expect::Any)).await?;
    assert_eq!(live.event().await?.revision, next);
    Ok(())
}

async fn watch_outlives_compaction(store: Arc<dyn Storage>) -> Outcome {
    let mut quiet = Watch::of(&store, &Key::prefix("", "secrets", None), Revision::ZERO)?;
    let mut live = Watch::of(&store, &pods(), Revision::ZERO)?;
    quiet.progress().await?;
    for value in 0..20 {
        let revision = write(&store, put("a", &value.to_string(), Expect::Any)).await?;
        assert_eq!(live.event().await?.revision, revision);
        write(&store, Command::compact(revision)).await?;
    }
    let secret = Key::object("", "secrets", Some("default"), "s");
    let revision = write(&store, Command::put(secret.clone(), bytes("1"), Expect::Any)).await?;
    let event = quiet.event().await?;
    assert_eq!((event.key.clone(), event.revision), (secret, revision));
    Ok(())
}
