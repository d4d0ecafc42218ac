//! A process came to be or ended.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::RecordHeader;

/// A process made another.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ForkRecord {
    /// Kind [`crate::RecordKind::Fork`].
    pub header: RecordHeader,
    /// When the parent started, in nanoseconds since boot.
    pub parent_start_boot_ns: u64,
    /// When the child started, likewise.
    pub child_start_boot_ns: u64,
    /// Process id of the parent in the initial pid namespace.
    pub parent_pid: u32,
    /// Process id of the child, likewise.
    pub child_pid: u32,
}

/// A process ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ExitRecord {
    /// Kind [`crate::RecordKind::Exit`].
    pub header: RecordHeader,
    /// When it started, in nanoseconds since boot.
    pub start_boot_ns: u64,
    /// Its process id in the initial pid namespace.
    pub pid: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ForkRecord>() == 40);
const _: () = assert!(size_of::<ExitRecord>() == 32);
