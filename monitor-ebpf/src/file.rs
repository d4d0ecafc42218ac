//! Which file it is that a program uses, whatever lies between it and the bytes.

use monitor_common::{
    file::{FILE_OVERLAY, FILE_UPPER, FileFacts, OVERLAYFS_MAGIC},
    open::OpenKey,
};

use crate::kernel::{Pointer, offset};

/// The kernel keeps a flag in the nanoseconds of ctime (`I_CTIME_QUERIED`, since 6.13).
const CTIME_NS_MASK: u32 = 0x7fff_ffff;

/// What a user opened.
#[derive(Clone, Copy)]
pub struct Opened {
    pub vfsmount: Pointer,
    pub dentry: Pointer,
    pub inode: Pointer,
    /// The file was the real one below a stacked filesystem's, which mappings hold in its place.
    pub was_backing: bool,
    mount_namespace: Pointer,
}

impl Opened {
    /// What a user opened to get `file`.
    #[inline(always)]
    pub fn of(file: Pointer) -> Option<Self> {
        let mut opened = Self {
            vfsmount: file.probe_follow(offset!(file_path_mnt))?,
            dentry: file.probe_follow(offset!(file_path_dentry))?,
            inode: file.probe_follow(offset!(file_inode))?,
            was_backing: false,
            mount_namespace: Pointer::NULL,
        };
        opened.find_namespace()?;
        if offset!(backing_user_path) == 0 {
            // The real file goes by the path that the user opened (`open_with_fake_path`).
            let inode = opened.dentry.probe_follow(offset!(dentry_inode))?;
            if inode != opened.inode && !inode.is_null() {
                opened.inode = inode;
                opened.was_backing = true;
            }
        } else if is_internal(file)? {
            // What is mapped or executed of such is a `struct backing_file`.
            let path = offset!(backing_user_path);
            opened.vfsmount = file.probe_follow(path + offset!(path_mnt))?;
            opened.dentry = file.probe_follow(path + offset!(path_dentry))?;
            opened.inode = opened.dentry.probe_follow(offset!(dentry_inode))?;
            opened.was_backing = true;
            opened.find_namespace()?;
        }
        Some(opened)
    }

    /// What has a place in the file tree without being open: the file of a socket.
    #[inline(always)]
    pub fn at(vfsmount: Pointer, dentry: Pointer) -> Option<Self> {
        let mut opened = Self {
            vfsmount,
            dentry,
            inode: dentry.probe_follow(offset!(dentry_inode))?,
            was_backing: false,
            mount_namespace: Pointer::NULL,
        };
        opened.find_namespace()?;
        Some(opened)
    }

    /// Inode and device as processes see them: the key of what is known of a program.
    #[inline(always)]
    pub fn key(&self) -> Option<(u64, u32)> {
        let superblock = self.inode.probe_follow(offset!(inode_sb))?;
        Some((
            self.inode.probe(offset!(inode_ino))?,
            superblock.probe(offset!(super_block_dev))?,
        ))
    }

    /// The inode that holds the bytes, and the `FILE_*` flags that tell where it lies.
    #[inline(always)]
    fn real(&self, filesystem_magic: u32) -> Option<(Pointer, u32)> {
        if filesystem_magic != OVERLAYFS_MAGIC {
            return Some((self.inode, 0));
        }
        let mut flags = FILE_OVERLAY;
        let mut dentry = self.inode.probe_follow(offset!(ovl_upper_dentry))?;
        if dentry.is_null() {
            dentry = lower_dentry(self.inode)?;
            if dentry.is_null() {
                // A file of no layer at all is compared by its bytes.
                return Some((self.inode, flags | FILE_UPPER));
            }
        } else {
            flags |= FILE_UPPER;
        }
        Some((dentry.probe_follow(offset!(dentry_inode))?, flags))
    }

    /// Type and permissions of the inode, and the magic of its filesystem.
    #[inline(always)]
    pub fn mode_and_magic(&self) -> Option<(u32, u32)> {
        let superblock = self.inode.probe_follow(offset!(inode_sb))?;
        Some((
            u32::from(self.inode.probe::<u16>(offset!(inode_mode))?),
            superblock.probe(offset!(super_block_magic))?,
        ))
    }

    /// As what the kernel side remembers it that it may be opened.
    #[inline(always)]
    pub fn open_key(&self, filesystem_magic: u32, cgroup_id: u64, access: u32) -> Option<OpenKey> {
        let (real, _) = self.real(filesystem_magic)?;
        let device = |inode: Pointer| {
            inode
                .probe_follow(offset!(inode_sb))?
                .probe::<u32>(offset!(super_block_dev))
        };
        let real_device = device(real)?;
        Some(OpenKey {
            cgroup_id,
            inode: real.probe(offset!(inode_ino))?,
            device: real_device,
            generation: real.probe(offset!(inode_generation))?,
            seen_device: if real == self.inode {
                real_device
            } else {
                device(self.inode)?
            },
            access,
            name_hash: self.dentry.probe(offset!(dentry_name_hash))?,
            reserved: 0,
        })
    }

    #[inline(always)]
    pub fn write_facts(&self, facts: &mut FileFacts) -> Option<()> {
        let inode = self.inode;
        let superblock = inode.probe_follow(offset!(inode_sb))?;
        superblock.probe_to(&mut facts.filesystem_magic, offset!(super_block_magic))?;
        let (real, flags) = self.real(facts.filesystem_magic)?;
        facts.flags = flags;
        inode.probe_to(&mut facts.inode, offset!(inode_ino))?;
        facts.mode = u32::from(inode.probe::<u16>(offset!(inode_mode))?);
        superblock.probe_to(&mut facts.device, offset!(super_block_dev))?;
        real.probe_to(&mut facts.real_inode, offset!(inode_ino))?;
        real.probe_to(&mut facts.size, offset!(inode_size_bytes))?;
        real.probe_to(&mut facts.modified_s, offset!(inode_mtime_s))?;
        real.probe_to(&mut facts.modified_ns, offset!(inode_mtime_ns))?;
        real.probe_to(&mut facts.changed_s, offset!(inode_ctime_s))?;
        real.probe_to(&mut facts.changed_ns, offset!(inode_ctime_ns))?;
        facts.changed_ns &= CTIME_NS_MASK;
        real.probe_to(&mut facts.generation, offset!(inode_generation))?;
        real.probe_to(&mut facts.link_count, offset!(inode_nlink))?;
        real.probe_follow(offset!(inode_sb))?
            .probe_to(&mut facts.real_device, offset!(super_block_dev))?;
        self.dentry
            .probe_to(&mut facts.name_hash, offset!(dentry_name_hash))?;
        facts.reserved = 0;
        facts.mount_namespace = 0;
        if !self.mount_namespace.is_null() && !self.mount_namespace.is_error() {
            self.mount_namespace
                .probe_to(&mut facts.mount_namespace, offset!(mnt_namespace_inum))?;
        }
        Some(())
    }

    #[inline(always)]
    fn find_namespace(&mut self) -> Option<()> {
        self.mount_namespace = self
            .vfsmount
            .back(offset!(mount_vfsmount))
            .probe_follow(offset!(mount_ns))?;
        Some(())
    }
}

/// Whether a file was opened on a mount that a filesystem made for itself, and is no pseudo file.
#[inline(always)]
pub fn is_internal(file: Pointer) -> Option<bool> {
    let vfsmount = file.probe_follow(offset!(file_path_mnt))?;
    let namespace = vfsmount
        .back(offset!(mount_vfsmount))
        .probe_follow(offset!(mount_ns))?;
    let dentry = file.probe_follow(offset!(file_path_dentry))?;
    let parent = dentry.probe_follow(offset!(dentry_parent))?;
    Some(namespace.is_error() && parent != dentry)
}

/// The uppermost of overlayfs's lower layers that has the file; null if none has.
#[inline(always)]
fn lower_dentry(inode: Pointer) -> Option<Pointer> {
    if offset!(ovl_entry) == 0 {
        return inode.probe_follow(offset!(ovl_lower_dentry));
    }
    let entry = inode.probe_follow(offset!(ovl_entry))?;
    if entry.is_null() || entry.probe::<u32>(offset!(ovl_entry_count))? == 0 {
        return Some(Pointer::NULL);
    }
    entry.probe_follow(offset!(ovl_entry_dentry))
}
