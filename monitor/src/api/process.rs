//! What the daemon says of its own process.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Resident memory of this process in bytes; 0 where /proc does not tell.
pub(super) fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok());
    let page_bytes = sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok());
    pages
        .zip(page_bytes)
        .map_or(0, |(pages, bytes)| pages.saturating_mul(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_running_program_has_memory() {
        assert!(super::resident_bytes() > 1 << 18);
    }
}
