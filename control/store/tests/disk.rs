//! Trouble with the disk: damaged files, and no room.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs::OpenOptions as FileOptions,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command as Process,
    sync::Arc,
};

use bytes::Bytes;
use support::{
    cluster::{Cluster, settled},
    eventually, key, options,
};
use tandem_api::{Key, Revision};
use tandem_store::{
    Aim, Begin, Command, Consistency, Error, Expect, OpenOptions, QUARANTINES_MAX, RaftStore, Reply, Space, Storage,
    quarantine,
};

async fn put(store: &Arc<RaftStore>, name: &str, bytes: usize) -> Result<Revision, Error> {
    let reply = store.write(Command::put(key(name), Bytes::from(vec![7; bytes]), Expect::Any)).await?;
    let Reply::Done { revision } = reply else { panic!("{reply:?}") };
    Ok(revision)
}

fn flip(file: &Path, at: u64) {
    let mut file = FileOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

/// Where `what` lies in a file.
fn place_of(file: &Path, what: &[u8]) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    bytes.windows(what.len()).rposition(|window| window == what).unwrap() as u64
}

/// Every bit that is flipped in something of value is found when the file is opened, or does not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_wherever_it_is() {
    let dir = support::memory_dir();
    let store = support::open(dir.path()).await;
    for count in 0..40 {
        put(&store, &format!("object-{count}"), 300).await.unwrap();
    }
    store.shutdown().await.unwrap();
    support::released(store, dir.path()).await;
    for file in ["log.sqlite", "state.sqlite"] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut found = 0;
        for at in (0..whole.len() as u64).step_by(whole.len() / 60) {
            std::fs::write(&path, &whole).unwrap();
            flip(&path, at);
            match RaftStore::open(options(dir.path())).await {
                Err(Error::Damaged { .. }) => found += 1,
                Err(Error::Data { .. }) => (),
                Err(error) => panic!("{file} at {at}: {error}"),
                Ok(store) => {
                    let page = store.list(&Key::from_raw("/"), Consistency::Any, None, 0).await.unwrap();
                    assert!(page.items.iter().all(|stored| stored.value == vec![7; 300]), "{file} at {at}");
                    assert_eq!((page.items.len(), page.revision), (40, Revision(40)), "{file} at {at}");
                    store.shutdown().await.unwrap();
                    support::released(store, dir.path()).await;
                }
            }
        }
        assert!(found > 10, "{file}: found {found} only");
        std::fs::write(&path, &whole).unwrap();
    }
    for (file, what) in [("log.sqlite", &b"\"term\":"[..]), ("state.sqlite", &b"\"revision\":"[..])] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        flip(&path, place_of(&path, what) + what.len() as u64);
        let refused = RaftStore::open(options(dir.path())).await.err().unwrap();
        assert!(matches!(refused, Error::Damaged { .. }), "a vote or a position that is not what was saved: {refused}");
        std::fs::write(&path, &whole).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_member_comes_back_as_a_new_one() {
    let (cluster, mut members) = Cluster::of(3).await;
    for count in 0..20 {
        put(&members[0], &format!("damage-{count}"), 100).await.unwrap();
    }
    let damaged = members.pop().unwrap();
    let id = damaged.id();
    cluster.stop(damaged).await;
    let dir = cluster.path(id);
    let log = dir.join("log.sqlite");
    flip(&log, place_of(&log, b"damage-7"));
    let refused = RaftStore::open(cluster.options(id, Begin::Never)).await.err().unwrap();
    assert!(matches!(&refused, Error::Damaged { .. }), "{refused}");

    let aside = quarantine(&dir, jiff::Timestamp::UNIX_EPOCH).unwrap();
    assert!(aside.starts_with(&dir) && aside.join("log.sqlite").exists() && aside.join("state.sqlite").exists());
    let refused = RaftStore::open(cluster.options(id, Begin::Never)).await.err().unwrap();
    assert!(refused.to_string().contains("must not vote again as who it was"), "{refused}");
    let new = cluster.join(&members[0], Aim::Replace(id)).await;
    settled(&members[0], 3).await;
    assert!(new.id() > id);
    eventually("it to have everything", async || new.revision() == members[0].revision()).await;

    for count in 1..QUARANTINES_MAX {
        quarantine(&dir, jiff::Timestamp::from_second(count as i64).unwrap()).unwrap();
    }
    let refused = quarantine(&dir, jiff::Timestamp::from_second(99).unwrap()).err().unwrap();
    assert!(refused.to_string().contains("holds 3 sets of damaged files"), "{refused}");
}

/// A small file system of its own, in memory.
struct Small(PathBuf, #[expect(dead_code, reason = "removed when it is dropped")] tempfile::TempDir);

impl Small {
    fn mount(megabytes: u64) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Process::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status().unwrap();
        assert!(mounted.success(), "mounting needs root");
        Small(path, dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Process::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_things_can_be_deleted_and_writing_resumes() {
    let small = Small::mount(48);
    let dir = small.0.join("store");
    let options = || OpenOptions { reserve_bytes: 8 << 20, ..options(&dir) };
    let store = RaftStore::open(options()).await.unwrap();
    put(&store, "kept", 100).await.unwrap();
    assert_eq!(*store.space().borrow(), Space::Enough);

    // Somebody else fills the disk.
    let filling = small.0.join("filling");
    let fill = || {
        let mut file = std::fs::File::create(&filling).unwrap();
        while file.write_all(&[1; 65536]).is_ok() {}
    };
    fill();
    eventually("it to be noticed", async || *store.space().borrow() != Space::Enough).await;
    eventually("the reserve to be given up", async || !dir.join("reserve").exists()).await;
    let refused = put(&store, "more", 5000).await;
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    store.write(Command::delete(key("absent"), Expect::Any)).await.unwrap();
    store.write(Command::compact(Revision(1))).await.unwrap();
    put(&store, "kept", 90).await.unwrap();
    assert!(store.get(&key("kept"), Consistency::Linearizable).await.unwrap().is_some());

    // Started on a full disk, it reads and deletes.
    store.shutdown().await.unwrap();
    support::released(store, &dir).await;
    let store = RaftStore::open(options()).await.unwrap();
    assert!(store.get(&key("kept"), Consistency::Linearizable).await.unwrap().is_some());
    assert!(matches!(put(&store, "more", 5000).await, Err(Error::Full)));
    store.write(Command::delete(key("kept"), Expect::Any)).await.unwrap();

    std::fs::remove_file(&filling).unwrap();
    eventually("writing to resume", async || put(&store, "more", 5000).await.is_ok()).await;
    eventually("the reserve to be there again", async || dir.join("reserve").exists()).await;
    store.shutdown().await.unwrap();
    support::released(store, &dir).await;
}
