//! Clocks that jump: of one member at a time, by a library that is put before the C library (`faketime`). The clock by
//! which processes wait goes on as it did.

use std::path::PathBuf;

use crate::rows::{Arena, Row};

pub(crate) const ROWS: &[Row] = &[
    Row { name: "11 the leader's clock jumps ahead by an hour", inject: |arena| jump(arena, true, &["+3600s"]), ..ROW },
    Row { name: "11 the leader's clock jumps back by an hour", inject: |arena| jump(arena, true, &["-3600s"]), ..ROW },
    Row { name: "11 the leader's clock jumps ahead by ten years", inject: |arena| jump(arena, true, &[AHEAD]), ..ROW },
    Row { name: "11 the leader's clock jumps back by ten years", inject: |arena| jump(arena, true, &[BACK]), ..ROW },
    Row {
        name: "11 a follower's clock jumps by ten years, ahead and back",
        inject: |arena| jump(arena, false, &[AHEAD, BACK]),
        ..ROW
    },
    Row {
        name: "11 a follower's clock jumps ahead and back again and again",
        inject: |arena| jump(arena, false, &["+3600s", "-3600s", "+3600s", "-3600s"]),
        ..ROW
    },
];

const ROW: Row = Row { name: "", inject: |_| (), writes_go_on: true, heal: set_right, unnoticed: false, short: false };

/// Ten years: no certificate is valid then.
const AHEAD: &str = "+315360000s";
const BACK: &str = "-315360000s";

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn file(arena: &Arena, member: usize) -> PathBuf {
    PathBuf::from(arena.members.daemons[member].data_dir()).with_extension("clock")
}

/// Restarts a member with a clock of its own, which is right at first, and then jumps under load.
fn jump(arena: &mut Arena, leads: bool, jumps: &[&str]) {
    let member = if leads { arena.members.leader() } else { arena.members.follower() };
    let file = file(arena, member);
    std::fs::write(&file, "+0\n").expect("a file");
    let path = file.display().to_string();
    assert!(std::path::Path::new(LIBRARY).exists(), "{LIBRARY} is not there: run `scripts/setup long`");
    arena.members.daemons[member].stop();
    arena.members.daemons[member].environment = vec![
        ("LD_PRELOAD", LIBRARY.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", path),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    arena.members.daemons[member].start();
    arena.members.await_whole();
    // It handed over when it was stopped.
    while leads && arena.members.leader() != member {
        let other = arena.members.leader();
        arena.members.daemons[other].stop();
        arena.members.daemons[other].start();
        arena.members.await_whole();
    }
    arena.victims.push(member);
    for by in jumps {
        std::fs::write(&file, format!("{by}\n")).expect("a file");
        arena.await_progress();
    }
}

fn set_right(arena: &mut Arena) {
    let member = arena.victim();
    std::fs::write(file(arena, member), "+0\n").expect("a file");
    arena.await_progress();
    arena.members.daemons[member].stop();
    arena.members.daemons[member].environment.clear();
    arena.members.daemons[member].start();
    std::fs::remove_file(file(arena, member)).expect("the file was there");
}
