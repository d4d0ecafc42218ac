//! How a path travels: as three runs of components, each leaf first, each component ended by NUL.
//!
//! ```text
//!        superblock root          namespace root
//!              │ below_superblock       │ above_mount
//!              └──── mount root ────────┘
//!                        │ below_mount
//!                       file
//! ```
//!
//! `below_mount` is from the file up to the root of its mount. `above_mount` goes on from where
//! that mount is mounted, to the root of the mount namespace; `below_superblock` goes on from the
//! root of the mount to the root of the superblock. The first two make the path that a process
//! sees (unless it is in a chroot), the first and the last the path inside the filesystem, which
//! no mount can change.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of one path component, the kernel's `NAME_MAX`.
pub const COMPONENT_BYTES_MAX: u32 = 255;
/// Bytes of the components of a path, all three runs together.
pub const PATH_BYTES_MAX: u32 = 4096;
/// Components of a path, all three runs together; a longer path is marked truncated.
pub const COMPONENTS_MAX: u32 = 256;

/// The lengths of the three runs, which follow each other in the record's tail.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PathLengths {
    /// Bytes from the file up to the root of its mount.
    pub below_mount: u16,
    /// Bytes from the mount point up to the root of the namespace.
    pub above_mount: u16,
    /// Bytes from the root of the mount up to the root of the superblock.
    pub below_superblock: u16,
    /// [`PATH_TRUNCATED`] and [`PATH_UNLINKED`].
    pub flags: u16,
}

/// The path was longer than its bounds: the components nearest to the file are there.
pub const PATH_TRUNCATED: u16 = 1;
/// The name was no longer in its directory when the hook ran (deleted, or never linked).
pub const PATH_UNLINKED: u16 = 2;

const _: () = assert!(size_of::<PathLengths>() == 8);
