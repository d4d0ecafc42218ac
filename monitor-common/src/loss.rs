//! Whose records the kernel side lost.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many combinations of [`LossKey`] the kernel side counts apart. The least recently counted
/// one is forgotten: what it lost is then in the hook's counters only, of nobody in particular.
pub const LOSSES_MAX: u32 = 4096;

/// Why a record was lost.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossCause {
    /// The ring buffer was full.
    RingFull = 0,
    /// A kernel structure could not be read.
    Unreadable = 1,
    /// This CPU was in the middle of as many hooks as it has room for.
    MapFull = 2,
}

/// Key of the `LOSSES` map, whose value is how many records were lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct LossKey {
    /// Id of the task's cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// Inode number of the task's mount namespace; 0 if it is exiting.
    pub mount_namespace: u32,
    /// A [`crate::Hook`].
    pub hook: u16,
    /// A [`LossCause`].
    pub cause: u16,
}

const _: () = assert!(size_of::<LossKey>() == 16);

/// What was lost of a [`crate::Hook`] until a time.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct LossTotals {
    /// By [`LossCause::RingFull`].
    pub ring_full: u64,
    /// By [`LossCause::MapFull`].
    pub map_full: u64,
    /// By [`LossCause::Unreadable`].
    pub unreadable: u64,
    /// Runs that the kernel skipped.
    pub recursion_misses: u64,
    /// Of [`crate::Mark::untold`], what has been told since.
    pub told_later: u64,
    /// Nanoseconds since boot.
    pub until_boot_ns: u64,
}
