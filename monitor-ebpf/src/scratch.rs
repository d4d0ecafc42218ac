//! Where a record is put together before it is copied into the ring: one per CPU, since 512 bytes
//! of stack hold no path.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use monitor_common::{
    exec::{ARGUMENTS_BYTES_MAX, CGROUP_PATH_BYTES_MAX, ExecRecord, SCRIPT_BYTES_MAX},
    path::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX},
};

/// A component is read whole where the space left is only known to be not exceeded yet, so that
/// each run of components may go beyond its bound by one.
pub const COMPONENT_SLACK: usize = COMPONENT_BYTES_MAX as usize + 1;

/// Offsets at which each section must have begun; sections follow each other without gaps.
pub const PATH_END: usize = size_of::<ExecRecord>() + PATH_BYTES_MAX as usize + COMPONENT_SLACK;
pub const CGROUP_END: usize = PATH_END + CGROUP_PATH_BYTES_MAX as usize + COMPONENT_SLACK;
pub const SCRIPT_END: usize = CGROUP_END + SCRIPT_BYTES_MAX as usize;
pub const SCRATCH_BYTES: usize = SCRIPT_END + ARGUMENTS_BYTES_MAX as usize;

#[map]
static SCRATCH: PerCpuArray<[u8; SCRATCH_BYTES]> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's scratch.
#[inline(always)]
pub fn get() -> Option<*mut u8> {
    SCRATCH.get_ptr_mut(0).map(|scratch| scratch.cast::<u8>())
}
