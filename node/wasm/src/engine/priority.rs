//! How the kernel is to schedule a thread.

use std::{io, time::Duration};

/// What `sched_setattr(2)` takes, in its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const ATTRIBUTES_BYTES: u32 = 48;
const _: () = assert!(size_of::<Attributes>() == 48);
const SCHED_OTHER: u32 = 0;

/// How much this thread gives way to others, and for how long it may run once it does. One with a long slice is
/// interrupted by whoever wakes up with a shorter one, in other groups too, and has no less in the end (EEVDF; kernels
/// before 6.12 look at `nice` only). Without a slice it has the kernel's.
pub(super) fn set(nice: i32, slice: Option<Duration>) -> io::Result<()> {
    let attributes = Attributes {
        size: ATTRIBUTES_BYTES,
        policy: SCHED_OTHER,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice.map_or(0, |slice| u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX)),
        deadline: 0,
        period: 0,
    };
    #[allow(unsafe_code, reason = "no crate at hand has this system call")]
    // SAFETY: the kernel reads `size` bytes from the pointer, which is to a struct of that size and layout that
    // outlives the call, and writes nothing. Thread 0 is the calling one.
    let failed = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0;
    if failed {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "a thread cannot be given a slice; its priority alone is set");
        rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way() {
        let nice = std::thread::spawn(|| {
            set(7, Some(Duration::from_millis(100))).unwrap();
            rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap()
        });
        assert_eq!(nice.join().unwrap(), 7);
    }
}
