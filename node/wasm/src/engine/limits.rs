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

    /// Takes so much, if it is there.
    fn take(&self, bytes: u64) -> bool {
        let grown = |used: u64| used.checked_add(bytes).filter(|wanted| *wanted <= self.limit);
        self.used.try_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
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

    /// Takes memory, if the node has it; an error says that the container's own limit does not allow it.
    fn take(&self, bytes: u64) -> Result<bool, MemoryExceeded> {
        let limit = self.limit.load(Ordering::Relaxed);
        let is_there = self.node.take(bytes);
        // What the node refuses is never counted: it must not make another instance exceed the container's limit.
        let counted = self.used.try_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            let wanted = used.saturating_add(bytes);
            (wanted <= limit).then_some(if is_there { wanted } else { used })
        });
        let Err(used) = counted else { return Ok(is_there) };
        if is_there {
            self.node.give(bytes);
        }
        self.exceeded.store(true, Ordering::Release);
        self.over.notify_one();
        Err(MemoryExceeded { wanted: used.saturating_add(bytes), limit })
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.node.give(bytes);
    }
}

/// A container asked for more than its own limit.
#[derive(Debug, thiserror::Error)]
#[error("its memory limit is exceeded: {wanted} bytes wanted, {limit} allowed")]
pub(crate) struct MemoryExceeded {
    wanted: u64,
    limit: u64,
}

/// All guests together hold what they may, and whoever asks next is not to blame.
#[derive(Debug, thiserror::Error)]
#[error("the memory that this node has for guests is used up")]
pub(crate) struct NodeMemoryExhausted;

/// One store's part of its container's account, given back when the store is gone.
pub(crate) struct MemoryShare {
    account: Arc<MemoryAccount>,
    held: u64,
    /// What was taken last, in case the growth fails after all.
    last: u64,
    is_starved: bool,
}

impl MemoryShare {
    pub(crate) fn new(account: Arc<MemoryAccount>) -> MemoryShare {
        MemoryShare { account, held: 0, last: 0, is_starved: false }
    }

    /// Whether the node had too little left when it last asked for more.
    pub(crate) fn is_starved(&self) -> bool {
        self.is_starved
    }

    fn grow(&mut self, bytes: u64) -> Result<bool, wasmtime::Error> {
        let taken = self.account.take(bytes).map_err(wasmtime::Error::new)?;
        self.is_starved = !taken;
        if taken {
            self.held += bytes;
            self.last = bytes;
        }
        Ok(taken)
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
    fn the_node_has_a_limit_too_and_nobody_is_to_blame() {
        let node = NodeMemory::new(300);
        let mut hog = MemoryShare::new(MemoryAccount::new(node.clone(), None));
        let account = MemoryAccount::new(node.clone(), Some(250));
        let mut neighbour = MemoryShare::new(account.clone());
        assert!(hog.memory_growing(0, 200, None).unwrap());
        assert!(!neighbour.memory_growing(0, 200, None).unwrap());
        assert!(neighbour.is_starved() && !account.exceeded());
        assert_eq!(account.used(), 0);
        drop(hog);
        assert!(neighbour.memory_growing(0, 200, None).unwrap());
        assert!(neighbour.memory_growing(200, 251, None).is_err());
        assert!(account.exceeded());
        drop(neighbour);
        assert_eq!(node.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_guest_of_a_full_node_sees_its_growth_fail() {
        const PAGE: u64 = 64 * 1024;
        let text = r#"(module (memory 1) (func (export "grow") (result i32) (memory.grow (i32.const 1))))"#;
        let engine = wasmtime::Engine::default();
        let module = wasmtime::Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let account = MemoryAccount::new(NodeMemory::new(PAGE), None);
        let store = || {
            let mut store = wasmtime::Store::new(&engine, MemoryShare::new(account.clone()));
            store.limiter(|share| share);
            store
        };
        let mut first = store();
        let instance = wasmtime::Instance::new(&mut first, &module, &[]).unwrap();
        let grow = instance.get_typed_func::<(), i32>(&mut first, "grow").unwrap();
        assert_eq!(grow.call(&mut first, ()).unwrap(), -1);
        let mut second = store();
        assert!(wasmtime::Instance::new(&mut second, &module, &[]).is_err());
        assert!(second.data().is_starved());
        assert!(!account.exceeded());
        assert_eq!(account.used(), PAGE);
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
