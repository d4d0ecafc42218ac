//! A program was executed.

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns};
use monitor_common::{
    CgroupState, Hook, LAYOUT_VERSION, RecordHeader, RecordKind,
    exec::{
        ARGUMENTS_BYTES_MAX, EXEC_ARGUMENTS_TRUNCATED, EXEC_ARGUMENTS_UNREADABLE,
        EXEC_CGROUP_TRUNCATED, EXEC_SCRIPT_TRUNCATED, ExecRecord, FILE_OVERLAY, FILE_UPPER,
        FileFacts, OVERLAYFS_MAGIC, SCRIPT_BYTES_MAX,
    },
    path::PATH_TRUNCATED,
};

use crate::{
    kernel::{Pointer, offset, read_user},
    maps::{self, Outcome},
    path,
    scratch::{self, CGROUP_END, PATH_END, SCRATCH_BYTES, SCRIPT_END},
};

/// The kernel keeps a flag in the nanoseconds of ctime (`I_CTIME_QUERIED`, since 6.13).
const CTIME_NS_MASK: u32 = 0x7fff_ffff;

/// Runs at `sched_process_exec`, in the task that executes.
#[inline(always)]
pub fn observe(task: *const u8, binprm: *const u8) -> i32 {
    let outcome = try_observe(Pointer(task), Pointer(binprm)).unwrap_or(Outcome::Unreadable);
    maps::count(Hook::Exec, &outcome);
    0
}

#[inline(always)]
fn try_observe(task: Pointer, binprm: Pointer) -> Option<Outcome> {
    // SAFETY: a helper without arguments.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let mount_namespace = mount_namespace_of(task);
    if mount_namespace == offset!(host_mount_namespace) as u32
        && maps::cgroup_state(cgroup_id) == CgroupState::Host as u32
    {
        return Some(Outcome::Unwatched);
    }

    let scratch = scratch::get()?;
    let file = binprm.follow(offset!(binprm_file));
    let vfsmount = file.follow(offset!(file_path_mnt));
    let dentry = file.follow(offset!(file_path_dentry));

    let mut end = size_of::<ExecRecord>();
    let path = path::write(vfsmount, dentry, end)?;
    end += usize::from(path.below_mount)
        + usize::from(path.above_mount)
        + usize::from(path.below_superblock);
    if end > PATH_END {
        return None;
    }
    let mut flags = 0;

    let node = task
        .follow(offset!(task_cgroups))
        .follow(offset!(css_set_dfl_cgrp))
        .follow(offset!(cgroup_kn));
    let cgroup = path::write_cgroup(node, end)?;
    if cgroup.truncated {
        flags |= EXEC_CGROUP_TRUNCATED;
    }
    end += cgroup.length;
    if end > CGROUP_END {
        return None;
    }

    let script_length = write_script(scratch, binprm, end, &mut flags)?;
    end += script_length;
    if end > SCRIPT_END {
        return None;
    }

    let arguments_length = write_arguments(scratch, task, end, &mut flags);
    end += arguments_length;
    if end > SCRATCH_BYTES {
        return None;
    }

    let parent = task.follow(offset!(task_real_parent));
    let leader = task.follow(offset!(task_group_leader));
    let record = ExecRecord {
        header: RecordHeader {
            kind: RecordKind::Exec as u16,
            version: LAYOUT_VERSION,
            length: end as u32,
            // SAFETY: a helper without arguments.
            time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        },
        cgroup_id,
        start_boot_ns: leader.load(offset!(task_start_boottime)),
        file: file_facts(file, vfsmount)?,
        pid: task.load(offset!(task_tgid)),
        parent_pid: parent.load(offset!(task_tgid)),
        parent_mount_namespace: mount_namespace_of(parent),
        uid: task.follow(offset!(task_cred)).load(offset!(cred_uid)),
        mount_namespace,
        pid_namespace: task
            .follow(offset!(task_nsproxy))
            .follow(offset!(nsproxy_pid_ns))
            .load(offset!(pid_namespace_inum)),
        root_device: task
            .follow(offset!(task_fs))
            .follow(offset!(fs_root_mnt))
            .follow(offset!(vfsmount_sb))
            .load(offset!(super_block_dev)),
        path,
        cgroup_path_length: cgroup.length as u16,
        script_length: script_length as u16,
        arguments_length: arguments_length as u16,
        flags,
        reserved: 0,
    };
    // SAFETY: the scratch is longer than the record, aligned to 8 as every map value is, and this
    // CPU's own.
    let bytes = unsafe {
        core::ptr::write(scratch.cast::<ExecRecord>(), record);
        core::slice::from_raw_parts(scratch, end)
    };
    let truncated = path.flags & PATH_TRUNCATED != 0
        || flags & (EXEC_ARGUMENTS_TRUNCATED | EXEC_CGROUP_TRUNCATED | EXEC_SCRIPT_TRUNCATED) != 0;
    Some(if maps::submit(bytes) {
        Outcome::Submitted { truncated }
    } else {
        Outcome::RingFull
    })
}

/// 0 for a task that is exiting, whose namespaces are gone.
#[inline(always)]
fn mount_namespace_of(task: Pointer) -> u32 {
    task.follow(offset!(task_nsproxy))
        .follow(offset!(nsproxy_mnt_ns))
        .load(offset!(mnt_namespace_inum))
}

/// What was handed to execve, where the kernel went on to an interpreter.
#[inline(always)]
fn write_script(scratch: *mut u8, binprm: Pointer, end: usize, flags: &mut u16) -> Option<usize> {
    let name = binprm.follow(offset!(binprm_filename));
    if name == binprm.follow(offset!(binprm_interp)) {
        return Some(0);
    }
    // SAFETY: `end` is at most CGROUP_END, which leaves room for a script's name.
    let length = unsafe { name.probe_string(scratch.wrapping_add(end), SCRIPT_BYTES_MAX) };
    if length <= 0 || length > SCRIPT_BYTES_MAX as i64 {
        return None;
    }
    if length == SCRIPT_BYTES_MAX as i64 {
        *flags |= EXEC_SCRIPT_TRUNCATED;
    }
    Some(length as usize)
}

/// The arguments from the new process's stack, where execve has just put them.
#[inline(always)]
fn write_arguments(scratch: *mut u8, task: Pointer, end: usize, flags: &mut u16) -> usize {
    let mm = task.follow(offset!(task_mm));
    let start: u64 = mm.load(offset!(mm_arg_start));
    let mut length = mm.load::<u64>(offset!(mm_arg_end)).wrapping_sub(start);
    if length > u64::from(ARGUMENTS_BYTES_MAX) {
        *flags |= EXEC_ARGUMENTS_TRUNCATED;
        length = u64::from(ARGUMENTS_BYTES_MAX);
    }
    // SAFETY: `end` is at most SCRIPT_END, which leaves room for all arguments.
    if unsafe { read_user(scratch.wrapping_add(end), length as u32, start) } {
        length as usize
    } else {
        *flags |= EXEC_ARGUMENTS_UNREADABLE;
        0
    }
}

#[inline(always)]
fn file_facts(file: Pointer, vfsmount: Pointer) -> Option<FileFacts> {
    let inode = file.follow(offset!(file_inode));
    let superblock = inode.follow(offset!(inode_sb));
    let magic = superblock.load::<u64>(offset!(super_block_magic)) as u32;
    let device = superblock.load(offset!(super_block_dev));
    let mut flags = 0;
    let mut real = inode;
    if magic == OVERLAYFS_MAGIC {
        flags |= FILE_OVERLAY;
        let upper = inode.probe_follow(offset!(ovl_upper_dentry))?;
        if !upper.is_null() {
            flags |= FILE_UPPER;
            real = upper.probe_follow(offset!(dentry_inode))?;
        }
    }
    let namespace = vfsmount
        .back(offset!(mount_vfsmount))
        .probe_follow(offset!(mount_ns))?;
    Some(FileFacts {
        inode: inode.load(offset!(inode_ino)),
        real_inode: real.probe(offset!(inode_ino))?,
        size: real.probe(offset!(inode_size_bytes))?,
        modified_s: real.probe(offset!(inode_mtime_s))?,
        modified_ns: real.probe(offset!(inode_mtime_ns))?,
        changed_s: real.probe(offset!(inode_ctime_s))?,
        changed_ns: real.probe::<u32>(offset!(inode_ctime_ns))? & CTIME_NS_MASK,
        device,
        real_device: real
            .probe_follow(offset!(inode_sb))?
            .probe(offset!(super_block_dev))?,
        generation: real.probe(offset!(inode_generation))?,
        link_count: real.probe(offset!(inode_nlink))?,
        filesystem_magic: magic,
        flags,
        mount_namespace: if namespace.is_error_or_null() {
            0
        } else {
            namespace.probe(offset!(mnt_namespace_inum))?
        },
        mode: u32::from(inode.load::<u16>(offset!(inode_mode))),
    })
}
