//! Who did something, and whether anybody wants to know.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use monitor_common::{
    CgroupFacts, CgroupState, HookSet,
    task::{TASK_CGROUP_TRUNCATED, TaskFacts},
};

use crate::{
    kernel::{Pointer, offset},
    maps,
    path::CgroupPath,
    scratch::Claim,
};

/// The current task as far as the decision depends on it whether an event is sent.
#[derive(Clone, Copy)]
pub struct Watched {
    /// Trusted.
    pub task: Pointer,
    pub cgroup_id: u64,
    pub mount_namespace: u32,
    /// Where it is seen.
    pub hook: HookSet,
    cgroup: CgroupFacts,
}

impl Watched {
    /// The current task, unless it is the host's.
    #[inline(always)]
    pub fn current(hook: HookSet) -> Option<Self> {
        let task = Pointer::current_task();
        // SAFETY: a helper without arguments.
        let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
        let cgroup = maps::cgroup(cgroup_id);
        let mount_namespace = mount_namespace_of(task);
        let is_host = cgroup.state == CgroupState::Host as u32
            && mount_namespace == offset!(host_mount_namespace) as u32;
        (!is_host).then_some(Self {
            task,
            cgroup_id,
            mount_namespace,
            hook,
            cgroup,
        })
    }

    /// The process that the task is of.
    #[inline(always)]
    pub fn process(&self) -> maps::Process {
        maps::Process {
            start_boot_ns: start_boot_ns(self.task),
            pid: self.task.load(offset!(task_tgid)),
            reserved: 0,
        }
    }

    /// Whether the version of the scratch's file was judged good before, in the container's root.
    #[inline(always)]
    pub fn remembers(&self, claim: Claim) -> bool {
        let file = claim.file();
        if self.cgroup.state != CgroupState::Container as u32
            || self.cgroup.root_device != file.device
        {
            return false;
        }
        let Some(version) = file.lower_version() else {
            return false;
        };
        *claim.version() = version;
        maps::is_remembered(claim.version())
    }

    /// The node of the task's cgroup in kernfs.
    #[inline(always)]
    pub fn cgroup_node(&self) -> Pointer {
        self.task
            .follow(offset!(task_cgroups))
            .follow(offset!(css_set_dfl_cgrp))
            .follow(offset!(cgroup_kn))
    }

    #[inline(always)]
    pub fn write_facts(&self, cgroup: &CgroupPath, facts: &mut TaskFacts) {
        let task = self.task;
        let parent = task.follow(offset!(task_real_parent));
        facts.cgroup_id = self.cgroup_id;
        facts.start_boot_ns = start_boot_ns(task);
        facts.pid = task.load(offset!(task_tgid));
        facts.parent_pid = parent.load(offset!(task_tgid));
        facts.parent_mount_namespace = mount_namespace_of(parent);
        facts.uid = task.follow(offset!(task_cred)).load(offset!(cred_uid));
        facts.mount_namespace = self.mount_namespace;
        facts.pid_namespace = task
            .follow(offset!(task_nsproxy))
            .follow(offset!(nsproxy_pid_ns))
            .load(offset!(pid_namespace_inum));
        facts.root_device = task
            .follow(offset!(task_fs))
            .follow(offset!(fs_root_mnt))
            .follow(offset!(vfsmount_sb))
            .load(offset!(super_block_dev));
        facts.cgroup_path_length = cgroup.length as u16;
        facts.flags = if cgroup.truncated {
            TASK_CGROUP_TRUNCATED
        } else {
            0
        };
    }
}

/// When the process of a trusted task started.
#[inline(always)]
pub fn start_boot_ns(task: Pointer) -> u64 {
    task.follow(offset!(task_group_leader))
        .load(offset!(task_start_boottime))
}

/// 0 for a task that is exiting, whose namespaces are gone.
#[inline(always)]
pub fn mount_namespace_of(task: Pointer) -> u32 {
    task.follow(offset!(task_nsproxy))
        .follow(offset!(nsproxy_mnt_ns))
        .load(offset!(mnt_namespace_inum))
}
