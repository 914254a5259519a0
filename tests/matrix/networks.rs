//! Faults of the network between members. Clients reach all of them all the time.

use tandem_tests::until;

use crate::{
    DEADLINE,
    delays::Relays,
    rows::{Arena, Row},
};

const LATE_WRITES: u64 = 100;

pub(crate) const ROWS: &[Row] = &[
    Row { name: "5 the leader is cut off", inject: cut_off_leader, short: true, ..ROW },
    Row { name: "5 a follower is cut off", inject: |arena| isolate(arena, arena.members.follower()), ..ROW },
    Row {
        name: "6 the leader is heard and hears nobody",
        inject: |arena| {
            let leader = arena.members.leader();
            arena.members.others(leader).into_iter().for_each(|other| arena.members.cut(other, leader));
        },
        ..ROW
    },
    Row {
        name: "6 a follower is heard and hears nobody",
        inject: |arena| {
            let follower = arena.members.follower();
            arena.members.others(follower).into_iter().for_each(|other| arena.members.cut(other, follower));
        },
        ..ROW
    },
    Row {
        name: "6 the leader and one follower do not reach each other",
        inject: |arena| {
            let (leader, follower) = (arena.members.leader(), arena.members.follower());
            arena.members.cut(leader, follower);
            arena.members.cut(follower, leader);
        },
        ..ROW
    },
    Row {
        name: "7 a tenth of all packets between members is lost",
        inject: |arena| {
            for member in 0..arena.members.daemons.len() {
                for other in arena.members.others(member) {
                    let from = arena.members.daemons[other].machine.address;
                    arena.members.filter(member, &format!("ip saddr {from} numgen random mod 100 < 10 drop"));
                }
            }
        },
        ..ROW
    },
    Row {
        name: "7 every answer between members is late by 50 to 150 ms",
        inject: |arena| {
            arena.relays = Some(Relays::between(&arena.members));
            arena.members.leader();
            arena.load().await_acknowledged(LATE_WRITES);
            let before = arena.members.term();
            arena.load().await_acknowledged(LATE_WRITES);
            let after = arena.members.term();
            assert!(
                after <= before + 1,
                "members that hear each other elect again and again: terms {before} to {after}"
            );
        },
        // They did: each of them waits for two answers at least.
        writes_go_on: false,
        heal: |arena| {
            arena.members.mend();
            arena.relays = None;
        },
        ..ROW
    },
    Row {
        name: "7 the links of the leader come and go",
        inject: |arena| {
            for _ in 0..if arena.long { 10 } else { 3 } {
                let leader = arena.members.leader();
                isolate(arena, leader);
                arena.await_progress();
                arena.members.mend();
                arena.members.await_whole();
            }
        },
        ..ROW
    },
];

const ROW: Row = Row {
    name: "",
    inject: |_| (),
    writes_go_on: true,
    heal: |arena| arena.members.mend(),
    unnoticed: false,
    short: false,
};

/// Neither the others hear a member, nor it them.
fn isolate(arena: &Arena, member: usize) {
    for other in arena.members.others(member) {
        arena.members.cut(other, member);
        arena.members.cut(member, other);
    }
}

fn cut_off_leader(arena: &mut Arena) {
    let leader = arena.members.leader();
    isolate(arena, leader);
    until("the member that is cut off refuses", DEADLINE, || match arena.members.ask(leader, "/api/v1/namespaces") {
        Ok((503, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Where there are many, the smaller part is more than one member.
    if arena.members.daemons.len() > 3 {
        let next = arena.members.leader_of(&arena.members.others(leader));
        isolate(arena, next);
    }
}
