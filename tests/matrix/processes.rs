//! Faults of processes: killed, stopped, restarted.

use tandem_tests::cluster::Daemon;

use crate::rows::{Arena, NOTHING, Row};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "1 the leader is killed",
        inject: |arena| {
            let leader = arena.members.leader();
            arena.members.daemons[leader].kill();
            arena.victims.push(leader);
        },
        writes_go_on: true,
        heal: start_again,
        unnoticed: false,
        short: true,
    },
    Row {
        name: "2 all members are killed at once",
        inject: |arena| {
            arena.members.daemons.iter().for_each(|daemon| daemon.signal("KILL"));
            arena.members.daemons.iter_mut().for_each(Daemon::kill);
            arena.members.daemons.iter_mut().for_each(Daemon::restart);
        },
        writes_go_on: true,
        heal: NOTHING,
        unnoticed: false,
        short: false,
    },
    Row {
        name: "4 the leader is stopped, and goes on later",
        inject: |arena| {
            let leader = arena.members.leader();
            arena.members.daemons[leader].signal("STOP");
            arena.victims.push(leader);
        },
        writes_go_on: true,
        heal: |arena| {
            let stopped = arena.victim();
            arena.members.leader_of(&arena.members.others(stopped));
            arena.members.daemons[stopped].signal("CONT");
        },
        unnoticed: false,
        short: true,
    },
    Row {
        name: "16 all members are restarted in turn",
        inject: |arena| {
            for member in 0..arena.members.daemons.len() {
                arena.members.daemons[member].stop();
                arena.members.daemons[member].start();
                arena.members.await_whole();
            }
        },
        writes_go_on: true,
        heal: NOTHING,
        unnoticed: true,
        short: false,
    },
    Row {
        name: "19 all members are restarted at once, and watches go on",
        inject: |arena| {
            // None of them hands over to one that ends, too.
            let signal = |daemon: &Daemon| daemon.signal("TERM");
            arena.members.daemons.iter().for_each(signal);
            for daemon in &mut arena.members.daemons {
                daemon.stop();
            }
            arena.members.daemons.iter_mut().for_each(Daemon::restart);
        },
        writes_go_on: true,
        heal: NOTHING,
        unnoticed: false,
        short: false,
    },
    Row {
        name: "18 members are down in turn, each for a while",
        inject: |arena| {
            for member in 0..arena.members.daemons.len() {
                arena.members.daemons[member].kill();
                arena.load().await_acknowledged(down_writes(arena));
                arena.members.daemons[member].start();
                arena.members.await_whole();
            }
        },
        writes_go_on: true,
        heal: NOTHING,
        unnoticed: false,
        short: false,
    },
];

/// How long a member stays down, as writes that the others acknowledge meanwhile: 15 seconds of the load, or less.
fn down_writes(arena: &Arena) -> u64 {
    if arena.long { 1_500 } else { 200 }
}

pub(crate) fn start_again(arena: &mut Arena) {
    let victim = arena.victim();
    arena.members.daemons[victim].start();
}
