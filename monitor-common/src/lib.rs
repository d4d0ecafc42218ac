//! The contract between the eBPF programs and the agent: record layouts, the kernel offsets that
//! the programs are given, and the bounds both sides rely on.
//!
//! The two sides are built by different compilers, so each layout here proves its own size and
//! alignment at compile time and has no padding. A change of any of them is a change of
//! [`LAYOUT_VERSION`].
#![no_std]

pub mod code;
pub mod connect;
pub mod exec;
pub mod file;
pub mod interpreter;
pub mod loss;
pub mod offsets;
pub mod open;
pub mod path;
pub mod process;
pub mod ring;
pub mod syscall;
pub mod task;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of every layout in this crate; the agent refuses a record of another one.
pub const LAYOUT_VERSION: u16 = 7;

/// Bytes of the ring buffer that carries records to the agent.
pub const RING_BYTES: u32 = 8 << 20;

/// Bytes of it beyond which what can be repeated at will is lost first: the rest is for execs.
pub const RING_REPEATABLE_BYTES: u64 = RING_BYTES as u64 / 2;

/// Bytes of records that the agent has read and still leaves in the ring until they are judged, so that
/// its successor reads them again if it is killed. More than what can be repeated may take up: who
/// floods the ring with that must not keep the agent from reading what others do.
pub const RING_HELD_BYTES_MAX: u64 = RING_BYTES as u64 / 4 * 3;

const _: () = assert!(RING_HELD_BYTES_MAX > RING_REPEATABLE_BYTES);

/// A place in the ring, counted since it was made.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct Mark {
    /// Bytes before it, headers of the ring's own included.
    pub position: u64,
    /// Records before it.
    pub records: u64,
    /// Of these by [`Hook`], those that had not been told when they were let go: neither judged for
    /// good, nor in the count of an alert, nor in a gap.
    pub untold: [u64; HOOKS as usize],
}

/// Records of plain opens do not wake the agent more often than this, in milliseconds per CPU; it
/// looks again by itself that long after it was woken.
pub const WAKE_INTERVAL_MS: u16 = 4;

/// How many cgroups the kernel side remembers; the least recently used one is forgotten and asked
/// for again.
pub const CGROUPS_MAX: u32 = 16_384;

/// What a record tells; the first byte of [`RecordHeader`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A program was executed: [`exec::ExecRecord`].
    Exec = 1,
    /// A file was mapped executable: [`code::CodeRecord`].
    Code = 2,
    /// A file was opened: [`open::OpenRecord`].
    Open = 3,
    /// A shell treats a file as commands: [`open::SourceRecord`].
    Source = 4,
    /// A process came to be: [`process::ForkRecord`].
    Fork = 5,
    /// A process ended: [`process::ExitRecord`].
    Exit = 6,
    /// A process reached for a peer: [`connect::ConnectRecord`].
    Connect = 7,
    /// What came of a connect: [`connect::AnswerRecord`].
    Answer = 8,
}

/// A family of hooks, best first.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookSet {
    /// Programs of the kernel's security framework.
    Lsm = 1,
    /// The same places, entered through a trampoline.
    Fentry = 2,
    /// Tracepoints, the end of system calls, and programs of the root cgroup.
    Tracepoint = 3,
}

/// What each record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u8,
    /// The [`HookSet`] of the hook that saw it.
    pub hook: u8,
    /// [`LAYOUT_VERSION`] of the programs that wrote it.
    pub version: u16,
    /// Bytes of the whole record, this header included.
    pub length: u32,
    /// When the hook ran, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub time_boot_ns: u64,
}

const _: () = assert!(size_of::<RecordHeader>() == 16);

/// How many file versions the kernel side remembers as judged good; the least recently used one
/// is forgotten and told again.
pub const REMEMBERED_MAX: u32 = 65_536;

/// What the agent has told the kernel side of a cgroup; absent means unknown, whose events are
/// sent.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct CgroupFacts {
    /// A [`CgroupState`]; 0 for unknown.
    pub state: u32,
    /// Of a container's, the kernel device number of its root filesystem.
    pub root_device: u32,
}

/// Whose a cgroup is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupState {
    /// Belongs to no container: events are not sent unless the mount namespace is another than
    /// the host's.
    Host = 1,
    /// A container's: events of files in its root that are remembered are not sent.
    Container = 2,
}

/// Per hook and CPU, what became of each run of the hook:
/// `seen = unwatched + remembered + submitted + ring_full + map_full + unreadable`; `truncated` is a
/// part of `submitted`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct HookCounters {
    /// Runs of the hook.
    pub seen: u64,
    /// Of the host, not sent.
    pub unwatched: u64,
    /// Judged good before, or told of the same process a moment ago, not sent.
    pub remembered: u64,
    /// Handed to the ring buffer.
    pub submitted: u64,
    /// Lost because the ring buffer was full.
    pub ring_full: u64,
    /// Lost because this CPU was in the middle of as many hooks as it has room for.
    pub map_full: u64,
    /// Lost because a kernel structure could not be read.
    pub unreadable: u64,
    /// Submitted with a path, arguments or a name cut at its bound.
    pub truncated: u64,
}

/// Index of a hook's [`HookCounters`] in the `COUNTERS` map. What a run of a hook is counts once,
/// wherever the kernel lets it be seen.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Executed programs.
    Exec = 0,
    /// Files mapped executable.
    Code = 1,
    /// Files opened.
    Open = 2,
    /// Files that shells treat as commands.
    Source = 3,
    /// Processes made.
    Fork = 4,
    /// Processes ended.
    Exit = 5,
    /// Peers connected or sent to.
    Connect = 6,
}

/// How many [`Hook`]s there are.
pub const HOOKS: u32 = 7;
