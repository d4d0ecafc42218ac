//! What the kernel knows of a file when it is used.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identity, version and place of a file.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct FileFacts {
    /// `i_ino` of the inode that was opened (on overlayfs the overlay's own).
    pub inode: u64,
    /// `i_ino` of the inode that holds the bytes: on overlayfs of the upper layer's if there is
    /// one, else of the lower layer's; elsewhere `inode`.
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
    /// `d_name.hash` of its dentry: another name of the same file has another, as a rule.
    pub name_hash: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// The file is on an overlay.
pub const FILE_OVERLAY: u32 = 1;
/// The bytes are in the overlay's upper layer.
pub const FILE_UPPER: u32 = 2;
/// The agent has confirmed this version of the file before ([`FileVersion`]).
pub const FILE_REMEMBERED: u32 = 4;

/// `OVERLAYFS_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
pub const OVERLAYFS_MAGIC: u32 = 0x794c_7630;

/// A version of a file of a lower layer: the key of what the kernel side remembers as judged good.
///
/// Only files of lower layers are remembered. No container can write those, whatever it holds
/// mapped; who edits them on the host changes `changed_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct FileVersion {
    /// See [`FileFacts::real_inode`].
    pub inode: u64,
    /// See [`FileFacts::size`].
    pub size: u64,
    /// See [`FileFacts::changed_s`].
    pub changed_s: i64,
    /// See [`FileFacts::changed_ns`].
    pub changed_ns: u32,
    /// See [`FileFacts::real_device`].
    pub device: u32,
    /// See [`FileFacts::generation`].
    pub generation: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

impl FileFacts {
    /// Where there is no file.
    pub const ZERO: Self = Self {
        inode: 0,
        real_inode: 0,
        size: 0,
        modified_s: 0,
        changed_s: 0,
        modified_ns: 0,
        changed_ns: 0,
        device: 0,
        real_device: 0,
        generation: 0,
        link_count: 0,
        filesystem_magic: 0,
        flags: 0,
        mount_namespace: 0,
        mode: 0,
        name_hash: 0,
        reserved: 0,
    };

    /// The version, if the file is of an overlay's lower layer.
    #[inline(always)]
    pub fn lower_version(&self) -> Option<FileVersion> {
        (self.flags & (FILE_OVERLAY | FILE_UPPER) == FILE_OVERLAY).then_some(FileVersion {
            inode: self.real_inode,
            size: self.size,
            changed_s: self.changed_s,
            changed_ns: self.changed_ns,
            device: self.real_device,
            generation: self.generation,
            reserved: 0,
        })
    }
}

const _: () = assert!(size_of::<FileFacts>() == 88);
const _: () = assert!(size_of::<FileVersion>() == 40);
