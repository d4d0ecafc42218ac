//! A program was executed.
//!
//! Behind the fixed part follow, each with the length it states: the path's three runs
//! ([`crate::path`]), the cgroup's path (components leaf first, each ended by NUL), the name of
//! the `#!` script if there is one, and the arguments as they lie in memory (each ended by NUL).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{RecordHeader, file::FileFacts, path::PathLengths, task::TaskFacts};

/// Bytes of the script's name.
pub const SCRIPT_BYTES_MAX: u32 = 1024;
/// Bytes of arguments.
pub const ARGUMENTS_BYTES_MAX: u32 = 4096;

/// The fixed part of an exec record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ExecRecord {
    /// Kind [`crate::RecordKind::Exec`].
    pub header: RecordHeader,
    /// Who executed.
    pub task: TaskFacts,
    /// The executed file; of a script, the interpreter.
    pub file: FileFacts,
    /// Lengths of the file's path.
    pub path: PathLengths,
    /// Bytes of the script's name; 0 if the file was executed itself.
    pub script_length: u16,
    /// Bytes of arguments.
    pub arguments_length: u16,
    /// How many of the strings behind `arguments_length` are arguments; what follows is not.
    pub arguments_count: u32,
    /// `EXEC_*` flags.
    pub flags: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// The arguments are longer than what is sent.
pub const EXEC_ARGUMENTS_TRUNCATED: u32 = 1;
/// The arguments could not be read from the process's memory.
pub const EXEC_ARGUMENTS_UNREADABLE: u32 = 2;
/// The script's name is longer than what is sent.
pub const EXEC_SCRIPT_TRUNCATED: u32 = 4;

const _: () = assert!(size_of::<ExecRecord>() == 16 + 48 + 88 + 8 + 16);
