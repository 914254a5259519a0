//! Changes of who belongs to the cluster, while it works and while something is wrong.

use tandem_tests::cluster::folder;

use crate::rows::{Arena, NOTHING, Row};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "23 each member is replaced in turn",
        inject: |arena| {
            for _ in 0..arena.members.daemons.len() {
                replace_first(arena);
            }
        },
        ..ROW
    },
    Row {
        name: "23 a member joins while another is cut off",
        inject: |arena| {
            let follower = arena.members.follower();
            for other in arena.members.others(follower) {
                arena.members.cut(other, follower);
                arena.members.cut(follower, other);
            }
            // It joins through the first that runs, which must be one that reaches the others.
            let count = arena.members.daemons.len();
            arena.members.daemons.rotate_left((follower + 1) % count);
            let joined = arena.members.join(folder(), &[]);
            arena.members.daemons.push(joined);
        },
        heal: |arena| {
            arena.members.mend();
            arena.members.await_whole();
            remove(arena, arena.members.daemons.len() - 1);
        },
        ..ROW
    },
    Row {
        name: "23 the leader is removed",
        inject: |arena| {
            let joined = arena.members.join(folder(), &[]);
            arena.members.daemons.push(joined);
            arena.members.await_whole();
            remove(arena, arena.members.leader());
        },
        ..ROW
    },
];

const ROW: Row = Row { name: "", inject: |_| (), writes_go_on: true, heal: NOTHING, unnoticed: false, short: false };

/// The machine of the first member is gone for good; another one takes its place.
fn replace_first(arena: &mut Arena) {
    let gone = arena.members.id_of(0);
    arena.members.daemons[0].kill();
    let joined = arena.members.join(folder(), &["--replace", &gone.to_string()]);
    arena.members.daemons.push(joined);
    arena.members.daemons.remove(0);
    arena.members.await_whole();
    arena.load().serve_from(arena.members.addresses());
    arena.await_progress();
}

fn remove(arena: &mut Arena, member: usize) {
    let id = arena.members.id_of(member).to_string();
    let through = &arena.members.daemons[(member + 1) % arena.members.daemons.len()];
    let removed = through.tandem(&["member", "remove", &id, "--data-dir", &through.data_dir()]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    arena.members.daemons.remove(member);
    arena.load().serve_from(arena.members.addresses());
}
