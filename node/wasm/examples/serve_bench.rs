//! Serves one component file, for comparisons with other servers: `serve_bench FILE 127.0.0.1:8080 [THREADS]`.

use std::{error::Error, path::PathBuf};

/// As in the program that carries the host.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let file = arguments.next().map(PathBuf::from).ok_or("which file?")?;
    let address = arguments.next().and_then(|text| text.into_string().ok()).ok_or("on which address?")?;
    let threads = match arguments.next() {
        Some(text) => text.into_string().map_err(|_| "how many threads?")?.parse()?,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    tandem_wasm::serve_component(&file, address.parse()?, threads)
}
