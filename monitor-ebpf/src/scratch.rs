//! Where a record is put together before it is copied into the ring, since 512 bytes of stack hold
//! no path.
//!
//! Each CPU has a few: hooks that run through a trampoline may be preempted by another task that
//! runs a hook on the same CPU, and LSM programs even by themselves.

use core::arch::asm;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use monitor_common::{
    connect::{ConnectRecord, Peer},
    exec::{ARGUMENTS_BYTES_MAX, SCRIPT_BYTES_MAX},
    file::{FileFacts, FileVersion},
    path::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX},
    task::{CGROUP_PATH_BYTES_MAX, TaskFacts},
};

use crate::{kernel::opaque, path::Walk};

/// A component is read whole where the space left is only known to be not exceeded yet, so that
/// each run of components may go beyond its bound by one.
pub const COMPONENT_SLACK: usize = COMPONENT_BYTES_MAX as usize + 1;

/// Offsets at which each section must have begun; sections follow each other without gaps. The
/// fixed part of a connect record is the longest.
pub const PATH_END: usize = size_of::<ConnectRecord>() + PATH_BYTES_MAX as usize + COMPONENT_SLACK;
pub const CGROUP_END: usize = PATH_END + CGROUP_PATH_BYTES_MAX as usize + COMPONENT_SLACK;
pub const SCRIPT_END: usize = CGROUP_END + SCRIPT_BYTES_MAX as usize;
pub const SCRATCH_BYTES: usize = SCRIPT_END + ARGUMENTS_BYTES_MAX as usize;

/// Hooks that one CPU can be in the middle of; one more gives up, which is counted.
const NESTED_MAX: u32 = 4;

#[repr(C)]
pub struct Scratch {
    busy: u64,
    pub walk: Walk,
    pub task: TaskFacts,
    pub file: FileFacts,
    pub version: FileVersion,
    pub peer: Peer,
    pub bytes: [u8; SCRATCH_BYTES],
}

#[map]
static SCRATCHES: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(NESTED_MAX, 0);

/// This CPU's scratch of that number.
#[inline(always)]
pub fn get(number: u32) -> Option<*mut Scratch> {
    SCRATCHES.get_ptr_mut(number)
}

/// One scratch, until [`Claim::release`].
#[derive(Clone, Copy)]
pub struct Claim {
    pub number: u32,
    pub scratch: *mut Scratch,
}

impl Claim {
    #[inline(always)]
    pub fn take() -> Option<Self> {
        for number in 0..NESTED_MAX {
            let scratch = get(number)?;
            // SAFETY: the value lives as long as the map.
            if unsafe { swap(&raw mut (*scratch).busy, 1) } == 0 {
                return Some(Self { number, scratch });
            }
        }
        None
    }

    #[inline(always)]
    pub fn release(self) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.scratch).busy).write_volatile(0) };
    }

    /// What is known of the file.
    #[inline(always)]
    pub fn file(self) -> &'static mut FileFacts {
        // SAFETY: as above; the scratch is this run's alone.
        unsafe { &mut (*self.scratch).file }
    }

    /// What is known of the task.
    #[inline(always)]
    pub fn task(self) -> &'static mut TaskFacts {
        // SAFETY: as above.
        unsafe { &mut (*self.scratch).task }
    }

    /// The version of the file.
    #[inline(always)]
    pub fn version(self) -> &'static mut FileVersion {
        // SAFETY: as above.
        unsafe { &mut (*self.scratch).version }
    }

    /// The peer.
    #[inline(always)]
    pub fn peer(self) -> &'static mut Peer {
        // SAFETY: as above.
        unsafe { &mut (*self.scratch).peer }
    }

    #[inline(always)]
    pub fn bytes(self) -> *mut u8 {
        // SAFETY: as above; no reference is made.
        unsafe { (&raw mut (*self.scratch).bytes).cast() }
    }
}

/// An offset in the scratch, if it is at most `max`.
#[inline(always)]
pub fn bounded(offset: usize, max: usize) -> Option<usize> {
    let offset = opaque(offset as u64) as usize;
    (offset <= max).then_some(offset)
}

/// Puts `value` at `place` and gives what was there, in one step; rustc's atomics have no such
/// operation for this target.
///
/// # Safety
///
/// `place` must be valid and aligned.
#[inline(always)]
unsafe fn swap(place: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: by this function's contract; the instruction touches nothing else.
    unsafe {
        asm!("{value} = xchg_64({place} + 0, {value})", place = in(reg) place, value = inout(reg) value);
    }
    value
}
