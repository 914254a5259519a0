//! What the machine says of itself.

use std::path::Path;

use crate::fields::NodeSize;

/// Free memory below this is pressure, as in Kubernetes.
const MEMORY_FREE_MIN_BYTES: u64 = 100 << 20;
/// Free disk below this share, or below this size, is pressure.
const DISK_FREE_MIN_PERCENT: u64 = 2;
const DISK_FREE_MIN_BYTES: u64 = 256 << 20;
const PROCESSES_FREE_MIN: u64 = 100;

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn memory(key: &str) -> Option<u64> {
    let info = text("/proc/meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::to_owned))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(crate) fn size() -> NodeSize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    NodeSize { cpus: cpus as u64, memory_bytes: memory("MemTotal").unwrap_or(0) }
}

/// Size and free space of the file system that holds a path.
pub(crate) fn disk(path: &Path) -> (u64, u64) {
    match rustix::fs::statvfs(path) {
        Ok(stat) => (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "cannot ask for the size of the disk");
            (0, 0)
        }
    }
}

/// What runs short on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) processes: bool,
}

pub(crate) fn pressure(path: &Path) -> Pressure {
    let (size, free) = disk(path);
    let number = |path: &str| text(path).parse::<u64>().ok();
    // `0.42 0.36 0.12 2/715 4711`: running and all threads.
    let threads =
        text("/proc/loadavg").split(' ').nth(3).and_then(|field| field.split('/').nth(1)?.parse::<u64>().ok());
    let processes = number("/proc/sys/kernel/pid_max").zip(threads);
    Pressure {
        memory: memory("MemAvailable").is_some_and(|free| free < MEMORY_FREE_MIN_BYTES),
        disk: size > 0 && (free < DISK_FREE_MIN_BYTES || free * 100 / size < DISK_FREE_MIN_PERCENT),
        processes: processes.is_some_and(|(max, used)| max.saturating_sub(used) < PROCESSES_FREE_MIN),
    }
}

pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

pub(crate) fn boot_id() -> String {
    text("/proc/sys/kernel/random/boot_id")
}

pub(crate) fn machine_id() -> String {
    let id = text("/etc/machine-id");
    if id.is_empty() { boot_id().replace('-', "") } else { id }
}

pub(crate) fn system_uuid() -> String {
    let uuid = text("/sys/class/dmi/id/product_uuid");
    if uuid.is_empty() { machine_id() } else { uuid }
}

pub(crate) fn operating_system() -> String {
    let release = text("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The machine's architecture as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
