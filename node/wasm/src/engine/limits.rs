use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::Notify;
use wasmtime::ResourceLimiter;

/// Bounds within one instance's store.
const CORE_INSTANCES: usize = 256;
const MEMORIES: usize = 16;
const TABLES: usize = 256;
/// What a table element counts as memory.
const ELEMENT_BYTES: u64 = 16;

/// The part of the machine's memory that guests may hold together. More, and the kernel would end the whole host for
/// one guest's hunger.
const NODE_PERCENT: u64 = 75;

/// The memory that all guests of the node hold together.
pub(crate) struct NodeMemory {
    limit: u64,
    used: AtomicU64,
}

impl NodeMemory {
    pub(crate) fn of_this_machine() -> Arc<NodeMemory> {
        let system = rustix::system::sysinfo();
        let total = u64::from(system.mem_unit.max(1)).saturating_mul(system.totalram);
        NodeMemory::new(total / 100 * NODE_PERCENT)
    }

    pub(crate) fn new(limit: u64) -> Arc<NodeMemory> {
        Arc::new(NodeMemory { limit, used: AtomicU64::new(0) })
    }

    fn take(&self, bytes: u64) -> Result<(), MemoryExceeded> {
        let wanted = self.used.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        if wanted <= self.limit {
            return Ok(());
        }
        self.give(bytes);
        Err(MemoryExceeded { whose: "the node's", wanted, limit: self.limit })
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// The memory that all instances of one container hold together, against the container's limit.
pub(crate) struct MemoryAccount {
    node: Arc<NodeMemory>,
    limit: AtomicU64,
    used: AtomicU64,
    exceeded: AtomicBool,
    over: Notify,
}

impl MemoryAccount {
    pub(crate) fn new(node: Arc<NodeMemory>, limit: Option<u64>) -> Arc<MemoryAccount> {
        Arc::new(MemoryAccount {
            node,
            limit: AtomicU64::new(limit.unwrap_or(u64::MAX)),
            used: AtomicU64::new(0),
            exceeded: AtomicBool::new(false),
            over: Notify::new(),
        })
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
    }

    pub(crate) fn set_limit(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a guest ever asked for more than the limit.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Acquire)
    }

    /// Ends when a guest asks for more than the limit.
    pub(crate) async fn wait_exceeded(&self) {
        while !self.exceeded() {
            self.over.notified().await;
        }
    }

    fn take(&self, bytes: u64) -> Result<(), MemoryExceeded> {
        let limit = self.limit.load(Ordering::Relaxed);
        let wanted = self.used.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        let taken =
            if wanted <= limit { self.node.take(bytes) } else { Err(MemoryExceeded { whose: "its", wanted, limit }) };
        if taken.is_err() {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            self.exceeded.store(true, Ordering::Release);
            self.over.notify_one();
        }
        taken
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.node.give(bytes);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{whose} memory limit is exceeded: {wanted} bytes wanted, {limit} allowed")]
pub(crate) struct MemoryExceeded {
    whose: &'static str,
    wanted: u64,
    limit: u64,
}

/// One store's part of its container's account, given back when the store is gone.
pub(crate) struct MemoryShare {
    account: Arc<MemoryAccount>,
    held: u64,
    /// What was taken last, in case the growth fails after all.
    last: u64,
}

impl MemoryShare {
    pub(crate) fn new(account: Arc<MemoryAccount>) -> MemoryShare {
        MemoryShare { account, held: 0, last: 0 }
    }

    fn grow(&mut self, bytes: u64) -> Result<bool, wasmtime::Error> {
        self.account.take(bytes).map_err(wasmtime::Error::new)?;
        self.held += bytes;
        self.last = bytes;
        Ok(true)
    }

    fn undo(&mut self) {
        self.account.give(self.last);
        self.held -= self.last;
        self.last = 0;
    }
}

impl ResourceLimiter for MemoryShare {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool, wasmtime::Error> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(true);
        }
        self.grow(desired.saturating_sub(current) as u64)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> Result<(), wasmtime::Error> {
        self.undo();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool, wasmtime::Error> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(true);
        }
        self.grow(desired.saturating_sub(current) as u64 * ELEMENT_BYTES)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> Result<(), wasmtime::Error> {
        self.undo();
        Ok(())
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.account.give(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_are_given_back() {
        let account = MemoryAccount::new(NodeMemory::new(1000), Some(300));
        let mut first = MemoryShare::new(account.clone());
        let mut second = MemoryShare::new(account.clone());
        assert!(first.memory_growing(0, 100, None).unwrap());
        assert!(second.memory_growing(0, 200, None).unwrap());
        assert_eq!(account.used(), 300);
        assert!(!account.exceeded());
        let refused = first.memory_growing(100, 101, None).unwrap_err();
        assert_eq!(refused.to_string(), "its memory limit is exceeded: 301 bytes wanted, 300 allowed");
        assert!(account.exceeded());
        drop(second);
        assert_eq!(account.used(), 100);
    }

    #[test]
    fn the_node_has_a_limit_too() {
        let node = NodeMemory::new(300);
        let mut shares = [(); 2].map(|()| MemoryShare::new(MemoryAccount::new(node.clone(), None)));
        assert!(shares[0].memory_growing(0, 200, None).unwrap());
        let refused = shares[1].memory_growing(0, 200, None).unwrap_err();
        assert_eq!(refused.to_string(), "the node's memory limit is exceeded: 400 bytes wanted, 300 allowed");
        let [first, mut second] = shares;
        drop(first);
        assert!(second.memory_growing(0, 200, None).unwrap());
    }

    #[test]
    fn growth_that_fails_costs_nothing() {
        let account = MemoryAccount::new(NodeMemory::new(1000), None);
        let mut share = MemoryShare::new(account.clone());
        assert!(share.memory_growing(0, 100, None).unwrap());
        assert!(share.memory_growing(100, 500, None).unwrap());
        share.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert_eq!(account.used(), 100);
        assert!(share.memory_growing(100, 500, Some(200)).unwrap());
        share.memory_grow_failed(wasmtime::Error::msg("beyond its maximum")).unwrap();
        assert_eq!(account.used(), 100);
    }
}
