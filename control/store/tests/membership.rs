//! Who belongs to the cluster: growth, replacement, removal, while writes go on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use support::{
    cluster::{Cluster, leader_of, settled},
    eventually, key,
};
use tandem_store::{
    Aim, Begin, Change, Command, Consistency, Error, Expect, QUORUM_SILENCE, RaftStore, Reply, Role, Standing, Storage,
};

/// Writes through one member until it is stopped, and remembers what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledgements: Arc<AtomicUsize>,
    writers: Vec<tokio::task::JoinHandle<BTreeMap<String, u64>>>,
}

impl Load {
    fn through(store: &Arc<RaftStore>) -> Load {
        let (stop, acknowledgements) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writers = (0..4).map(|writer| {
            let (store, stop, acknowledgements) = (store.clone(), stop.clone(), acknowledgements.clone());
            tokio::spawn(async move {
                let mut acknowledged = BTreeMap::new();
                for count in 0..u64::MAX {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let name = format!("{}-{writer}-{count}", store.id());
                    match store.write(Command::put(key(&name), Bytes::from_static(b"x"), Expect::Absent)).await {
                        Ok(Reply::Done { revision }) => {
                            acknowledgements.fetch_add(1, Ordering::SeqCst);
                            acknowledged.insert(name, revision.0);
                        }
                        Ok(other) => panic!("{other:?}"),
                        Err(Error::Unknown(_) | Error::Unavailable(_) | Error::Removed { .. }) => (),
                        Err(error) => panic!("{error}"),
                    }
                }
                acknowledged
            })
        });
        Load { writers: writers.collect(), stop, acknowledgements }
    }

    /// Ends, and shows that everything that was acknowledged is there.
    async fn check(self, store: &Arc<RaftStore>) {
        // With little traffic nothing would be shown.
        eventually("enough writes", async || self.acknowledgements.load(Ordering::SeqCst) > 50).await;
        self.stop.store(true, Ordering::SeqCst);
        let acknowledged = futures::future::try_join_all(self.writers).await.unwrap();
        let all: BTreeMap<String, u64> = acknowledged.into_iter().flatten().collect();
        for (name, revision) in &all {
            let stored = store.get(&key(name), Consistency::Linearizable).await.unwrap();
            assert_eq!(stored.map(|stored| stored.revision.0), Some(*revision), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_and_shrinks_to_one_under_load() {
    let (cluster, first) = Cluster::begin().await;
    let load = Load::through(&first);
    let mut members = vec![first.clone()];
    for size in [3, 5] {
        while members.len() < size {
            let via = members[members.len() - 1].clone();
            members.push(cluster.join(&via, Aim::Vote).await);
        }
        settled(&first, size).await;
    }
    let ids: Vec<u64> = members.iter().map(|member| member.id()).collect();
    assert!(ids.is_sorted_by(|one, other| one < other), "ids are never used again: {ids:?}");
    for size in [3, 1] {
        while members.len() > size {
            let last = members.pop().unwrap();
            eventually("it to be removed", async || first.change(Change::Remove { member: last.id() }).await.is_ok())
                .await;
            eventually("it to know", async || *last.standing().borrow() == Standing::Removed).await;
            let refused = last.write(Command::put(key("a"), Bytes::new(), Expect::Any)).await;
            assert!(refused.is_err(), "{refused:?}");
            cluster.stop(last).await;
        }
        settled(&first, size).await;
    }
    load.check(&first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_replaced_by_one_change() {
    let (cluster, mut members) = Cluster::of(3).await;
    let load = Load::through(&members[0]);
    let dead = members.pop().unwrap();
    let gone = dead.id();
    cluster.stop(dead).await;
    let new = cluster.join(&members[1], Aim::Replace(gone)).await;
    let listed = settled(&members[0], 3).await;
    let ids: Vec<u64> = listed.iter().map(|member| member.id).collect();
    assert_eq!(ids, [members[0].id(), members[1].id(), new.id()]);
    assert!(listed.iter().all(|member| member.matched.is_some()), "{listed:?}");
    eventually("the new member to vote", async || *new.standing().borrow() == Standing::Voter).await;
    load.check(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_can_be_removed_and_hands_over_first() {
    let (cluster, members) = Cluster::of(3).await;
    let load = Load::through(&members[1]);
    let old = &members[0];
    assert!(old.leadership().borrow().leader);
    assert_eq!(members[1].change(Change::Remove { member: old.id() }).await.unwrap(), old.id());
    settled(&members[1], 2).await;
    let new = leader_of(&members[1..]).await;
    eventually("the old leader to know", async || *old.standing().borrow() == Standing::Removed).await;
    let read = old.get(&key("a"), Consistency::Linearizable).await;
    assert!(matches!(read, Err(Error::Removed { member }) if member == old.id()), "{read:?}");
    load.check(&new).await;
    drop(cluster);
}

/// Nobody waits on a member that was removed for what it is not sent any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_a_removed_member_end_at_once() {
    let mut best = Duration::MAX;
    let (cluster, mut members) = Cluster::of(3).await;
    for _ in 0..4 {
        let gone = members.pop().unwrap();
        let writers = (0..8).map(|writer| {
            let gone = gone.clone();
            tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                loop {
                    let begun = Instant::now();
                    let written = gone.write(Command::put(key(&writer.to_string()), Bytes::new(), Expect::Any)).await;
                    longest = longest.max(begun.elapsed());
                    if matches!(written, Err(Error::Removed { .. })) {
                        return longest;
                    }
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        members[0].change(Change::Remove { member: gone.id() }).await.unwrap();
        let longest = futures::future::try_join_all(writers).await.unwrap();
        best = best.min(longest.into_iter().max().unwrap());
        cluster.stop(gone).await;
        members.push(cluster.join(&members[0], Aim::Vote).await);
        settled(&members[0], 3).await;
    }
    // It looks twice in this time whether it still belongs to the cluster, and one round shows it, should the machine
    // stand still in another.
    assert!(best < QUORUM_SILENCE, "in each round a write took {best:?} or longer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_listens_until_it_is_promoted() {
    let (cluster, first) = Cluster::begin().await;
    let listener = cluster.join(&first, Aim::Listen).await;
    first.write(Command::put(key("a"), Bytes::from_static(b"x"), Expect::Any)).await.unwrap();
    eventually("it to hear", async || listener.revision() == first.revision()).await;
    assert!(listener.get(&key("a"), Consistency::Linearizable).await.unwrap().is_some());
    let roles = || async { first.list_members().await.iter().map(|member| member.role).collect::<Vec<_>>() };
    assert_eq!(roles().await, [Role::Leader, Role::Learner]);
    assert_eq!(*listener.standing().borrow(), Standing::Learner);
    listener.change(Change::Promote { member: listener.id() }).await.unwrap();
    assert_eq!(roles().await, [Role::Leader, Role::Voter]);
}

/// However long a member was alone, and whoever comes to listen: it has its quorum, and with it its lead and watches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_alone_goes_on_when_another_one_joins() {
    // A machine that stands still for a second says nothing.
    for _ in 0..10 {
        let (cluster, first) = Cluster::begin().await;
        let alone = Instant::now();
        eventually("no confirmation to be young enough", async || alone.elapsed() > 3 * QUORUM_SILENCE).await;
        let (mut quorum, mut leadership) = (first.quorum(), first.leadership());
        assert!(*quorum.borrow_and_update() && leadership.borrow_and_update().leader);
        let begun = Instant::now();
        let listener = cluster.join(&first, Aim::Listen).await;
        eventually("it to hear", async || *listener.standing().borrow() == Standing::Learner).await;
        let kept = !quorum.has_changed().unwrap() && !leadership.has_changed().unwrap();
        if kept || begun.elapsed() < QUORUM_SILENCE {
            assert!(kept, "the member that was alone has lost its quorum for a moment");
            return;
        }
    }
    panic!("too slow a machine to show anything");
}

/// A machine that got another address is the same member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_can_be_moved() {
    let (_cluster, members) = Cluster::of(3).await;
    let [first, second, third] = &members[..] else { panic!("three members") };
    for (via, moved) in [(second, third), (second, first)] {
        let member = moved.id();
        let (name, address) = (format!("moved-{member}"), format!("elsewhere-{member}"));
        let change = Change::Move { member, name: name.clone(), address: address.clone() };
        assert_eq!(via.change(change).await.unwrap(), member);
        for seen in &members {
            eventually("all to know", async || {
                let listed = seen.members().borrow().clone();
                listed.iter().any(|one| (one.id, &one.name, &one.address) == (member, &name, &address))
            })
            .await;
        }
    }
    let listed = settled(first, 3).await;
    assert!(listed.iter().all(|member| member.role != Role::Learner), "who votes stays as it was: {listed:?}");
    let refused = |change: Change| async { first.change(change).await.unwrap_err().to_string() };
    let to = |member, name: &str| Change::Move { member, name: name.to_owned(), address: "a".to_owned() };
    assert_eq!(refused(to(99, "x")).await, "there is no member 99");
    assert_eq!(refused(to(third.id(), "")).await, "a member needs a name and an address");
    first.write(Command::put(key("a"), Bytes::from_static(b"x"), Expect::Any)).await.unwrap();
    eventually("all to follow", async || members.iter().all(|member| member.revision() == first.revision())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_would_do_harm_are_refused() {
    let (cluster, mut members) = Cluster::of(3).await;
    let third = members.pop().unwrap();
    let [first, second] = &members[..] else { panic!("three members") };
    let denied = |change: Change| async {
        match first.change(change).await {
            Err(Error::Denied(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let join = |name: &str, aim| Change::Join { name: name.to_owned(), address: "a".to_owned(), aim };
    assert_eq!(denied(Change::Remove { member: 99 }).await, "there is no member 99");
    assert_eq!(denied(join("x", Aim::Replace(99))).await, "there is no member 99 to replace");
    assert_eq!(denied(join("m1", Aim::Vote)).await, "member 1 has the name m1; remove it first, or replace it");
    assert_eq!(denied(join("", Aim::Vote)).await, "a member needs a name and an address");
    // A member that was never started cannot vote, and does not keep its name.
    let unused = first.change(join("unused", Aim::Vote)).await.unwrap();
    let why = denied(Change::Promote { member: unused }).await;
    assert_eq!(why, format!("member {unused} has not been heard of; is it running?"));
    let again = first.change(join("unused", Aim::Vote)).await.unwrap();
    assert!(again > unused, "an id is given out once");
    first.change(Change::Remove { member: again }).await.unwrap();

    let gone = third.id();
    cluster.stop(third).await;
    eventually("the loss to be noticed", async || {
        let members = first.list_members().await;
        members.iter().any(|member| member.id == gone && member.reachable == Some(false))
    })
    .await;
    let why = denied(Change::Remove { member: second.id() }).await;
    let expected = format!(
        "without member {} only 1 of 2 voters could be reached, which is no quorum; add or repair one first",
        second.id()
    );
    assert_eq!(why, expected);

    // With its folder lost it must not come back as who it was.
    std::fs::remove_dir_all(cluster.path(gone)).unwrap();
    let refused = RaftStore::open(cluster.options(gone, Begin::Never)).await.err().unwrap().to_string();
    assert!(refused.contains(&format!("is empty, but member {gone} was here before")), "{refused}");
}
