//! The clock of the kernel's events.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot (`CLOCK_BOOTTIME`); 0 on a kernel without that clock, which is none that
/// has BTF.
pub fn boot_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_nanos()).ok())
        .unwrap_or_default()
}
