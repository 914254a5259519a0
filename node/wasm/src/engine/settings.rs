use wasmtime::{Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

/// Instances that live at once, of all containers together.
pub(crate) const INSTANCES: u32 = 2_000;
/// Of these, what one container can have: the others are to find some left.
pub(crate) const INSTANCES_OF_ONE: u32 = INSTANCES / 4;
/// What the pool holds for each instance. A component is several core instances, and a composed one many.
const CORE_INSTANCES_EACH: u32 = 10;
const MEMORIES_EACH: u32 = 2;
const TABLES_EACH: u32 = 5;
/// Calls inside one instance that can be suspended at once.
const STACKS_EACH: u32 = 4;
/// Beyond what can be in use, since a slot is only free again a moment after its instance is gone.
const SPARE: u32 = 200;

/// What of a slot stays resident for its next instance; with PAGEMAP_SCAN only the pages that were written are reset.
const MEMORY_RESIDENT: usize = 1024 * 1024;
const TABLE_RESIDENT: usize = 64 * 1024;
const STACK_RESIDENT: usize = 64 * 1024;

const STACK_BYTES: usize = 1024 * 1024;
const BACKTRACE_FRAMES: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(19);

/// The engine's settings. Both the worker and the child that compiles use these, so that their code fits together.
fn config() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .memory_init_cow(true)
        .max_wasm_stack(STACK_BYTES / 2)
        .async_stack_size(STACK_BYTES)
        .wasm_backtrace_max_frames(Some(BACKTRACE_FRAMES))
        // One compile takes one core: several can be under way, and guests are served meanwhile.
        .parallel_compilation(false);
    // What no released guest toolchain needs for WASI widens only what can be attacked.
    config
        .wasm_threads(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_function_references(false)
        .wasm_gc(false)
        .wasm_exceptions(false)
        .wasm_relaxed_simd(true)
        .relaxed_simd_deterministic(true);
    config
}

fn pool() -> PoolingAllocationConfig {
    let slots = INSTANCES + SPARE;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots * CORE_INSTANCES_EACH)
        .total_memories(slots * MEMORIES_EACH)
        .total_tables(slots * TABLES_EACH)
        .total_stacks(slots * STACKS_EACH)
        .total_gc_heaps(0)
        .max_memories_per_module(MEMORIES_EACH)
        .max_tables_per_module(TABLES_EACH)
        .linear_memory_keep_resident(MEMORY_RESIDENT)
        .table_keep_resident(TABLE_RESIDENT)
        .async_stack_keep_resident(STACK_RESIDENT)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// The engine, and why it has no pool if the machine refuses one.
pub(crate) fn engine() -> Result<(wasmtime::Engine, Option<String>), wasmtime::Error> {
    let mut pooled = config();
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    match wasmtime::Engine::new(&pooled) {
        Ok(engine) => Ok((engine, None)),
        Err(refused) => {
            let mut plain = config();
            plain.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            Ok((wasmtime::Engine::new(&plain)?, Some(format!("{refused:#}"))))
        }
    }
}
