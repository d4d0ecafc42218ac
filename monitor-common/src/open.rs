//! A file was opened, and what a shell then does with it.
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
/// Opened by an interpreter for reading only, so that it may become code.
pub const OPEN_INTERPRETED: u32 = 2;
/// Opened for reading.
pub const OPEN_READ: u32 = 4;
/// Opened for writing.
pub const OPEN_WRITE: u32 = 8;
/// Not opened by the process, but handed over by another.
pub const OPEN_RECEIVED: u32 = 16;

/// Messages, control messages and descriptors of one call looked at, together, where only its end
/// tells of received files; beyond it they are counted as unreadable. One message carries 253
/// descriptors at most.
pub const RECEIVED_MAX: u32 = 1_024;

/// How many opens the kernel side remembers as judged good; the least recently used one is
/// forgotten and told again.
pub const OPENS_MAX: u32 = 65_536;

/// An open that was judged good: by whom, of which file, for what. Neither size nor times are a
/// part of it, since whether a file may be opened does not depend on what it holds; what becomes
/// code is judged apart from that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct OpenKey {
    /// Id of the cgroup.
    pub cgroup_id: u64,
    /// See [`FileFacts::real_inode`].
    pub inode: u64,
    /// See [`FileFacts::real_device`].
    pub device: u32,
    /// See [`FileFacts::generation`].
    pub generation: u32,
    /// See [`FileFacts::device`]: a file may be reached on several mounts of several filesystems.
    pub seen_device: u32,
    /// [`OPEN_READ`] and [`OPEN_WRITE`].
    pub access: u32,
    /// See [`FileFacts::name_hash`]: a file that is renamed is told under its new name.
    pub name_hash: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

const _: () = assert!(size_of::<OpenKey>() == 40);

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

const _: () = assert!(size_of::<OpenRecord>() == 16 + 48 + 88 + 8 + 8);
const _: () = assert!(size_of::<SourceRecord>() == 48);
