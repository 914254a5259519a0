//! openraft's own suite, run against the log and the state machine.

use std::sync::Arc;

use openraft::{StorageError, testing::log::StoreBuilder};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::{
    Metrics, SqliteFiles, SystemDisk,
    disk::{DiskFailure, Folder, Guarded, OnFailure, Owner},
    history::HistoryLimits,
    log::{self, LogStore, Quorum},
    machine::Machine,
    replica::Replica,
    state,
    types::TypeConfig,
};

struct Builder;

fn guarded() -> Guarded {
    let on_failure: OnFailure = Arc::new(|failure: &DiskFailure| panic!("{failure}"));
    Guarded { disk: Arc::new(SystemDisk), on_failure, metrics: Metrics::default(), latencies: Arc::default() }
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::hold(dir.path(), Arc::new(SqliteFiles), Arc::new(SystemDisk)).unwrap();
        let owner = Owner { cluster: "suite".to_owned(), node: 0 };
        let limits = HistoryLimits::default();
        let quorum = Arc::new(Quorum::new(owner.node));
        let opened = state::open(&folder, &owner, guarded(), limits).await.unwrap();
        let (log, _) = log::open(&folder, &owner, guarded(), quorum.clone(), None).await.unwrap();
        let machine = Machine {
            replica: Arc::new(Replica::new(opened.index, Metrics::default())),
            state: opened.file,
            folder,
            owner,
            guarded: guarded(),
            limits,
            quorum,
            row: Arc::new(Mutex::new(opened.row)),
            leadership: Arc::default(),
        };
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_state_machine_pass_the_suite_of_openraft() {
    openraft::testing::log::Suite::test_all(Builder).await.unwrap();
}
