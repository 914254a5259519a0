//! Several members: how they follow, take over, and catch up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use prometheus_client::registry::Registry;
use support::{
    allowed,
    cluster::{Cluster, Fault, leader_of},
    eventually, key,
};
use tandem_api::{Key, Revision};
use tandem_store::{
    Aim, Begin, Command, Consistency, Error, Expect, Metrics, RaftStore, Reply, Storage, WatchItem,
    conformance::{self, Place},
};
use tokio::time::Instant;

/// Within this time everything ends on a member without a quorum.
const CUT_OFF_MAX: Duration = Duration::from_secs(2);

/// Longer than the longest timeout that openraft draws for an election.
const SLOW_COMMIT: Duration = Duration::from_millis(400);

async fn put(store: &Arc<RaftStore>, name: &str, value: &str) -> Result<Revision, Error> {
    let reply = store.write(Command::put(key(name), Bytes::from(value.to_owned()), Expect::Any)).await?;
    let Reply::Done { revision } = reply else { panic!("{reply:?}") };
    Ok(revision)
}

async fn value(store: &Arc<RaftStore>, name: &str, at: Consistency) -> Result<Option<String>, Error> {
    let stored = store.get(&key(name), at).await?;
    Ok(stored.map(|stored| String::from_utf8(stored.value.to_vec()).unwrap()))
}

async fn values(store: &Arc<RaftStore>) -> BTreeMap<String, Bytes> {
    let page = store.list(&Key::prefix("", "pods", None), Consistency::Any, None, 0).await.unwrap();
    page.items.into_iter().map(|stored| (stored.key.as_str().to_owned(), stored.value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_three_conforms() {
    conforms(0, Place::Leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_three_conforms() {
    conforms(2, Place::Follower).await;
}

async fn conforms(member: usize, place: Place) {
    let last = tokio::sync::Mutex::new(None);
    conformance::run(place, || async {
        let mut last = last.lock().await;
        *last = None;
        let (_, members) = last.insert(Cluster::of(3).await);
        members[member].clone() as Arc<dyn Storage>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_follow_and_take_over() {
    let (cluster, members) = Cluster::of(3).await;
    let [first, second, third] = &members[..] else { panic!("three members") };
    let mut watch = second.watch(&Key::prefix("", "pods", None), Revision::ZERO).unwrap();
    for (count, member) in members.iter().enumerate() {
        let name = count.to_string();
        assert_eq!(put(member, &name, "x").await.unwrap(), Revision(count as u64 + 1));
        assert_eq!(value(member, &name, Consistency::Any).await.unwrap().as_deref(), Some("x"), "its own write");
        for reader in &members {
            assert_eq!(value(reader, &name, Consistency::Linearizable).await.unwrap().as_deref(), Some("x"));
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if let WatchItem::Event(event) = watch.next().await.unwrap().unwrap() {
            seen.push(event.revision.0);
        }
    }
    assert_eq!(seen, [1, 2, 3]);

    // The leader is cut off: another one takes over, and refuses the work of the old one.
    let term = first.leadership().borrow().term;
    cluster.isolate(first.id());
    let followers = [second.clone(), third.clone()];
    let new = leader_of(&followers).await;
    put(&new, "taken over", "x").await.unwrap();
    let fenced = Command::put(key("c"), Bytes::from_static(b"old"), Expect::Any).fenced(term);
    let fenced = new.write(fenced).await.unwrap();
    assert!(matches!(fenced, Reply::Fenced { term: newer } if newer > term), "{fenced:?}");

    // Back again, it follows. Who sees there what the new leader did is not told that the old one leads.
    cluster.heal();
    eventually("the old leader to catch up", async || first.revision() == new.revision()).await;
    assert!(!first.leadership().borrow().leader);
    assert_eq!(values(first).await, values(&new).await);
}

/// A leader that is not told that it is one does nothing for the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_of_the_leader_is_told() {
    let (_cluster, members) = Cluster::of(3).await;
    for _ in 0..60 {
        let leader = leader_of(&members).await;
        let term = leader.leadership().borrow().term;
        // The one that was elected just now may not know yet who could follow it.
        if leader.hand_over().await {
            eventually("the next term", async || leader.leadership().borrow().term > term).await;
        }
    }
    leader_of(&members).await;
}

/// What a leader that is alone could still answer may be old: it must say that it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_answers_nothing_stale_and_does_not_hang() {
    let (cluster, members) = Cluster::of(3).await;
    put(&members[0], "a", "old").await.unwrap();
    let old = &members[0];
    cluster.isolate(old.id());
    let pending = put(old, "pending", "x");
    let begun = Instant::now();
    let pending = pending.await;
    assert!(matches!(pending, Err(Error::Unknown(_) | Error::Unavailable(_))), "{pending:?}");
    assert!(begun.elapsed() < allowed(CUT_OFF_MAX), "{:?}", begun.elapsed());
    eventually("it to notice", async || !old.has_quorum()).await;
    eventually("it to lead no more", async || !old.leadership().borrow().leader).await;
    put(&leader_of(&members[1..]).await, "a", "new").await.unwrap();
    for _ in 0..3 {
        let begun = Instant::now();
        let read = value(old, "a", Consistency::Linearizable).await;
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
        let written = put(old, "a", "lost").await;
        assert!(matches!(written, Err(Error::Unavailable(_))), "nothing was sent: {written:?}");
        assert!(begun.elapsed() < allowed(2 * CUT_OFF_MAX), "{:?}", begun.elapsed());
    }
    assert_eq!(value(old, "a", Consistency::Any).await.unwrap().as_deref(), Some("old"));
    cluster.heal();
    eventually("a quorum", async || old.has_quorum()).await;
    assert_eq!(value(old, "a", Consistency::Linearizable).await.unwrap().as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_says_so_in_time() {
    let (cluster, members) = Cluster::of(3).await;
    let follower = &members[2];
    eventually("a quorum", async || follower.has_quorum()).await;
    cluster.isolate(follower.id());
    let (write, read) = (put(follower, "a", "x"), value(follower, "a", Consistency::Linearizable));
    let begun = Instant::now();
    let (write, read) = tokio::join!(write, read);
    assert!(matches!(write, Err(Error::Unknown(_))), "it may have arrived: {write:?}");
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    assert!(begun.elapsed() < allowed(CUT_OFF_MAX), "{:?}", begun.elapsed());
    put(&members[0], "a", "y").await.unwrap();
    cluster.heal();
    eventually("a quorum", async || follower.has_quorum()).await;
    assert_eq!(value(follower, "a", Consistency::Linearizable).await.unwrap().as_deref(), Some("y"));
}

/// Whether a forwarded write happened is said truly: it did, it did not, or nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_write_is_refused_only_when_it_did_not_happen() {
    let (cluster, members) = Cluster::of(3).await;
    let (leader, follower) = (&members[0], &members[1]);
    cluster.break_wire(follower.id(), leader.id(), Fault::NoReply);
    let once = |value: &str| Command::put(key("a"), Bytes::from(value.to_owned()), Expect::Absent);
    let written = follower.write(once("1")).await;
    assert!(matches!(written, Err(Error::Unknown(_))), "{written:?}");
    assert_eq!(leader.revision(), Revision(1), "it did happen, and once");
    cluster.heal();
    // Its expectation shows who asks again that it happened.
    let repeated = follower.write(once("1")).await.unwrap();
    assert!(matches!(repeated, Reply::Mismatch { op: 0, current: Some(_) }), "{repeated:?}");

    let fenced = follower.write(once("2").fenced(leader.leadership().borrow().term)).await;
    assert!(matches!(fenced, Err(Error::Unavailable(_))), "a leader's work is never forwarded: {fenced:?}");
    assert_eq!(leader.revision(), Revision(1));
}

/// A member that can ask and does not hear: what it passed on is done, and is never seen there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_write_that_is_not_heard_of_ends_with_the_quorum() {
    let (cluster, members) = Cluster::of(3).await;
    let (leader, follower) = (&members[0], &members[1]);
    eventually("a quorum", async || follower.has_quorum()).await;
    cluster.break_wire(leader.id(), follower.id(), Fault::Lost);
    let begun = Instant::now();
    let written = put(follower, "a", "x").await;
    assert!(matches!(&written, Err(Error::Unknown(why)) if why.starts_with("it is done, but")), "{written:?}");
    assert!(begun.elapsed() < allowed(CUT_OFF_MAX), "{:?}", begun.elapsed());
    assert_eq!(value(leader, "a", Consistency::Linearizable).await.unwrap().as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_shuts_down_hands_over_without_a_gap() {
    let (cluster, mut members) = Cluster::of(3).await;
    let mut best = Duration::MAX;
    for round in 0..4u64 {
        let mut longest = Duration::ZERO;
        let leader = leader_of(&members).await;
        members.retain(|member| member.id() != leader.id());
        let id = leader.id();
        let writer = members[0].clone();
        let stopping = tokio::spawn(async move { leader.shutdown().await.map(|()| leader) });
        for count in 0..20 {
            let begun = Instant::now();
            put(&writer, "a", &format!("{round}-{count}")).await.unwrap();
            longest = longest.max(begun.elapsed());
        }
        best = best.min(longest);
        let leader = stopping.await.unwrap().unwrap();
        cluster.stop(leader).await;
        members.push(cluster.open(id, Begin::Never).await);
        eventually("it to be back", async || members[2].has_quorum()).await;
    }
    // Shorter than the shortest election timeout: nobody waited for one. One round shows it, should the machine stand
    // still in another.
    assert!(best < Duration::from_millis(250), "in each round a write took {best:?} or longer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_too_much_gets_a_snapshot() {
    let (cluster, first) = Cluster::begin().await;
    for round in 0..80u64 {
        let writes = (0..100).map(|count| {
            let first = first.clone();
            async move { put(&first, &count.to_string(), &format!("{round}-{count}")).await.unwrap() }
        });
        futures::future::join_all(writes).await;
    }
    eventually("the log to be let go", async || support::first_log_entry(&cluster.path(1)).await > 0).await;
    let second = cluster.join(&first, Aim::Vote).await;
    eventually("the new member to catch up", async || second.revision() == first.revision()).await;
    assert_eq!(values(&second).await, values(&first).await);
    let early = second.watch(&Key::prefix("", "pods", None), Revision(1)).err();
    assert!(matches!(early, Some(Error::Compacted { .. })), "{early:?}");
    put(&first, "after", "x").await.unwrap();
    eventually("the newest write", async || second.revision() == first.revision()).await;
    let expected = values(&first).await;

    // What was installed is on its disk, and nothing of the transfer is left there.
    let id = second.id();
    cluster.stop(second).await;
    let mut files: Vec<String> = std::fs::read_dir(cluster.path(id))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, ["lock", "log.sqlite", "state.sqlite"]);
    let second = cluster.open(id, Begin::Never).await;
    eventually("the member to be as before", async || values(&second).await == expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_applied_the_same_have_the_same_hash() {
    let (cluster, members) = Cluster::of(3).await;
    for count in 0..300u64 {
        put(&members[0], &(count % 7).to_string(), &count.to_string()).await.unwrap();
    }
    members[0].write(Command::delete(key("3"), Expect::Any)).await.unwrap();
    let hashes = || members.iter().map(|member| member.hashes()).collect::<Vec<_>>();
    eventually("all to be at the same entry", async || {
        let hashes = hashes();
        hashes.iter().all(|hash| hash.last().unwrap().index == hashes[0].last().unwrap().index)
    })
    .await;
    let found = hashes();
    assert!(found[0].len() > 1, "one is remembered on the way: {found:?}");
    for other in &found[1..] {
        assert_eq!(tandem_store::first_difference(&found[0], other), None);
        assert_eq!(found[0].last(), other.last());
    }
    // A restart counts it anew from what is on disk.
    let (id, before) = (members[2].id(), found[2].last().copied());
    let mut members = members;
    cluster.stop(members.pop().unwrap()).await;
    let again = cluster.open(id, Begin::Never).await;
    eventually("it to have caught up", async || again.revision() == members[0].revision()).await;
    assert_eq!(again.hashes().last().map(|hash| hash.hash), before.map(|hash| hash.hash));
}

/// What member 1 of [`the_leader_tells_of_each_other_member`] shows.
static SHOWN: LazyLock<(Registry, Metrics)> = LazyLock::new(|| {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    (registry, metrics)
});

fn shows(line: &str) -> bool {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &SHOWN.0).unwrap();
    text.lines().any(|found| found.starts_with(line))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_tells_of_each_other_member() {
    let (cluster, members) = Cluster::of_adjusted(3, |options| {
        options.comparison = Duration::from_millis(100);
        if options.node_id == 1 {
            options.metrics = SHOWN.1.clone();
        }
    })
    .await;
    let [first, second, third] = &members[..] else { panic!("three members") };
    let lag = |member: &RaftStore| format!("tandem_store_peer_lag_entries{{member=\"{}\"}} ", member.id());
    let reachable = |member: &RaftStore| format!("tandem_store_peer_reachable{{member=\"{}\"}} ", member.id());
    put(first, "a", "x").await.unwrap();
    for other in [second, third] {
        eventually("it to have everything", async || shows(&format!("{}0", lag(other)))).await;
        eventually("it to be reached", async || shows(&format!("{}1", reachable(other)))).await;
    }
    assert!(!shows(&lag(first)), "of others only");
    cluster.isolate(third.id());
    put(first, "b", "x").await.unwrap();
    eventually("it to be missed", async || shows(&format!("{}0", reachable(third)))).await;
    eventually("it to fall behind", async || shows(&lag(third)) && !shows(&format!("{}0", lag(third)))).await;
    cluster.heal();
    eventually("it to be back", async || shows(&format!("{}1", reachable(third)))).await;

    // A member that applied something else is told of, until it is no more, or somebody else leads.
    let mut differing = first.differing();
    cluster.break_wire(first.id(), second.id(), Fault::WrongHash);
    let seen = tokio::time::timeout(support::DEADLINE, differing.wait_for(|differing| !differing.is_empty())).await;
    assert_eq!(*seen.unwrap().unwrap(), [second.id()]);
    eventually("it to be shown", async || shows("tandem_store_differing_members 1")).await;
    cluster.isolate(first.id());
    leader_of(&members[1..]).await;
    cluster.heal();
    eventually("nothing to differ", async || first.differing().borrow().is_empty()).await;
    eventually("nothing to be shown", async || shows("tandem_store_differing_members 0")).await;
    eventually("only the leader to know", async || !shows(&lag(second)) && !shows(&reachable(second))).await;
}

/// Nothing comes of a watch on a member that is cut off: it ends, so that its client goes elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stays_cut_off_ends_its_watches() {
    let (cluster, members) = Cluster::of_adjusted(3, |options| options.watch_silence = Duration::from_secs(3)).await;
    let follower = &members[2];
    eventually("a quorum", async || follower.has_quorum()).await;
    let prefix = Key::prefix("", "pods", None);
    let mut watch = follower.watch(&prefix, Revision::ZERO).unwrap();
    cluster.isolate(follower.id());
    let ended = tokio::time::timeout(support::DEADLINE, async {
        loop {
            match watch.next().await {
                Some(Ok(_)) => (),
                other => return other,
            }
        }
    });
    let ended = ended.await.unwrap();
    assert!(matches!(&ended, Some(Err(Error::Unavailable(_)))), "{ended:?}");
    assert!(watch.next().await.is_none());
    let refused = follower.watch(&prefix, Revision::ZERO).err();
    assert!(matches!(refused, Some(Error::Unavailable(_))), "{refused:?}");
    put(&members[0], "a", "x").await.unwrap();
    cluster.heal();
    eventually("a watch that goes on", async || {
        let Ok(mut watch) = follower.watch(&prefix, Revision::ZERO) else { return false };
        matches!(watch.next().await, Some(Ok(WatchItem::Event(event))) if event.revision == Revision(1))
    })
    .await;
}

/// With disks on which no vote is saved within the shortest timeout, an election must still end: where all disks are
/// like that, and where only the one of the voter is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elections_end_also_on_slow_disks() {
    for slow in [&[0, 1, 2][..], &[2]] {
        let (cluster, members) = Cluster::of(3).await;
        for place in slow {
            cluster.slow_down(members[*place].id(), SLOW_COMMIT);
        }
        for count in 0..5 {
            put(&members[0], "a", &count.to_string()).await.unwrap();
        }
        eventually("all to have it", async || members.iter().all(|member| member.revision() == Revision(5))).await;
        cluster.isolate(members[0].id());
        let new = leader_of(&members[1..]).await;
        put(&new, "a", "after").await.unwrap();
    }
}
