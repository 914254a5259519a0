//! Compiles the pause program for the target, without a C library.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=pause/pause.c");
    println!("cargo::rerun-if-env-changed=CC");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let Some(folder) = env::var_os("OUT_DIR") else { panic!("cargo gives no OUT_DIR") };
    let program = PathBuf::from(folder).join("pause");
    // Only x86 has this, and there it would add a section that nothing needs.
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let status = Command::new(&compiler)
        .args(["-Os", "-Wall", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"])
        .args(["-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,noexecstack"])
        .args(x86.then_some("-fcf-protection=none"))
        .args(["-s", "-o"])
        .arg(&program)
        .arg("pause/pause.c")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{compiler} could not compile pause/pause.c: {status}"),
        Err(error) => panic!("{compiler} is needed to compile pause/pause.c (install a C compiler): {error}"),
    }
}
