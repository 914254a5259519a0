//! What the end-to-end tests share: machines in network namespaces of their own, clusters on them, kubectl sessions.
//!
//! ```text
//!  Network ── a bridge in a namespace of the test ──┬── Machine 1 ── Cluster (tandem up)
//!                                                   └── Machine 2 ── Joined (tandem node)
//! ```
//!
//! Everything is removed again by name when it is dropped. The tests need root, as the product does.

#![allow(clippy::expect_used, clippy::print_stderr, reason = "a test says by a panic what is wrong")]

pub mod cluster;
pub mod https;
pub mod machine;
pub mod neighbours;
pub mod session;

use std::{
    fmt::Debug,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often a condition is looked at while a test waits for it.
const POLL: Duration = Duration::from_millis(50);
const BUSY_FACTOR: u32 = 10;

/// Waits until `probe` gives a value; panics with what it said last when the deadline passes.
pub fn until<T, E: Debug>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}; last seen: {last:?}"),
            Err(_) => pause(POLL),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place where tests wait, and always for a condition")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// How long something may take that is to take `goal` on a machine that does nothing else: on a busy one the goal says
/// little, and the tests of a change have to pass there too. `TANDEM_QUIET_MACHINE` makes it the goal itself.
pub fn allowed(goal: Duration) -> Duration {
    let quiet = std::env::var_os("TANDEM_QUIET_MACHINE").is_some();
    if quiet { goal } else { goal.saturating_mul(BUSY_FACTOR) }
}

/// A client of plain HTTP servers.
pub fn http_client() -> reqwest::Client {
    // Another one may have been chosen in this process: any will do.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo puts what it builds: the tests run from `TARGET/PROFILE/deps`.
pub fn target() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its own path");
    path.pop();
    path.pop();
    path
}

/// The product's binary, of the same build as the tests.
pub fn tandem() -> PathBuf {
    let path = target().join("tandem");
    assert!(path.exists(), "{} is not there: run `cargo build --workspace` first", path.display());
    path
}

/// A kubectl of one minor release, as `scripts/get-clients` fetches it.
pub fn kubectl(minor: u32) -> PathBuf {
    let path = root().join(format!("target/clients/1.{minor}/kubectl"));
    assert!(path.exists(), "{} is not there: run `make setup-test` first", path.display());
    path
}

/// A file that `samples/build.sh` made.
pub fn sample(name: &str) -> PathBuf {
    let path = root().join("target/samples").join(name);
    assert!(path.exists(), "{} is not there: run `samples/build.sh` first", path.display());
    path
}
