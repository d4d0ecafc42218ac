//! What the kernel knows of the task that did something.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the cgroup's path; deeper cgroups send the components nearest to the task.
pub const CGROUP_PATH_BYTES_MAX: u32 = 1024;

/// The task and where it belongs.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct TaskFacts {
    /// Id of the task's cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// When the process started, in nanoseconds since boot: with `pid` its identity.
    pub start_boot_ns: u64,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Process id of the parent, likewise.
    pub parent_pid: u32,
    /// Inode number of the parent's mount namespace; 0 if the parent is exiting.
    pub parent_mount_namespace: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Inode number of the task's mount namespace.
    pub mount_namespace: u32,
    /// Inode number of the task's pid namespace.
    pub pid_namespace: u32,
    /// Kernel device number of the superblock of the task's root directory.
    pub root_device: u32,
    /// Bytes of the cgroup's path.
    pub cgroup_path_length: u16,
    /// `TASK_*` flags.
    pub flags: u16,
}

/// The cgroup's path is longer than what is sent.
pub const TASK_CGROUP_TRUNCATED: u16 = 1;

const _: () = assert!(size_of::<TaskFacts>() == 48);
