//! What every record about a file has in common.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use monitor_common::{
    HookSet, LAYOUT_VERSION, RecordHeader, RecordKind,
    path::{PATH_TRUNCATED, PathLengths},
};

use crate::{
    file::Opened,
    maps::{self, Outcome},
    path,
    scratch::{self, CGROUP_END, Claim, PATH_END, SCRATCH_BYTES},
    task::Watched,
};

/// What is written so far: the facts of the task in the scratch, and behind the fixed part of the
/// record the file's path and the cgroup's.
pub struct Begun {
    pub path: PathLengths,
    /// Bytes used.
    pub end: usize,
    cgroup_truncated: bool,
}

impl Begun {
    /// Writes both paths behind `fixed` bytes.
    #[inline(always)]
    pub fn new(claim: Claim, watched: &Watched, file: &Opened, fixed: usize) -> Option<Self> {
        let path = path::write(claim, file.vfsmount, file.dentry, fixed)?;
        Self::behind(claim, watched, path, fixed)
    }

    /// Writes the cgroup's path behind `fixed` bytes and the file's path, which may be empty.
    #[inline(always)]
    pub fn behind(
        claim: Claim,
        watched: &Watched,
        path: PathLengths,
        fixed: usize,
    ) -> Option<Self> {
        let end = fixed
            + usize::from(path.below_mount)
            + usize::from(path.above_mount)
            + usize::from(path.below_superblock);
        let end = scratch::bounded(end, PATH_END)?;
        let cgroup = path::write_cgroup(claim, watched.cgroup_node(), end)?;
        let end = scratch::bounded(end + cgroup.length, CGROUP_END)?;
        watched.write_facts(&cgroup, claim.task());
        Some(Self {
            path,
            end,
            cgroup_truncated: cgroup.truncated,
        })
    }

    pub fn is_truncated(&self) -> bool {
        self.path.flags & PATH_TRUNCATED != 0 || self.cgroup_truncated
    }
}

#[inline(always)]
pub fn header(kind: RecordKind, hook: HookSet, length: usize) -> RecordHeader {
    RecordHeader {
        kind: kind as u8,
        hook: hook as u8,
        version: LAYOUT_VERSION,
        length: length as u32,
        // SAFETY: a helper without arguments.
        time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
    }
}

/// Writes the fixed part, hands the record to the agent and wakes it.
#[inline(always)]
pub fn submit<T>(claim: Claim, fixed: T, end: usize, truncated: bool) -> Option<Outcome> {
    submit_by(claim, fixed, end, truncated, maps::submit)
}

/// Writes the fixed part and hands the record to the agent in this way.
#[inline(always)]
pub fn submit_by<T>(
    claim: Claim,
    fixed: T,
    end: usize,
    truncated: bool,
    submit: impl FnOnce(&[u8]) -> bool,
) -> Option<Outcome> {
    let bytes = claim.bytes();
    // SAFETY: the scratch is longer than any fixed part, aligned to 8 and this run's alone.
    unsafe { core::ptr::write(bytes.cast::<T>(), fixed) };
    hand_over(claim, end, truncated, submit)
}

/// Hands a record that is written to the agent in this way.
#[inline(always)]
pub fn hand_over(
    claim: Claim,
    end: usize,
    truncated: bool,
    submit: impl FnOnce(&[u8]) -> bool,
) -> Option<Outcome> {
    let bytes = claim.bytes();
    let end = scratch::bounded(end, SCRATCH_BYTES)?;
    // SAFETY: the scratch is that long.
    let record = unsafe { core::slice::from_raw_parts(bytes, end) };
    Some(if submit(record) {
        Outcome::Submitted { truncated }
    } else {
        Outcome::RingFull
    })
}
