//! What the sensor gives: checked, owned, and without any trace of how it was transported.

use std::os::fd::OwnedFd;

pub use monitor_common::exec::FileFacts;

/// A program was executed.
#[derive(Debug)]
pub struct Exec {
    /// When, in nanoseconds since boot.
    pub time_boot_ns: u64,
    /// The cgroup of the task.
    pub cgroup: Cgroup,
    /// The process.
    pub process: Process,
    /// The executed file; of a script, the interpreter.
    pub file: File,
    /// The script's name as it was given to execve, if there is one.
    pub script: Option<Vec<u8>>,
    /// Arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Arguments were cut at their bound or could not be read.
    pub arguments_truncated: bool,
    /// It ran before the hooks were attached; told by a look at `/proc`.
    pub already_running: bool,
    /// What fanotify held of this exec, in the order of opening: scripts, the program, the ELF
    /// interpreter; empty where nothing was held.
    pub held: Vec<OwnedFd>,
    /// The program where fanotify does not cover it (memory, volumes), as an `O_PATH` descriptor;
    /// `None` if the process had gone.
    pub program: Option<OwnedFd>,
}

/// A cgroup of the v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id; not reused during a boot.
    pub id: u64,
    /// Its path from the root of the hierarchy, beginning with `/`; begins with `…/` if it was cut.
    pub path: Vec<u8>,
}

/// A process when the hook ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it started, in nanoseconds since boot: with `pid` its identity.
    pub start_boot_ns: u64,
    /// Process id of its parent.
    pub parent_pid: u32,
    /// Inode number of its parent's mount namespace; 0 if the parent was exiting.
    pub parent_mount_namespace: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Inode number of its mount namespace.
    pub mount_namespace: u32,
    /// Inode number of its pid namespace.
    pub pid_namespace: u32,
    /// Kernel device number of the superblock of its root directory.
    pub root_device: u32,
}

/// A file when it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What the kernel says of it.
    pub facts: FileFacts,
    /// Its path from the root of the mount namespace.
    pub path: Vec<u8>,
    /// Its path from the root of its superblock, which no mount can change.
    pub path_in_filesystem: Vec<u8>,
    /// The paths were cut: the components nearest to the file are there.
    pub path_truncated: bool,
    /// Its name was no longer in its directory.
    pub unlinked: bool,
}
