//! The clock of the kernel's events, and times as others write them.

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

/// Nanoseconds since 1970; 0 of none.
pub fn unix_ns(time: Option<prost_types::Timestamp>) -> i128 {
    time.map_or(0, |time| {
        i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
    })
}
