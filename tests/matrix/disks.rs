//! Faults of disks: slow, full, damaged, gone; and processes that end in the middle of a write.
//!
//! `strace` holds or ends a process in its system calls; a full disk is a small file system in memory.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use http::Method;
use tandem_tests::{
    cluster::{Daemon, folder},
    until,
};
use tempfile::TempDir;

use crate::{
    DEADLINE,
    rows::{Arena, NOTHING, Row},
};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "3 members end within what makes a write durable",
        inject: |arena| {
            for (call, number) in KILLS {
                for leads in [true, false] {
                    let member = if leads { arena.members.leader() } else { arena.members.follower() };
                    let daemon = &arena.members.daemons[member];
                    let mut tracer = trace(daemon, call, &format!("signal=KILL:when={number}"));
                    await_end(&mut tracer);
                    arena.members.daemons[member].kill();
                    arena.await_progress();
                    arena.members.daemons[member].start();
                    arena.members.await_whole();
                }
            }
        },
        ..ROW
    },
    Row {
        name: "8 every sync of a follower takes half a second",
        inject: |arena| slow_down(arena, arena.members.follower()),
        heal: let_go,
        ..ROW
    },
    Row {
        name: "8 every sync of the leader takes half a second",
        inject: |arena| slow_down(arena, arena.members.leader()),
        heal: let_go,
        ..ROW
    },
    Row {
        name: "10 a page of a follower is damaged",
        inject: |arena| damage(arena, arena.members.follower(), "state.sqlite"),
        heal: come_back_anew,
        ..ROW
    },
    Row {
        name: "10 the log of the leader is damaged",
        inject: |arena| damage(arena, arena.members.leader(), "log.sqlite"),
        heal: come_back_anew,
        ..ROW
    },
    Row {
        name: "10 the folder of the leader is gone",
        inject: |arena| {
            let leader = arena.members.leader();
            arena.members.daemons[leader].kill();
            let gone = arena.members.id_of(leader);
            arena.members.daemons.remove(leader);
            let joined = arena.members.join(folder(), &["--replace", &gone.to_string()]);
            arena.members.daemons.push(joined);
        },
        ..ROW
    },
];

/// On members whose folders are small file systems.
pub(crate) const SMALL_ROWS: &[Row] = &[
    Row {
        name: "9 the disk of a follower is full at once",
        inject: |arena| {
            let follower = arena.members.follower();
            fill(arena, &[follower], 0);
            // It gives up its reserve, or ends where a write came first; whoever watches over it starts it again.
            let reserve = Path::new(&arena.members.daemons[follower].data_dir()).join("store/reserve");
            until("the full disk is noticed", DEADLINE, || {
                let daemon = &mut arena.members.daemons[follower];
                if !daemon.is_running() {
                    daemon.restart();
                }
                if reserve.exists() { Err("the reserve is there") } else { Ok(()) }
            });
        },
        ..FULL
    },
    Row {
        name: "9 the disk of the leader is full",
        inject: |arena| {
            let leader = arena.members.leader();
            fill(arena, &[leader], LEFT_MEGABYTES);
            until("another member leads", DEADLINE, || match arena.members.leader() {
                still if still == leader => Err("the full member leads"),
                _ => Ok(()),
            });
        },
        short: true,
        ..FULL
    },
    Row {
        name: "9 the disks of all are full",
        inject: |arena| {
            fill(arena, &(0..arena.members.daemons.len()).collect::<Vec<_>>(), LEFT_MEGABYTES);
            let wanted = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"too-much-"}}"#;
            let create =
                |arena: &Arena| arena.members.request(0, Method::POST, "/api/v1/namespaces/default/configmaps", wanted);
            until("a full disk is told", DEADLINE, || match create(arena) {
                Ok((503, body)) if String::from_utf8_lossy(&body).contains("disk is full") => Ok(()),
                other => Err(format!("{other:?}")),
            });
            let gone =
                arena.members.request(0, Method::DELETE, "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", "");
            assert!(matches!(gone, Ok((200 | 404, _))), "{gone:?}");
        },
        writes_go_on: false,
        ..FULL
    },
];

const ROW: Row = Row { name: "", inject: |_| (), writes_go_on: true, heal: NOTHING, unnoticed: false, short: false };
const FULL: Row = Row { heal: empty, ..ROW };

/// System calls in which a member is killed, and in which one of a row.
const KILLS: &[(&str, u32)] = &[("fdatasync,fsync", 1), ("fdatasync,fsync", 8), ("pwrite64", 50)];
const PAGE_BYTES: u64 = 4096;
const DAMAGE_EACH_BYTES: usize = 500;
const FILLER: &str = "filler";
/// Less than half of the reserve: full, as members count.
const LEFT_MEGABYTES: u64 = 16;
/// Twice the reserve and what a member stores.
const SMALL_MEGABYTES: u32 = 288;

/// Attaches to a member, and does something to it in its system calls.
fn trace(daemon: &Daemon, call: &str, what: &str) -> Child {
    let pid = daemon.pid().expect("the member runs").to_string();
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-q",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={call}"),
        "-e",
        &format!("inject={call}:{what}"),
    ]);
    command.args(["-p", &pid]).stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("strace is installed: run `scripts/setup long`")
}

fn await_end(child: &mut Child) {
    until("strace ends", DEADLINE, || match child.try_wait() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn slow_down(arena: &mut Arena, member: usize) {
    let tracer = trace(&arena.members.daemons[member], "fdatasync,fsync", "delay_enter=500000");
    arena.helpers.push(tracer);
    arena.await_progress();
}

fn let_go(arena: &mut Arena) {
    for mut tracer in arena.helpers.drain(..) {
        let told = Command::new("kill").args(["-INT", &tracer.id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()), "strace has ended by itself");
        await_end(&mut tracer);
    }
}

/// Stops a member, so that its files are complete, and changes bits all over one of them, but for the first page.
fn damage(arena: &mut Arena, member: usize, file: &str) {
    arena.members.daemons[member].stop();
    let path = Path::new(&arena.members.daemons[member].data_dir()).join("store").join(file);
    let opened = OpenOptions::new().read(true).write(true).open(&path).expect("the file is there");
    let bytes = opened.metadata().expect("its size").len();
    for at in (PAGE_BYTES..bytes).step_by(DAMAGE_EACH_BYTES) {
        let mut byte = [0];
        opened.read_exact_at(&mut byte, at).expect("a byte");
        opened.write_all_at(&[byte[0] ^ 0x10], at).expect("a byte");
    }
    arena.victims.push(member);
}

/// A damaged member comes back by itself, with another id.
fn come_back_anew(arena: &mut Arena) {
    let damaged = arena.victim();
    let before = arena.members.id_of(damaged);
    arena.members.daemons[damaged].start();
    arena.members.await_whole();
    assert_ne!(arena.members.id_of(damaged), before, "a damaged member must not vote as who it was");
}

/// Fills the disks of members, but for so much.
fn fill(arena: &mut Arena, members: &[usize], left_megabytes: u64) {
    for member in members.iter().copied() {
        let folder = arena.members.daemons[member].data_dir();
        let found = rustix::fs::statvfs(folder.as_str()).expect("a file system");
        let bytes = (found.f_bavail * found.f_frsize).saturating_sub(left_megabytes << 20);
        let file = std::fs::File::create(Path::new(&folder).join(FILLER)).expect("a file");
        // Others write meanwhile: the last bytes may be theirs.
        let _full = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .or_else(|_| rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes - (1 << 20)));
    }
}

fn empty(arena: &mut Arena) {
    for daemon in &mut arena.members.daemons {
        // Not all of them are full.
        let _none = std::fs::remove_file(Path::new(&daemon.data_dir()).join(FILLER));
        if !daemon.is_running() {
            daemon.restart();
        }
    }
    arena.await_progress();
}

/// File systems in memory; unmounted when they are dropped.
#[derive(Default)]
pub(crate) struct SmallDisks(Vec<PathBuf>);

impl SmallDisks {
    pub(crate) fn folder(&mut self) -> TempDir {
        let folder = folder();
        let size = format!("size={SMALL_MEGABYTES}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounting needs root");
        self.0.push(folder.path().to_owned());
        folder
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for path in &self.0 {
            let unmounted = Command::new("umount").arg("-l").arg(path).status();
            // Its owner could empty it, and not remove it.
            let removed = std::fs::remove_dir(path);
            if !std::thread::panicking() {
                assert!(unmounted.is_ok_and(|status| status.success()) && removed.is_ok(), "{}", path.display());
            }
        }
    }
}
