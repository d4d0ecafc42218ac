//! Writes runs of path components into the scratch, leaf first (see `monitor_common::path`).
//!
//! The walks are `bpf_loop` callbacks whose state lies in a map: of a value on the stack the
//! verifier knows the bounds, which differ in each iteration, so that it would follow each apart.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, macros::map, maps::PerCpuArray};
use monitor_common::{
    exec::CGROUP_PATH_BYTES_MAX,
    path::{COMPONENTS_MAX, PATH_BYTES_MAX, PATH_TRUNCATED, PATH_UNLINKED, PathLengths},
};

use crate::{
    kernel::{Pointer, offset},
    scratch::{self, COMPONENT_SLACK},
};

/// `bpf_loop`'s words for going on and for stopping.
const CONTINUE: i64 = 0;
const STOP: i64 = 1;

/// Which of the three runs is being written.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Run {
    BelowMount,
    AboveMount,
    BelowSuperblock,
}

/// The state of a walk.
#[derive(Clone, Copy)]
struct Walk {
    /// The dentry, or the cgroup's node, whose name comes next.
    at: Pointer,
    mount: Pointer,
    mount_root: Pointer,
    /// Root of the file's own mount, where the third run begins.
    file_mount_root: Pointer,
    /// Where the next component goes in the scratch, and where the first went.
    offset: usize,
    start: usize,
    lengths: PathLengths,
    run: Run,
    end: End,
}

// SAFETY: its pointers are addresses in the kernel, the same on each CPU, and only ever probed.
unsafe impl Sync for Walk {}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum End {
    /// Not at the root: cut at a bound.
    Truncated,
    Finished,
    Unreadable,
}

#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's walk.
#[inline(always)]
fn walk_state() -> Option<&'static mut Walk> {
    // SAFETY: the slot is this CPU's, and a tracing program does not preempt itself.
    WALK.get_ptr_mut(0).map(|walk| unsafe { &mut *walk })
}

type Step = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// Calls `step` on this CPU's walk until it stops.
#[inline(always)]
fn run(step: Step) {
    // SAFETY: the callback has the prototype that bpf_loop calls and ignores its context.
    unsafe {
        bpf_loop(
            COMPONENTS_MAX,
            step as *mut c_void,
            core::ptr::null_mut(),
            0,
        )
    };
}

/// Writes the path of (`vfsmount`, `dentry`) at `offset` of the scratch. Gives its lengths, or
/// `None` if the kernel's structures could not be read.
#[inline(always)]
pub fn write(vfsmount: Pointer, dentry: Pointer, offset: usize) -> Option<PathLengths> {
    let mount_root = vfsmount.probe_follow(offset!(vfsmount_root))?;
    let walk = walk_state()?;
    *walk = Walk {
        at: dentry,
        mount: vfsmount.back(offset!(mount_vfsmount)),
        mount_root,
        file_mount_root: mount_root,
        offset,
        start: offset,
        lengths: PathLengths::default(),
        run: Run::BelowMount,
        end: End::Truncated,
    };
    run(step);
    let mut lengths = walk.lengths;
    match walk.end {
        End::Finished => {}
        End::Truncated => lengths.flags |= PATH_TRUNCATED,
        End::Unreadable => return None,
    }
    if dentry.probe_follow(offset!(dentry_hash_pprev))?.is_null() {
        lengths.flags |= PATH_UNLINKED;
    }
    Some(lengths)
}

unsafe extern "C" fn step(_index: u32, _context: *mut c_void) -> i64 {
    let Some(walk) = walk_state() else {
        return STOP;
    };
    verdict(try_step(walk))
}

/// What a step tells bpf_loop.
#[inline(always)]
fn verdict(step: Option<i64>) -> i64 {
    step.unwrap_or_else(|| {
        if let Some(walk) = walk_state() {
            walk.end = End::Unreadable;
        }
        STOP
    })
}

#[inline(always)]
fn try_step(walk: &mut Walk) -> Option<i64> {
    if walk.run != Run::BelowSuperblock && walk.at == walk.mount_root {
        return cross_mount(walk);
    }
    let parent = walk.at.probe_follow(offset!(dentry_parent))?;
    // A root that is no mount's root: of a superblock (the end), or a file that never had a
    // directory (memfd), whose name stands for the path.
    let is_root = parent == walk.at;
    if !is_root || walk.offset == walk.start {
        if walk.offset - walk.start >= PATH_BYTES_MAX as usize {
            return Some(STOP);
        }
        let length = write_component(walk.at.probe_follow(offset!(dentry_name))?, walk.offset)?;
        walk.offset += length;
        let length = length as u16;
        match walk.run {
            Run::BelowMount => walk.lengths.below_mount += length,
            Run::AboveMount => walk.lengths.above_mount += length,
            Run::BelowSuperblock => walk.lengths.below_superblock += length,
        }
    }
    if is_root {
        walk.end = End::Finished;
        return Some(STOP);
    }
    walk.at = parent;
    Some(CONTINUE)
}

/// At the root of a mount: go on from where it is mounted; at the root of the namespace, turn to
/// the rest of the superblock.
#[inline(always)]
fn cross_mount(walk: &mut Walk) -> Option<i64> {
    walk.run = Run::AboveMount;
    let parent = walk.mount.probe_follow(offset!(mount_parent))?;
    if parent == walk.mount {
        let superblock_parent = walk.file_mount_root.probe_follow(offset!(dentry_parent))?;
        walk.run = Run::BelowSuperblock;
        walk.at = walk.file_mount_root;
        if superblock_parent == walk.file_mount_root {
            walk.end = End::Finished;
            return Some(STOP);
        }
        return Some(CONTINUE);
    }
    walk.at = walk.mount.probe_follow(offset!(mount_mountpoint))?;
    walk.mount = parent;
    walk.mount_root = parent.probe_follow(offset!(mount_vfsmount) + offset!(vfsmount_root))?;
    Some(CONTINUE)
}

/// Writes one component with its NUL at `offset` of the scratch; gives its length.
#[inline(always)]
fn write_component(name: Pointer, offset: usize) -> Option<usize> {
    let scratch = scratch::get()?;
    if offset > scratch::CGROUP_END - COMPONENT_SLACK {
        return None;
    }
    // SAFETY: `offset` leaves room for a whole component.
    let length = unsafe { name.probe_string(scratch.wrapping_add(offset), COMPONENT_SLACK as u32) };
    (length > 0 && length <= COMPONENT_SLACK as i64).then_some(length as usize)
}

/// The components of a cgroup's path.
pub struct CgroupPath {
    pub length: usize,
    pub truncated: bool,
}

/// Writes the path of a cgroup's kernfs node at `offset` of the scratch.
#[inline(always)]
pub fn write_cgroup(node: Pointer, offset: usize) -> Option<CgroupPath> {
    let walk = walk_state()?;
    *walk = Walk {
        at: node,
        mount: Pointer::NULL,
        mount_root: Pointer::NULL,
        file_mount_root: Pointer::NULL,
        offset,
        start: offset,
        lengths: PathLengths::default(),
        run: Run::BelowMount,
        end: End::Truncated,
    };
    run(cgroup_step);
    if walk.end == End::Unreadable {
        return None;
    }
    Some(CgroupPath {
        length: walk.offset - offset,
        truncated: walk.end == End::Truncated,
    })
}

unsafe extern "C" fn cgroup_step(_index: u32, _context: *mut c_void) -> i64 {
    let Some(walk) = walk_state() else {
        return STOP;
    };
    verdict(try_cgroup_step(walk))
}

#[inline(always)]
fn try_cgroup_step(walk: &mut Walk) -> Option<i64> {
    let parent = walk.at.probe_follow(offset!(kernfs_node_parent))?;
    if parent.is_null() {
        walk.end = End::Finished;
        return Some(STOP);
    }
    if walk.offset - walk.start >= CGROUP_PATH_BYTES_MAX as usize {
        return Some(STOP);
    }
    walk.offset += write_component(
        walk.at.probe_follow(offset!(kernfs_node_name))?,
        walk.offset,
    )?;
    walk.at = parent;
    Some(CONTINUE)
}
