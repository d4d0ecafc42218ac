//! A file was mapped executable, a mapping of it was made executable, or memory without a file was
//! after it had been written.
//!
//! Behind the fixed part follow the path's three runs and the cgroup's path, as in
//! [`crate::exec`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{RecordHeader, file::FileFacts, path::PathLengths, task::TaskFacts};

/// Mappings looked at of one `mprotect` where each has to be looked for; of a call that spans more,
/// the rest is counted as unreadable.
pub const MAPPINGS_MAX: u32 = 64;

/// Processes of which the kernel side remembers that it told of memory without a file; of more, the
/// one least recently used is told of again.
pub const PROCESSES_MAX: u32 = 16_384;

/// The fixed part of a code record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct CodeRecord {
    /// Kind [`crate::RecordKind::Code`].
    pub header: RecordHeader,
    /// Who mapped.
    pub task: TaskFacts,
    /// What was mapped.
    pub file: FileFacts,
    /// Lengths of the file's path.
    pub path: PathLengths,
    /// Where the mapping begins; 0 where the hook runs before the kernel has chosen.
    pub start: u64,
    /// Where it ends; 0 likewise.
    pub end: u64,
    /// `CODE_*` flags.
    pub flags: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// Pages of the mapping were written before it was made executable: what runs is not what the file
/// holds.
pub const CODE_WRITTEN: u32 = 1;
/// Memory without a file: there are no facts and no path of one.
pub const CODE_ANONYMOUS: u32 = 2;

const _: () = assert!(size_of::<CodeRecord>() == 16 + 48 + 88 + 8 + 24);
