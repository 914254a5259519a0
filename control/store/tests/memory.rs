//! The memory store keeps every promise of a store.

use std::sync::Arc;

use tandem_store::{MemoryStore, Storage, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    conformance::run(conformance::Place::Leader, || async { Arc::new(MemoryStore::new()) as Arc<dyn Storage> }).await;
}
