//! An interpreter opened a file for reading, and what a shell then does with it.
//!
//! Behind the fixed part follow the path's three runs and the cgroup's path, as in
//! [`crate::exec`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{RecordHeader, file::FileFacts, path::PathLengths, task::TaskFacts};

/// The fixed part of an open record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct OpenRecord {
    /// Kind [`crate::RecordKind::Open`].
    pub header: RecordHeader,
    /// Who opened.
    pub task: TaskFacts,
    /// What was opened.
    pub file: FileFacts,
    /// Lengths of the file's path.
    pub path: PathLengths,
    /// The descriptor; [`NO_DESCRIPTOR`] where the hook runs before there is one.
    pub descriptor: u32,
    /// `OPEN_*` flags.
    pub flags: u32,
}

/// In place of a descriptor.
pub const NO_DESCRIPTOR: u32 = u32::MAX;
/// Not opened by the process, but its standard input when it executed its program.
pub const OPEN_STANDARD_INPUT: u32 = 1;

/// What a shell did with an open file tells whether it takes it for commands or for data.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SourceRecord {
    /// Kind [`crate::RecordKind::Source`].
    pub header: RecordHeader,
    /// When the process started, in nanoseconds since boot.
    pub start_boot_ns: u64,
    /// See [`FileFacts::inode`].
    pub inode: u64,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// See [`FileFacts::device`].
    pub device: u32,
    /// A [`Sign`].
    pub sign: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// What the shell did.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It put the file in the place of a descriptor below [`COMMANDS_DESCRIPTORS`]: it is data for a
    /// command.
    Redirected = 3,
    /// It moved the descriptor out of the way of its commands', to [`COMMANDS_DESCRIPTORS`] or above.
    Kept = 1,
    /// It asked for the file's size, to read it whole.
    Examined = 2,
}

/// Descriptors that shells leave to their commands: those of one digit.
pub const COMMANDS_DESCRIPTORS: u64 = 10;

const _: () = assert!(size_of::<OpenRecord>() == 16 + 48 + 80 + 8 + 8);
const _: () = assert!(size_of::<SourceRecord>() == 48);
