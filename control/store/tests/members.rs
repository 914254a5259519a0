//! Several members in one process, joined by function calls instead of connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use support::{eventually, key};
use tandem_api::{Key, Revision};
use tandem_store::{
    Answer, Call, Command, Consistency, Error, Expect, OpenOptions, PeerError, Peers, RaftStore, Reply, Storage,
    WatchItem,
};

/// A network of function calls. Members that were taken out of it can neither ask nor answer.
#[derive(Default)]
struct Wires(Mutex<BTreeMap<u64, Arc<RaftStore>>>);

struct Wire {
    from: u64,
    wires: Arc<Wires>,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, member: u64, _: &str, call: Call) -> Result<Answer, PeerError> {
        let store = {
            let members = self.wires.0.lock();
            members.get(&self.from).and(members.get(&member)).cloned()
        };
        let unreachable = |why: String| PeerError { member, why };
        let store = store.ok_or_else(|| unreachable("cut off".to_owned()))?;
        store.answer(call).await.map_err(|error| unreachable(error.to_string()))
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    wires: Arc<Wires>,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { dir: tempfile::tempdir().unwrap(), wires: Arc::default() }
    }

    fn path(&self, member: u64) -> std::path::PathBuf {
        self.dir.path().join(member.to_string())
    }

    fn options(&self, dir: &Path, member: u64) -> OpenOptions {
        OpenOptions {
            node_id: member,
            bootstrap: member == 1,
            peers: Arc::new(Wire { from: member, wires: self.wires.clone() }),
            ..support::options(dir)
        }
    }

    async fn open(&self, member: u64) -> Arc<RaftStore> {
        let store = RaftStore::open(self.options(&self.path(member), member)).await.unwrap();
        self.wires.0.lock().insert(member, store.clone());
        store
    }

    fn cut(&self, member: u64) {
        self.wires.0.lock().remove(&member);
    }
}

async fn put(store: &Arc<RaftStore>, name: &str, value: &str) -> Result<Revision, Error> {
    let reply = store.write(Command::put(key(name), Bytes::from(value.to_owned()), Expect::Any)).await?;
    let Reply::Done { revision } = reply else { panic!("{reply:?}") };
    Ok(revision)
}

/// What the leader answers, whoever that is and as soon as there is one. `command` can be repeated without harm.
async fn through_leader(members: &[Arc<RaftStore>], command: Command) -> Reply {
    let mut reply = None;
    eventually("a leader that answers", async || {
        for member in members {
            match member.write(command.clone()).await {
                Ok(answer) => reply = Some(answer),
                Err(Error::Unavailable(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
        reply.is_some()
    })
    .await;
    reply.unwrap()
}

async fn values(store: &Arc<RaftStore>) -> BTreeMap<String, Bytes> {
    let page = store.list(&Key::prefix("", "pods", None), Consistency::Any, None, 0).await.unwrap();
    page.items.into_iter().map(|stored| (stored.key.as_str().to_owned(), stored.value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_follow_and_take_over() {
    let cluster = Cluster::new();
    let first = cluster.open(1).await;
    put(&first, "a", "1").await.unwrap();
    let (second, third) = (cluster.open(2).await, cluster.open(3).await);
    for member in [2, 3] {
        first.add_voter(member, "").await.unwrap();
    }
    let mut watch = second.watch(&Key::prefix("", "pods", None), Revision::ZERO).unwrap();
    let newest = put(&first, "b", "2").await.unwrap();
    for follower in [&second, &third] {
        let read = follower.get(&key("b"), Consistency::AtLeast(newest)).await.unwrap();
        assert_eq!(read.map(|stored| stored.value), Some(Bytes::from_static(b"2")));
        let refused = put(follower, "c", "3").await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    let mut seen = Vec::new();
    while seen.len() < 2 {
        if let WatchItem::Event(event) = watch.next().await.unwrap().unwrap() {
            seen.push(event.revision.0);
        }
    }
    assert_eq!(seen, [1, 2]);

    // The leader is cut off: another one takes over, and the old one can neither read nor write for sure any more.
    let term = first.leadership().borrow().term;
    cluster.cut(1);
    let followers = [second.clone(), third.clone()];
    let fenced =
        through_leader(&followers, Command::put(key("c"), Bytes::from_static(b"old"), Expect::Any).fenced(term));
    let fenced = fenced.await;
    assert!(matches!(fenced, Reply::Fenced { term: newer } if newer > term), "{fenced:?}");
    through_leader(&followers, Command::put(key("c"), Bytes::from_static(b"3"), Expect::Any)).await;
    let stale = first.get(&key("c"), Consistency::Linearizable).await;
    assert!(matches!(stale, Err(Error::Unavailable(_))), "{stale:?}");

    // It comes back from its disk and catches up.
    first.shutdown().await.unwrap();
    support::released(first, &cluster.path(1)).await;
    let first = cluster.open(1).await;
    eventually("the old leader to catch up", async || first.revision() == Revision(3)).await;
    assert_eq!(values(&first).await.get(key("c").as_str()), Some(&Bytes::from_static(b"3")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_too_much_gets_a_snapshot() {
    let cluster = Cluster::new();
    let first = cluster.open(1).await;
    for round in 0..80u64 {
        let writes = (0..100).map(|count| {
            let first = first.clone();
            async move { put(&first, &count.to_string(), &format!("{round}-{count}")).await.unwrap() }
        });
        futures::future::join_all(writes).await;
    }
    eventually("the log to be let go", async || support::first_log_entry(&cluster.path(1)).await > 0).await;
    let second = cluster.open(2).await;
    first.add_voter(2, "").await.unwrap();
    eventually("the new member to catch up", async || second.revision() == first.revision()).await;
    assert_eq!(values(&second).await, values(&first).await);
    let early = second.watch(&Key::prefix("", "pods", None), Revision(1)).err();
    assert!(matches!(early, Some(Error::Compacted { .. })), "{early:?}");
    put(&first, "after", "x").await.unwrap();
    eventually("the newest write", async || second.revision() == first.revision()).await;
    let expected = values(&first).await;

    // What was installed is on its disk, and nothing of the transfer is left there.
    second.shutdown().await.unwrap();
    cluster.cut(2);
    support::released(second, &cluster.path(2)).await;
    let mut files: Vec<String> = std::fs::read_dir(cluster.path(2))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, ["lock", "log.sqlite", "state.sqlite"]);
    let second = cluster.open(2).await;
    eventually("the member to be as before", async || values(&second).await == expected).await;
}
