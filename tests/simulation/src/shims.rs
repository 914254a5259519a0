//! The machine's clock and entropy, replaced for this process: whatever asks for them gets those of the run.

use std::time::Duration;

use tandem_simulation::world;

/// `struct timespec` of 64-bit Linux.
#[repr(C)]
pub(crate) struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// # Safety
/// `time` points to a `timespec`, as the C library's function demands.
#[allow(unsafe_code, reason = "takes the place of the C library's function")]
// SAFETY: the symbol has the signature of the function that it replaces.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(_clock: i32, time: *mut Timespec) -> i32 {
    let now = world::monotonic().unwrap_or(Duration::from_secs(1));
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    // SAFETY: the caller's promise.
    unsafe { time.write(Timespec { seconds, nanoseconds: i64::from(now.subsec_nanos()) }) };
    0
}

/// # Safety
/// `buffer` points to `length` bytes that may be written, as the C library's function demands.
#[allow(unsafe_code, reason = "takes the place of the C library's function")]
// SAFETY: the symbol has the signature of the function that it replaces.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller's promise; the bytes are initialized first.
    let bytes = unsafe {
        buffer.write_bytes(0, length);
        std::slice::from_raw_parts_mut(buffer, length)
    };
    world::fill(bytes);
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Keeps both functions in the binary.
pub(crate) fn install() {
    std::hint::black_box((clock_gettime as *const (), getrandom as *const ()));
}
