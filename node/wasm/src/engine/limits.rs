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

/// The memory that all instances of one container hold together, against the container's limit.
pub(crate) struct MemoryAccount {
    limit: AtomicU64,
    used: AtomicU64,
    exceeded: AtomicBool,
    over: Notify,
}

impl MemoryAccount {
    pub(crate) fn new(limit: Option<u64>) -> Arc<MemoryAccount> {
        Arc::new(MemoryAccount {
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
        let before = self.used.fetch_add(bytes, Ordering::AcqRel);
        if before.saturating_add(bytes) <= limit {
            return Ok(());
        }
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.exceeded.store(true, Ordering::Release);
        self.over.notify_one();
        Err(MemoryExceeded { wanted: before.saturating_add(bytes), limit })
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("memory limit exceeded: {wanted} bytes wanted, {limit} allowed")]
pub(crate) struct MemoryExceeded {
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
        let account = MemoryAccount::new(Some(300));
        let mut first = MemoryShare::new(account.clone());
        let mut second = MemoryShare::new(account.clone());
        assert!(first.memory_growing(0, 100, None).unwrap());
        assert!(second.memory_growing(0, 200, None).unwrap());
        assert_eq!(account.used(), 300);
        assert!(!account.exceeded());
        let refused = first.memory_growing(100, 101, None).unwrap_err();
        assert_eq!(refused.to_string(), "memory limit exceeded: 301 bytes wanted, 300 allowed");
        assert!(account.exceeded());
        drop(second);
        assert_eq!(account.used(), 100);
    }

    #[test]
    fn growth_that_fails_costs_nothing() {
        let account = MemoryAccount::new(None);
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
