//! What the machine says of itself.

use std::path::Path;

use crate::fields::NodeSize;

/// Free memory below this is pressure, as in Kubernetes.
const MEMORY_FREE_MIN_BYTES: u64 = 100 << 20;
/// Free disk below this share, or below this size, is pressure.
const DISK_FREE_MIN_PERCENT: u64 = 2;
const DISK_FREE_MIN_BYTES: u64 = 256 << 20;
const PROCESSES_FREE_MIN: u64 = 100;
/// The unit of `/proc/stat`: a hundredth of a second, whatever the kernel's own clock is.
const TICK_NS: u64 = 10_000_000;

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn memory(key: &str) -> Option<u64> {
    let info = text("/proc/meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::to_owned))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The machine's memory, as the kubelet tells it of its root cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryUse {
    pub(crate) total_bytes: u64,
    pub(crate) usage_bytes: u64,
    /// What could not be had back without writing to disk: without cached files that were not used lately.
    pub(crate) working_set_bytes: u64,
    pub(crate) rss_bytes: u64,
}

pub(crate) fn memory_use() -> MemoryUse {
    let of = |key: &str| memory(key).unwrap_or(0);
    let total = of("MemTotal");
    let usage = total.saturating_sub(of("MemFree"));
    MemoryUse {
        total_bytes: total,
        usage_bytes: usage,
        working_set_bytes: usage.saturating_sub(of("Inactive(file)")),
        rss_bytes: of("AnonPages"),
    }
}

/// The CPU time that everything on the machine has used since it started, in nanoseconds.
pub(crate) fn cpu_ns() -> u64 {
    busy_ticks(&text("/proc/stat")).saturating_mul(TICK_NS)
}

/// Of `cpu  user nice system idle iowait irq softirq steal …`: all but idleness and what other machines took.
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_knows_what_it_uses() {
        assert_eq!(busy_ticks("cpu  100 20 30 4000 500 6 7 800 90 10\ncpu0 1 2 3"), 163);
        assert_eq!(busy_ticks(""), 0);
        let memory = memory_use();
        assert!(memory.total_bytes > memory.usage_bytes && memory.usage_bytes >= memory.working_set_bytes);
        assert!(memory.working_set_bytes > 0 && cpu_ns() > 0);
    }
}
