//! The host by itself, as the program that tests start.

use std::process::ExitCode;

/// As in the program that carries the host.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The first word is `wasm-host`, as in the program that carries the host.
    tandem_wasm::host_main(std::env::args_os().skip(2))
}
