//! A small history in which all is well, and what each way of spoiling it breaks.

use super::check;
use crate::history::{
    Change, Delivered, Final, Freshness, History, Item, Outcome, Read, Reign, Seen, Text, Watch, Write,
};

fn write(moments: (u64, u64), key: &str, value: Option<&str>, outcome: Outcome) -> Write {
    let changes = vec![(key.into(), value.map(Text::from))];
    Write { begun: moments.0, ended: moments.1, changes, outcome, work: None }
}

fn item(key: &str, revision: u64, value: &str) -> Item {
    Item { key: key.into(), revision, value: value.into() }
}

fn read(moments: (u64, u64), asked: Freshness, seen: Seen) -> Read {
    Read { member: 1, begun: moments.0, ended: moments.1, asked, seen }
}

fn event(revision: u64, key: &str, value: Option<&str>, previous: Option<u64>) -> Delivered {
    Delivered::Change(Change { revision, key: key.into(), value: value.map(Text::from), previous })
}

/// Two keys; one is deleted. The work of two leaders. One write without an answer that happened.
fn well() -> History {
    let work = |moments, value, revision, member, term| Write {
        work: Some((member, term)),
        ..write(moments, "/work", Some(value), Outcome::Done(revision))
    };
    let events = || {
        vec![
            event(1, "/a", Some("a1"), None),
            event(2, "/b", Some("b1"), None),
            event(3, "/a", Some("a2"), Some(1)),
            event(4, "/work", Some("w1"), None),
            event(5, "/b", None, Some(2)),
            event(6, "/work", Some("w2"), Some(4)),
            Delivered::Progress(6),
        ]
    };
    let items = vec![item("/a", 3, "a2"), item("/work", 6, "w2")];
    let last = |member| Final { member, revision: 6, items: items.clone(), hashes: vec![(8, 76), (9, 77)] };
    History {
        writes: vec![
            write((1, 2), "/a", Some("a1"), Outcome::Done(1)),
            write((3, 4), "/b", Some("b1"), Outcome::Done(2)),
            write((5, u64::MAX), "/a", Some("a2"), Outcome::Unknown),
            work((6, 7), "w1", 4, 1, 2),
            write((8, 9), "/b", None, Outcome::Done(5)),
            write((8, 9), "/b", Some("b2"), Outcome::Refused),
            work((10, 11), "w2", 6, 2, 3),
        ],
        reads: vec![
            read((8, 12), Freshness::Linearizable, Seen::Key { key: "/a".into(), found: Some(item("/a", 3, "a2")) }),
            read((10, 12), Freshness::Linearizable, Seen::Key { key: "/b".into(), found: None }),
            read((10, 12), Freshness::Exactly(2), Seen::Key { key: "/a".into(), found: Some(item("/a", 1, "a1")) }),
            read(
                (12, 13),
                Freshness::Linearizable,
                Seen::List { prefix: "/".into(), revision: 6, items: items.clone() },
            ),
        ],
        watches: [1, 2].map(|member| Watch { member, prefix: "".into(), after: 0, delivered: events() }).into(),
        reigns: vec![Reign { member: 1, term: 2 }, Reign { member: 2, term: 3 }],
        finals: vec![last(1), last(2)],
        beside_others: false,
    }
}

#[test]
fn a_history_in_which_all_is_well_passes() {
    assert_eq!(check(&well()), []);
}

/// Where others write as well, their revisions are missing, and nothing else may be.
#[test]
fn revisions_of_others_are_no_gaps() {
    let mut history = History { beside_others: true, ..well() };
    let work = |change: &Delivered| matches!(change, Delivered::Change(change) if &*change.key == "/work");
    for watch in &mut history.watches {
        watch.delivered.retain(|delivered| !work(delivered));
    }
    history.writes.retain(|write| write.work.is_none());
    history.reads.pop();
    history.finals.clear();
    assert_eq!(check(&history), []);
    history.watches.iter_mut().for_each(|watch| drop(watch.delivered.remove(1)));
    assert!(!check(&history).is_empty());
}

type Spoil = fn(&mut History);

#[test]
fn what_is_spoiled_is_found() {
    let cases: &[(&str, &str, Spoil)] = &[
        ("a lost write", "no acknowledged write is lost", |history| {
            history.writes.push(write((13, 14), "/c", Some("c1"), Outcome::Done(7)));
        }),
        ("a write at another place", "no acknowledged write is lost", |history| {
            history.writes[0].outcome = Outcome::Done(2);
        }),
        ("a revision used twice", "revisions are unique and ordered", |history| {
            history.watches[1].delivered[0] = event(1, "/a", Some("b1"), None);
        }),
        ("a gap between revisions", "revisions are unique and ordered", |history| {
            history.watches.iter_mut().for_each(|watch| drop(watch.delivered.remove(3)));
        }),
        ("a refused write that happened", "revisions are unique and ordered", |history| {
            history.writes[2].outcome = Outcome::Refused;
        }),
        ("a value from nowhere", "revisions are unique and ordered", |history| {
            history.writes.remove(2);
        }),
        ("a write that began after a newer revision was told", "revisions are unique and ordered", |history| {
            (history.writes[2].begun, history.writes[2].ended) = (12, 13);
        }),
        ("a stale read", "reads are linearizable", |history| {
            history.reads[0].seen = Seen::Key { key: "/a".into(), found: Some(item("/a", 1, "a1")) };
        }),
        ("a read that misses a key", "reads are linearizable", |history| {
            history.reads[0].seen = Seen::Key { key: "/a".into(), found: None };
        }),
        ("a list that is too old", "reads are linearizable", |history| {
            let seen = Seen::List { prefix: "/".into(), revision: 1, items: vec![item("/a", 1, "a1")] };
            history.reads[3].seen = seen;
        }),
        ("a list without an item", "reads are linearizable", |history| {
            let Seen::List { items, .. } = &mut history.reads[3].seen else { return };
            items.pop();
        }),
        ("a missed event", "watches are complete and in order", |history| {
            history.watches[1].delivered.remove(1);
        }),
        ("an event at the end that is missed", "watches are complete and in order", |history| {
            history.watches[1].delivered.remove(5);
        }),
        ("an event that came twice", "watches are complete and in order", |history| {
            let again = history.watches[1].delivered[1].clone();
            history.watches[1].delivered.insert(2, again);
        }),
        ("events in another order", "watches are complete and in order", |history| {
            history.watches[1].delivered.swap(1, 2);
        }),
        ("a wrong word on what was before", "watches are complete and in order", |history| {
            history.watches[1].delivered[2] = event(3, "/a", Some("a2"), None);
        }),
        ("two leaders in a term", "one leader works in a term", |history| {
            history.reigns.push(Reign { member: 3, term: 3 });
        }),
        ("work of an old leader", "one leader works in a term", |history| {
            history.writes[6].work = Some((1, 1));
        }),
        ("a member with another state", "all members hold the same state", |history| {
            history.finals[1].items.pop();
        }),
        ("a member with another hash", "all members hold the same state", |history| {
            history.finals[1].hashes[0] = (8, 78);
        }),
    ];
    for (case, invariant, spoil) in cases {
        let mut history = well();
        spoil(&mut history);
        let broken: Vec<&str> = check(&history).iter().map(|violation| violation.invariant).collect();
        assert!(broken.contains(invariant), "{case}: only {broken:?}");
    }
}
