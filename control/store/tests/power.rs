//! Power cuts: what was answered is there afterwards, whatever the disk had in flight.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "the disk of the test sits below SQLite, whose interface is C")]

#[path = "support/power.rs"]
mod power;
mod support;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{key, open};
use tandem_store::{Command, Consistency, Expect, RaftStore, Reply, Storage};
use tokio::task::JoinSet;

/// Without `TANDEM_POWER_CUTS`, which the long tests set.
const CUTS: usize = 30;
const WRITERS: usize = 8;
const ANSWERED_MAX: usize = 120;

type Answered = Arc<Mutex<Vec<(String, u64)>>>;

/// Writes until so many were answered, and for a while on, while the power goes.
async fn write_until(store: &Arc<RaftStore>, cut: usize, answers: usize, answered: &Answered) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, answered) = (store.clone(), answered.clone());
        writers.spawn(async move {
            for count in 0..u64::MAX {
                let name = format!("{cut}-{writer}-{count}");
                let command = Command::put(key(&name), Bytes::from(vec![7; 400]), Expect::Absent);
                let Ok(Reply::Done { revision }) = store.write(command).await else { return };
                answered.lock().push((name, revision.0));
            }
        });
    }
    let begun = answered.lock().len();
    support::eventually("writes to be answered", async || answered.lock().len() >= begun + answers).await;
    writers
}

/// How many of the answered writes are missing after each of so many power cuts, in all.
async fn lost_in(cuts: usize, seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let folders = tempfile::tempdir().unwrap();
    let folder = |cut: usize| folders.path().join(cut.to_string());
    let answered: Answered = Arc::default();
    let mut lost = 0;
    for cut in 0..cuts {
        let store = open(&folder(cut)).await;
        let writers = write_until(&store, cut, random.random_range(1..ANSWERED_MAX), &answered).await;
        // What was answered before the cut is on the disk, or lost.
        let before = answered.lock().clone();
        power::image(&folder(cut), &folder(cut + 1), &mut random);
        drop(writers);
        support::released(store, &folder(cut)).await;
        power::forget(&folder(cut));
        let found = open(&folder(cut + 1)).await;
        let mut there = Vec::new();
        for (name, revision) in before {
            match found.get(&key(&name), Consistency::Any).await.unwrap() {
                Some(stored) if stored.revision.0 == revision => there.push((name, revision)),
                _ => lost += 1,
            }
        }
        *answered.lock() = there;
        let newest = answered.lock().iter().map(|(_, revision)| *revision).max().unwrap_or_default();
        assert!(found.revision().0 >= newest, "the store counts on from what it has");
        support::released(found, &folder(cut + 1)).await;
        std::fs::remove_dir_all(folder(cut)).unwrap();
    }
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_power_cut_takes_an_answered_write() {
    power::install();
    let cuts = std::env::var("TANDEM_POWER_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap());
    assert_eq!(lost_in(cuts, 1).await, 0, "answered writes are gone");
    // The same with a disk that is not synced at each commit: it must lose, or the test could not see a loss.
    power::obey_syncs(false);
    let lost = lost_in(cuts.min(20), 2).await;
    power::obey_syncs(true);
    assert!(lost > 0, "without syncs nothing was lost: the cuts do not cut");
}
