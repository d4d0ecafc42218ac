//! A program was executed (`tp_btf/sched_process_exec`).
//!
//! Behind the fixed part follow, each with the length it states: the path's three runs
//! ([`crate::path`]), the cgroup's path (components leaf first, each ended by NUL), the name of
//! the `#!` script if there is one, and the arguments as they lie in memory (each ended by NUL).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{RecordHeader, path::PathLengths};

/// Bytes of the cgroup's path; deeper cgroups send the components nearest to the task.
pub const CGROUP_PATH_BYTES_MAX: u32 = 1024;
/// Bytes of the script's name.
pub const SCRIPT_BYTES_MAX: u32 = 1024;
/// Bytes of arguments.
pub const ARGUMENTS_BYTES_MAX: u32 = 4096;

/// What is known of a file in the kernel when it is used.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct FileFacts {
    /// `i_ino` of the inode that was opened (on overlayfs the overlay's own).
    pub inode: u64,
    /// `i_ino` of the inode that holds the bytes; equal to `inode` unless the file is of an
    /// overlay's upper layer.
    pub real_inode: u64,
    /// Bytes of the real inode.
    pub size: u64,
    /// Seconds of the real inode's modification time.
    pub modified_s: i64,
    /// Seconds of the real inode's change time.
    pub changed_s: i64,
    /// Nanoseconds to `modified_s`.
    pub modified_ns: u32,
    /// Nanoseconds to `changed_s`, without the kernel's flag bit.
    pub changed_ns: u32,
    /// Kernel device number (`major << 20 | minor`) of the superblock of the opened file.
    pub device: u32,
    /// Kernel device number of the superblock of the real inode.
    pub real_device: u32,
    /// Generation of the real inode.
    pub generation: u32,
    /// Link count of the real inode.
    pub link_count: u32,
    /// `s_magic` of the opened file's superblock.
    pub filesystem_magic: u32,
    /// `FILE_*` flags.
    pub flags: u32,
    /// Inode number of the mount namespace that the file's mount is in; 0 for an internal or a
    /// detached mount (memfd, pipe, a cloned mount).
    pub mount_namespace: u32,
    /// `i_mode` of the opened inode.
    pub mode: u32,
}

/// The file is on an overlay.
pub const FILE_OVERLAY: u32 = 1;
/// The bytes are in the overlay's upper layer.
pub const FILE_UPPER: u32 = 2;

/// `OVERLAYFS_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
pub const OVERLAYFS_MAGIC: u32 = 0x794c_7630;

/// The fixed part of an exec record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ExecRecord {
    /// Kind [`crate::RecordKind::Exec`].
    pub header: RecordHeader,
    /// Id of the task's cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// When the process started, in nanoseconds since boot: with `pid` its identity.
    pub start_boot_ns: u64,
    /// The executed file; of a script, the interpreter.
    pub file: FileFacts,
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
    /// Lengths of the file's path.
    pub path: PathLengths,
    /// Bytes of the cgroup's path.
    pub cgroup_path_length: u16,
    /// Bytes of the script's name; 0 if the file was executed itself.
    pub script_length: u16,
    /// Bytes of arguments.
    pub arguments_length: u16,
    /// `EXEC_*` flags.
    pub flags: u16,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// The arguments are longer than what is sent.
pub const EXEC_ARGUMENTS_TRUNCATED: u16 = 1;
/// The arguments could not be read from the process's memory.
pub const EXEC_ARGUMENTS_UNREADABLE: u16 = 2;
/// The cgroup's path is longer than what is sent.
pub const EXEC_CGROUP_TRUNCATED: u16 = 4;
/// The script's name is longer than what is sent.
pub const EXEC_SCRIPT_TRUNCATED: u16 = 8;

const _: () = assert!(size_of::<FileFacts>() == 80);
const _: () = assert!(size_of::<ExecRecord>() == 16 + 16 + 80 + 28 + 8 + 8 + 4);
