//! The contract between the eBPF programs and the agent: record layouts, the kernel offsets that
//! the programs are given, and the bounds both sides rely on.
//!
//! The two sides are built by different compilers, so each layout here proves its own size and
//! alignment at compile time and has no padding. A change of any of them is a change of
//! [`LAYOUT_VERSION`].
#![no_std]

pub mod exec;
pub mod offsets;
pub mod path;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of every layout in this crate; the agent refuses a record of another one.
pub const LAYOUT_VERSION: u16 = 1;

/// Bytes of the ring buffer that carries records to the agent.
pub const RING_BYTES: u32 = 8 << 20;

/// How many cgroups the kernel side remembers; the least recently used one is forgotten and asked
/// for again.
pub const CGROUPS_MAX: u32 = 16_384;

/// What a record tells; the first two bytes of [`RecordHeader`].
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A program was executed: [`exec::ExecRecord`].
    Exec = 1,
}

/// What each record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u16,
    /// [`LAYOUT_VERSION`] of the programs that wrote it.
    pub version: u16,
    /// Bytes of the whole record, this header included.
    pub length: u32,
    /// When the hook ran, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub time_boot_ns: u64,
}

const _: () = assert!(size_of::<RecordHeader>() == 16);

/// What the agent has told the kernel side of a cgroup; absent means unknown or a container's,
/// whose events are sent.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupState {
    /// Belongs to no container: events are not sent unless the mount namespace is another than
    /// the host's.
    Host = 1,
}

/// Per hook and CPU, what became of each run of the hook:
/// `seen = unwatched + submitted + ring_full + unreadable`; `truncated` is a part of `submitted`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct HookCounters {
    /// Runs of the hook.
    pub seen: u64,
    /// Of the host, not sent.
    pub unwatched: u64,
    /// Handed to the ring buffer.
    pub submitted: u64,
    /// Lost because the ring buffer was full.
    pub ring_full: u64,
    /// Lost because a kernel structure could not be read.
    pub unreadable: u64,
    /// Submitted with a path, arguments or a name cut at its bound.
    pub truncated: u64,
}

/// Index of a hook's [`HookCounters`] in the `COUNTERS` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `tp_btf/sched_process_exec`.
    Exec = 0,
}

/// How many [`Hook`]s there are.
pub const HOOKS: u32 = 1;
