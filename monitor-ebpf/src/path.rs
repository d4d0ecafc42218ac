//! Writes runs of path components into the scratch, leaf first (see `monitor_common::path`).
//!
//! The walks are `bpf_loop` callbacks whose state lies in a map: of a value on the stack the
//! verifier knows the bounds, which differ in each iteration, so that it would follow each apart.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use monitor_common::{
    path::{COMPONENTS_MAX, PATH_BYTES_MAX, PATH_TRUNCATED, PATH_UNLINKED, PathLengths},
    task::CGROUP_PATH_BYTES_MAX,
};

use crate::{
    kernel::{Pointer, offset},
    scratch::{self, COMPONENT_SLACK, Claim, SCRATCH_BYTES, Scratch},
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
pub struct Walk {
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

type Step = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// Calls `step` on the walk of a scratch until it stops.
#[inline(always)]
fn run(claim: Claim, step: Step) {
    let mut number = claim.number;
    // SAFETY: the callback has the prototype that bpf_loop calls, and its context is a u32.
    unsafe {
        bpf_loop(
            COMPONENTS_MAX,
            step as *mut c_void,
            (&raw mut number).cast(),
            0,
        )
    };
}

/// The scratch that a callback is to go on with.
///
/// # Safety
///
/// `context` must be what [`run`] handed to bpf_loop.
#[inline(always)]
unsafe fn scratch_of(context: *mut c_void) -> Option<&'static mut Scratch> {
    // SAFETY: by this function's contract; the scratch is this run's alone.
    unsafe {
        let number = *context.cast::<u32>();
        scratch::get(number).map(|scratch| &mut *scratch)
    }
}

/// Writes the path of (`vfsmount`, `dentry`) at `offset` of the scratch. Gives its lengths, or
/// `None` if the kernel's structures could not be read.
#[inline(always)]
pub fn write(
    claim: Claim,
    vfsmount: Pointer,
    dentry: Pointer,
    offset: usize,
) -> Option<PathLengths> {
    let mount_root = vfsmount.probe_follow(offset!(vfsmount_root))?;
    // SAFETY: the scratch is this run's alone.
    let walk = unsafe { &mut (*claim.scratch).walk };
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
    run(claim, step);
    // SAFETY: as above.
    let walk = unsafe { &(*claim.scratch).walk };
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

unsafe extern "C" fn step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `run` calls it.
    match unsafe { scratch_of(context) } {
        Some(scratch) => verdict(try_step(scratch), scratch),
        None => STOP,
    }
}

/// What a step tells bpf_loop.
#[inline(always)]
fn verdict(step: Option<i64>, scratch: &mut Scratch) -> i64 {
    step.unwrap_or_else(|| {
        scratch.walk.end = End::Unreadable;
        STOP
    })
}

#[inline(always)]
fn try_step(scratch: &mut Scratch) -> Option<i64> {
    let Scratch { walk, bytes, .. } = scratch;
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
        let length = write_component(
            bytes,
            walk.at.probe_follow(offset!(dentry_name))?,
            walk.offset,
        )?;
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
fn write_component(
    scratch: &mut [u8; SCRATCH_BYTES],
    name: Pointer,
    offset: usize,
) -> Option<usize> {
    if offset > scratch::CGROUP_END - COMPONENT_SLACK {
        return None;
    }
    // SAFETY: `offset` leaves room for a whole component.
    let length = unsafe {
        name.probe_string(
            scratch.as_mut_ptr().wrapping_add(offset),
            COMPONENT_SLACK as u32,
        )
    };
    (length > 0 && length <= COMPONENT_SLACK as i64).then_some(length as usize)
}

/// The components of a cgroup's path.
pub struct CgroupPath {
    pub length: usize,
    pub truncated: bool,
}

/// Writes the path of a cgroup's kernfs node at `offset` of the scratch.
#[inline(always)]
pub fn write_cgroup(claim: Claim, node: Pointer, offset: usize) -> Option<CgroupPath> {
    // SAFETY: the scratch is this run's alone.
    let walk = unsafe { &mut (*claim.scratch).walk };
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
    run(claim, cgroup_step);
    // SAFETY: as above.
    let walk = unsafe { &(*claim.scratch).walk };
    if walk.end == End::Unreadable {
        return None;
    }
    Some(CgroupPath {
        length: walk.offset - offset,
        truncated: walk.end == End::Truncated,
    })
}

unsafe extern "C" fn cgroup_step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `run` calls it.
    match unsafe { scratch_of(context) } {
        Some(scratch) => verdict(try_cgroup_step(scratch), scratch),
        None => STOP,
    }
}

#[inline(always)]
fn try_cgroup_step(scratch: &mut Scratch) -> Option<i64> {
    let Scratch { walk, bytes, .. } = scratch;
    let parent = walk.at.probe_follow(offset!(kernfs_node_parent))?;
    if parent.is_null() {
        walk.end = End::Finished;
        return Some(STOP);
    }
    if walk.offset - walk.start >= CGROUP_PATH_BYTES_MAX as usize {
        return Some(STOP);
    }
    walk.offset += write_component(
        bytes,
        walk.at.probe_follow(offset!(kernfs_node_name))?,
        walk.offset,
    )?;
    walk.at = parent;
    Some(CONTINUE)
}
